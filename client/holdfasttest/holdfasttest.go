// Package holdfasttest starts real Holdfast clusters for tests: Raft, storage and all interfaces, in this process, on
// loopback, in a directory that the test removes.
package holdfasttest

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/node"
	"github.com/holdfastdb/holdfast/node/shard"
	"github.com/holdfastdb/holdfast/rpc/process"
)

// Cluster is a running cluster. The test's end stops it.
type Cluster struct {
	t    testing.TB
	dirs []string

	mu    sync.Mutex
	nodes []*process.Process // nil for a node that is stopped
}

// timing makes elections short, and replicas compare their states all the time.
var timing = shard.Timing{Heartbeat: 250 * time.Millisecond, Commit: 50 * time.Millisecond, Checksum: time.Second}

const startTimeout = 30 * time.Second

// Start starts a cluster and returns when it serves, with all replicas in place.
func Start(t testing.TB, nodes int) *Cluster {
	t.Helper()
	c := &Cluster{t: t, nodes: make([]*process.Process, nodes)}
	dir := t.TempDir()
	t.Cleanup(c.stopAll)
	for i := range nodes {
		c.dirs = append(c.dirs, filepath.Join(dir, fmt.Sprintf("n%d", i+1)))
		c.StartNode(i)
	}
	c.WaitHealthy()
	return c
}

// StartNode starts a node, for the first time or again with the data that it had.
func (c *Cluster) StartNode(i int) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	cfg := process.Config{
		GRPC: "127.0.0.1:0", HTTP: "127.0.0.1:0", Peer: "127.0.0.1:0",
		Node: node.Config{
			Name: fmt.Sprintf("n%d", i+1), Dir: c.dirs[i], Gossip: "127.0.0.1:0", Shards: 4, Replicas: 3, Timing: timing,
			Logger: slog.New(slog.DiscardHandler), Bootstrap: i == 0,
			OnFatal: func(err error) { c.t.Errorf("node %d cannot go on: %v", i+1, err) },
		},
	}
	for _, p := range c.running() {
		cfg.Node.Join = append(cfg.Node.Join, p.Node.GossipAddr())
	}
	p, err := process.Start(ctx, cfg)
	if err != nil {
		c.t.Fatalf("start node %d: %v", i+1, err)
	}
	c.mu.Lock()
	c.nodes[i] = p
	c.mu.Unlock()
}

// StopNode stops a node as an operator does.
func (c *Cluster) StopNode(i int) {
	c.t.Helper()
	c.mu.Lock()
	p := c.nodes[i]
	c.nodes[i] = nil
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := p.Close(ctx); err != nil {
		c.t.Errorf("stop node %d: %v", i+1, err)
	}
}

func (c *Cluster) running() []*process.Process {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []*process.Process
	for _, p := range c.nodes {
		if p != nil {
			list = append(list, p)
		}
	}
	return list
}

// Node is a running node, counted from 0.
func (c *Cluster) Node(i int) *process.Process {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nodes[i]
}

// Addrs are the gRPC addresses of the nodes that run.
func (c *Cluster) Addrs() []string {
	var addrs []string
	for _, p := range c.running() {
		addrs = append(addrs, p.GRPCAddr())
	}
	return addrs
}

// URL is the address of a node's REST interface.
func (c *Cluster) URL(i int) string { return "http://" + c.Node(i).HTTPAddr() }

// WaitHealthy returns when all nodes that run serve and every shard has its replicas.
func (c *Cluster) WaitHealthy() {
	c.t.Helper()
	for end := time.Now().Add(startTimeout); ; time.Sleep(10 * time.Millisecond) {
		err := c.unhealthy()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			c.t.Fatalf("the cluster is not healthy: %v", err)
		}
	}
}

func (c *Cluster) unhealthy() error {
	running := c.running()
	for _, p := range running {
		if err := p.Node.Ready(); err != nil {
			return err
		}
		t := p.Node.Topology()
		if len(t.Nodes) != len(c.nodes) {
			return fmt.Errorf("%d nodes of %d", len(t.Nodes), len(c.nodes))
		}
		for _, s := range t.Shards {
			voters := 0
			for _, r := range s.Replicas {
				if r.Role == "voter" {
					voters++
				}
			}
			if voters != min(3, len(c.nodes)) {
				return fmt.Errorf("shard %d has %d voters", s.ID, voters)
			}
		}
	}
	return nil
}

// Client connects an SDK, which is closed when the cluster ends.
func (c *Cluster) Client() *client.Client {
	c.t.Helper()
	return c.ClientFor(c.t)
}

// ClientFor connects an SDK, which is closed when t ends.
func (c *Cluster) ClientFor(t testing.TB) *client.Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	cl, err := client.Dial(ctx, client.Config{Addrs: c.Addrs()})
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	t.Cleanup(func() {
		if err := cl.Close(); err != nil {
			t.Errorf("close the client: %v", err)
		}
	})
	return cl
}

func (c *Cluster) stopAll() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for i, p := range c.running() {
		if err := p.Close(ctx); err != nil {
			c.t.Errorf("stop node %d: %v", i+1, err)
		}
	}
}
