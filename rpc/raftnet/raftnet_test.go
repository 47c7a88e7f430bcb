package raftnet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
)

// book finds nodes' addresses.
type book struct {
	mu    sync.Mutex
	addrs map[string]string
}

func (b *book) find(id string) (string, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	a, ok := b.addrs[id]
	return a, ok
}

func (b *book) set(id, addr string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.addrs[id] = addr
}

type node struct {
	*Net
	server *grpc.Server
	served sync.WaitGroup
	raft   *raft.Raft
	fsm    *words
	disk   *disk // nil if it never hangs
	logs   *raft.InmemStore
	snaps  *raft.InmemSnapshotStore
}

func (n *node) close() {
	if n.raft != nil {
		_ = n.raft.Shutdown().Error()
	}
	n.server.Stop()
	n.Net.Close()
	n.served.Wait()
}

func startNode(t *testing.T, b *book, id string, cfg Config) *node {
	t.Helper()
	cfg.NodeID, cfg.Resolve, cfg.Logger = id, b.find, slog.New(slog.DiscardHandler)
	cfg.Heartbeat = cmp.Or(cfg.Heartbeat, 300*time.Millisecond)
	if cfg.ClusterID == nil {
		cfg.ClusterID = func() string { return "one" }
	}
	n := &node{Net: New(cfg)}
	n.server = grpc.NewServer(n.ServerOptions()...)
	n.Register(n.server)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.set(id, lis.Addr().String())
	n.served.Go(func() { _ = n.server.Serve(lis) })
	return n
}

// words is a state machine that keeps what it is told, in order.
type words struct {
	mu   sync.Mutex
	list []string
}

func (w *words) Apply(l *raft.Log) any {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.list = append(w.list, string(l.Data))
	return len(w.list)
}

func (w *words) text() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.list, ",")
}

func (w *words) Snapshot() (raft.FSMSnapshot, error) { return snapshotOf(w.text()), nil }

func (w *words) Restore(r io.ReadCloser) error {
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.list = strings.Split(string(b), ",")
	return r.Close()
}

type snapshotOf string

func (s snapshotOf) Persist(sink raft.SnapshotSink) error {
	if _, err := sink.Write([]byte(s)); err != nil {
		return err
	}
	return sink.Close()
}
func (s snapshotOf) Release() {}

const group = 7

func (n *node) startRaft(t *testing.T, bootstrap ...string) {
	t.Helper()
	if n.logs == nil {
		n.logs, n.snaps, n.fsm = raft.NewInmemStore(), raft.NewInmemSnapshotStore(), &words{}
	}
	replica := n.cfg.NodeID + "/1"
	c := raft.DefaultConfig()
	c.LocalID, c.Logger = raft.ServerID(replica), hclog.NewNullLogger()
	c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout = 300*time.Millisecond, 300*time.Millisecond, 300*time.Millisecond
	c.CommitTimeout, c.TrailingLogs, c.SnapshotThreshold = 20*time.Millisecond, 5, 1<<40
	tr := n.Group(group, replica, nil)
	if len(bootstrap) > 0 {
		var servers []raft.Server
		for _, id := range bootstrap {
			servers = append(servers, raft.Server{ID: raft.ServerID(id + "/1"), Address: raft.ServerAddress(id + "/1")})
		}
		if err := raft.BootstrapCluster(c, n.logs, n.logs, n.snaps, tr, raft.Configuration{Servers: servers}); err != nil {
			t.Fatal(err)
		}
	}
	logs := raft.LogStore(n.logs)
	if n.disk != nil {
		logs = slowLogs{n.logs, n.disk}
	}
	r, err := raft.NewRaft(c, n.fsm, logs, n.logs, n.snaps, tr)
	if err != nil {
		t.Fatal(err)
	}
	tr.Attach(r)
	n.raft = r
}

// eventually polls, as there is no event to wait for.
// eventually waits for long: the machine may be busy with other packages, and no test here is about how long something takes.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("did not happen: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func leader(t *testing.T, nodes ...*node) *node {
	t.Helper()
	var found *node
	eventually(t, "a leader", func() bool {
		for _, n := range nodes {
			if n.raft.State() == raft.Leader {
				found = n
				return true
			}
		}
		return false
	})
	return found
}

