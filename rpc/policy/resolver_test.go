package policy_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/catalog"
	"github.com/holdfastdb/holdfast/fsm/catalog/catalogtest"
	"github.com/holdfastdb/holdfast/fsm/counter"
	"github.com/holdfastdb/holdfast/rpc/policy"
	"github.com/holdfastdb/holdfast/storage/kv"
)

// source is a catalog in memory that a resolver follows.
type source struct {
	*catalogtest.Shard
	watch func()
	// meanwhile happens just before somebody begins to watch.
	meanwhile func()
}

func (s *source) CatalogView() kv.View { return s.View() }

func (s *source) WatchCatalog(f func()) (stop func()) {
	if s.meanwhile != nil {
		s.meanwhile()
	}
	s.watch = f
	return func() { s.watch = func() {} }
}

func newSource(t testing.TB) *source {
	s := &source{Shard: catalogtest.New(t, catalog.Type()), watch: func() {}}
	s.OpenOnce = true
	s.command(catalog.Call(catalog.OpBootstrap, catalog.Bootstrap{
		ClusterID: "c", Shards: 1, Replicas: 1, Node: catalog.Node{ID: "n", Name: "n", Peer: "n:1", GRPC: "n:2", HTTP: "n:3"},
	}))
	return s
}

// command executes a call that must succeed, and tells who follows.
func (s *source) command(call fsm.Call) []byte {
	s.T.Helper()
	r := s.Do(call)
	if r.Code != fsm.OK {
		s.T.Fatalf("refused: %v %s", r.Code, r.Body)
	}
	s.watch()
	return r.Body
}

// put makes a policy, from a plain one of 10 tokens a second for each client.
func (s *source) put(name string, change func(p *catalog.Policy)) uint32 {
	s.T.Helper()
	p := catalog.Policy{Name: name, Algorithm: "token_bucket", Rate: 10, Burst: 10, WindowMS: 1000, Active: true, Rollout: 100, Scope: "client", OnUnavailable: "deny"}
	if change != nil {
		change(&p)
	}
	made, err := catalog.Decode[catalog.Policy](s.command(catalog.Call(catalog.OpCreatePolicy, catalog.PolicyEdit{Policy: p, Actor: "test"})))
	if err != nil {
		s.T.Fatalf("answer: %v", err)
	}
	return made.Number
}

func (s *source) assign(a catalog.Assign) {
	s.T.Helper()
	a.Actor = "test"
	s.command(catalog.Call(catalog.OpAssign, a))
}

