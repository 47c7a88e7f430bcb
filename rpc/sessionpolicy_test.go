package rpc

import (
	"testing"

	"github.com/holdfastdb/holdfast/fsm/catalog"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

func TestPoliciesOfTypes(t *testing.T) {
	c := newSmall(t, nil)
	defer c.close()
	list, err := c.ListPolicies(t.Context(), &pb.ListSessionPoliciesRequest{})
	if err != nil || len(list.Policies) != 3 || list.Policies[0].Type != "web" || list.Policies[0].Revision != 0 || list.Policies[0].OnDeviceChange != "step_up" {
		t.Fatalf("%v, %v", list, err)
	}
	seconds, sessions := 60.0, uint32(1)
	first := c.policy(&pb.PutSessionPolicyRequest{Type: "web", IdleTimeout: &seconds, MaxSessions: &sessions, IpBinding: "subnet", OnLimit: "evict_oldest"})
	second := c.policy(&pb.PutSessionPolicyRequest{Type: "web", AbsoluteTimeout: &seconds, ExpectedRevision: first.Revision})
	if second.Revision != 2 || second.IdleTimeout != 60 || second.AbsoluteTimeout != 60 || second.OnDeviceChange != "step_up" || second.UpdatedAt == nil {
		t.Errorf("what is absent does not stay: %v", second)
	}
	if _, err := c.PutPolicy(t.Context(), &pb.PutSessionPolicyRequest{Type: "web", AbsoluteTimeout: &seconds, ExpectedRevision: first.Revision}); kindOf(err) != conflict {
		t.Errorf("of an old revision: %v", err)
	}
	web := func(q *pb.CreateSessionRequest) { q.Ip = "192.0.2.7" }
	a := c.login("alice", web)
	b := c.login("alice", web)
	if b.Evicted != 1 || c.reason(a.Token) != "ended" || c.reason(b.Token, from("203.0.113.9", nil)) != "ip_mismatch" || c.get(b.SessionId).IdleTimeout != 60 {
		t.Errorf("a login is not as the policy says: %v", c.get(b.SessionId))
	}
	bad := -1.0
	for name, q := range map[string]*pb.PutSessionPolicyRequest{
		"no type": {}, "another type": {Type: "x"}, "idle": {Type: "web", IdleTimeout: &bad}, "absolute": {Type: "web", AbsoluteTimeout: new(float64)},
		"refresh": {Type: "web", RefreshTimeout: &bad}, "binding": {Type: "web", IpBinding: "x"}, "act": {Type: "web", OnBurst: "x"}, "two networks": {Type: "web", OnTwoNetworks: "x"}, "limit": {Type: "web", OnLimit: "x"},
	} {
		if _, err := c.PutPolicy(t.Context(), q); kindOf(err) != invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if list, err = c.ListPolicies(t.Context(), &pb.ListSessionPoliciesRequest{}); err != nil || list.Policies[0].Revision != 2 || list.Policies[1].Revision != 0 {
		t.Errorf("%v, %v", list, err)
	}
}

// Of two who change different fields neither undoes the other's work, though one has not heard of the other's yet.
func TestAPolicyIsChangedFromWhatItIs(t *testing.T) {
	c := newSmall(t, nil)
	defer c.close()
	c.policy(&pb.PutSessionPolicyRequest{Type: "web", OnBurst: "ignore"})
	old := c.policies.table.Load()
	c.policy(&pb.PutSessionPolicyRequest{Type: "web", OnBurst: "revoke"})
	c.policies.table.Store(old)
	if m := c.policy(&pb.PutSessionPolicyRequest{Type: "web", OnNetworkChange: "revoke"}); m.OnBurst != "revoke" || m.OnNetworkChange != "revoke" || m.Revision != 3 {
		t.Errorf("%v", m)
	}
	c.policies.table.Store(old)
	if _, err := c.PutPolicy(t.Context(), &pb.PutSessionPolicyRequest{Type: "web", OnDeviceChange: "flag", ExpectedRevision: 3}); kindOf(err) != conflict {
		t.Errorf("from a revision that this node does not know: %v", err)
	}
}

// A policy that was changed before there was a sign keeps what Holdfast comes with for it, until somebody says otherwise.
func TestAnOlderPolicySaysNothingOfTwoNetworks(t *testing.T) {
	c := newSmall(t, nil)
	defer c.close()
	for name, want := range map[string]string{"web": "flag", "mobile": "ignore", "api": "flag"} {
		p := c.policies.of(kindNamed(name)).SessionPolicy
		if p.OnTwoNetworks != want {
			t.Errorf("%s: %q", name, p.OnTwoNetworks)
		}
		p.OnTwoNetworks, p.Burst = "", 7
		if _, err := c.Catalog(t.Context(), catalog.Call(catalog.OpPutSessionPolicy, p)); err != nil {
			t.Fatal(err)
		}
		if p := c.policies.of(kindNamed(name)); p.Burst != 7 || p.OnTwoNetworks != want || p.onTwoNetworks != acts[want] {
			t.Errorf("%s, changed before: %+v", name, p)
		}
		if m := c.policy(&pb.PutSessionPolicyRequest{Type: name, OnTwoNetworks: "revoke"}); m.OnTwoNetworks != "revoke" || m.Burst != 7 {
			t.Errorf("%s, changed now: %v", name, m)
		}
	}
}
