package process_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	ratelimit "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	rls "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/client/holdfasttest"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// rest calls a REST interface.
type rest struct {
	t   *testing.T
	url string
}

func (r rest) do(method, path, body string, headers ...string) (int, http.Header, map[string]any) {
	r.t.Helper()
	q, err := http.NewRequestWithContext(r.t.Context(), method, r.url+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		q.Header.Set(headers[i], headers[i+1])
	}
	a, err := http.DefaultClient.Do(q)
	if err != nil {
		r.t.Fatal(err)
	}
	defer a.Body.Close()
	text, err := io.ReadAll(a.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	var fields map[string]any
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if err := d.Decode(&fields); err != nil {
		r.t.Fatalf("%s %s answered %d %q, which is not JSON: %v", method, path, a.StatusCode, text, err)
	}
	return a.StatusCode, a.Header, fields
}

func (r rest) ok(method, path, body string, headers ...string) map[string]any {
	r.t.Helper()
	code, _, fields := r.do(method, path, body, headers...)
	if code != http.StatusOK {
		r.t.Fatalf("%s %s %s: %d %v", method, path, body, code, fields)
	}
	return fields
}

func dial(t *testing.T, c *holdfasttest.Cluster) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(c.Addrs()[0], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func TestREST(t *testing.T) {
	c := holdfasttest.Start(t, 1)
	r := rest{t, c.URL(0)}
	created := r.ok("POST", "/api/v1/policies", `{"name":"api","algorithm":"fixed_window","rate_limit":3,"calendar":"year"}`)
	id, _ := created["policy_id"].(string)
	if _, err := time.Parse(time.RFC3339Nano, fmt.Sprint(created["created_at"])); id == "" || err != nil {
		t.Fatalf("created %v: %v", created, err)
	}
	r.ok("PUT", "/api/v1/policies/"+id+"/clients", `{"client_ids":["alice","bob"]}`)
	check := `{"client_id":"alice","resource":"/x"}`
	for left := 2; left >= 0; left-- {
		got := r.ok("POST", "/api/v1/ratelimit/check", check)
		if got["allowed"] != true || got["remaining_quota"] != json.Number(fmt.Sprint(left)) || got["policy_applied"] != id {
			t.Fatalf("with %d left: %v", left, got)
		}
	}
	got := r.ok("POST", "/api/v1/ratelimit/check", check)
	if got["allowed"] != false || got["retry_after"] == json.Number("0") {
		t.Fatalf("denied with 200: %v", got)
	}
	code, h, _ := r.do("POST", "/api/v1/ratelimit/check?http_status=true", check)
	if code != http.StatusTooManyRequests || h.Get("Retry-After") == "" ||
		!strings.HasPrefix(h.Get("RateLimit"), `"api";r=0;t=`) || !strings.HasPrefix(h.Get("RateLimit-Policy"), `"api";q=3;w=`) {
		t.Fatalf("denied with a status: %d %v", code, h)
	}
	code, h, got = r.do("POST", "/api/v1/ratelimit/check?http_status=true", `{"client_id":"alice","weight":4}`)
	if code != http.StatusTooManyRequests || h.Values("Retry-After") != nil || got["retry_after"] != json.Number("-1") || h.Get("RateLimit-Policy") == "" {
		t.Fatalf("a weight that never fits: %d %v %v", code, h, got)
	}
	st := r.ok("GET", "/api/v1/ratelimit/status?client_id=alice&policy_id="+id, "")
	row := st["policies"].([]any)[0].(map[string]any)
	if row["policy_id"] != id || row["remaining_quota"] != json.Number("0") || row["current_usage"] != json.Number("3") {
		t.Fatalf("status %v", st)
	}
	if got := r.ok("POST", "/api/v1/ratelimit/check", `{"client_id":"bob","weight":2}`); got["remaining_quota"] != json.Number("1") {
		t.Fatalf("another client shares the quota: %v", got)
	}
	if got := r.ok("POST", "/api/v1/ratelimit/check", `{"client_id":"stranger"}`); got["allowed"] != true || got["policy_applied"] != "" {
		t.Fatalf("a client without a policy: %v", got)
	}
	r.ok("PATCH", "/api/v1/policies/api", `{"rate_limit":10}`)
	if got := r.ok("POST", "/api/v1/ratelimit/check", check); got["allowed"] != true || got["remaining_quota"] != json.Number("6") {
		t.Fatalf("after the limit was raised: %v", got)
	}
	r.ok("POST", "/api/v1/ratelimit/reset", `{"client_id":"alice"}`)
	if got := r.ok("POST", "/api/v1/ratelimit/check", check); got["remaining_quota"] != json.Number("9") {
		t.Fatalf("after a reset: %v", got)
	}
	history := r.ok("GET", "/api/v1/policies/api/history", "")["changes"].([]any)
	if len(history) != 3 || history[0].(map[string]any)["action"] != "update" {
		t.Fatalf("history %v", history)
	}
	if cluster := r.ok("GET", "/api/v1/cluster", ""); cluster["healthy"] != true {
		t.Fatalf("cluster %v", cluster)
	}
	for _, path := range []string{"/healthz", "/readyz", "/metrics", "/openapi.json"} {
		a, err := http.Get(c.URL(0) + path)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(a.Body)
		_ = a.Body.Close()
		if a.StatusCode != http.StatusOK || len(text) == 0 {
			t.Errorf("%s answered %d", path, a.StatusCode)
		}
		if path == "/metrics" && (!bytes.Contains(text, []byte(`holdfast_shard_leader{shard="1"} 1`)) || !bytes.Contains(text, []byte("holdfast_raft_log_sync_seconds_count"))) {
			t.Errorf("metrics lack the shards:\n%s", text)
		}
	}
}

func TestIdempotencyKeyMakesARepetitionHarmless(t *testing.T) {
	c := holdfasttest.Start(t, 1)
	r := rest{t, c.URL(0)}
	r.ok("POST", "/api/v1/policies", `{"name":"api","algorithm":"fixed_window","rate_limit":10,"calendar":"year"}`)
	r.ok("PUT", "/api/v1/policies/api/clients", `{"client_ids":["*"]}`)
	first := r.ok("POST", "/api/v1/ratelimit/check", `{"client_id":"a"}`, "Idempotency-Key", "k1")
	again := r.ok("POST", "/api/v1/ratelimit/check", `{"client_id":"a"}`, "Idempotency-Key", "k1")
	if fmt.Sprint(first) != fmt.Sprint(again) {
		t.Fatalf("first %v, then %v", first, again)
	}
	if other := r.ok("POST", "/api/v1/ratelimit/check", `{"client_id":"a"}`, "Idempotency-Key", "k2"); other["remaining_quota"] != json.Number("8") {
		t.Fatalf("the repetition took a token: %v", other)
	}
	used := func() any {
		return r.ok("GET", "/api/v1/ratelimit/status?client_id=a", "")["policies"].([]any)[0].(map[string]any)["current_usage"]
	}
	before := used()
	others := []struct{ path, body string }{{"check", `{"client_id":"a","weight":2}`}, {"reset", `{"client_id":"a"}`}, {"reserve", `{"check":{"client_id":"a"}}`}}
	for i := range 16 { // whatever shards they belong to
		others = append(others, struct{ path, body string }{"check", fmt.Sprintf(`{"client_id":"other-%d"}`, i)})
	}
	for _, q := range others {
		code, _, p := r.do("POST", "/api/v1/ratelimit/"+q.path, q.body, "Idempotency-Key", "k1")
		if code != http.StatusConflict || p["reason"] != "CONFLICT" || !strings.Contains(fmt.Sprint(p["detail"]), `"k1"`) {
			t.Fatalf("a key used for another request, %s %s: %d %v", q.path, q.body, code, p)
		}
	}
	if used() != before {
		t.Fatalf("of the refused requests one had an effect: %v used, before them %v", used(), before)
	}
	limits := pb.NewLimitsClient(dial(t, c))
	ctx := metadata.AppendToOutgoingContext(t.Context(), "idempotency-key", "k1")
	got, err := limits.Check(ctx, &pb.CheckRequest{ClientId: "a"})
	if err != nil || got.RemainingQuota != 9 {
		t.Fatalf("the same request over gRPC: %v, %v", got, err)
	}
}

// Limits whose counters live in different shards are all taken or none, and what was reserved is given back exactly.
func TestAHierarchyTakesAllOrNone(t *testing.T) {
	c := holdfasttest.Start(t, 1)
	r := rest{t, c.URL(0)}
	for name, rate := range map[string]int{"ip": 5, "region": 3, "resource": 100} {
		r.ok("POST", "/api/v1/policies", fmt.Sprintf(`{"name":"by-%s","algorithm":"fixed_window","rate_limit":%d,"calendar":"year","scope":"%s"}`, name, rate, name))
		r.ok("PUT", "/api/v1/policies/by-"+name+"/clients", `{"client_ids":["*"]}`)
	}
	body := func(i int) string {
		return fmt.Sprintf(`{"client_id":"c%d","ip":"10.0.0.1","region":"eu","resource":"/r"}`, i)
	}
	for i := range 3 {
		if got := r.ok("POST", "/api/v1/ratelimit/check", body(i)); got["allowed"] != true || len(got["limits"].([]any)) != 3 {
			t.Fatalf("check %d: %v", i, got)
		}
	}
	for i := range 5 { // the region is used up: neither the address nor the resource may lose a token
		if got := r.ok("POST", "/api/v1/ratelimit/check", body(i)); got["allowed"] != false {
			t.Fatalf("beyond the region's limit: %v", got)
		}
	}
	st := r.ok("GET", "/api/v1/ratelimit/status?client_id=c&ip=10.0.0.1&region=eu&resource=/r", "")
	for _, row := range st["policies"].([]any) {
		if used := row.(map[string]any)["current_usage"]; used != json.Number("3") {
			t.Errorf("after three allowed checks: %v", row)
		}
	}
}

// A key names a check of several shards too: its repetition takes nothing, is not denied for what it took itself, and ends
// what the first try left.
func TestIdempotencyKeyOverSeveralShards(t *testing.T) {
	c := holdfasttest.Start(t, 1)
	r := rest{t, c.URL(0)}
	for _, name := range []string{"ip", "region", "resource"} {
		r.ok("POST", "/api/v1/policies", fmt.Sprintf(`{"name":"by-%s","algorithm":"fixed_window","rate_limit":4,"calendar":"year","scope":"%s"}`, name, name))
		r.ok("PUT", "/api/v1/policies/by-"+name+"/clients", `{"client_ids":["*"]}`)
	}
	const subject = `"client_id":"c","ip":"10.0.0.1","region":"eu","resource":"/r"`
	used := func() (list []any) {
		st := r.ok("GET", "/api/v1/ratelimit/status?client_id=c&ip=10.0.0.1&region=eu&resource=/r", "")
		for _, row := range st["policies"].([]any) {
			list = append(list, row.(map[string]any)["current_usage"])
		}
		return list
	}
	check := `{` + subject + `,"weight":3}`
	for range 3 {
		if got := r.ok("POST", "/api/v1/ratelimit/check", check, "Idempotency-Key", "once"); got["allowed"] != true {
			t.Fatalf("check: %v", got)
		}
		if got := r.ok("POST", "/api/v1/ratelimit/check", check, "Idempotency-Key", "denied"); got["allowed"] != false {
			t.Fatalf("a second check: %v", got)
		}
	}
	if got := fmt.Sprint(used()); got != "[3 3 3]" {
		t.Fatalf("in use %v", got)
	}
	reserve := `{"check":{` + subject + `}}`
	first := r.ok("POST", "/api/v1/ratelimit/reserve", reserve, "Idempotency-Key", "reserved")
	again := r.ok("POST", "/api/v1/ratelimit/reserve", reserve, "Idempotency-Key", "reserved")
	if first["reservation_id"] == "" || first["reservation_id"] != again["reservation_id"] || fmt.Sprint(used()) != "[4 4 4]" {
		t.Fatalf("reserved %v, then %v; in use %v", first, again, used())
	}
	for range 2 {
		r.ok("POST", "/api/v1/ratelimit/refund", fmt.Sprintf(`{"reservation_id":%q}`, first["reservation_id"]), "Idempotency-Key", "back")
	}
	if got := fmt.Sprint(used()); got != "[3 3 3]" {
		t.Fatalf("after the refund %v are in use", got)
	}
	if code, _, p := r.do("POST", "/api/v1/ratelimit/check", `{`+subject+`}`, "Idempotency-Key", "once"); code != 409 {
		t.Fatalf("a key for another request: %v", p)
	}
}

func TestReservationsAndSlotsOverREST(t *testing.T) {
	c := holdfasttest.Start(t, 1)
	r := rest{t, c.URL(0)}
	r.ok("POST", "/api/v1/policies", `{"name":"tokens","algorithm":"fixed_window","rate_limit":100,"calendar":"year","resource":"llm"}`)
	r.ok("POST", "/api/v1/policies", `{"name":"slots","algorithm":"concurrency","rate_limit":1,"time_window":600,"resource":"job"}`)
	r.ok("PUT", "/api/v1/policies/tokens/clients", `{"client_ids":["*"]}`)
	r.ok("PUT", "/api/v1/policies/slots/clients", `{"client_ids":["*"]}`)
	res := r.ok("POST", "/api/v1/ratelimit/reserve", `{"check":{"client_id":"a","resource":"llm","weight":50},"ttl_seconds":60}`)
	id, _ := res["reservation_id"].(string)
	if got := r.ok("POST", "/api/v1/ratelimit/commit", fmt.Sprintf(`{"reservation_id":%q,"actual":20}`, id)); got["refunded"] != json.Number("30") {
		t.Fatalf("commit %v", got)
	}
	if got := r.ok("POST", "/api/v1/ratelimit/peek", `{"client_id":"a","resource":"llm"}`); got["remaining_quota"] != json.Number("80") {
		t.Fatalf("after the commit: %v", got)
	}
	if code, _, p := r.do("POST", "/api/v1/ratelimit/refund", fmt.Sprintf(`{"reservation_id":%q}`, id)); code != 404 {
		t.Fatalf("a settled reservation was refunded: %v", p)
	}
	job := r.ok("POST", "/api/v1/ratelimit/check", `{"client_id":"a","resource":"job"}`)
	if got := r.ok("POST", "/api/v1/ratelimit/check", `{"client_id":"a","resource":"job"}`); got["allowed"] != false {
		t.Fatalf("two jobs at once: %v", got)
	}
	r.ok("POST", "/api/v1/ratelimit/release", fmt.Sprintf(`{"release_token":%q}`, job["release_token"]))
	if got := r.ok("POST", "/api/v1/ratelimit/check", `{"client_id":"a","resource":"job"}`); got["allowed"] != true {
		t.Fatalf("after the release: %v", got)
	}
}

const envoyConfig = `
domain: shop
descriptors:
  - key: user
    value: vip
    rate_limit: {unlimited: true}
  - key: user
    rate_limit: {name: per-user, unit: year, requests_per_unit: 2}
  - key: path
    value: /api/*
    share_threshold: true
    rate_limit: {unit: year, requests_per_unit: 3}
  - key: banned
    rate_limit: {unit: second, requests_per_unit: 0}
  - key: watched
    shadow_mode: true
    rate_limit: {unit: year, requests_per_unit: 1}
  - key: tenant
    descriptors:
      - key: op
        value: write
        rate_limit: {unit: year, requests_per_unit: 1}
`

func TestEnvoyRateLimitService(t *testing.T) {
	c := holdfasttest.Start(t, 1)
	conn := dial(t, c)
	got, err := pb.NewPoliciesClient(conn).ImportEnvoy(t.Context(), &pb.ImportEnvoyRequest{Yaml: envoyConfig})
	if err != nil || got.Domain != "shop" || got.Rules != 6 {
		t.Fatalf("import %v, %v", got, err)
	}
	envoy := rls.NewRateLimitServiceClient(conn)
	descriptor := func(pairs ...string) *ratelimit.RateLimitDescriptor {
		d := &ratelimit.RateLimitDescriptor{}
		for i := 0; i < len(pairs); i += 2 {
			d.Entries = append(d.Entries, &ratelimit.RateLimitDescriptor_Entry{Key: pairs[i], Value: pairs[i+1]})
		}
		return d
	}
	ask := func(domain string, ds ...*ratelimit.RateLimitDescriptor) *rls.RateLimitResponse {
		t.Helper()
		r, err := envoy.ShouldRateLimit(t.Context(), &rls.RateLimitRequest{Domain: domain, Descriptors: ds})
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Statuses) != len(ds) {
			t.Fatalf("%d statuses for %d descriptors", len(r.Statuses), len(ds))
		}
		return r
	}
	const ok, over = rls.RateLimitResponse_OK, rls.RateLimitResponse_OVER_LIMIT
	for i, want := range []struct {
		code rls.RateLimitResponse_Code
		left uint32
	}{{ok, 1}, {ok, 0}, {over, 0}} {
		r := ask("shop", descriptor("user", "alice"))
		s := r.Statuses[0]
		if r.OverallCode != want.code || s.LimitRemaining != want.left || s.CurrentLimit.RequestsPerUnit != 2 || s.CurrentLimit.Name != "per-user" ||
			s.CurrentLimit.Unit != rls.RateLimitResponse_RateLimit_YEAR || s.DurationUntilReset.AsDuration() <= 0 {
			t.Fatalf("request %d: %v", i, r)
		}
	}
	// A denied request takes nothing from its other descriptors.
	if r := ask("shop", descriptor("user", "alice"), descriptor("path", "/api/a")); r.OverallCode != over || r.Statuses[1].LimitRemaining != 3 {
		t.Fatalf("one of two over: %v", r)
	}
	for i, path := range []string{"/api/a", "/api/b", "/api/c", "/api/d"} {
		if r := ask("shop", descriptor("path", path)); (r.OverallCode == over) != (i == 3) {
			t.Fatalf("a shared wildcard, request %d: %v", i, r)
		}
	}
	if r := ask("shop", descriptor("user", "vip")); r.OverallCode != ok || r.Statuses[0].LimitRemaining != 1<<32-1 {
		t.Fatalf("unlimited: %v", r)
	}
	if r := ask("shop", descriptor("banned", "x")); r.OverallCode != over {
		t.Fatalf("zero requests a unit: %v", r)
	}
	for range 3 {
		if r := ask("shop", descriptor("watched", "x")); r.OverallCode != ok {
			t.Fatalf("shadow mode denied: %v", r)
		}
	}
	if r := ask("shop", descriptor("tenant", "t", "op", "write")); r.OverallCode != ok || r.Statuses[0].CurrentLimit == nil {
		t.Fatalf("nested: %v", r)
	}
	if r := ask("shop", descriptor("tenant", "t")); r.OverallCode != ok || r.Statuses[0].CurrentLimit != nil {
		t.Fatalf("a descriptor less deep than the rule: %v", r)
	}
	// So it is if the limits are on different shards or asked for different numbers of hits.
	many := func(n uint64, d *ratelimit.RateLimitDescriptor) *ratelimit.RateLimitDescriptor {
		d.HitsAddend = wrapperspb.UInt64(n)
		return d
	}
	if r := ask("shop", many(2, descriptor("user", "bob")), many(1, descriptor("path", "/api/z"))); r.OverallCode != over || r.Statuses[0].LimitRemaining != 2 {
		t.Fatalf("one of two over, with hits of their own: %v", r)
	}
	if r := ask("shop", many(2, descriptor("user", "bob")), many(1, descriptor("tenant", "u", "op", "write"))); r.OverallCode != ok || r.Statuses[0].LimitRemaining != 0 {
		t.Fatalf("hits of their own: %v", r)
	}
	if r := ask("shop", descriptor("user", "carol"), descriptor("watched", "x")); r.OverallCode != ok || r.Statuses[0].LimitRemaining != 1 {
		t.Fatalf("beside a shadow rule that is over: %v", r)
	}
	if r := ask("elsewhere", descriptor("user", "alice")); r.OverallCode != ok || r.Statuses[0].CurrentLimit != nil {
		t.Fatalf("unknown domain: %v", r)
	}
	if _, err := envoy.ShouldRateLimit(t.Context(), &rls.RateLimitRequest{Domain: "shop"}); status.Code(err) != codes.InvalidArgument {
		t.Fatalf("no descriptors: %v", err)
	}
	tooMany := &ratelimit.RateLimitDescriptor{
		Entries: descriptor("user", "dave").Entries,
		Limit:   &ratelimit.RateLimitDescriptor_RateLimitOverride{RequestsPerUnit: 1e9 + 1, Unit: typev3.RateLimitUnit_YEAR},
	}
	if r := ask("shop", tooMany); r.OverallCode != ok || r.Statuses[0].CurrentLimit != nil {
		t.Fatalf("a limit that no counter can hold: %v", r)
	}
	code, _, body := rest{t, c.URL(0)}.do("POST", "/json", `{"domain":"shop","descriptors":[{"entries":[{"key":"user","value":"alice"}]}]}`)
	if code != http.StatusTooManyRequests || body["overallCode"] != "OVER_LIMIT" {
		t.Fatalf("over HTTP: %d %v", code, body)
	}
}

func TestHealthOverGRPC(t *testing.T) {
	c := holdfasttest.Start(t, 1)
	health := grpc_health_v1.NewHealthClient(dial(t, c))
	r, err := health.Check(context.Background(), &grpc_health_v1.HealthCheckRequest{Service: "holdfast.v1.Limits"})
	if err != nil || r.Status != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Fatalf("%v, %v", r, err)
	}
	if _, err := health.Check(context.Background(), &grpc_health_v1.HealthCheckRequest{Service: "envoy.service.ratelimit.v3.RateLimitService"}); err != nil {
		t.Fatalf("Envoy's service: %v", err)
	}
	if _, err := health.Check(context.Background(), &grpc_health_v1.HealthCheckRequest{Service: "nope"}); status.Code(err) != codes.NotFound {
		t.Fatalf("an unknown service: %v", err)
	}
}

// SDKs keep their streams open. A node that stops does not wait for them until its time is over.
func TestAnOpenStreamDoesNotHoldAStopUp(t *testing.T) {
	c := holdfasttest.Start(t, 1)
	if _, err := c.Client().Limits().Check(t.Context(), client.Request{Client: "a"}); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	c.StopNode(0)
	if took := time.Since(begin); took > 1900*time.Millisecond {
		t.Errorf("it took %v", took)
	}
}
