package rpc

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/catalog"
	"github.com/holdfastdb/holdfast/fsm/catalog/catalogtest"
	"github.com/holdfastdb/holdfast/fsm/session"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
	"github.com/holdfastdb/holdfast/rpc/seal"
	"github.com/holdfastdb/holdfast/rpc/sessiontoken"
	"github.com/holdfastdb/holdfast/storage/kv"
)

// small is a cluster of one node in memory, with its services: a state machine for each shard, without Raft, at the time of
// the test's clock.
type small struct {
	Node
	t      testing.TB
	server *Server
	*sessions
	logs bytes.Buffer // of the services

	asked atomic.Int64 // questions to shards, of any

	mu       sync.Mutex
	catalog  *catalogtest.Shard
	changed  map[*func()]bool // who watches the catalog
	shards   map[uint32]*smallShard
	topology *catalog.Topology
}

// smallShard is one shard. Its fields are guarded by the cluster's lock.
type smallShard struct {
	*small
	id       uint32
	registry *fsm.Registry
	store    *catalogtest.Memory
	machine  *fsm.Machine
	watchers map[*func(uint64, fsm.Time, []fsm.Event)]bool
	// fault says what happens to the next command.
	fault fault
	// follower: the node does not lead it. silent: nobody does, and a command waits until its caller gives up.
	follower bool
	silent   atomic.Bool
	// did counts commands by operation of sessions, and the entries that they came in.
	did     map[uint8]int
	entries int
}

const smallShards = 3

// newSmall starts a cluster. It is closed with the test, unless the test does it.
func newSmall(t testing.TB, keys seal.AEAD) *small {
	t.Helper()
	c := &small{t: t, catalog: catalogtest.New(t, catalog.Type()), changed: make(map[*func()]bool), shards: make(map[uint32]*smallShard)}
	c.catalog.OpenOnce = true
	if r := c.catalog.Do(catalog.Call(catalog.OpBootstrap, catalog.Bootstrap{ClusterID: "small", Shards: smallShards, Replicas: 1, Node: catalog.Node{ID: "n1"}})); r.Err() != nil {
		t.Fatal(r.Err())
	}
	view := c.catalog.View()
	topology, found, err := catalog.ReadTopology(catalog.View(view), nil)
	if err != nil || !found {
		t.Fatal(found, err)
	}
	c.topology = &topology
	for i := range topology.Shards {
		s := &smallShard{small: c, id: topology.Shards[i].ID, store: new(catalogtest.Memory), did: make(map[uint8]int), watchers: make(map[*func(uint64, fsm.Time, []fsm.Event)]bool)}
		if s.registry, err = fsm.New(Types()...); err != nil {
			t.Fatal(err)
		}
		if s.machine, err = fsm.Open(s.registry, s.store); err != nil {
			t.Fatal(err)
		}
		c.shards[s.id] = s
	}
	log := slog.New(slog.NewTextHandler(&c.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	if c.server, err = New(Options{Node: c, Metrics: NewMetrics(), Keys: keys, Log: log}); err != nil {
		t.Fatal(err)
	}
	c.sessions = c.server.sessions
	return c
}

func (c *small) close() { c.server.Close(context.Background()) }

func (c *small) Ready() error { return nil }

func (c *small) Topology() *catalog.Topology { return c.topology }

func (c *small) Leader(uint32) (string, uint64, bool) { return "n1", 1, true }

func (c *small) Alive(string) bool { return true }

func (c *small) LocalReplicas() []ReplicaStatus { return nil }

func (c *small) ShardOf(key string) (uint32, bool) {
	group, err := c.sessions.group(slotOf(key))
	return group, err == nil
}

func (c *small) Now(uint32) fsm.Time { return now() }

func now() fsm.Time { return fsm.Time(time.Now().UnixMilli()) }

func (c *small) CatalogView() kv.View { return c.catalog.View() }

func (c *small) WatchCatalog(f func()) (stop func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changed[&f] = true
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.changed, &f)
	}
}

func (c *small) Catalog(_ context.Context, call fsm.Call) ([]byte, error) {
	c.mu.Lock()
	r := c.catalog.Do(call)
	var told []func()
	for f := range c.changed {
		told = append(told, *f)
	}
	c.mu.Unlock()
	for _, f := range told {
		f()
	}
	return r.Body, r.Err()
}

