package holdfasttest

import (
	"context"

	"github.com/holdfastdb/holdfast/client"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// Quota gives a client n tokens in a calendar year, counted by scope, so that none comes back while a test runs, except
// at New Year. The policy has the given name. The returned function deletes it, so that a test can run again; who may be
// "*", for everyone. Both end the test, or the program in an example, if that is not possible.
func (c *Cluster) Quota(policy, scope, who string, n uint32) (remove func()) {
	ctx := context.Background()
	must := func(err error) {
		if err != nil {
			c.t.Fatalf("policy %s: %v", policy, err)
		}
	}
	cl, err := client.Dial(ctx, client.Config{Addrs: c.Addrs()})
	must(err)
	policies := pb.NewPoliciesClient(cl.Conn())
	_, err = policies.CreatePolicy(ctx, &pb.CreatePolicyRequest{
		Name: policy, Algorithm: "fixed_window", RateLimit: n, Calendar: "year", Scope: scope,
	})
	must(err)
	_, err = policies.AssignClients(ctx, &pb.AssignClientsRequest{PolicyId: policy, ClientIds: []string{who}})
	must(err)
	return func() {
		_, err := policies.DeletePolicy(ctx, &pb.DeletePolicyRequest{PolicyId: policy})
		must(err)
		_ = cl.Close()
	}
}
