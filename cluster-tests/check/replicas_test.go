package check

import (
	"fmt"
	"testing"
	"time"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/client/holdfasttest"
	"github.com/holdfastdb/holdfast/fsm"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// The replicas of a real cluster compare their states over the real calls between nodes, and agree.
func TestTheReplicasOfARealClusterAgree(t *testing.T) {
	c := holdfasttest.Start(t, 3)
	cl := c.Client()
	policies := pb.NewPoliciesClient(cl.Conn())
	if _, err := policies.CreatePolicy(t.Context(), &pb.CreatePolicyRequest{Name: "p", Algorithm: "token_bucket", RateLimit: 5, TimeWindow: 1, BurstCapacity: 5}); err != nil {
		t.Fatal(err)
	}
	if _, err := policies.AssignClients(t.Context(), &pb.AssignClientsRequest{PolicyId: "p", ClientIds: []string{"*"}}); err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		if _, err := cl.Limits().Check(t.Context(), client.Request{Client: fmt.Sprint("client-", i)}); err != nil {
			t.Fatal(err)
		}
	}
	// All five groups, the catalog's among them, after what was done above.
	applied := make(map[uint32]uint64)
	for _, s := range c.Node(0).Node.LocalStatus().Groups {
		applied[s.Group] = s.Applied
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		equal := 0
		sums := make(map[uint32]fsm.Sum)
		for i := range 3 {
			for _, s := range c.Node(i).Node.LocalStatus().Groups {
				if s.Diverged != 0 {
					t.Fatalf("node %d, group %d: %d differ", i+1, s.Group, s.Diverged)
				}
				if first, seen := sums[s.Group]; !seen {
					sums[s.Group] = s.Sum
				} else if s.Sum == first && s.Sum.Index >= applied[s.Group] {
					equal++
				}
			}
		}
		if equal == 2*len(applied) && len(applied) == 5 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d sums of %d are equal: %+v", equal, 2*len(applied), sums)
		}
	}
}

// Every node is told of every change of a policy, once and in order.
func TestTheNodesOfARealClusterSeeEveryChange(t *testing.T) {
	c := holdfasttest.Start(t, 3)
	policies := pb.NewPoliciesClient(c.Client().Conn())
	followers := make([]Follower, 3)
	read := func() {
		for i := range followers {
			view := c.Node(i).Node.CatalogView()
			if err := followers[i].Read(view); err != nil {
				t.Error(err)
			}
			if err := view.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	for i := range uint32(10) {
		q := &pb.CreatePolicyRequest{Name: fmt.Sprint("policy-", i), Algorithm: "fixed_window", RateLimit: i + 1, TimeWindow: 60}
		if _, err := policies.CreatePolicy(t.Context(), q); err != nil {
			t.Fatal(err)
		}
		if i%3 == 0 {
			read()
		}
	}
	seen := make(map[string][]Change)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		read()
		least := uint64(1 << 63)
		for i := range followers {
			seen[fmt.Sprint("n", i+1)] = followers[i].Seen()
			least = min(least, followers[i].at)
		}
		if least >= 10 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("a node is at revision %d", least)
		}
	}
	if broken := Watches(seen); len(broken) > 0 {
		t.Error(broken)
	}
	if len(seen["n1"]) < 10 || seen["n1"][0].Value == nil {
		t.Errorf("%+v", seen["n1"])
	}
}
