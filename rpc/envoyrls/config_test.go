package envoyrls

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	ratelimit "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	rls "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/catalog"
	"github.com/holdfastdb/holdfast/fsm/catalog/catalogtest"
	"github.com/holdfastdb/holdfast/fsm/counter"
	"github.com/holdfastdb/holdfast/rpc/policy"
	"github.com/holdfastdb/holdfast/storage/kv"
)

// The examples of the reference's README, in our words: nested keys, wildcards, and what comes first.
const example = `
domain: shop
descriptors:
  - key: user
    rate_limit: {unit: minute, requests_per_unit: 10}
  - key: user
    value: mallory
    rate_limit: {unit: HOUR, requests_per_unit: 1}
  - key: path
    value: /api/*
    rate_limit: {unit: second, requests_per_unit: 5}
    descriptors:
      - key: method
        value: POST
        rate_limit: {unit: day, requests_per_unit: 3}
  - key: path
    value: /static/*
    share_threshold: true
    rate_limit: {unit: week, requests_per_unit: 9}
  - key: free
    rate_limit: {unlimited: true}
  - key: watched
    shadow_mode: true
    rate_limit: {unit: month, requests_per_unit: 2}
  - key: only
    descriptors:
      - key: below
        rate_limit: {name: deep, unit: year, requests_per_unit: 7, replaces: [{name: other}]}
`

