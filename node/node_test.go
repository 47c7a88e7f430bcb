package node

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/counter"
	"github.com/holdfastdb/holdfast/node/shard"
)

func testLogger(name string) *slog.Logger {
	if os.Getenv("HOLDFAST_TEST_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, nil)).With("test", name)
}

// startTestNode starts a node on loopback in dir; join is the gossip address of another, empty for the first.
func startTestNode(t testing.TB, name, dir, join string, change ...func(*Config)) *Node {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Name: name, Dir: dir, GRPC: name + ":grpc", HTTP: name + ":http", Peer: lis, Gossip: "127.0.0.1:0",
		Bootstrap: join == "", Shards: 4, Replicas: 3, Types: []fsm.Type{counter.Type()},
		Timing: shard.Timing{Heartbeat: 300 * time.Millisecond, Commit: 50 * time.Millisecond},
		Logger: testLogger(name), OnFatal: func(err error) { t.Error(err) },
	}
	if join != "" {
		cfg.Join = []string{join}
	}
	for _, f := range change {
		f(&cfg)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	n, err := Open(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// eventually polls, as there is no one event to wait for.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("did not happen: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func takeCall(key byte, weight uint32) fsm.Call {
	q := counter.TakeRequest{Weight: weight, Limits: []counter.Limit{{
		Key: counter.Key{key}, Policy: 1,
		Params: counter.Params{Algorithm: counter.FixedWindow, Rate: 1_000_000, Window: counter.MaxWindow},
	}}}
	return fsm.Call{Type: counter.TypeID, Op: counter.OpTake, Body: q.Append(nil)}
}

func used(t testing.TB, n *Node, group uint32, key byte) uint32 {
	t.Helper()
	call := takeCall(key, 0)
	call.Op = counter.OpPeek
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	results, _, err := n.Query(ctx, group, []fsm.Call{call})
	if err != nil {
		t.Fatal(err)
	}
	r, err := counter.DecodeTakeResult(results[0].Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.Limits[0].Used
}

func allVoters(nodes ...*Node) bool {
	for _, n := range nodes {
		t := n.Topology()
		if t == nil || len(t.Nodes) != len(nodes) || n.Ready() != nil {
			return false
		}
		for i := range t.Shards {
			if len(t.Shards[i].Replicas) != len(nodes) {
				return false
			}
			for _, r := range t.Shards[i].Replicas {
				if r.Role != "voter" {
					return false
				}
			}
		}
	}
	return true
}

func TestOneNodeKeepsItsDataOverARestart(t *testing.T) {
	dir := t.TempDir()
	for life := range uint32(3) {
		n := startTestNode(t, "n1", dir, "")
		eventually(t, "ready", func() bool { return n.Ready() == nil })
		if got := used(t, n, 1, 'k'); got != life*10 {
			t.Fatalf("%d tokens used in life %d, want %d", got, life, life*10)
		}
		if _, err := n.Do(t.Context(), 1, []fsm.Call{takeCall('k', 10)}); err != nil {
			t.Fatal(err)
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestThreeNodesFormAClusterAndSurviveOneEachTime(t *testing.T) {
	dirs := []string{t.TempDir(), t.TempDir(), t.TempDir()}
	nodes := []*Node{startTestNode(t, "n1", dirs[0], "")}
	defer func() {
		for _, n := range nodes {
			if err := n.Close(); err != nil {
				t.Error(err)
			}
		}
	}()
	for i := 1; i < 3; i++ {
		nodes = append(nodes, startTestNode(t, fmt.Sprint("n", i+1), dirs[i], nodes[0].gossip.Addr()))
	}
	eventually(t, "three voters everywhere", func() bool { return allVoters(nodes...) })
	eventually(t, "leaders spread", func() bool {
		leads := map[string]int{}
		for _, s := range nodes[0].Topology().Shards {
			id, _, _ := nodes[0].Leader(s.ID)
			leads[id]++
		}
		return len(leads) == 3
	})

	// Writers go on while each node in turn goes away and comes back; not one acknowledged take is lost or doubled.
	var mu sync.Mutex
	acked := map[uint32]uint32{}
	ctx, stop := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	live := func(i int) *Node { mu.Lock(); defer mu.Unlock(); return nodes[i] }
	for w := range 3 {
		writers.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				group := uint32(i%4 + 1)
				try, cancel := context.WithTimeout(context.Background(), 20*time.Second)
				_, err := live(w).Do(try, group, []fsm.Call{takeCall('k', 1)})
				cancel()
				if err == nil {
					mu.Lock()
					acked[group]++
					mu.Unlock()
				}
			}
		})
	}
	total := func() (n uint32) {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range acked {
			n += c
		}
		return n
	}
	for i := range nodes {
		before := total()
		gone := live(i)
		if err := gone.Close(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "writes go on without the node", func() bool { return total() > before+50 })
		back := startTestNode(t, fmt.Sprint("n", i+1), dirs[i], nodes[(i+1)%3].gossip.Addr())
		mu.Lock()
		nodes[i] = back
		mu.Unlock()
		eventually(t, "the node is back", func() bool { return allVoters(nodes...) })
	}
	stop()
	writers.Wait()
	for group, want := range acked {
		// A take whose node went away before the answer may count and be unacknowledged: at most one for each stop.
		if got := used(t, nodes[0], group, 'k'); got < want || got > want+3 {
			t.Errorf("shard %d: %d tokens used, %d acknowledged", group, got, want)
		}
	}
	t.Logf("%d takes acknowledged", total())
}
