package process_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/holdfastdb/holdfast/client/holdfasttest"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// Every kind of bad input gets its documented answer, and changes nothing.
func TestBadInput(t *testing.T) {
	c := holdfasttest.Start(t, 1)
	r := rest{t, c.URL(0)}
	r.ok("POST", "/api/v1/policies", `{"name":"taken","rate_limit":3,"time_window":60}`)
	long := strings.Repeat("x", 600)
	for name, tt := range map[string]struct {
		method, path, body string
		code               int
		reason             string
		says               string
	}{
		"not JSON":             {"POST", "/api/v1/ratelimit/check", `{`, 400, "INVALID", "EOF"},
		"unknown field":        {"POST", "/api/v1/ratelimit/check", `{"client":"a"}`, 400, "INVALID", "unknown field"},
		"nothing to limit":     {"POST", "/api/v1/ratelimit/check", `{}`, 400, "INVALID", "at least one of client_id"},
		"weight too large":     {"POST", "/api/v1/ratelimit/check", `{"client_id":"a","weight":4000000000}`, 400, "INVALID", "weight"},
		"negative weight":      {"POST", "/api/v1/ratelimit/check", `{"client_id":"a","weight":-1}`, 400, "INVALID", "weight"},
		"client too long":      {"POST", "/api/v1/ratelimit/check", `{"client_id":"` + long + `"}`, 400, "INVALID", "600 bytes"},
		"NUL":                  {"POST", "/api/v1/ratelimit/check", `{"client_id":"a\u0000b"}`, 400, "INVALID", "NUL"},
		"everyone":             {"POST", "/api/v1/ratelimit/check", `{"client_id":"*"}`, 400, "INVALID", "every client"},
		"unknown policy":       {"POST", "/api/v1/ratelimit/check", `{"client_id":"a","policies":["nope"]}`, 404, "NOT_FOUND", "nope"},
		"no name":              {"POST", "/api/v1/policies", `{"rate_limit":1,"time_window":1}`, 400, "INVALID", "name"},
		"odd name":             {"POST", "/api/v1/policies", `{"name":"a b","rate_limit":1,"time_window":1}`, 400, "INVALID", "name"},
		"name like an id":      {"POST", "/api/v1/policies", `{"name":"p7","rate_limit":1,"time_window":1}`, 400, "INVALID", "looks like"},
		"name taken":           {"POST", "/api/v1/policies", `{"name":"taken","rate_limit":1,"time_window":1}`, 409, "CONFLICT", "belongs to policy"},
		"algorithm":            {"POST", "/api/v1/policies", `{"name":"x","algorithm":"magic","rate_limit":1,"time_window":1}`, 400, "INVALID", "token_bucket"},
		"no rate":              {"POST", "/api/v1/policies", `{"name":"x","time_window":1}`, 400, "INVALID", "rate_limit"},
		"no window":            {"POST", "/api/v1/policies", `{"name":"x","rate_limit":1}`, 400, "INVALID", "time_window"},
		"window too long":      {"POST", "/api/v1/policies", `{"name":"x","rate_limit":1,"time_window":1e12}`, 400, "INVALID", "time_window"},
		"calendar":             {"POST", "/api/v1/policies", `{"name":"x","algorithm":"fixed_window","rate_limit":1,"calendar":"eon"}`, 400, "INVALID", "calendar"},
		"scope":                {"POST", "/api/v1/policies", `{"name":"x","rate_limit":1,"time_window":1,"scope":"client+client"}`, 400, "INVALID", "scope"},
		"rollout":              {"POST", "/api/v1/policies", `{"name":"x","rate_limit":1,"time_window":1,"rollout_percent":101}`, 400, "INVALID", "rollout"},
		"revision":             {"PATCH", "/api/v1/policies/taken", `{"rate_limit":9,"expected_revision":7}`, 409, "CONFLICT", "revision"},
		"no clients":           {"PUT", "/api/v1/policies/taken/clients", `{}`, 400, "INVALID", "client_ids"},
		"effective backwards":  {"PUT", "/api/v1/policies/taken/clients", `{"client_ids":["a"],"effective_from":"2030-01-01T00:00:00Z","effective_to":"2029-01-01T00:00:00Z"}`, 400, "INVALID", "after"},
		"override":             {"PUT", "/api/v1/policies/taken/clients", `{"client_ids":["a"],"override_rate_limit":0}`, 400, "INVALID", "override_rate_limit"},
		"token":                {"POST", "/api/v1/ratelimit/commit", `{"reservation_id":"AAAA","actual":1}`, 400, "INVALID", "token"},
		"forged token":         {"POST", "/api/v1/ratelimit/refund", `{"reservation_id":"AQEBAQAAAAAAAAABAAAAAAAAAAAAAAAA"}`, 404, "NOT_FOUND", "no such reservation"},
		"unknown path":         {"GET", "/api/v1/nothing", ``, 404, "NOT_FOUND", "Not Found"},
		"wrong method":         {"DELETE", "/api/v1/ratelimit/check", ``, 405, "NOT_FOUND", "Method Not Allowed"},
		"burst of no use":      {"POST", "/api/v1/policies", `{"name":"x","algorithm":"sliding_log","rate_limit":1,"time_window":1,"burst_capacity":2}`, 400, "INVALID", "burst_capacity"},
		"burst in an update":   {"PATCH", "/api/v1/policies/taken", `{"algorithm":"concurrency","burst_capacity":2}`, 400, "INVALID", "burst_capacity"},
		"http_status":          {"POST", "/api/v1/ratelimit/check?http_status=maybe", `{"client_id":"a"}`, 400, "INVALID", "http_status"},
		"domain":               {"POST", "/api/v1/policies:importEnvoy", `{"yaml":"domain: a\ndescriptors: [{value: x}]"}`, 400, "INVALID", "no key"},
		"unknown parameter":    {"GET", "/api/v1/ratelimit/status?client_id=a&polcy_id=x", ``, 400, "INVALID", `"polcy_id"`},
		"parameter to a body":  {"POST", "/api/v1/ratelimit/check?weight=2", `{"client_id":"a"}`, 400, "INVALID", `"weight"`},
		"parameter to a path":  {"DELETE", "/api/v1/policies/taken?force=true", ``, 400, "INVALID", `"force"`},
		"http_status of what":  {"GET", "/api/v1/policies?http_status=true", ``, 400, "INVALID", "http_status"},
		"malformed query":      {"GET", "/api/v1/policies?page_size=%zz", ``, 400, "INVALID", "query"},
		"no actual":            {"POST", "/api/v1/ratelimit/commit", `{"reservation_id":"AQEBAQAAAAAAAAABAAAAAAAAAAAAAAAA"}`, 400, "INVALID", "actual is missing"},
		"another policy":       {"PATCH", "/api/v1/policies/taken", `{"policy_id":"p7","rate_limit":9}`, 400, "INVALID", `policy_id is "taken" in the path and "p7" in the body`},
		"another shard":        {"POST", "/api/v1/cluster/shards/1/transfer", `{"shard":2,"node":"n1"}`, 400, "INVALID", "shard"},
		"no shard":             {"POST", "/api/v1/cluster/shards/99/transfer", `{"node":"n1"}`, 404, "NOT_FOUND", "no shard 99"},
		"no node":              {"POST", "/api/v1/cluster/shards/1/transfer", `{"node":"nope"}`, 404, "NOT_FOUND", "no node"},
		"released twice":       {"POST", "/api/v1/ratelimit/release", `{"release_token":"AgEBAQAAAAAAAAABAAAAAAAAAAAAAAAA"}`, 404, "NOT_FOUND", "were released before"},
		"envoy without domain": {"POST", "/json", `{"descriptors":[{}]}`, 400, "INVALID", "domain"},
	} {
		t.Run(name, func(t *testing.T) {
			code, h, p := rest{t, r.url}.do(tt.method, tt.path, tt.body)
			if code != tt.code || h.Get("Content-Type") != "application/problem+json" || p["status"] != json.Number(fmt.Sprint(code)) {
				t.Fatalf("answered %d %s %v, want %d", code, h.Get("Content-Type"), p, tt.code)
			}
			if reason, _ := p["reason"].(string); reason != tt.reason || !strings.Contains(fmt.Sprint(p["detail"]), tt.says) || p["retryable"] != false {
				t.Fatalf("problem %v, want reason %q and %q", p, tt.reason, tt.says)
			}
		})
	}
	list := r.ok("GET", "/api/v1/policies?page_size=5", "")["policies"].([]any)
	if len(list) != 1 || list[0].(map[string]any)["rate_limit"] != json.Number("3") {
		t.Fatalf("bad input left policies: %v", list)
	}
	r.ok("PATCH", "/api/v1/policies/taken", `{"policy_id":"taken","shadow":true}`) // a body that repeats the path is none
	const form = "application/x-www-form-urlencoded"                               // as curl says of any body
	if code, _, p := r.do("POST", "/api/v1/ratelimit/status", `{"client_id":"a"}`, "Content-Type", form); code != http.StatusMethodNotAllowed {
		t.Errorf("a body for a path that has only GET: %d %v", code, p)
	}
	// The gateway hands on ASCII only: such a request would be executed without its key.
	for _, key := range []string{"a\xff", "schlüssel", "a\tb"} {
		code, _, p := r.do("POST", "/api/v1/ratelimit/check", `{"client_id":"a"}`, "Idempotency-Key", key)
		if code != http.StatusBadRequest || p["reason"] != "INVALID" || !strings.Contains(fmt.Sprint(p["detail"]), "printable ASCII") {
			t.Errorf("with the key %q: %d %v", key, code, p)
		}
	}
}