func parse(t testing.TB, text string) *Domain {
	t.Helper()
	d, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestFind(t *testing.T) {
	d := parse(t, example)
	if d.Name != "shop" || d.Rules != 8 {
		t.Errorf("domain %s with %d rules", d.Name, d.Rules)
	}
	for request, want := range map[string]string{
		"user=alice":                   "10 minute as user alice",
		"user=mallory":                 "1 hour as user mallory",
		"user=":                        "10 minute as user ",
		"path=/api/orders":             "5 second as path /api/orders",
		"path=/api/":                   "5 second as path /api/",
		"path=/api":                    "",
		"path=/api/orders,method=POST": "3 day as path /api/orders method POST",
		"path=/api/orders,method=GET":  "",
		"path=/static/a.js":            "9 week as path /static/*",
		"path=/static/b.js":            "9 week as path /static/*",
		"free=x":                       "unlimited",
		"watched=x":                    "2 month as watched x, shadow",
		"only=x":                       "",
		"only=x,below=y":               "7 year as only x below y",
		"only=x,below=y,deeper=z":      "",
		"unknown=x":                    "",
		"user=alice,path=/api/orders":  "",
		"user_mallory=":                "",
		"path=/api/*":                  "5 second as path /api/*",
		"below=y":                      "",
	} {
		var entries []entry
		for part := range strings.SplitSeq(request, ",") {
			key, value, _ := strings.Cut(part, "=")
			entries = append(entries, entry{key, value})
		}
		rule, name := d.find(entries)
		got := ""
		switch {
		case rule == nil:
		case rule.unlimited:
			got = "unlimited"
		default:
			got = fmt.Sprintf("%d %s as %s", rule.perUnit, rule.unit, strings.Join(name, " "))
			if rule.shadow {
				got += ", shadow"
			}
		}
		if got != want {
			t.Errorf("%s: %q, want %q", request, got, want)
		}
	}
}

// What a request may take is bounded before it becomes a command.
func TestHitsAreBounded(t *testing.T) {
	s := &Service{}
	domains := map[string]*Domain{"shop": parse(t, example)}
	s.domains.Store(&domains)
	for given, want := range map[uint32]uint32{0: 1, 1: 1, 7: 7, counter.MaxRate: counter.MaxRate, 1<<32 - 1: counter.MaxRate} {
		rules := s.match(&rls.RateLimitRequest{Domain: "shop", HitsAddend: given, Descriptors: []*ratelimit.RateLimitDescriptor{
			{Entries: []*ratelimit.RateLimitDescriptor_Entry{{Key: "user", Value: "alice"}}},
		}})
		if len(rules) != 1 || rules[0].weight != want {
			t.Errorf("%d hits take %d, want %d", given, rules[0].weight, want)
		}
	}
}

// A limit that a request brings is as large as a counter can hold, or it is none.
func TestALimitOfTheRequestIsBounded(t *testing.T) {
	const year = typev3.RateLimitUnit_YEAR
	for perUnit, counts := range map[uint32]bool{0: false, 1: true, 1_000_000_000: true, 1_000_000_001: false, 1<<32 - 1: false} {
		s := &Service{}
		domains := map[string]*Domain{"shop": parse(t, example)}
		s.domains.Store(&domains)
		rules := s.match(&rls.RateLimitRequest{Domain: "shop", Descriptors: []*ratelimit.RateLimitDescriptor{{
			Entries: []*ratelimit.RateLimitDescriptor_Entry{{Key: "user", Value: "alice"}},
			Limit:   &ratelimit.RateLimitDescriptor_RateLimitOverride{RequestsPerUnit: perUnit, Unit: year},
		}}})
		if got := rules[0].counted(); got != counts {
			t.Errorf("%d in a year is counted: %v", perUnit, got)
		}
		if err := rules[0].match.Limit.Validate(); counts && err != nil {
			t.Errorf("%d in a year: %v", perUnit, err)
		}
	}
}

// request asks for descriptors, each of one entry with its own number of hits.
func request(domain string, descriptors ...*ratelimit.RateLimitDescriptor) *rls.RateLimitRequest {
	return &rls.RateLimitRequest{Domain: domain, Descriptors: descriptors}
}

func hits(key string, n uint64) *ratelimit.RateLimitDescriptor {
	return &ratelimit.RateLimitDescriptor{
		Entries:    []*ratelimit.RateLimitDescriptor_Entry{{Key: key, Value: "x"}},
		HitsAddend: wrapperspb.UInt64(n),
	}
}

const quotas = `
domain: shop
descriptors:
  - {key: bronze, quota_mode: true, rate_limit: {unit: year, requests_per_unit: 1}}
  - {key: silver, quota_mode: true, rate_limit: {unit: year, requests_per_unit: 3}}
  - {key: path, rate_limit: {unit: year, requests_per_unit: 5}}
`

// late is a catalog to which a domain comes just before somebody begins to watch it.
type late struct{ *catalogtest.Shard }

func (l late) CatalogView() kv.View { return l.View() }

func (l late) WatchCatalog(func()) (stop func()) {
	for _, call := range []fsm.Call{
		catalog.Call(catalog.OpBootstrap, catalog.Bootstrap{ClusterID: "c", Shards: 1, Replicas: 1, Node: catalog.Node{ID: "n1"}}),
		catalog.Call(catalog.OpPutDomain, catalog.Domain{Name: "shop", YAML: example}),
	} {
		if r := l.Do(call); r.Err() != nil {
			l.T.Fatalf("%v", r.Err())
		}
	}
	return func() {}
}

func TestADomainThatComesWhileTheServiceStartsIsSeen(t *testing.T) {
	s, err := New(late{catalogtest.New(t, catalog.Type())}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if (*s.domains.Load())["shop"] == nil {
		t.Error("the service does not know it")
	}
}

// counting decides like a shard, if all weights are the same.
func counting(t *testing.T) *Service {
	sim := counter.NewSimulator()
	s := &Service{now: time.Now, decide: func(_ context.Context, weights []uint32, limits []policy.Match) ([]counter.LimitResult, error) {
		list := make([]counter.Limit, len(limits))
		for i := range limits {
			list[i] = limits[i].Limit
			if weights[i] != weights[0] {
				t.Errorf("weights %v", weights)
			}
		}
		return sim.Take(1_700_000_000_000, list, weights[0]).Limits, nil
	}}
	domains := map[string]*Domain{"shop": parse(t, quotas)}
	s.domains.Store(&domains)
	return s
}

// A rule in quota mode denies nothing by itself: the request passes as long as one quota has some left, and takes from
// those that have.
func TestARequestPassesAsLongAsOneQuotaHasSomeLeft(t *testing.T) {
	s := counting(t)
	const ok, over = rls.RateLimitResponse_OK, rls.RateLimitResponse_OVER_LIMIT
	for i, want := range []struct{ all, bronze, silver rls.RateLimitResponse_Code }{
		{ok, ok, ok}, {ok, over, ok}, {ok, over, ok}, {over, over, over}, {over, over, over},
	} {
		r, err := s.ShouldRateLimit(t.Context(), request("shop", hits("bronze", 1), hits("silver", 1)))
		if err != nil {
			t.Fatal(err)
		}
		if r.OverallCode != want.all || r.Statuses[0].Code != want.bronze || r.Statuses[1].Code != want.silver {
			t.Errorf("request %d: %v, %v and %v; want %v", i, r.OverallCode, r.Statuses[0].Code, r.Statuses[1].Code, want)
		}
	}
}

func TestAllLimitsOfARequestAreAskedAtOnceEachForItsHits(t *testing.T) {
	var got []uint32
	s := &Service{now: time.Now, decide: func(_ context.Context, weights []uint32, limits []policy.Match) ([]counter.LimitResult, error) {
		got = append(got, weights...)
		return make([]counter.LimitResult, len(limits)), nil
	}}
	domains := map[string]*Domain{"shop": parse(t, quotas)}
	s.domains.Store(&domains)
	if _, err := s.ShouldRateLimit(t.Context(), request("shop", hits("bronze", 3), hits("path", 1), hits("path", 2), hits("none", 9))); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, []uint32{3, 2}) {
		t.Errorf("weights %v", got)
	}
}

func TestMistakesAreNamed(t *testing.T) {
	limit := "rate_limit: {unit: second, requests_per_unit: 1}"
	deep := "domain: a\ndescriptors:\n"
	for i := range maxDepth + 1 {
		deep += strings.Repeat("  ", 2*i) + "- key: k\n" + strings.Repeat("  ", 2*i) + "  descriptors:\n"
	}
	deep += strings.Repeat("  ", 2*(maxDepth+1)) + "- key: k\n"
	for name, tt := range map[string]struct{ text, says string }{
		"empty":               {"", "EOF"},
		"no domain":           {"descriptors: []", "domain is missing"},
		"not YAML":            {"domain: [", "not in the dialect"},
		"unknown field":       {"domain: a\ndescriptrs: []", "descriptrs"},
		"two domains":         {"domain: a\n---\ndomain: b", "one domain"},
		"no key":              {"domain: a\ndescriptors: [{value: x}]", "no key"},
		"twice":               {"domain: a\ndescriptors: [{key: k, value: v}, {key: k, value: v}]", "duplicate"},
		"unit":                {"domain: a\ndescriptors: [{key: k, rate_limit: {unit: fortnight, requests_per_unit: 1}}]", "fortnight"},
		"no unit":             {"domain: a\ndescriptors: [{key: k, rate_limit: {requests_per_unit: 1}}]", "unit"},
		"unlimited and limit": {"domain: a\ndescriptors: [{key: k, rate_limit: {unlimited: true, unit: second}}]", "unlimited"},
		"too many":            {"domain: a\ndescriptors: [{key: k, rate_limit: {unit: second, requests_per_unit: 4000000000}}]", "1 to 1000000000"},
		"burst":               {"domain: a\ndescriptors: [{key: k, rate_limit: {unit: second, requests_per_unit: 1, burst_capacity: 2}}]", "burst_capacity"},
		"negative":            {"domain: a\ndescriptors: [{key: k, rate_limit: {unit: second, requests_per_unit: -1}}]", "not in the dialect"},
		"star inside":         {"domain: a\ndescriptors: [{key: k, value: 'a*b', " + limit + "}]", "at the end"},
		"share without star":  {"domain: a\ndescriptors: [{key: k, value: a, share_threshold: true, " + limit + "}]", "share_threshold"},
		"replaces itself":     {"domain: a\ndescriptors: [{key: k, rate_limit: {name: n, unit: second, requests_per_unit: 1, replaces: [{name: n}]}}]", "replaces"},
		"too deep":            {deep, "deep"},
		"too long":            {"domain: a #" + strings.Repeat("x", maxYAML), "bytes"},
	} {
		if d, err := Parse(tt.text); err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v, %v; want an error about %q", name, d, err, tt.says)
		}
	}
}

