package raftnet

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
)

// peer is the way to another node.
type peer struct {
	n  *Net
	id string

	mu     sync.Mutex
	addr   string
	conns  [conns]*grpc.ClientConn
	stream *stream
	closed bool
}

// The connections to a node.
const (
	frameConn = iota // the stream of all groups
	callConn         // unary calls
	bulkConn         // states of replicas
	conns
)

// connectTimeout bounds how long a request waits for a connection.
const connectTimeout = 2 * time.Second

// conn returns a connection, made anew when the node has moved.
func (p *peer) conn(which int) (*grpc.ClientConn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.connLocked(which)
}

func (p *peer) connLocked(which int) (*grpc.ClientConn, error) {
	if p.closed {
		return nil, errClosed
	}
	addr, ok := p.n.cfg.Resolve(p.id)
	if !ok {
		return nil, fmt.Errorf("%w: %s", errNoAddress, p.id)
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
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second, PermitWithoutStream: true}),
		grpc.WithDisableServiceConfig(),
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
	p.closed = true
	s := p.stream
	p.closeConns()
	p.mu.Unlock()
	if s != nil {
		s.end()
		s.work.Wait()
	}
}

// send starts a request on the stream and returns its call.
func (p *peer) send(f *frame) (*call, error) {
	s, err := p.open()
	if err != nil {
		return nil, err
	}
	return s.send(f)
}

// open returns the live stream, or opens one.
func (p *peer) open() (*stream, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stream != nil && p.stream.ctx.Err() == nil {
		return p.stream, nil
	}
	conn, err := p.connLocked(frameConn)
	if err != nil {
		return nil, err
	}
	s := &stream{queue: newQueue(), calls: make(map[uint64]*call)}
	s.ctx, s.end = context.WithCancel(p.n.outgoing(p.n.ctx))
	late := time.AfterFunc(connectTimeout, s.end)
	client, err := conn.NewStream(s.ctx, &framesDesc, methodFrames)
	if !late.Stop() || err != nil {
		s.end()
		return nil, fmt.Errorf("connect to node %s at %s: %w", p.id, p.addr, err)
	}
	s.work.Go(func() {
		defer s.end()
		_ = s.queue.write(s.ctx, client.SendMsg) // the reader sees the reason
	})
	s.work.Go(func() { s.read(client, p.n) })
	p.stream = s
	return s, nil
}

// stream is one life of the stream to a node.
type stream struct {
	ctx   context.Context
	end   context.CancelFunc
	queue *queue
	work  sync.WaitGroup

	mu    sync.Mutex
	next  uint64
	calls map[uint64]*call
}

// call is a request under way.
type call struct {
	s    *stream
	id   uint64
	done chan struct{}
	body []byte
	err  error
}

func (s *stream) send(f *frame) (*call, error) {
	c := &call{s: s, done: make(chan struct{})}
	s.mu.Lock()
	s.next++
	c.id, f.id = s.next, s.next
	s.calls[c.id] = c
	s.mu.Unlock()
	if err := s.queue.push(f); err != nil {
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

// read hands answers to their calls. When the stream ends, all calls under way fail.
func (s *stream) read(client grpc.ClientStream, n *Net) {
	defer s.end()
	var reason error
	for reason == nil {
		var b []byte
		if reason = client.RecvMsg(&b); reason != nil {
			break
		}
		var frames []frame
		if frames, reason = decodeFrames(b); reason != nil {
			n.log.Error("unreadable message between nodes", "error", reason)
		}
		for i := range frames {
			if c := s.forget(frames[i].id); c != nil {
				c.finish(&frames[i])
			}
		}
	}
	s.end()
	s.queue.close()
	s.mu.Lock()
	calls := s.calls
	s.calls = make(map[uint64]*call)
	s.mu.Unlock()
	for _, c := range calls {
		c.err = fmt.Errorf("raftnet: stream ended: %w", reason)
		close(c.done)
	}
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

// wait waits for the answer, at most d.
func (c *call) wait(d time.Duration) ([]byte, error) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-c.done:
		return c.body, c.err
	case <-t.C:
		c.s.forget(c.id)
		return nil, errTimeout
	}
}