func (c *small) Do(ctx context.Context, group uint32, calls []fsm.Call) (fsm.FrameOutcome, error) {
	return c.Propose(ctx, group, &fsm.Frame{Calls: calls})
}

func (c *small) Propose(ctx context.Context, group uint32, f *fsm.Frame) (fsm.FrameOutcome, error) {
	s := c.shards[group]
	if s.silent.Load() {
		<-ctx.Done()
		return fsm.FrameOutcome{}, fmt.Errorf("shard %d: %w", group, fsm.ErrNotLeader)
	}
	return s.propose(f)
}

func (c *small) Query(_ context.Context, group uint32, calls []fsm.Call) ([]fsm.Result, fsm.Applied, error) {
	if group == catalogGroup {
		c.mu.Lock()
		defer c.mu.Unlock()
		return []fsm.Result{c.catalog.Query(calls[0])}, fsm.Applied{}, nil
	}
	c.asked.Add(1)
	return c.shards[group].query(calls)
}

func (c *small) Replica(group uint32) (Replica, bool) {
	s, here := c.shards[group]
	return smallReplica{s}, here
}

// smallReplica is the node's replica of a shard.
type smallReplica struct{ s *smallShard }

func (r smallReplica) IsLeader() bool {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	return !r.s.follower
}

func (r smallReplica) Now() fsm.Time { return now() }

func (r smallReplica) Busy() bool { return false }

func (r smallReplica) ProposeAsync(f *fsm.Frame, done func(fsm.FrameOutcome, error)) error {
	done(r.s.propose(f))
	return nil
}

func (r smallReplica) Watch(f func(uint64, fsm.Time, []fsm.Event)) (stop func()) {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	r.s.watchers[&f] = true
	return func() {
		r.s.mu.Lock()
		defer r.s.mu.Unlock()
		delete(r.s.watchers, &f)
	}
}

func (r smallReplica) Query(ctx context.Context, calls []fsm.Call) ([]fsm.Result, fsm.Applied, error) {
	if !r.IsLeader() {
		return nil, fsm.Applied{}, fsm.ErrNotLeader
	}
	if r.s.silent.Load() {
		<-ctx.Done()
	}
	if ctx.Err() != nil {
		return nil, fsm.Applied{}, ctx.Err()
	}
	return r.s.query(calls)
}

func (s *smallShard) propose(f *fsm.Frame) (fsm.FrameOutcome, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	what := s.fault
	s.fault = fine
	switch what {
	case refused:
		return fsm.FrameOutcome{}, fmt.Errorf("shard %d: %w", s.id, fsm.ErrOverloaded)
	case lost:
		return fsm.FrameOutcome{}, fmt.Errorf("shard %d: %w", s.id, fsm.ErrOutcomeUnknown)
	}
	for _, call := range f.Calls {
		if call.Type == session.TypeID {
			s.did[call.Op]++
		}
	}
	s.entries++
	out := s.apply(&fsm.Entry{Time: now(), Frames: []fsm.Frame{*f}})
	if len(out.Frames) == 0 {
		return fsm.FrameOutcome{}, fsm.ErrClosed
	}
	if what == answered {
		return fsm.FrameOutcome{}, fmt.Errorf("shard %d: %w", s.id, fsm.ErrOutcomeUnknown)
	}
	return out.Frames[0], nil
}

// apply executes an entry after what has expired until then. The caller has the lock.
func (s *smallShard) apply(e *fsm.Entry) fsm.Outcome {
	for next := s.machine.NextExpiry(); next != 0 && next <= e.Time && e.Kind != fsm.Sweep; next = s.machine.NextExpiry() {
		s.apply(&fsm.Entry{Kind: fsm.Sweep, Time: e.Time})
	}
	out, err := s.machine.Apply([]fsm.LogEntry{{Index: s.machine.Applied().Index + 1, Term: 1, Data: e.Append(nil)}})
	if err != nil {
		s.t.Errorf("shard %d cannot go on: %v", s.id, err)
		return fsm.Outcome{}
	}
	if len(out[0].Events) > 0 {
		for f := range s.watchers {
			(*f)(out[0].Index, out[0].Time, out[0].Events)
		}
	}
	return out[0]
}

