package check

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/cluster-tests/history"
	"github.com/holdfastdb/holdfast/cluster-tests/models"
	"github.com/holdfastdb/holdfast/node"
	"github.com/holdfastdb/holdfast/node/shard"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
	"github.com/holdfastdb/holdfast/rpc/process"
	"github.com/holdfastdb/holdfast/storage/raftlog"
)

// policies has one of each algorithm, all for every client of its own resource; the last counts by address, and so often
// in another shard than the client's.
var policies = []*pb.CreatePolicyRequest{
	{Name: "token", Algorithm: "token_bucket", RateLimit: 50, TimeWindow: 1, BurstCapacity: 20},
	{Name: "leaky", Algorithm: "leaky_bucket", RateLimit: 40, TimeWindow: 1, BurstCapacity: 10},
	{Name: "log", Algorithm: "sliding_log", RateLimit: 30, TimeWindow: 0.5},
	{Name: "sliding", Algorithm: "sliding_window", RateLimit: 30, TimeWindow: 0.5},
	{Name: "fixed", Algorithm: "fixed_window", RateLimit: 500, Calendar: "year"},
	{Name: "slots", Algorithm: "concurrency", RateLimit: 3, TimeWindow: 0.2},
	{Name: "address", Algorithm: "token_bucket", RateLimit: 20, TimeWindow: 1, BurstCapacity: 20, Scope: "ip"},
}

// runOne starts a node of its own, has the load run, stops the node, and returns the logs that it left.
func runOne(t *testing.T, load func(ctx context.Context, c *client.Client)) map[uint32][]Entry {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dir := filepath.Join(t.TempDir(), "n1")
	p, err := process.Start(ctx, process.Config{GRPC: "127.0.0.1:0", HTTP: "127.0.0.1:0", Peer: "127.0.0.1:0", Node: node.Config{
		Name: "n1", Dir: dir, Gossip: "127.0.0.1:0", Shards: 2, Replicas: 1, Bootstrap: true, Logger: slog.New(slog.DiscardHandler),
		Timing: shard.Timing{Heartbeat: 250 * time.Millisecond}, OnFatal: func(err error) { t.Errorf("the node cannot go on: %v", err) },
	}})
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.Dial(ctx, client.Config{Addrs: []string{p.GRPCAddr()}})
	if err != nil {
		t.Fatal(err)
	}
	admin := pb.NewPoliciesClient(c.Conn())
	for _, q := range policies {
		q.Resource = q.Name
		if _, err := admin.CreatePolicy(ctx, q); err != nil {
			t.Fatal(err)
		}
		if _, err := admin.AssignClients(ctx, &pb.AssignClientsRequest{PolicyId: q.Name, ClientIds: []string{"*"}}); err != nil {
			t.Fatal(err)
		}
	}
	load(ctx, c)
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := p.Close(ctx); err != nil {
		t.Error(err)
	}
	return storedLogs(t, filepath.Join(dir, "raft"), 2)
}