// Whatever is accepted can be asked for anything, and names that differ never make one counter.
func FuzzParse(f *testing.F) {
	f.Add(example, "user", "alice", "below", "x")
	f.Add("domain: a\ndescriptors: [{key: k, value: '*', rate_limit: {unit: second, requests_per_unit: 1}}]", "k", "", "", "")
	f.Add("domain: a\ndescriptors: [{key: k, rate_limit: {unit: year, requests_per_unit: 146235605}}]", "k", "", "", "")
	f.Fuzz(func(t *testing.T, text, k1, v1, k2, v2 string) {
		d, err := Parse(text)
		if err != nil {
			return
		}
		if d.Name == "" {
			t.Error("accepted without a domain")
		}
		var keys []string
		for _, entries := range [][]entry{{{k1, v1}}, {{k1, v1}, {k2, v2}}, {{k2, v2}}} {
			rule, name := d.find(entries)
			if rule == nil || rule.unlimited {
				continue
			}
			if len(name) != 2*len(entries) {
				t.Errorf("%d parts for %v", len(name), entries)
			}
			m := limitOf(d.Name, rule, name)
			if rule.perUnit > 0 && m.Limit.Params.Validate() != nil {
				t.Errorf("%v makes a limit that is not valid: %v", entries, m.Limit.Params.Validate())
			}
			keys = append(keys, fmt.Sprintf("%x", m.Limit.Key))
		}
		if len(keys) == 3 && (keys[0] == keys[1] || keys[1] == keys[2]) {
			t.Error("descriptors of different depth share a counter")
		}
	})
}