// Who sends garbage on the stream of the SDKs is told so, as in a plain call.
func TestGarbageOnAStreamIsInvalid(t *testing.T) {
	c := holdfasttest.Start(t, 1)
	conn := dial(t, c)
	st, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, pb.Data_Frames_FullMethodName, grpc.ForceCodec(garbage{}))
	if err != nil {
		t.Fatal(err)
	}
	if err := st.SendMsg("anything"); err != nil {
		t.Fatal(err)
	}
	var got []byte
	err = st.RecvMsg(&got)
	s := status.Convert(err)
	if s.Code() != codes.InvalidArgument || len(s.Details()) == 0 || !strings.Contains(s.Message(), "malformed") {
		t.Errorf("answered %q, %v with %v", got, err, s.Details())
	}
}

// garbage is a codec whose every message is no message.
type garbage struct{}

func (garbage) Marshal(any) ([]byte, error) { return []byte("\xff\xff\xff"), nil }
func (garbage) Unmarshal(b []byte, v any) error {
	*v.(*[]byte) = bytes.Clone(b)
	return nil
}
func (garbage) Name() string { return "proto" }

func TestTextAfterTheBodyIsRefusedBeforeAnythingIsTaken(t *testing.T) {
	c := holdfasttest.Start(t, 1)
	r := rest{t, c.URL(0)}
	r.ok("POST", "/api/v1/policies", `{"name":"api","algorithm":"token_bucket","rate_limit":5,"time_window":3600}`)
	r.ok("PUT", "/api/v1/policies/api/clients", `{"client_ids":["a"]}`)
	for _, body := range []string{`{"client_id":"a"} {"client_id":"a"}`, `{"client_id":"a"}x`} {
		if code, _, p := r.do("POST", "/api/v1/ratelimit/check", body); code != http.StatusBadRequest || p["reason"] != "INVALID" {
			t.Errorf("%s: %d %v", body, code, p)
		}
	}
	if got := r.ok("POST", "/api/v1/ratelimit/check", `{"client_id":"a"}`); got["remaining_quota"] != json.Number("4") {
		t.Errorf("then: %v", got)
	}
}