func resolver(t testing.TB, s *source) *policy.Resolver {
	t.Helper()
	r, err := policy.New(s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

func atStart() fsm.Time { return catalogtest.Start }

// found lists the names of the policies that apply, with their rates, in order.
func found(t testing.TB, r *policy.Resolver, q policy.Request) string {
	t.Helper()
	matches, err := r.Resolve(nil, &q, atStart)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range matches {
		names = append(names, fmt.Sprintf("%s %d", m.Policy.Name, m.Limit.Rate))
	}
	return strings.Join(names, ", ")
}

func TestAChangeWhileAResolverStartsIsSeen(t *testing.T) {
	s := newSource(t)
	s.meanwhile = func() {
		s.put("p", nil)
		s.assign(catalog.Assign{Policy: "p", Clients: []string{"*"}})
	}
	if got := found(t, resolver(t, s), policy.Request{Client: "a"}); got != "p 10" {
		t.Errorf("found %q", got)
	}
}

func TestResolve(t *testing.T) {
	const now = catalogtest.Start
	priority := int32(9)
	scope := func(s string) func(*catalog.Policy) { return func(p *catalog.Policy) { p.Scope = s } }
	resource := func(s string) func(*catalog.Policy) { return func(p *catalog.Policy) { p.Resource = s } }
	for name, tt := range map[string]struct {
		make func(s *source)
		q    policy.Request
		want string
	}{
		"nothing":      {func(*source) {}, policy.Request{Client: "a"}, ""},
		"not assigned": {func(s *source) { s.put("p", nil) }, policy.Request{Client: "a"}, ""},
		"to everyone": {func(s *source) {
			s.put("p", nil)
			s.assign(catalog.Assign{Policy: "p", Clients: []string{"*"}})
		}, policy.Request{Client: "a"}, "p 10"},
		"to somebody else": {func(s *source) {
			s.put("p", nil)
			s.assign(catalog.Assign{Policy: "p", Clients: []string{"b", "aa"}})
		}, policy.Request{Client: "a"}, ""},
		"a client's own rate": {func(s *source) {
			s.put("p", nil)
			s.assign(catalog.Assign{Policy: "p", Clients: []string{"a"}, Rate: 77})
			s.assign(catalog.Assign{Policy: "p", Clients: []string{"*"}})
		}, policy.Request{Client: "a"}, "p 77"},
		"the higher priority": {func(s *source) {
			s.put("low", nil)
			s.put("high", func(p *catalog.Policy) { p.Priority = 5 })
			s.assign(catalog.Assign{Policy: "low", Clients: []string{"*"}})
			s.assign(catalog.Assign{Policy: "high", Clients: []string{"*"}})
		}, policy.Request{Client: "a"}, "high 10"},
		"an assignment's priority": {func(s *source) {
			s.put("low", nil)
			s.put("high", func(p *catalog.Policy) { p.Priority = 5 })
			s.assign(catalog.Assign{Policy: "low", Clients: []string{"a"}, Priority: &priority})
			s.assign(catalog.Assign{Policy: "high", Clients: []string{"*"}})
		}, policy.Request{Client: "a"}, "low 10"},
		"the older one of two alike": {func(s *source) {
			s.put("first", nil)
			s.put("second", nil)
			s.assign(catalog.Assign{Policy: "second", Clients: []string{"*"}})
			s.assign(catalog.Assign{Policy: "first", Clients: []string{"*"}})
		}, policy.Request{Client: "a"}, "first 10"},
		"one for each scope": {func(s *source) {
			for _, sc := range []string{"client", "ip", "client+resource"} {
				s.put("by-"+strings.ReplaceAll(sc, "+", "-"), scope(sc))
				s.assign(catalog.Assign{Policy: "by-" + strings.ReplaceAll(sc, "+", "-"), Clients: []string{"*"}})
			}
		}, policy.Request{Client: "a", IP: "1.2.3.4", Resource: "/r"}, "by-client 10, by-ip 10, by-client-resource 10"},
		"only what the request gives": {func(s *source) {
			s.put("by-ip", scope("ip"))
			s.assign(catalog.Assign{Policy: "by-ip", Clients: []string{"*"}})
		}, policy.Request{Client: "a"}, ""},
		"a resource": {func(s *source) {
			s.put("p", resource("/orders"))
			s.assign(catalog.Assign{Policy: "p", Clients: []string{"*"}})
		}, policy.Request{Client: "a", Resource: "/orders"}, "p 10"},
		"another resource": {func(s *source) {
			s.put("p", resource("/orders"))
			s.assign(catalog.Assign{Policy: "p", Clients: []string{"*"}})
		}, policy.Request{Client: "a", Resource: "/orders/7"}, ""},
		"a prefix": {func(s *source) {
			s.put("p", resource("/orders/*"))
			s.assign(catalog.Assign{Policy: "p", Clients: []string{"*"}})
		}, policy.Request{Client: "a", Resource: "/orders/7"}, "p 10"},
		"a prefix, for one client": {func(s *source) {
			s.put("p", resource("/orders/*"))
			s.assign(catalog.Assign{Policy: "p", Clients: []string{"a"}})
		}, policy.Request{Client: "a", Resource: "/users/7"}, ""},
		"switched off": {func(s *source) {
			s.put("p", func(p *catalog.Policy) { p.Active = false })
			s.assign(catalog.Assign{Policy: "p", Clients: []string{"*"}})
		}, policy.Request{Client: "a"}, ""},
		"rolled out to nobody": {func(s *source) {
			s.put("p", func(p *catalog.Policy) { p.Rollout = 0 })
			s.assign(catalog.Assign{Policy: "p", Clients: []string{"*"}})
		}, policy.Request{Client: "a"}, ""},
		"not yet": {func(s *source) {
			s.put("p", nil)
			s.assign(catalog.Assign{Policy: "p", Clients: []string{"a"}, From: now + 1})
		}, policy.Request{Client: "a"}, ""},
		"from now on": {func(s *source) {
			s.put("p", nil)
			s.assign(catalog.Assign{Policy: "p", Clients: []string{"a"}, From: now, To: now + 1})
		}, policy.Request{Client: "a"}, "p 10"},
		"not any more": {func(s *source) {
			s.put("p", nil)
			s.assign(catalog.Assign{Policy: "p", Clients: []string{"a"}, From: now - 5, To: now})
		}, policy.Request{Client: "a"}, ""},
		"by name, without an assignment": {func(s *source) { s.put("p", nil) }, policy.Request{Client: "a", Policies: []string{"p"}}, "p 10"},
		"by id":                          {func(s *source) { s.put("p", nil) }, policy.Request{Client: "a", Policies: []string{"p1"}}, "p 10"},
		"by name, once":                  {func(s *source) { s.put("p", nil) }, policy.Request{Client: "a", Policies: []string{"p", "p1", "p"}}, "p 10"},
		"by name, with a rate of one's own": {func(s *source) {
			s.put("p", nil)
			s.assign(catalog.Assign{Policy: "p", Clients: []string{"a"}, Rate: 3})
		}, policy.Request{Client: "a", Policies: []string{"p"}}, "p 3"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSource(t)
			before := resolver(t, s) // sees the changes come
			tt.make(s)
			after := resolver(t, s) // sees all at once
			for which, r := range map[string]*policy.Resolver{"that followed": before, "that began now": after} {
				if got := found(t, r, tt.q); got != tt.want {
					t.Errorf("a resolver %s found %q, want %q", which, got, tt.want)
				}
			}
		})
	}
}

func TestChangesAreSeenByTheNextRequest(t *testing.T) {
	s := newSource(t)
	r := resolver(t, s)
	q := policy.Request{Client: "a"}
	s.put("p", nil)
	if got := found(t, r, q); got != "" {
		t.Fatalf("before: %q", got)
	}
	s.assign(catalog.Assign{Policy: "p", Clients: []string{"a"}})
	if got := found(t, r, q); got != "p 10" {
		t.Errorf("assigned: %q", got)
	}
	s.assign(catalog.Assign{Policy: "p", Clients: []string{"a"}, Rate: 4})
	if got := found(t, r, q); got != "p 4" {
		t.Errorf("assigned again: %q", got)
	}
	s.command(catalog.Call(catalog.OpUnassign, catalog.Assign{Policy: "p", Clients: []string{"a"}, Actor: "test"}))
	if got := found(t, r, q); got != "" {
		t.Errorf("unassigned: %q", got)
	}
	s.assign(catalog.Assign{Policy: "p", Clients: []string{"*"}})
	if got := found(t, r, q); got != "p 10" {
		t.Errorf("everyone: %q", got)
	}
	s.command(catalog.Call(catalog.OpDeletePolicy, catalog.PolicyRef{Policy: "p", Actor: "test"}))
	if got := found(t, r, q); got != "" {
		t.Errorf("deleted: %q", got)
	}
}

// When one assignment ends and another begins, one of the two applies at any time: a request is resolved at one moment.
func TestARequestIsResolvedAtOneMoment(t *testing.T) {
	s := newSource(t)
	for i, name := range []string{"first", "second"} {
		s.put(name, nil)
		const change = catalogtest.Start + 1
		s.assign([]catalog.Assign{
			{Policy: name, Clients: []string{"a"}, From: change}, // not yet, when it is looked at
			{Policy: name, Clients: []string{"a"}, To: change},   // not any more, if the clock went on since
		}[i])
	}
	now, asked := catalogtest.Start, 0
	matches, err := resolver(t, s).Resolve(nil, &policy.Request{Client: "a"}, func() fsm.Time { now++; asked++; return now - 1 })
	if err != nil || len(matches) != 1 || asked != 1 {
		t.Errorf("%d limits apply, %v; the clock was asked %d times", len(matches), err, asked)
	}
}

func TestNamesThatDoNotExistAreRefused(t *testing.T) {
	s := newSource(t)
	s.put("by-ip", func(p *catalog.Policy) { p.Scope = "ip" })
	r := resolver(t, s)
	many := make([]string, counter.MaxLimits+1)
	for name, tt := range map[string]struct {
		q    policy.Request
		code fsm.Code
	}{
		"unknown name":             {policy.Request{Client: "a", Policies: []string{"nope"}}, fsm.NotFound},
		"unknown id":               {policy.Request{Client: "a", Policies: []string{"p9"}}, fsm.NotFound},
		"what the request lacks":   {policy.Request{Client: "a", Policies: []string{"by-ip"}}, fsm.Invalid},
		"more than a check can do": {policy.Request{Client: "a", Policies: many}, fsm.Invalid},
	} {
		_, err := r.Resolve(nil, &tt.q, atStart)
		refusal, ok := err.(*fsm.Error) //nolint:errorlint // it is not wrapped
		if !ok || refusal.Code != tt.code {
			t.Errorf("%s: %v, want %v", name, err, tt.code)
		}
	}
}

// All limits that count by the subject are on its shard, and two subjects never share a counter.
func TestCountersHavePlacesAndKeysOfTheirOwn(t *testing.T) {
	s := newSource(t)
	for _, scope := range []string{"client", "ip", "client+ip"} {
		name := "by-" + strings.ReplaceAll(scope, "+", "-")
		s.put(name, func(p *catalog.Policy) { p.Scope = scope })
		s.assign(catalog.Assign{Policy: name, Clients: []string{"*"}})
	}
	r := resolver(t, s)
	type place struct {
		routing string
		key     counter.Key
	}
	places := make(map[string]place) // by policy and values
	for _, q := range []policy.Request{{Client: "a", IP: "1"}, {Client: "a", IP: "2"}, {Client: "b", IP: "1"}, {Client: "a1"}, {IP: "1"}, {Client: "a", IP: "1"}} {
		matches, err := r.Resolve(nil, &q, atStart)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range matches {
			what := m.Policy.Name
			if strings.Contains(m.Policy.Scope, "client") {
				what += " client=" + q.Client
			}
			if strings.Contains(m.Policy.Scope, "ip") {
				what += " ip=" + q.IP
			}
			is := place{m.RoutingKey, m.Limit.Key}
			if was, seen := places[what]; seen && was != is {
				t.Errorf("%s is at %v and at %v", what, was, is)
			}
			places[what] = is
			if strings.Contains(m.Policy.Scope, "client") && m.RoutingKey != "client:"+q.Client {
				t.Errorf("%s is at %q, not with its client", what, m.RoutingKey)
			}
		}
	}
	keys := make(map[counter.Key]string)
	for what, at := range places {
		if other, taken := keys[at.key]; taken {
			t.Errorf("%s and %s share a counter", what, other)
		}
		keys[at.key] = what
	}
	if len(keys) != 8 { // clients a, b, a1; addresses 1, 2; pairs a-1, a-2, b-1
		t.Errorf("%d counters: %v", len(keys), slices.Sorted(maps.Values(keys)))
	}
}

// A rollout takes about its share of the clients, and a larger one all that a smaller one took.
func TestARolloutGrows(t *testing.T) {
	s := newSource(t)
	n := s.put("p", func(p *catalog.Policy) { p.Rollout = 30 })
	s.assign(catalog.Assign{Policy: "p", Clients: []string{"*"}})
	r := resolver(t, s)
	const clients = 5000
	in := func() map[string]bool {
		set := make(map[string]bool)
		for i := range clients {
			if name := fmt.Sprint("client-", i); found(t, r, policy.Request{Client: name}) != "" {
				set[name] = true
			}
		}
		return set
	}
	thirty := in()
	if share := float64(len(thirty)) / clients; share < 0.27 || share > 0.33 {
		t.Errorf("%.1f %% instead of 30 %%", 100*share)
	}
	p := *r.Policy(n)
	p.Rollout = 60
	s.command(catalog.Call(catalog.OpUpdatePolicy, catalog.PolicyEdit{Policy: p, Actor: "test"}))
	sixty := in()
	if share := float64(len(sixty)) / clients; share < 0.57 || share > 0.63 {
		t.Errorf("%.1f %% instead of 60 %%", 100*share)
	}
	for name := range thirty {
		if !sixty[name] {
			t.Fatalf("%s was in and is out", name)
		}
	}
}

func TestScopesHaveAStandardForm(t *testing.T) {
	for given, want := range map[string]string{
		"client": "client", "resource+client": "client+resource", "region+ip+api_key": "api_key+ip+region",
		"": "", "client+client": "", "user": "", "client,ip": "",
	} {
		got, err := policy.ParseScope(given)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v; want %q", given, got, err, want)
		}
	}
}

