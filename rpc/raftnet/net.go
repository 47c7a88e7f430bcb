// Package raftnet carries the Raft groups' requests between nodes, and the nodes' own calls.
//
// All groups share two gRPC streams for each direction between two nodes, one for entries and one for heartbeats, votes
// and questions for terms; whatever waits travels in one message. States of replicas and calls have connections of their
// own too, so that nothing large delays heartbeats. Messages are encoded by hand: see codec.go.
//
// Two rules keep the Raft library safe. Nothing is handed to it but through its main loop: its fast path for heartbeats
// changes the term from another goroutine (hashicorp/raft #695). And nothing here blocks for ever: every request has a
// deadline, every queue a bound.
package raftnet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
)

// Config is what a Net needs of its node.
type Config struct {
	NodeID string
	// ClusterID is checked when nodes connect; empty means not known yet.
	ClusterID func() string
	// Resolve finds the address of a node.
	Resolve func(nodeID string) (addr string, ok bool)
	// Dial connects; nil means TCP.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// Creds secures connections; nil means plain text.
	Creds credentials.TransportCredentials
	// DiskStalled tells that the Raft log does not get synced: then no appends are sent, heartbeats or others, as each is
	// a sign of life, and a node whose disk hangs must not go on leading (hashicorp/raft #503). Nil means never.
	DiskStalled func() bool
	Logger      *slog.Logger
	// Clock is the node's wall clock, which nodes compare; nil means time.Now.
	Clock func() time.Time
	// Heartbeat and Election are the groups' timeouts, which bound how long the answer to a heartbeat and to a request
	// for a vote is waited for. Default 1 s, and Heartbeat.
	Heartbeat, Election time.Duration
	// Tamper is for simulations: it gets the sending of each frame and may do it later, more than once or never. Nil
	// sends.
	Tamper func(to string, send func())
}

// Handler answers another node's call. An error is told to the caller as text.
type Handler func(ctx context.Context, from string, request []byte) ([]byte, error)

// Net is a node's end of the network between nodes. Its methods are safe for concurrent use.
type Net struct {
	cfg Config
	log *slog.Logger

	ctx  context.Context
	stop context.CancelFunc
	work sync.WaitGroup // what spawn started

	mu       sync.Mutex
	peers    map[string]*peer
	groups   map[uint32]*GroupTransport
	handlers map[string]Handler
	open     map[string]bool // methods that a node may call which is in no cluster
	clocks   map[string]reading
	refusals struct {
		count  int // since the last was logged
		logged time.Time
	}
}

var (
	// ErrClosed is returned, wrapped, after Close.
	ErrClosed = errors.New("raftnet: closed")
	// ErrNoAddress is returned, wrapped, for a node that Resolve does not know.
	ErrNoAddress = errors.New("raftnet: no address is known for the node")
	// ErrNoMethod is returned, wrapped, by Call for a method that the other node does not have.
	ErrNoMethod = errors.New("raftnet: no such method")
	// ErrUnreachable is returned, wrapped, by Call if no answer came. What the other node's handler answered has its words
	// and does not wrap this.
	ErrUnreachable = errors.New("raftnet: no answer")

	errNoReplica   = errors.New("raftnet: no such replica here")
	errDiskStalled = errors.New("raftnet: the disk does not answer, nothing is sent that shows a live leader")
	errTimeout     = errors.New("raftnet: no answer in time")
	errBusy        = errors.New("raftnet: the replica is behind with its requests")
	errTooLarge    = errors.New("raftnet: too large for one message")
	errNotLeader   = errors.New("raftnet: the replica does not lead any more")
	errWasSilent   = errors.New("raftnet: the replica was silent and is back: send a newer state")
)

// callTimeout bounds a call whose context has no deadline.
const callTimeout = 30 * time.Second

// New starts a node's end. It serves nothing before Register.
func New(cfg Config) *Net {
	if cfg.Heartbeat == 0 {
		cfg.Heartbeat = time.Second
	}
	if cfg.Election == 0 {
		cfg.Election = cfg.Heartbeat
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.ClusterID == nil {
		cfg.ClusterID = func() string { return "" }
	}
	n := &Net{
		cfg: cfg, log: cfg.Logger, peers: make(map[string]*peer), groups: make(map[uint32]*GroupTransport),
		handlers: make(map[string]Handler), open: make(map[string]bool), clocks: make(map[string]reading),
	}
	n.ctx, n.stop = context.WithCancel(context.Background())
	return n
}

// spawn runs f on a goroutine that Close waits for; f must end with n.ctx. It reports whether the Net was open.
func (n *Net) spawn(f func()) bool {
	n.mu.Lock() // orders it before or after Close
	defer n.mu.Unlock()
	if n.ctx.Err() != nil {
		return false
	}
	n.work.Go(f)
	return true
}

// Close ends all connections to other nodes. Requests under way fail. What the gRPC server serves ends with the server,
// which the caller stops first.
func (n *Net) Close() {
	n.mu.Lock()
	n.stop()
	peers := n.peers
	n.peers = make(map[string]*peer)
	n.mu.Unlock()
	for _, p := range peers {
		p.close()
	}
	n.work.Wait()
}

// Handle sets the handler of a method.
func (n *Net) Handle(method string, h Handler) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.handlers[method] = h
}