func storedLogs(t *testing.T, dir string, shards uint32) map[uint32][]Entry {
	t.Helper()
	store, err := raftlog.Open(raftlog.Options{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	logs := make(map[uint32][]Entry)
	for id := uint32(1); id <= shards; id++ {
		log, err := store.Open(id)
		if err != nil {
			t.Fatal(err)
		}
		first, err := log.FirstIndex()
		if err != nil {
			t.Fatal(err)
		}
		last, err := log.LastIndex()
		if err != nil {
			t.Fatal(err)
		}
		for i := first; i <= last; i++ {
			var e raft.Log
			if err := log.GetLog(i, &e); err != nil {
				t.Fatal(err)
			}
			logs[id] = append(logs[id], Entry{Index: e.Index, Term: e.Term, Type: e.Type, Data: e.Data})
		}
		if err := log.Close(); err != nil {
			t.Error(err)
		}
	}
	return logs
}

// caller does one thing after the other and notes it.
type caller struct {
	h    *history.History
	c    *client.Client
	name string
	rng  *rand.Rand
	open []*client.Reservation
	held []heldSlot
}

type heldSlot struct {
	request client.Request
	token   string
}

// do records one operation.
func (c *caller) do(ctx context.Context, in models.LimitOp, call func(ctx context.Context) (any, error)) {
	var trace client.Trace
	p := c.h.Begin(c.name, in)
	out, err := call(client.WithTrace(ctx, &trace))
	p.End(out, trace, err)
}

func (c *caller) step(ctx context.Context) {
	q := client.Request{
		Client: fmt.Sprint("client-", c.rng.IntN(3)), Resource: policies[c.rng.IntN(len(policies))].Name,
		IP: fmt.Sprint("10.0.0.", c.rng.IntN(4)), Weight: uint32(1 + c.rng.IntN(3)),
	}
	l := c.c.Limits()
	in := models.LimitOp{Kind: models.KindCheck, Request: q, Limited: true}
	switch n := c.rng.IntN(20); {
	case n < 2:
		in.Kind = models.KindPeek
		c.do(ctx, in, func(ctx context.Context) (any, error) { return l.Peek(ctx, q) })
	case n < 4:
		in.Kind = models.KindStatus
		c.do(ctx, in, func(ctx context.Context) (any, error) { return l.Status(ctx, q) })
	case n == 4:
		in.Kind = models.KindReset
		c.do(ctx, in, func(ctx context.Context) (any, error) { return l.Reset(ctx, q) })
	case n < 8:
		in.Kind = models.KindReserve
		c.do(ctx, in, func(ctx context.Context) (any, error) {
			r, err := l.Reserve(ctx, q, time.Second)
			if err != nil {
				return nil, err
			}
			if r.ID != "" {
				c.open = append(c.open, r)
			}
			return r.Decision, nil
		})
	case n < 10 && len(c.open) > 0:
		r := c.open[0]
		c.open = c.open[1:]
		if in.Kind = models.KindRefund; n == 8 {
			in.Kind = models.KindCommit
		}
		c.do(ctx, in, func(ctx context.Context) (any, error) {
			if n == 8 {
				return nil, r.Commit(ctx, uint32(c.rng.IntN(4)))
			}
			return nil, r.Refund(ctx)
		})
	case n < 12 && len(c.held) > 0:
		s := c.held[0]
		c.held = c.held[1:]
		in.Kind = models.KindRelease
		c.do(ctx, in, func(ctx context.Context) (any, error) { return nil, l.Release(ctx, s.request, s.token) })
	case n == 12:
		in.Kind = models.KindLease
		c.do(ctx, in, func(ctx context.Context) (any, error) { return l.Async(ctx, q) })
	default:
		c.do(ctx, in, func(ctx context.Context) (any, error) {
			d, err := l.Check(ctx, q)
			if d.ReleaseToken != "" {
				c.held = append(c.held, heldSlot{q, d.ReleaseToken})
			}
			return d, err
		})
	}
}

// What a real node does through its whole stack stands all checks: each kind of operation, under every algorithm.
func TestARealNodePassesAllChecks(t *testing.T) {
	h := history.New()
	logs := runOne(t, func(ctx context.Context, c *client.Client) {
		var running sync.WaitGroup
		for i := range 6 {
			running.Go(func() {
				w := &caller{h: h, c: c, name: fmt.Sprint("p", i), rng: rand.New(rand.NewPCG(1, uint64(i)))}
				for range 400 {
					w.step(ctx)
				}
			})
		}
		running.Wait()
	})
	ops := h.Ops()
	for id := range logs {
		logs[id] = Stamped(logs[id], h.Start())
	}
	r := Replay(models.Types(), logs, ops)
	for i, v := range r.Violations {
		if i == 10 {
			t.Fatalf("%d violations", len(r.Violations))
		}
		t.Error(v)
	}
	t.Logf("%d operations, %d checked, %d definite, %d failed, %d unknown, %d unclear", len(ops), r.Checked, r.Definite, r.Failed, r.Unknown, r.Unclear)
	if r.Checked < 1500 || r.Definite < 1500 || r.Unclear > r.Queries/8 || r.Lent < 50 {
		t.Errorf("too little was checked: %d of %d questions are unclear, %d decisions from leases", r.Unclear, r.Queries, r.Lent)
	}
}
