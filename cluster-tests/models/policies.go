package models

import (
	"context"
	"fmt"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/cluster-tests/history"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// policiesName names the operations on policies. They are the catalog's, whose log no model replays: what became of them is
// compared with what the catalog remembers.
const policiesName = "policies"

// PolicyOp is the Input of a change of a policy, whose Output is a *pb.Policy.
type PolicyOp struct {
	PolicyID string `json:"policy"`
	Rate     uint32 `json:"rate"`
}

// DataType implements history.Input.
func (PolicyOp) DataType() string { return policiesName }

// Describe implements history.Input.
func (p PolicyOp) Describe() string { return "change of policy " + p.PolicyID }

// MakePolicy makes a policy for one resource, which has the policy's name if none is named, and for every client.
func MakePolicy(ctx context.Context, cl *client.Client, q *pb.CreatePolicyRequest) (*pb.Policy, error) {
	if q.Resource == "" {
		q.Resource = q.Name
	}
	api := pb.NewPoliciesClient(cl.Conn())
	p, err := api.CreatePolicy(ctx, q)
	if err != nil {
		return nil, fmt.Errorf("make policy %s: %w", q.Name, err)
	}
	if _, err := api.AssignClients(ctx, &pb.AssignClientsRequest{PolicyId: p.PolicyId, ClientIds: []string{"*"}}); err != nil {
		return nil, fmt.Errorf("assign policy %s: %w", q.Name, err)
	}
	return p, nil
}

// rememberedPolicies looks for every acknowledged change of a policy in what the cluster remembers of it: each is there,
// with its revision, and nothing that nobody asked for.
func rememberedPolicies(ctx context.Context, cl *client.Client, policyID string, ops []history.Op) []Violation {
	h, err := pb.NewPoliciesClient(cl.Conn()).PolicyHistory(ctx, &pb.PolicyHistoryRequest{PolicyId: policyID})
	if err != nil {
		return []Violation{violation(BrokenPolicy, "read the history of the policy: %v", err)}
	}
	return judgePolicies(ops, h.Changes)
}

func judgePolicies(ops []history.Op, changes []*pb.PolicyChange) (broken []Violation) {
	rates := make(map[uint32]uint32) // by revision
	var updates int
	for _, c := range changes {
		if c.Action == "update" {
			updates++
			rates[c.Revision] = c.Policy.RateLimit
		}
	}
	asked, acknowledged := 0, 0
	for _, op := range ops {
		in, ok := op.Input.(PolicyOp)
		if !ok {
			continue
		}
		asked++
		if op.Outcome != history.Definite {
			continue
		}
		acknowledged++
		p := op.Output.(*pb.Policy)
		if rate, found := rates[p.Revision]; !found || rate != in.Rate || p.RateLimit != in.Rate {
			broken = append(broken, violation(BrokenPolicy, "revision %d was acknowledged at %v with rate %d, asked for was %d, the cluster remembers %d",
				p.Revision, op.Return, p.RateLimit, in.Rate, rate))
		}
	}
	if updates < acknowledged || updates > asked {
		broken = append(broken, violation(BrokenPolicy, "%d changes of the policy are remembered, %d were acknowledged and %d asked for", updates, acknowledged, asked))
	}
	return broken
}
