package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"github.com/holdfastdb/holdfast/client"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// fake is a cluster that speaks the wire contract and has no state of its own but a window of results: a test says what
// each node does with the frames that reach it. Nodes are reached by their names, in memory.
type fake struct {
	t testing.TB

	mu       sync.Mutex
	nodes    map[string]*fakeNode
	members  []string          // the nodes of the map, in its order
	leaders  map[uint32]string // of the shards of the map, by name
	mapCalls int
	answers  map[string]*pb.FrameResponse // the window: what executed frames were answered
	executed int                          // operations, each time that they had an effect
	frames   []seen
	changed  chan struct{} // closed when something above changes
}

// seen is a frame as a node got it.
type seen struct {
	node string
	*pb.FrameRequest
}

// fakeNode is one server of it.
type fakeNode struct {
	pb.UnimplementedDataServer
	pb.UnimplementedPoliciesServer
	f      *fake
	name   string
	lis    *bufconn.Listener
	server *grpc.Server

	// Guarded by the cluster's mutex.
	serve  func(q *pb.FrameRequest) reaction
	noMap  bool
	stale  func(*pb.ClusterMapResponse) // what it believes instead of what is
	slow   time.Duration                // after which it tells the map
	create func(*pb.CreatePolicyRequest) (*pb.Policy, error)
	sweep  func(*pb.RevokeMatchingRequest) (*pb.RevokeMatchingResponse, error)
	put    func(*pb.PutSessionPolicyRequest) (*pb.SessionPolicy, error)
	follow func(grpc.BidiStreamingServer[pb.FollowRequest, pb.FollowResponse]) error
}

// reaction is what a node does with a frame.
type reaction struct {
	answers []*pb.FrameResponse // sent in this order
	cut     bool                // then the stream is closed
	dies    bool                // the whole node goes, with all its connections
}

// silence keeps the caller waiting.
var silence = reaction{}

// cut ends the stream without an answer.
var cut = reaction{cut: true}

// death takes the node away for good.
var death = reaction{dies: true}

// newFake starts nodes. The first one leads shard 1, which has the lower half of the slots, and shard 2, which has the
// upper one; all nodes execute what they get.
func newFake(t testing.TB, names ...string) *fake {
	t.Helper()
	f := &fake{
		t: t, nodes: make(map[string]*fakeNode), leaders: map[uint32]string{1: names[0], 2: names[0]},
		answers: make(map[string]*pb.FrameResponse), changed: make(chan struct{}),
	}
	for _, name := range names {
		f.add(name)
	}
	t.Cleanup(func() {
		for _, n := range f.all() {
			n.stop()
		}
	})
	return f
}

// add starts a node and puts it into the map.
func (f *fake) add(name string) *fakeNode {
	n := &fakeNode{f: f, name: name, lis: bufconn.Listen(1 << 16)}
	n.server = grpc.NewServer(grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second}))
	n.serve = f.execute
	pb.RegisterDataServer(n.server, n)
	pb.RegisterPoliciesServer(n.server, n)
	pb.RegisterSessionsServer(n.server, fakeSessions{n: n})
	go func() { _ = n.server.Serve(n.lis) }()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.nodes[name] = n
	f.members = append(f.members, name)
	return n
}

func (f *fake) all() []*fakeNode {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []*fakeNode
	for _, n := range f.nodes {
		list = append(list, n)
	}
	return list
}

func (n *fakeNode) stop() { n.server.Stop() }

// dial is how SDKs reach the nodes.
func (f *fake) dial(ctx context.Context, addr string) (net.Conn, error) {
	f.mu.Lock()
	n := f.nodes[addr]
	f.mu.Unlock()
	if n == nil {
		return nil, fmt.Errorf("no route to %q", addr)
	}
	return n.lis.DialContext(ctx)
}

// client connects an SDK that knows the first node only.
func (f *fake) client(timeout time.Duration) *client.Client {
	f.t.Helper()
	return f.clientOf(timeout, f.members[0])
}

// clientOf is a client that is told these addresses.
func (f *fake) clientOf(timeout time.Duration, addrs ...string) *client.Client {
	f.t.Helper()
	c, err := client.Dial(f.t.Context(), client.Config{Addrs: addrs, Timeout: timeout, Dial: f.dial})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = c.Close() })
	return c
}

// on makes a node react its own way from now on.
func (f *fake) on(name string, serve func(*pb.FrameRequest) reaction) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.nodes[name].serve = serve
}

// lead changes the map.
func (f *fake) lead(shard uint32, name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.leaders[shard] = name
}

// ClusterMap implements the service. A node that stopped is still a member.
func (n *fakeNode) ClusterMap(context.Context, *pb.ClusterMapRequest) (*pb.ClusterMapResponse, error) {
	f := n.f
	f.mu.Lock()
	slow := n.slow
	f.mu.Unlock()
	time.Sleep(slow)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mapCalls++
	f.notify()
	if n.noMap {
		return nil, status.Error(codes.Unavailable, "the node does not know the cluster yet")
	}
	m := &pb.ClusterMapResponse{ClusterId: "fake", Shards: []*pb.ShardInfo{
		{Shard: 2, FirstSlot: 1 << 15, LastSlot: 1<<16 - 1, Leader: f.leaders[2]},
		{Shard: 1, FirstSlot: 0, LastSlot: 1<<15 - 1, Leader: f.leaders[1]},
	}}
	for _, name := range f.members {
		m.Nodes = append(m.Nodes, &pb.NodeInfo{NodeId: name, Name: name, GrpcAddr: name, State: "up"})
	}
	if n.stale != nil {
		n.stale(m)
	}
	return m, nil
}