func TestAGroupElectsReplicatesAndSurvivesItsLeader(t *testing.T) {
	before := runtime.NumGoroutine()
	b := &book{addrs: map[string]string{}}
	nodes := map[string]*node{}
	for _, id := range []string{"a", "b", "c"} {
		nodes[id] = startNode(t, b, id, Config{})
	}
	for _, n := range nodes {
		n.startRaft(t, "a", "b", "c")
	}
	l := leader(t, nodes["a"], nodes["b"], nodes["c"])
	var want []string
	apply := func(n *node, count int) {
		t.Helper()
		var futures []raft.ApplyFuture
		for range count {
			want = append(want, fmt.Sprint(len(want)))
			futures = append(futures, n.raft.Apply([]byte(want[len(want)-1]), 5*time.Second))
		}
		for _, f := range futures {
			if err := f.Error(); err != nil {
				t.Fatal(err)
			}
		}
	}
	apply(l, 1000)
	var alive []*node
	for _, n := range nodes {
		if n != l {
			alive = append(alive, n)
		}
	}
	l.close()
	l2 := leader(t, alive...)
	apply(l2, 500)

	// The old leader comes back, far behind a compacted log: it gets the state.
	if err := l2.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	back := startNode(t, b, l.cfg.NodeID, Config{})
	back.startRaft(t)
	eventually(t, "the returned node has everything", func() bool { return back.fsm.text() == strings.Join(want, ",") })
	for _, n := range alive {
		eventually(t, "all nodes agree", func() bool { return n.fsm.text() == strings.Join(want, ",") })
	}

	follower := alive[0]
	if follower == l2 {
		follower = alive[1]
	}
	terms, err := l2.ConfirmTerms(t.Context(), follower.cfg.NodeID, []TermQuery{
		{Group: group, Replica: follower.cfg.NodeID + "/1"}, {Group: group, Replica: follower.cfg.NodeID + "/2"}, {Group: 99, Replica: "x/1"},
	})
	if err != nil || terms[0] != l2.raft.CurrentTerm() || terms[1] != 0 || terms[2] != 0 {
		t.Fatalf("terms %v, %v; the leader's is %d", terms, err, l2.raft.CurrentTerm())
	}
	if at, ok := l2.Clock(follower.cfg.NodeID); !ok || time.Until(at).Abs() > time.Second {
		t.Fatalf("clocks of one machine differ: %v", at)
	}
	back.close()
	for _, n := range alive {
		n.close()
	}
	eventually(t, "all goroutines end", func() bool { return runtime.NumGoroutine() <= before+2 })
}

