package models

import (
	"testing"

	"github.com/holdfastdb/holdfast/cluster-tests/history"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// An acknowledged change of a policy is remembered as it was asked for.
func TestLostChangesOfPoliciesAreFound(t *testing.T) {
	update := func(asked, revision, told uint32) history.Op {
		op := history.Op{Outcome: history.Definite, Input: PolicyOp{Rate: asked}, Output: &pb.Policy{Revision: revision, RateLimit: told}}
		return op
	}
	remembered := func(revision, rate uint32) *pb.PolicyChange {
		return &pb.PolicyChange{Action: "update", Revision: revision, Policy: &pb.Policy{RateLimit: rate}}
	}
	unknown := history.Op{Outcome: history.Failed, Input: PolicyOp{Rate: 9}, Error: "unavailable"}
	for _, test := range []struct {
		name    string
		ops     []history.Op
		changes []*pb.PolicyChange
		broken  bool
	}{
		{"all there", []history.Op{update(5, 2, 5), update(6, 3, 6)}, []*pb.PolicyChange{remembered(3, 6), remembered(2, 5)}, false},
		{"one is lost", []history.Op{update(5, 2, 5), update(6, 3, 6)}, []*pb.PolicyChange{remembered(2, 5)}, true},
		{"one is another", []history.Op{update(5, 2, 5)}, []*pb.PolicyChange{remembered(2, 7)}, true},
		{"another was acknowledged", []history.Op{update(5, 2, 7)}, []*pb.PolicyChange{remembered(2, 5)}, true},
		{"one of unknown outcome", []history.Op{update(5, 2, 5), unknown}, []*pb.PolicyChange{remembered(3, 9), remembered(2, 5)}, false},
		{"one that nobody asked for", []history.Op{update(5, 2, 5)}, []*pb.PolicyChange{remembered(3, 9), remembered(2, 5)}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			if broken := judgePolicies(test.ops, test.changes); (len(broken) > 0) != test.broken {
				t.Errorf("want %v: %v", test.broken, broken)
			}
		})
	}
}
