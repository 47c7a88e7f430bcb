// Package chaos runs clusters of real processes and does to them what machines, disks and networks do.
package chaos

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/holdfastdb/holdfast/client"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// Binary builds the program once for all tests of the process.
var Binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "holdfast-chaos-*")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "holdfast")
	build := exec.Command("go", "build", "-o", path, "github.com/holdfastdb/holdfast/cmd/holdfast")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build holdfast: %w\n%s", err, out)
	}
	return path, nil
})

// Cluster is a set of processes on loopback.
type Cluster struct {
	t      testing.TB
	binary string
	Nodes  []*Node
}

// Node is one process and what outlives it.
type Node struct {
	c        *Cluster
	Name     string
	GRPC     string
	HTTP     string
	args     []string
	log      string
	mu       sync.Mutex
	cmd      *exec.Cmd
	finished chan struct{} // closed when the process has ended
}

// Start starts a cluster of n nodes and waits until every shard has its voters. It ends with the test, which keeps the
// logs if it fails.
func Start(t testing.TB, n int) *Cluster {
	t.Helper()
	binary, err := Binary()
	if err != nil {
		t.Fatal(err)
	}
	c := &Cluster{t: t, binary: binary}
	dir := t.TempDir()
	addrs := freeAddrs(t, 4*n)
	for i := range n {
		a := addrs[4*i:]
		name := "n" + strconv.Itoa(i+1)
		node := &Node{c: c, Name: name, GRPC: a[0], HTTP: a[1], log: filepath.Join(dir, name+".log"), args: []string{
			"start", "--name", name, "--data", filepath.Join(dir, name), "--grpc", a[0], "--http", a[1], "--peer", a[2], "--gossip", a[3],
		}}
		if i == 0 {
			node.args = append(node.args, "--bootstrap")
		} else {
			node.args = append(node.args, "--join", addrs[3])
		}
		c.Nodes = append(c.Nodes, node)
	}
	t.Cleanup(c.stop)
	for _, node := range c.Nodes {
		node.Start()
		node.WaitReady(30 * time.Second)
	}
	c.WaitHealthy(60 * time.Second)
	return c
}

func freeAddrs(t testing.TB, n int) []string {
	t.Helper()
	var addrs []string
	for range n {
		l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close() // all at the end, so that no address comes twice
		addrs = append(addrs, l.Addr().String())
	}
	return addrs
}

func (c *Cluster) stop() {
	for _, n := range c.Nodes {
		n.Kill()
		if c.t.Failed() {
			if text, err := os.ReadFile(n.log); err == nil {
				c.t.Logf("log of %s:\n%s", n.Name, tail(string(text), 60))
			}
		}
	}
}

func tail(text string, lines int) string {
	all := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Addrs are the gRPC addresses of all nodes.
func (c *Cluster) Addrs() []string {
	var addrs []string
	for _, n := range c.Nodes {
		addrs = append(addrs, n.GRPC)
	}
	return addrs
}

// Dial opens a client that ends with the test.
func (c *Cluster) Dial() *client.Client {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cl, err := client.Dial(ctx, client.Config{Addrs: c.Addrs()})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = cl.Close() }) // the cluster may be gone already
	return cl
}

// Command prepares the program as a client of the cluster.
func (c *Cluster) Command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, c.binary, append(args, "--addr", strings.Join(c.Addrs(), ","))...)
}

// Status asks any node that answers.
func (c *Cluster) Status(ctx context.Context) (*pb.ClusterStatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	cl, err := client.Dial(ctx, client.Config{Addrs: c.Addrs()})
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	return pb.NewClusterClient(cl.Conn()).Status(ctx, &pb.ClusterStatusRequest{})
}

// WaitHealthy waits until all nodes are up and every shard has its voters and a leader.
func (c *Cluster) WaitHealthy(within time.Duration) {
	c.t.Helper()
	c.wait(within, "a healthy cluster", func() error {
		s, err := c.Status(context.Background())
		switch {
		case err != nil:
			return err
		case !s.Healthy:
			return errors.New("not healthy")
		case len(s.Nodes) != len(c.Nodes):
			return fmt.Errorf("%d nodes", len(s.Nodes))
		}
		return nil
	})
}

// BusiestLeader is the node that leads the most shards.
func (c *Cluster) BusiestLeader() *Node {
	c.t.Helper()
	s, err := c.Status(context.Background())
	if err != nil {
		c.t.Fatal(err)
	}
	leads := make(map[string]int)
	for _, shard := range s.Shards {
		leads[shard.Info.Leader]++
	}
	var busiest *pb.NodeInfo
	for _, n := range s.Nodes {
		if busiest == nil || leads[n.NodeId] > leads[busiest.NodeId] {
			busiest = n
		}
	}
	for _, n := range c.Nodes {
		if n.GRPC == busiest.GrpcAddr {
			return n
		}
	}
	c.t.Fatalf("no node at %s", busiest.GrpcAddr)
	return nil
}

// wait polls until try succeeds.
func (c *Cluster) wait(within time.Duration, what string, try func() error) {
	c.t.Helper()
	deadline := time.After(within)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			c.t.Fatalf("no %s within %v: %v", what, within, err)
		}
	}
}

// Start starts the process.
func (n *Node) Start() {
	n.c.t.Helper()
	log, err := os.OpenFile(n.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		n.c.t.Fatal(err)
	}
	cmd := exec.CommandContext(context.Background(), n.c.binary, n.args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		n.c.t.Fatal(err)
	}
	finished := make(chan struct{})
	n.mu.Lock()
	n.cmd, n.finished = cmd, finished
	n.mu.Unlock()
	go func() {
		_ = cmd.Wait() // it is killed, as a rule
		_ = log.Close()
		close(finished)
	}()
}

// Kill ends the process as a power switch does, as far as the process can tell, and waits for its end.
func (n *Node) Kill() {
	n.mu.Lock()
	cmd, finished := n.cmd, n.finished
	n.mu.Unlock()
	if cmd == nil {
		return
	}
	_ = cmd.Process.Signal(syscall.SIGKILL) // it may have ended
	<-finished
}

// WaitReady waits until the node says that it serves.
func (n *Node) WaitReady(within time.Duration) {
	n.c.t.Helper()
	n.c.wait(within, n.Name+" that is ready", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		q, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.HTTP+"/readyz", nil)
		if err != nil {
			return err
		}
		r, err := http.DefaultClient.Do(q)
		if err != nil {
			return err
		}
		defer r.Body.Close()
		if r.StatusCode != http.StatusOK {
			return errors.New(r.Status)
		}
		return nil
	})
}
