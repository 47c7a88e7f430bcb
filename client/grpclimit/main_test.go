package grpclimit_test

import (
	"context"
	"os"
	"testing"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/client/holdfasttest"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// cluster is one real cluster for all tests and examples of the package, and sdk is connected to it. Each test limits
// clients of its own.
var (
	cluster *holdfasttest.Cluster
	sdk     *client.Client
)

func TestMain(m *testing.M) {
	os.Exit(holdfasttest.Main(m, 1, func(c *holdfasttest.Cluster) { cluster, sdk = c, c.Client() }))
}

// yearly makes a policy of n tokens in a calendar year, so that no quota comes back while a test runs, and puts a client
// under it. The returned function deletes it, so that a test can be run again.
func yearly(name, scope, who string, n uint32) (remove func()) {
	ctx := context.Background()
	policies := pb.NewPoliciesClient(sdk.Conn())
	if _, err := policies.CreatePolicy(ctx, &pb.CreatePolicyRequest{
		Name: name, Algorithm: "fixed_window", RateLimit: n, Calendar: "year", Scope: scope,
	}); err != nil {
		panic(err)
	}
	if _, err := policies.AssignClients(ctx, &pb.AssignClientsRequest{PolicyId: name, ClientIds: []string{who}}); err != nil {
		panic(err)
	}
	return func() {
		if _, err := policies.DeletePolicy(ctx, &pb.DeletePolicyRequest{PolicyId: name}); err != nil {
			panic(err)
		}
	}
}