// Frames implements the service.
func (n *fakeNode) Frames(st grpc.BidiStreamingServer[pb.FrameRequest, pb.FrameResponse]) error {
	for {
		q, err := st.Recv()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		r := n.f.got(n, q)
		for _, a := range r.answers {
			if a.Id == 0 {
				a.Id = q.Id
			}
			if err := st.Send(a); err != nil {
				return err
			}
		}
		switch {
		case r.dies:
			go n.stop() // it waits for this handler
			<-st.Context().Done()
			return st.Context().Err()
		case r.cut:
			return status.Error(codes.Unavailable, "the stream is cut")
		}
	}
}

// CreatePolicy implements one of the services that the SDK leaves to generated clients.
func (n *fakeNode) CreatePolicy(_ context.Context, q *pb.CreatePolicyRequest) (*pb.Policy, error) {
	n.f.mu.Lock()
	create := n.create
	n.f.mu.Unlock()
	return create(q)
}

// fakeSessions is what of the service a node is asked for outside of frames.
type fakeSessions struct {
	pb.UnimplementedSessionsServer
	n *fakeNode
}

// Follow implements the service.
func (s fakeSessions) Follow(st grpc.BidiStreamingServer[pb.FollowRequest, pb.FollowResponse]) error {
	s.n.f.mu.Lock()
	follow := s.n.follow
	s.n.f.mu.Unlock()
	if follow == nil {
		return status.Error(codes.Unavailable, "nobody can be followed here")
	}
	return follow(st)
}

// RevokeMatching implements the service.
func (s fakeSessions) RevokeMatching(_ context.Context, q *pb.RevokeMatchingRequest) (*pb.RevokeMatchingResponse, error) {
	return s.n.sweep(q)
}

// PutPolicy implements the service.
func (s fakeSessions) PutPolicy(_ context.Context, q *pb.PutSessionPolicyRequest) (*pb.SessionPolicy, error) {
	return s.n.put(q)
}

// got notes a frame and asks what to do with it.
func (f *fake) got(n *fakeNode, q *pb.FrameRequest) reaction {
	f.mu.Lock()
	f.frames = append(f.frames, seen{n.name, proto.Clone(q).(*pb.FrameRequest)})
	serve := n.serve
	f.notify()
	f.mu.Unlock()
	return serve(q)
}

// notify wakes who waits for something. Called with mu held.
func (f *fake) notify() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// execute does what a shard does: a frame that is not in the window takes effect, and its results are kept.
func (f *fake) execute(q *pb.FrameRequest) reaction {
	f.mu.Lock()
	defer f.mu.Unlock()
	key := fmt.Sprintf("%x/%d/%d", q.Client, q.Shard, q.Seq)
	if a := f.answers[key]; a != nil && !q.Query {
		return reaction{answers: []*pb.FrameResponse{proto.Clone(a).(*pb.FrameResponse)}}
	}
	a := &pb.FrameResponse{}
	for range q.Ops {
		if !q.Query {
			f.executed++
		}
		a.Results = append(a.Results, checked(f.t, uint32(f.executed)))
	}
	f.answers[key] = proto.Clone(a).(*pb.FrameResponse)
	return reaction{answers: []*pb.FrameResponse{a}}
}

// checked is an allowed check whose quota left is used as a number by which answers are told apart.
func checked(t testing.TB, number uint32) *pb.OpResult {
	b, err := proto.Marshal(&pb.CheckResponse{Allowed: true, RemainingQuota: number})
	if err != nil {
		t.Error(err)
	}
	return &pb.OpResult{Response: b}
}

// refusal answers a frame as a whole.
func refusal(reason pb.FrameError_Reason, hint string) reaction {
	e := &pb.FrameError{Reason: reason, Message: "because", LeaderHint: hint}
	return reaction{answers: []*pb.FrameResponse{{Error: e}}}
}

// first reacts to the first frames one after the other, and executes what comes after.
func (f *fake) first(reactions ...func(*pb.FrameRequest) reaction) func(*pb.FrameRequest) reaction {
	var mu sync.Mutex
	return func(q *pb.FrameRequest) reaction {
		mu.Lock()
		react := f.execute
		if len(reactions) > 0 {
			react, reactions = reactions[0], reactions[1:]
		}
		mu.Unlock()
		return react(q)
	}
}

// always reacts in one way.
func always(r reaction) func(*pb.FrameRequest) reaction {
	return func(*pb.FrameRequest) reaction { return r }
}

// refuse refuses every frame.
func refuse(reason pb.FrameError_Reason, hint string) func(*pb.FrameRequest) reaction {
	return func(*pb.FrameRequest) reaction { return refusal(reason, hint) }
}

// log is what the nodes got so far.
func (f *fake) log() []seen {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.frames)
}

// asked is how often the map was asked for.
func (f *fake) asked() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mapCalls
}

// effects is how many operations were executed, not counting repetitions that were recognized.
func (f *fake) effects() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.executed
}

// await returns when the condition, which may look at the log, holds.
func (f *fake) await(what string, ok func() bool) {
	f.t.Helper()
	late := time.After(20 * time.Second)
	for {
		f.mu.Lock()
		changed := f.changed
		f.mu.Unlock()
		if ok() {
			return
		}
		select {
		case <-changed:
		case <-late:
			f.t.Fatalf("never happened: %s; frames:\n%s", what, f.describe())
		}
	}
}

func (f *fake) describe() string {
	var b strings.Builder
	for _, q := range f.log() {
		fmt.Fprintf(&b, "%s: shard %d seq %d of %d operations, query %v\n", q.node, q.Shard, q.Seq, len(q.Ops), q.Query)
	}
	return b.String()
}