func TestCalls(t *testing.T) {
	b := &book{addrs: map[string]string{}}
	a, c := startNode(t, b, "a", Config{ClusterID: func() string { return "one" }}), startNode(t, b, "c", Config{ClusterID: func() string { return "two" }})
	d := startNode(t, b, "d", Config{ClusterID: func() string { return "one" }})
	defer a.close()
	defer c.close()
	defer d.close()
	echo := func(_ context.Context, from string, q []byte) ([]byte, error) {
		if len(q) == 0 {
			return nil, errors.New("nothing to say")
		}
		return append([]byte(from+":"), q...), nil
	}
	hang := func(ctx context.Context, _ string, _ []byte) ([]byte, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	for _, n := range []*node{a, c, d} {
		n.Handle("echo", echo)
		n.Handle("hang", hang)
	}
	for _, target := range []string{"a", "d"} { // itself, and another
		if got, err := a.Call(t.Context(), target, "echo", []byte("hi")); err != nil || string(got) != "a:hi" {
			t.Errorf("%s answered %q, %v", target, got, err)
		}
		if _, err := a.Call(t.Context(), target, "echo", nil); err == nil || !strings.Contains(err.Error(), "nothing to say") || errors.Is(err, ErrUnreachable) {
			t.Errorf("%s: error %v", target, err)
		}
		if _, err := a.Call(t.Context(), target, "nothing", nil); err == nil {
			t.Errorf("%s: an unknown method was answered", target)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if _, err := a.Call(ctx, target, "hang", nil); err == nil {
			t.Errorf("%s: a call outlived its deadline", target)
		}
		cancel()
	}
	if _, err := a.Call(t.Context(), "c", "echo", []byte("hi")); err == nil || !strings.Contains(err.Error(), "cluster two") {
		t.Errorf("a node of another cluster answered: %v", err)
	}
	if _, err := a.Call(t.Context(), "nobody", "echo", nil); !errors.Is(err, ErrNoAddress) {
		t.Errorf("error %v for an unknown node", err)
	}
	d.close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := a.Call(ctx, "d", "echo", []byte("hi")); !errors.Is(err, ErrUnreachable) {
		t.Errorf("error %v for a node that is gone", err)
	}
}

type fixedState struct{ term, last uint64 }

func (s fixedState) CurrentTerm() uint64 { return s.term }
func (s fixedState) LastIndex() uint64   { return s.last }

// hashicorp/raft #695: the library's handler of heartbeats changes the term from the transport's goroutine, beside the main
// loop. It is never called, whatever a heartbeat says; a newer term waits for the main loop.
func TestRaft695HeartbeatsNeverPassTheMainLoop(t *testing.T) {
	b := &book{addrs: map[string]string{}}
	a, c := startNode(t, b, "a", Config{}), startNode(t, b, "c", Config{})
	defer a.close()
	defer c.close()
	from, to := a.Group(group, "a/1", nil), c.Group(group, "c/1", nil)
	to.Attach(fixedState{term: 5, last: 40})
	var called atomic.Int32
	to.SetHeartbeatHandler(func(raft.RPC) { called.Add(1) })
	beat := func(term uint64) {
		t.Helper()
		var answer raft.AppendEntriesResponse
		err := from.AppendEntries("c/1", "c/1", &raft.AppendEntriesRequest{RPCHeader: header, Term: term}, &answer)
		if err != nil || answer.Term != max(term, 5) {
			t.Errorf("a heartbeat of term %d is answered %+v, %v", term, answer, err)
		}
	}
	beat(4)
	beat(5)
	var seen atomic.Bool
	loop := make(chan struct{})
	go func() { // in the place of the main loop
		defer close(loop)
		for range 2 { // the copy of term 5, then term 6
			if rpc := <-to.Consumer(); rpc.Command.(*raft.AppendEntriesRequest).Term == 6 {
				seen.Store(true)
				rpc.Respond(&raft.AppendEntriesResponse{RPCHeader: header, Term: 6, Success: true}, nil)
			}
		}
	}()
	beat(6)
	if !seen.Load() {
		t.Fatal("a newer term was answered without the main loop")
	}
	<-loop
	if n := called.Load(); n != 0 {
		t.Errorf("the library's handler was called %d times", n)
	}
}

// A heartbeat of the current term is answered while the main loop is busy, but only if the loop will hear of it.
func TestHeartbeatsAreAnsweredAtOnceOnlyIfRaftWillSeeThem(t *testing.T) {
	n := New(Config{NodeID: "a", Resolve: (&book{}).find, Logger: slog.New(slog.DiscardHandler)})
	defer n.Close()
	g := n.Group(group, "a/1", nil)
	beat := &raft.AppendEntriesRequest{RPCHeader: header, Term: 5}
	if g.answerHeartbeat(beat) != nil {
		t.Fatal("answered before Raft was there")
	}
	g.Attach(fixedState{term: 5, last: 40})
	for i := range consumerLength {
		if a := g.answerHeartbeat(beat); a == nil || !a.Success || a.Term != 5 || a.LastLog != 40 {
			t.Fatalf("heartbeat %d: %+v", i, a)
		}
	}
	if a := g.answerHeartbeat(beat); a != nil {
		t.Fatalf("answered %+v though Raft takes nothing", a)
	}
	if a := g.answerHeartbeat(&raft.AppendEntriesRequest{Term: 4}); a == nil || a.Success || a.Term != 5 {
		t.Fatalf("an old leader got %+v", a)
	}
	if a := g.answerHeartbeat(&raft.AppendEntriesRequest{Term: 6}); a != nil {
		t.Fatalf("a new term was answered without Raft: %+v", a)
	}
	for range consumerLength {
		if rpc := <-g.Consumer(); rpc.Command != any(beat) {
			t.Fatal("Raft did not get the heartbeat")
		}
	}
	if isHeartbeat(&raft.AppendEntriesRequest{LeaderCommitIndex: 1}) || isHeartbeat(&raft.AppendEntriesRequest{PrevLogEntry: 1}) {
		t.Fatal("an append that carries something counts as a heartbeat")
	}
}

func TestRaft503AStalledDiskSendsNoSignOfLife(t *testing.T) {
	b := &book{addrs: map[string]string{}}
	a := startNode(t, b, "a", Config{DiskStalled: func() bool { return true }})
	defer a.close()
	for name, q := range map[string]*raft.AppendEntriesRequest{
		"a heartbeat":      {Term: 1},
		"the commit index": {Term: 1, PrevLogEntry: 4, PrevLogTerm: 1, LeaderCommitIndex: 4},
		"entries":          appendOf(1, 10),
	} {
		g := a.Group(group, "a/1", nil)
		if err := g.AppendEntries("b/1", "b/1", q, &raft.AppendEntriesResponse{}); !errors.Is(err, errDiskStalled) {
			t.Errorf("%s: error %v", name, err)
		}
		p, err := g.AppendEntriesPipeline("b/1", "b/1")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.AppendEntries(q, &raft.AppendEntriesResponse{}); !errors.Is(err, errDiskStalled) {
			t.Errorf("%s in a pipeline: error %v", name, err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
}

// The other side takes nothing: the pipeline must come back with an error, and report no future as answered.
func TestAPipelineEndsWhenTheOtherSideHangsUp(t *testing.T) {
	b := &book{addrs: map[string]string{}}
	a, c := startNode(t, b, "a", Config{}), startNode(t, b, "c", Config{})
	defer a.close()
	c.Group(group, "c/1", nil).Attach(fixedState{term: 1}) // nobody reads its Consumer
	p, err := a.Group(group, "a/1", nil).AppendEntriesPipeline("c/1", "c/1")
	if err != nil {
		t.Fatal(err)
	}
	q := &raft.AppendEntriesRequest{RPCHeader: header, Term: 1, PrevLogEntry: 1}
	for range pipelineDepth {
		if _, err := p.AppendEntries(q, &raft.AppendEntriesResponse{}); err != nil {
			t.Fatal(err)
		}
	}
	blocked := make(chan error, 1)
	go func() {
		_, err := p.AppendEntries(q, &raft.AppendEntriesResponse{})
		blocked <- err
	}()
	c.close()
	select {
	case err := <-blocked:
		if err == nil {
			t.Fatal("the append was accepted")
		}
	case <-time.After(15 * time.Second):
		t.Fatal("the pipeline blocks")
	}
	select {
	case f := <-p.Consumer():
		t.Fatalf("a failed append was delivered: %+v", f.Response())
	default:
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestRequestsForAnotherReplicaAreRefused(t *testing.T) {
	b := &book{addrs: map[string]string{}}
	a, c := startNode(t, b, "a", Config{}), startNode(t, b, "c", Config{})
	defer a.close()
	defer c.close()
	c.Group(group, "c/2", nil).Attach(fixedState{term: 1})
	g := a.Group(group, "a/1", nil)
	err := g.RequestVote("c/1", "c/1", &raft.RequestVoteRequest{RPCHeader: header, Term: 9}, &raft.RequestVoteResponse{})
	if err == nil || !strings.Contains(err.Error(), errNoReplica.Error()) {
		t.Fatalf("a vote was asked of a replica that is gone: %v", err)
	}
	err = g.InstallSnapshot("c/1", "c/1", &raft.InstallSnapshotRequest{RPCHeader: header, Term: 9}, &raft.InstallSnapshotResponse{}, strings.NewReader(""))
	if err == nil || !strings.Contains(err.Error(), errNoReplica.Error()) {
		t.Fatalf("a state was sent to a replica that is gone: %v", err)
	}
}