func (s *smallShard) query(calls []fsm.Call) ([]fsm.Result, fsm.Applied, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.apply(&fsm.Entry{Kind: fsm.Nudge, Time: now()})
	if s.registry.Point(calls) {
		return s.machine.Query(calls)
	}
	if err := s.machine.Flush(); err != nil {
		return nil, fsm.Applied{}, err
	}
	return s.registry.Query(s.store.View(), calls)
}

// of is the shard of a user.
func (c *small) of(user string) *smallShard {
	group, _ := c.ShardOf(user)
	return c.shards[group]
}

// done is how many commands of an operation the shard has executed.
func (s *smallShard) done(op uint8) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.did[op]
}

// users are so many, and each shard has some.
func users(n int) (list []string) {
	for i := range n {
		list = append(list, fmt.Sprintf("user-%d", i))
	}
	return list
}

// login begins a session that is as usual but for what edit says.
func (c *small) login(user string, edit ...func(*pb.CreateSessionRequest)) *pb.SessionTokens {
	c.t.Helper()
	q := &pb.CreateSessionRequest{UserId: user}
	for _, f := range edit {
		f(q)
	}
	m, err := c.Create(context.Background(), q)
	if err != nil {
		c.t.Fatalf("login of %s: %v", user, err)
	}
	return m
}

// reason tells why a token does not count, "" if it does.
func (c *small) reason(token string, edit ...func(*pb.ValidateSessionRequest)) string {
	c.t.Helper()
	q := &pb.ValidateSessionRequest{Token: token}
	for _, f := range edit {
		f(q)
	}
	m, err := c.Validate(context.Background(), q)
	if err != nil {
		c.t.Fatalf("validate: %v", err)
	}
	if m.Valid != (m.Reason == "") {
		c.t.Fatalf("%v", m)
	}
	return m.Reason
}

func (c *small) get(id string) *pb.Session {
	c.t.Helper()
	m, err := c.Get(context.Background(), &pb.GetSessionRequest{SessionId: id})
	if err != nil {
		c.t.Fatalf("get: %v", err)
	}
	return m
}

// clientID is that of the SDK whose frames are sent.
var clientID = []byte("0123456789abcdef")

// frame sends one operation in a frame, as an SDK does that has most answers, and waits for its answer.
func (c *small) frame(shard uint32, seq uint64, method uint32, q proto.Message, answer proto.Message) *pb.OpResult {
	c.t.Helper()
	body, err := proto.Marshal(q)
	if err != nil {
		c.t.Fatal(err)
	}
	f := &pb.PackedFrame{
		Client: clientID, Shard: shard, Seq: seq, AckUpTo: seq - min(seq, 8), DeadlineMs: int64(now()) + 10_000, Query: method >= methodValidate,
		Ops: packed(&pb.Op{Type: session.TypeID, Method: method, Request: body}),
	}
	x := newStream(context.Background(), c.server.data)
	x.frame(f)
	<-x.wake
	x.work.Wait()
	if x.queue[0].Error != nil {
		c.t.Fatalf("frame %d: %v", seq, x.queue[0].Error)
	}
	r := x.queue[0].Results[0]
	if r.Code == 0 {
		if err := proto.Unmarshal(r.Response, answer); err != nil {
			c.t.Fatal(err)
		}
	}
	return r
}

// rest sends a REST request and returns the status and what the JSON of the answer says.
func (c *small) rest(method, path, body string, headers ...string) (int, map[string]any) {
	c.t.Helper()
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	q := httptest.NewRequest(method, path, r)
	for i := 0; i < len(headers); i += 2 {
		q.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	c.server.HTTP.ServeHTTP(w, q)
	answer := make(map[string]any)
	if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
		c.t.Fatalf("%s %s: %q: %v", method, path, w.Body, err)
	}
	if kind := w.Header().Get("Content-Type"); (w.Code >= http.StatusBadRequest) != (kind == "application/problem+json") {
		c.t.Errorf("%s %s: status %d is %s", method, path, w.Code, kind)
	}
	return w.Code, answer
}

func keyOfText(t testing.TB, id string) session.Key {
	t.Helper()
	parsed, err := sessiontoken.ParseID(id)
	if err != nil {
		t.Fatal(err)
	}
	return keyOf(parsed)
}
