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
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"github.com/holdfastdb/holdfast/storage/wire"
)

// peer is the way to another node.
type peer struct {
	n  *Net
	id string

	mu      sync.Mutex
	addr    string
	conns   [conns]*grpc.ClientConn
	streams [streams]*stream
	closed  bool
}

// The connections to a node.
const (
	entryConn = iota // the stream of all groups' entries
	beatConn         // the stream of heartbeats, votes and questions for terms, which megabytes of entries must not delay
	callConn         // unary calls
	bulkConn         // states of replicas
	conns

	streams = callConn // those before have one
)

// The windows of flow control. They do not change: for one that does gRPC measures the way with a ping for nearly every
// message, which costs as much as the message.
const (
	streamWindow = 8 << 20
	connWindow   = 16 << 20
)

const (
	// connectTimeout bounds how long connecting may take.
	connectTimeout = 2 * time.Second
	// pingInterval and pingTimeout bound how long a connection to a node that is gone without a word seems alive.
	// gRPC does not allow a shorter interval.
	pingInterval = 10 * time.Second
	pingTimeout  = 5 * time.Second
)

// conn returns a connection, made anew when the node has moved.
func (p *peer) conn(which int) (*grpc.ClientConn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.connLocked(which)
}

func (p *peer) connLocked(which int) (*grpc.ClientConn, error) {
	if p.closed {
		return nil, ErrClosed
	}
	addr, ok := p.n.cfg.Resolve(p.id)
	if !ok || addr == "" {
		return nil, fmt.Errorf("%w: %s", ErrNoAddress, p.id)
	}
	if addr != p.addr {
		p.closeConns()
		p.addr = addr
	}
	if p.conns[which] != nil {
		return p.conns[which], nil
	}
	creds := p.n.cfg.Creds
	if creds == nil {
		creds = insecure.NewCredentials()
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(bytesCodec{}), grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: connectTimeout,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingInterval, Timeout: pingTimeout, PermitWithoutStream: true}),
		grpc.WithInitialWindowSize(streamWindow), grpc.WithInitialConnWindowSize(connWindow),
		grpc.WithDisableServiceConfig(),
		grpc.WithNoProxy(), // the environment has no say in how nodes find each other
	}
	if p.n.cfg.Dial != nil {
		options = append(options, grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return p.n.cfg.Dial(ctx, addr) }))
	}
	c, err := grpc.NewClient("passthrough:///"+addr, options...)
	if err != nil {
		return nil, fmt.Errorf("connect to node %s: %w", p.id, err)
	}
	p.conns[which] = c
	return c, nil
}

func (p *peer) closeConns() {
	for i, c := range p.conns {
		if c != nil {
			_ = c.Close() // its streams end, which is what matters
			p.conns[i] = nil
		}
	}
}

func (p *peer) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.closeConns()
}

// send starts a request on one of the streams and returns its call. It does not wait for a connection: that is part of the wait
// for the answer, which the request's own deadline bounds.
func (p *peer) send(which int, f *frame) (*call, error) {
	s, err := p.open(which)
	if err != nil {
		return nil, err
	}
	return s.send(f)
}

// open returns a live stream, or begins one.
func (p *peer) open(which int) (*stream, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	conn, err := p.connLocked(which)
	if err != nil {
		return nil, err
	}
	if s := p.streams[which]; s != nil && s.conn == conn && s.ctx.Err() == nil {
		return s, nil
	}
	s := &stream{n: p.n, to: p.id, conn: conn, queue: newQueue(p.n.cfg.Heartbeat * 3 / 10), calls: make(map[uint64]*call)}
	s.ctx, s.end = context.WithCancel(p.n.outgoing(p.n.ctx, p.id))
	addr := p.addr
	if !p.n.spawn(func() { s.run(p.n.log.With("node", p.id, "address", addr)) }) {
		s.end()
		return nil, ErrClosed
	}
	p.streams[which] = s
	return s, nil
}

// stream is one life of the stream to a node.
type stream struct {
	n     *Net
	to    string // node id
	conn  *grpc.ClientConn
	ctx   context.Context // ends with the stream
	end   context.CancelFunc
	queue *queue

	mu    sync.Mutex
	next  uint64
	calls map[uint64]*call
}

// run connects and serves the stream until it ends; then all calls under way fail.
func (s *stream) run(log *slog.Logger) {
	reason := s.serve()
	s.end()
	if errors.Is(reason, wire.ErrCorrupt) {
		log.Error("unreadable message between nodes", "error", reason)
	}
	s.queue.close() // before the calls are taken: who comes later sees it
	s.mu.Lock()
	calls := s.calls
	s.calls = make(map[uint64]*call)
	s.mu.Unlock()
	for _, c := range calls {
		c.err = fmt.Errorf("raftnet: stream ended: %w", reason)
		close(c.done)
	}
}

func (s *stream) serve() error {
	late := time.AfterFunc(connectTimeout, s.end)
	client, err := s.conn.NewStream(s.ctx, &framesDesc, methodFrames)
	if !late.Stop() && err == nil {
		err = errTimeout
	}
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	var writer sync.WaitGroup
	defer writer.Wait()
	defer s.end()
	writer.Go(func() {
		defer s.end()
		_ = s.queue.write(s.ctx, client.SendMsg) // the reader sees the reason
	})
	for {
		var b []byte
		if err := client.RecvMsg(&b); err != nil {
			return err
		}
		err := readFrames(b, func(f *frame) error {
			if c := s.forget(f.id); c != nil {
				c.finish(f)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
}

func (s *stream) send(f *frame) (*call, error) {
	c := &call{s: s, done: make(chan struct{})}
	s.mu.Lock()
	s.next++
	c.id, f.id = s.next, s.next
	s.calls[c.id] = c
	s.mu.Unlock()
	push := s.queue.push
	if f.patient {
		push = s.queue.pushPatient
	}
	if err := s.n.push(s.to, f, push); err != nil {
		s.forget(c.id)
		return nil, err
	}
	return c, nil
}

func (s *stream) forget(id uint64) *call {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.calls[id]
	delete(s.calls, id)
	return c
}

// call is a request under way.
type call struct {
	s    *stream
	id   uint64
	done chan struct{}
	body []byte
	err  error
}

func (c *call) finish(f *frame) {
	switch f.kind {
	case kindAnswer:
		c.body = f.body
	case kindFailure:
		c.err = fmt.Errorf("raftnet: the other node says: %s", f.body)
	default:
		c.err = fmt.Errorf("raftnet: answer of kind %d", f.kind)
	}
	close(c.done)
}

// wait waits for the answer, at most d and until one of the channels closes.
func (c *call) wait(d time.Duration, stop, closed <-chan struct{}) ([]byte, error) {
	t := time.NewTimer(d)
	defer t.Stop()
	err := ErrClosed
	select {
	case <-c.done:
		return c.body, c.err
	case <-stop:
	case <-closed:
	case <-t.C:
		err = errTimeout
	}
	c.s.forget(c.id)
	return nil, err
}