// What a check pays for being looked up must not depend on how many policies and assignments there are.
func BenchmarkResolve(b *testing.B) {
	for _, size := range []struct{ policies, assignments int }{{1, 0}, {10_000, 0}, {10_000, 1_000_000}} {
		b.Run(fmt.Sprintf("policies=%d/assignments=%d", size.policies, size.assignments), func(b *testing.B) {
			s := newSource(b)
			for i := range size.policies {
				name := fmt.Sprint("policy-", i)
				s.put(name, func(p *catalog.Policy) { p.Resource = fmt.Sprint("/r/", i) })
				s.assign(catalog.Assign{Policy: name, Clients: []string{"*"}})
			}
			names := make([]string, 0, catalog.MaxAssign)
			for i := 0; i < size.assignments; i += len(names) {
				names = names[:0]
				for len(names) < catalog.MaxAssign {
					names = append(names, fmt.Sprint("client-", i+len(names)))
				}
				s.assign(catalog.Assign{Policy: fmt.Sprint("policy-", i/len(names)%size.policies), Clients: names, Rate: 5})
			}
			r := resolver(b, s)
			var matches []policy.Match
			b.ResetTimer()
			for i := range b.N {
				q := policy.Request{Client: fmt.Sprint("client-", i%10_000), Resource: "/r/0"}
				var err error
				if matches, err = r.Resolve(matches[:0], &q, atStart); err != nil || len(matches) != 1 {
					b.Fatal(matches, err)
				}
			}
		})
	}
}
