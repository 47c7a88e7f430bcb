package rpc

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/catalog"
	"github.com/holdfastdb/holdfast/fsm/catalog/catalogtest"
	"github.com/holdfastdb/holdfast/fsm/counter"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
	"github.com/holdfastdb/holdfast/rpc/policy"
	"github.com/holdfastdb/holdfast/storage/kv"
)

// oneNode is a Node with a catalog and nothing else.
type oneNode struct {
	Node
	shard *catalogtest.Shard
	// before is called before each command.
	before func()
}

func newPolicies(t *testing.T) (*policies, *oneNode) {
	n := &oneNode{shard: catalogtest.New(t, catalog.Type()), before: func() {}}
	if r := n.shard.Do(catalog.Call(catalog.OpBootstrap, catalog.Bootstrap{ClusterID: "c", Shards: 1, Replicas: 1, Node: catalog.Node{ID: "n1"}})); r.Err() != nil {
		t.Fatal(r.Err())
	}
	return &policies{node: n}, n
}

func (n *oneNode) Catalog(_ context.Context, call fsm.Call) ([]byte, error) {
	n.before()
	r := n.shard.Do(call)
	return r.Body, r.Err()
}

func (n *oneNode) Query(_ context.Context, _ uint32, calls []fsm.Call) ([]fsm.Result, fsm.Applied, error) {
	return []fsm.Result{n.shard.Query(calls[0])}, fsm.Applied{}, nil
}

// A burst that was given stays until another is given, or the algorithm becomes another one.
func TestAnUpdateLeavesTheBurstAlone(t *testing.T) {
	token, leaky := proto.String("token_bucket"), proto.String("leaky_bucket")
	for name, tt := range map[string]struct {
		algorithm string
		burst     uint32
		update    *pb.UpdatePolicyRequest
		want      uint32
	}{
		"a leaky bucket as large as its rate":  {*leaky, 5, &pb.UpdatePolicyRequest{Description: proto.String("new")}, 5},
		"its rate changes":                     {*leaky, 5, &pb.UpdatePolicyRequest{RateLimit: proto.Uint32(9)}, 5},
		"the algorithm that it has":            {*token, 3, &pb.UpdatePolicyRequest{Algorithm: token}, 3},
		"another algorithm":                    {*token, 3, &pb.UpdatePolicyRequest{Algorithm: leaky}, 1},
		"a token bucket's follows the rate":    {*token, 0, &pb.UpdatePolicyRequest{RateLimit: proto.Uint32(9)}, 9},
		"a token bucket's own does not follow": {*token, 3, &pb.UpdatePolicyRequest{RateLimit: proto.Uint32(9)}, 3},
	} {
		s, _ := newPolicies(t)
		p, err := s.CreatePolicy(t.Context(), &pb.CreatePolicyRequest{
			Name: "api", Algorithm: tt.algorithm, RateLimit: 5, TimeWindow: 60, BurstCapacity: tt.burst,
		})
		if err != nil {
			t.Fatal(err)
		}
		tt.update.PolicyId = p.PolicyId
		if p, err = s.UpdatePolicy(t.Context(), tt.update); err != nil || p.BurstCapacity != tt.want {
			t.Errorf("%s: burst %d, %v; want %d", name, p.GetBurstCapacity(), err, tt.want)
		}
	}
}

// A list of much YAML comes in pages that a client takes.
func TestDomainsAreListedInPages(t *testing.T) {
	s, n := newPolicies(t)
	const all = 12
	for i := range all {
		n.shard.Do(catalog.Call(catalog.OpPutDomain, catalog.Domain{Name: fmt.Sprintf("d%02d", i), YAML: strings.Repeat("#", 1<<20-100)}))
	}
	var names []string
	pages := 0
	for token, more := "", true; more; more = token != "" {
		r, err := s.ListEnvoy(t.Context(), &pb.ListEnvoyRequest{PageToken: token})
		if err != nil || proto.Size(r) > 4<<20 || len(r.Domains) == 0 {
			t.Fatalf("%d domains, %d bytes, %v", len(r.GetDomains()), proto.Size(r), err)
		}
		for _, d := range r.Domains {
			names = append(names, d.Domain)
		}
		token = r.NextPageToken
		pages++
	}
	if len(names) != all || !slices.IsSorted(names) || len(slices.Compact(names)) != all || pages > all/2 {
		t.Errorf("%d pages: %v", pages, names)
	}
}