// HandleOpen is Handle for a method that a node may call which belongs to no cluster yet.
func (n *Net) HandleOpen(method string, h Handler) {
	n.Handle(method, h)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.open[method] = true
}

func (n *Net) isOpen(method string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.open[method]
}

// push sends a frame by way of Tamper. What gets lost on its way, nobody tells.
func (n *Net) push(to string, f *frame, push func(*frame) error) error {
	if n.cfg.Tamper == nil {
		return push(f)
	}
	n.cfg.Tamper(to, func() { _ = push(f) })
	return nil
}

func (n *Net) handler(method string) (Handler, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	h, ok := n.handlers[method]
	return h, ok
}

func (n *Net) peer(id string) (*peer, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ctx.Err() != nil {
		return nil, ErrClosed
	}
	p := n.peers[id]
	if p == nil {
		p = &peer{n: n, id: id}
		n.peers[id] = p
	}
	return p, nil
}

// Call asks another node, or this one, and waits for the answer, at most until ctx ends.
func (n *Net) Call(ctx context.Context, nodeID, method string, request []byte) ([]byte, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, callTimeout)
		defer cancel()
	}
	if nodeID == n.cfg.NodeID {
		h, ok := n.handler(method)
		if !ok {
			return nil, fmt.Errorf("%w: %q", ErrNoMethod, method)
		}
		return h(ctx, nodeID, request)
	}
	p, err := n.peer(nodeID)
	if err != nil {
		return nil, err
	}
	conn, err := p.conn(callConn)
	if err != nil {
		return nil, err
	}
	in, out := encodeCall(method, request), []byte(nil)
	if err := conn.Invoke(n.outgoing(ctx, nodeID), methodCall, &in, &out); err != nil {
		// Not wrapped: it is this connection's status, and not that of a request which is carried out.
		switch s := status.Convert(err); s.Code() {
		case codes.Unimplemented:
			return nil, fmt.Errorf("%w: %q of node %s: %v", ErrNoMethod, method, nodeID, err) //nolint:errorlint // see above
		case codes.Unknown:
			return nil, fmt.Errorf("call %s of node %s: %s", method, nodeID, s.Message())
		}
		return nil, fmt.Errorf("%w: call %s of node %s: %v", ErrUnreachable, method, nodeID, err) //nolint:errorlint // see above
	}
	return out, nil
}

// reading is what another node's wall clock said at a moment.
type reading struct {
	wall time.Time
	at   time.Time // by our monotonic clock: setting our wall clock changes nothing about what was read
}

// Clock is what another node's wall clock says now, by when ConfirmTerms last read it.
func (n *Net) Clock(nodeID string) (time.Time, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	r, ok := n.clocks[nodeID]
	return r.wall.Add(time.Since(r.at)), ok
}

// ServerOptions are those of the gRPC server that Register is called with. It can serve nothing else.
func (n *Net) ServerOptions() []grpc.ServerOption {
	options := []grpc.ServerOption{
		grpc.ForceServerCodecV2(bytesCodec{}), grpc.MaxRecvMsgSize(maxMessage),
		grpc.WaitForHandlers(true), // what they read is closed after the server
		grpc.InitialWindowSize(streamWindow), grpc.InitialConnWindowSize(connWindow),
		// The clients' pings keep connections that carry nothing; without this the server takes them for an attack.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: pingInterval / 2, PermitWithoutStream: true}),
		// And its own find nodes that are gone, or frozen while they send a state.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: pingInterval, Timeout: pingTimeout}),
	}
	if n.cfg.Creds != nil {
		options = append(options, grpc.Creds(n.cfg.Creds))
	}
	return options
}

// bytesCodec passes messages through: what is sent and received is a *[]byte.
type bytesCodec struct{}

func (bytesCodec) Name() string { return "holdfast" }

func (bytesCodec) Marshal(v any) (mem.BufferSlice, error) {
	b, ok := v.(*[]byte)
	if !ok {
		return nil, fmt.Errorf("raftnet: cannot send %T", v)
	}
	return mem.BufferSlice{mem.SliceBuffer(*b)}, nil
}

func (bytesCodec) Unmarshal(data mem.BufferSlice, v any) error {
	b, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("raftnet: cannot receive %T", v)
	}
	*b = data.Materialize() // a copy: entries are kept
	return nil
}
