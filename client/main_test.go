package client_test

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/client/holdfasttest"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// cluster is one real cluster for all tests and examples of the package. Each uses clients and policies of its own.
var cluster *holdfasttest.Cluster

func TestMain(m *testing.M) {
	os.Exit(holdfasttest.Main(m, 1, func(c *holdfasttest.Cluster) { cluster = c }))
}

// dialCluster connects an SDK to the real cluster through a network that the test can cut.
func dialCluster(t *testing.T, timeout time.Duration) (*client.Client, *network) {
	t.Helper()
	n := &network{}
	c, err := client.Dial(t.Context(), client.Config{Addrs: cluster.Addrs(), Timeout: timeout, Dial: n.dial})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return c, n
}

// limit makes a policy for one client, which is named after the test like the policy, and returns a request of it. It goes over a connection of its own, for tests that cut theirs.
func limit(t *testing.T, p *pb.CreatePolicyRequest) client.Request {
	t.Helper()
	if p.Name == "" {
		p.Name = strings.NewReplacer("#", "-", "=", "-").Replace(t.Name())
	}
	c, _ := dialCluster(t, 0)
	policies := pb.NewPoliciesClient(c.Conn())
	if _, err := policies.CreatePolicy(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if _, err := policies.AssignClients(t.Context(), &pb.AssignClientsRequest{PolicyId: p.Name, ClientIds: []string{p.Name}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// The test's context is over. The next round of the same test makes the policy again.
		if _, err := policies.DeletePolicy(context.Background(), &pb.DeletePolicyRequest{PolicyId: p.Name}); err != nil {
			t.Errorf("delete the policy: %v", err)
		}
	})
	return client.Request{Client: p.Name}
}

// yearly is a policy of n tokens in a calendar year: no quota comes back while a test runs, except at New Year.
func yearly(n uint32) *pb.CreatePolicyRequest {
	return &pb.CreatePolicyRequest{Algorithm: "fixed_window", RateLimit: n, Calendar: "year"}
}

// network is what lies between one SDK and the cluster.
type network struct {
	mu    sync.Mutex
	down  bool
	conns []net.Conn
}

var errDown = errors.New("the network is down")

func (n *network) dial(ctx context.Context, addr string) (net.Conn, error) {
	n.mu.Lock()
	down := n.down
	n.mu.Unlock()
	if down {
		return nil, errDown
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.down {
		return nil, errors.Join(errDown, conn.Close())
	}
	n.conns = append(n.conns, conn)
	return conn, nil
}

// cut ends all connections and lets none begin.
func (n *network) cut() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down = true
	for _, conn := range n.conns {
		_ = conn.Close()
	}
	n.conns = nil
}

func (n *network) heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down = false
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never happened: %s", what)
		}
	}
}