func (n *oneNode) CatalogView() kv.View { return n.shard.View() }

func (n *oneNode) WatchCatalog(func()) (stop func()) { return func() {} }

func create(t *testing.T, s *policies, name string) *pb.Policy {
	t.Helper()
	p, err := s.CreatePolicy(t.Context(), &pb.CreatePolicyRequest{Name: name, RateLimit: 5, TimeWindow: 60})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Who names no revision does not mind which one there is.
func TestAnUpdateWithoutARevisionIsNeverTooSlow(t *testing.T) {
	s, n := newPolicies(t)
	p := create(t, s, "api")
	others := 0
	update := func(q *pb.UpdatePolicyRequest) (*pb.Policy, error) {
		others = 3
		n.before = func() {
			if others--; others < 0 {
				return
			}
			before := n.before
			n.before = func() {}
			if _, err := s.UpdatePolicy(t.Context(), &pb.UpdatePolicyRequest{PolicyId: "api", Description: proto.String(fmt.Sprint(others))}); err != nil {
				t.Errorf("the other one: %v", err)
			}
			n.before = before
		}
		return s.UpdatePolicy(t.Context(), q)
	}
	got, err := update(&pb.UpdatePolicyRequest{PolicyId: "api", RateLimit: proto.Uint32(9)})
	if err != nil || got.RateLimit != 9 || got.Description != "0" || got.Revision != 5 {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := update(&pb.UpdatePolicyRequest{PolicyId: "api", RateLimit: proto.Uint32(10), ExpectedRevision: got.Revision}); kindOf(err) != conflict {
		t.Errorf("with a revision: %v", err)
	}
	n.before = func() {}
	create(t, s, "taken")
	if _, err := s.UpdatePolicy(t.Context(), &pb.UpdatePolicyRequest{PolicyId: p.PolicyId, Name: proto.String("taken")}); kindOf(err) != conflict {
		t.Errorf("a conflict that stays: %v", err)
	}
}

func TestAnUpdateThatChangesNothingIsNone(t *testing.T) {
	s, n := newPolicies(t)
	p := create(t, s, "api")
	same := &pb.UpdatePolicyRequest{PolicyId: "api", RateLimit: proto.Uint32(5), Algorithm: proto.String("token_bucket"), Scope: proto.String("client")}
	n.before = func() { t.Error("a command was executed") }
	for _, same.ExpectedRevision = range []uint32{0, p.Revision} {
		if got, err := s.UpdatePolicy(t.Context(), same); err != nil || !proto.Equal(got, p) {
			t.Errorf("%v, %v, want %v", got, err, p)
		}
	}
	n.before = func() {}
	same.ExpectedRevision = 7
	if _, err := s.UpdatePolicy(t.Context(), same); kindOf(err) != conflict {
		t.Errorf("of another revision: %v", err)
	}
	same.ExpectedRevision, same.RateLimit = 0, proto.Uint32(6)
	if got, err := s.UpdatePolicy(t.Context(), same); err != nil || got.Revision != 2 {
		t.Errorf("a change: %v, %v", got, err)
	}
}

// A policy of a time when a useless burst was taken can still be changed.
func TestABurstGoesWithItsAlgorithm(t *testing.T) {
	s, n := newPolicies(t)
	n.shard.Do(catalog.Call(catalog.OpCreatePolicy, catalog.PolicyEdit{Policy: catalog.Policy{
		Name: "old", Algorithm: "fixed_window", Rate: 5, Burst: 7, WindowMS: 1000, Scope: "client", OnUnavailable: "local",
	}}))
	p, err := s.UpdatePolicy(t.Context(), &pb.UpdatePolicyRequest{PolicyId: "old", RateLimit: proto.Uint32(6)})
	if err != nil || p.BurstCapacity != 0 {
		t.Errorf("%v, %v", p, err)
	}
	p, err = s.UpdatePolicy(t.Context(), &pb.UpdatePolicyRequest{PolicyId: "old", Algorithm: proto.String("token_bucket"), BurstCapacity: proto.Uint32(9)})
	if err != nil || p.BurstCapacity != 9 {
		t.Errorf("%v, %v", p, err)
	}
	if _, err := s.UpdatePolicy(t.Context(), &pb.UpdatePolicyRequest{PolicyId: "old", Algorithm: proto.String("sliding_window"), BurstCapacity: proto.Uint32(9)}); kindOf(err) != invalid || !strings.Contains(err.Error(), "burst_capacity") {
		t.Errorf("sliding_window with a burst: %v", err)
	}
}

func TestADescriptionIsCutNowhere(t *testing.T) {
	s, _ := newPolicies(t)
	for text, ok := range map[string]bool{
		strings.Repeat("x", maxField-1) + "é": true, strings.Repeat("x", maxDescription): true,
		strings.Repeat("x", maxDescription+1): false, strings.Repeat("x", maxField+1) + "\xff": false,
	} {
		p, err := s.CreatePolicy(t.Context(), &pb.CreatePolicyRequest{Name: fmt.Sprintf("p-%d-%v", len(text), ok), RateLimit: 5, TimeWindow: 60, Description: text})
		if (err == nil) != ok || ok && p.Description != text {
			t.Errorf("%d bytes: %v", len(text), err)
		}
	}
}

func TestTimesThatAreNoneAreRefused(t *testing.T) {
	s, _ := newPolicies(t)
	create(t, s, "api")
	for name, q := range map[string]*pb.AssignClientsRequest{
		"from": {EffectiveFrom: &timestamppb.Timestamp{Seconds: 1 << 40}}, "to": {EffectiveTo: &timestamppb.Timestamp{Nanos: -1}},
	} {
		q.PolicyId, q.ClientIds = "api", []string{"a"}
		if _, err := s.AssignClients(t.Context(), q); kindOf(err) != invalid || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A slow limit in debt may be whole again in thousands of years. There are no timestamps for that.
func TestATimeBeyondTimestampsIsTheLastOne(t *testing.T) {
	p := &plan{matches: []policy.Match{{Policy: &catalog.Policy{}, Limit: counter.Limit{}}}}
	r := (&limits{}).answer(p, false, []counter.LimitResult{{ResetIn: 1 << 60}}, 1_700_000_000_000)
	if err := r.ResetTime.CheckValid(); err != nil || r.ResetTime.AsTime().Year() != 9999 {
		t.Errorf("%v: %v", r.ResetTime, err)
	}
}

func TestTheNumberOfDomainsIsBounded(t *testing.T) {
	s, n := newPolicies(t)
	n.shard.OpenOnce = true
	yaml := func(i int) *pb.ImportEnvoyRequest {
		return &pb.ImportEnvoyRequest{Yaml: fmt.Sprintf("domain: d%d\ndescriptors: [{key: k, rate_limit: {unit: second, requests_per_unit: 1}}]", i)}
	}
	for i := range maxDomains {
		n.shard.Do(catalog.Call(catalog.OpPutDomain, catalog.Domain{Name: fmt.Sprint("d", i), YAML: yaml(i).Yaml}))
	}
	if _, err := s.ImportEnvoy(t.Context(), yaml(maxDomains)); kindOf(err) != exhausted {
		t.Errorf("one too many: %v", err)
	}
	if _, err := s.ImportEnvoy(t.Context(), yaml(0)); err != nil {
		t.Errorf("one that there is: %v", err)
	}
	if _, err := s.DeleteEnvoy(t.Context(), &pb.DeleteEnvoyRequest{Domain: "d0"}); err != nil {
		t.Fatal(err)
	}
	list, err := s.ListEnvoy(t.Context(), &pb.ListEnvoyRequest{})
	if err != nil || len(list.Domains) != maxDomains-1 {
		t.Errorf("%d domains, %v", len(list.Domains), err)
	}
	ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("holdfast-actor", "alice"))
	if _, err := s.ImportEnvoy(ctx, yaml(maxDomains)); err != nil {
		t.Errorf("when there is room: %v", err)
	}
	list, err = s.ListEnvoy(t.Context(), &pb.ListEnvoyRequest{})
	if err != nil || !slices.ContainsFunc(list.Domains, func(d *pb.EnvoyDomain) bool { return d.Actor == "alice" && d.UpdatedAt.IsValid() }) {
		t.Errorf("nobody knows who imported it: %v", err)
	}
}
