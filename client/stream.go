package client

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"google.golang.org/grpc"

	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// stream carries frames to one node and answers back. When it breaks, all frames that wait are told, and the next frame
// opens another.
type stream struct {
	ctx    context.Context
	cancel context.CancelFunc

	mu      sync.Mutex
	queue   []*pb.FrameRequest
	pending map[uint64]func(*pb.FrameResponse, error)
	next    uint64
	broken  error
	wake    chan struct{}
}

// errBroken is how frames learn that their stream broke: they may or may not have been served.
var errBroken = errors.New("connection lost")

// send hands a frame to a node. done is called once, from another goroutine, unless an error is returned: then the frame
// was not sent.
func (c *Client) send(addr string, q *pb.FrameRequest, done func(*pb.FrameResponse, error)) error {
	s, err := c.stream(addr)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return s.broken
	}
	s.next++
	q.Id = s.next
	s.pending[q.Id] = done
	s.queue = append(s.queue, q)
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return nil
}

// connectTimeout bounds how long a frame waits for a connection before another node is tried.
const connectTimeout = 2 * time.Second

func (c *Client) stream(addr string) (*stream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, ErrClosed
	}
	if s := c.streams[addr]; s != nil && s.ctx.Err() == nil {
		return s, nil
	}
	conn, err := c.connLocked(addr)
	if err != nil {
		return nil, err
	}
	s := &stream{pending: make(map[uint64]func(*pb.FrameResponse, error)), wake: make(chan struct{}, 1)}
	s.ctx, s.cancel = context.WithCancel(c.ctx)
	c.streams[addr] = s
	c.work.Go(func() { s.run(conn) })
	return s, nil
}

// run opens the stream and serves it until it breaks.
func (s *stream) run(conn *grpc.ClientConn) {
	defer s.cancel()
	late := time.AfterFunc(connectTimeout, s.cancel)
	st, err := pb.NewDataClient(conn).Frames(s.ctx)
	if !late.Stop() && err == nil {
		err = context.DeadlineExceeded
	}
	if err != nil {
		s.end(fmt.Errorf("%w: %w", errNotSent, err))
		return
	}
	var writer sync.WaitGroup
	writer.Go(func() {
		defer s.cancel()
		s.write(st)
	})
	for {
		r, err := st.Recv()
		if err != nil {
			s.cancel()
			s.end(fmt.Errorf("%w: %w", errBroken, err))
			break
		}
		s.mu.Lock()
		done := s.pending[r.Id]
		delete(s.pending, r.Id)
		s.mu.Unlock()
		if done != nil {
			done(r, nil)
		}
	}
	writer.Wait()
}

// errNotSent tells that a frame surely did not reach the node.
var errNotSent = errors.New("no connection")

func (s *stream) write(st grpc.BidiStreamingClient[pb.FrameRequest, pb.FrameResponse]) {
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-s.wake:
		}
		runtime.Gosched()
		s.mu.Lock()
		queue := s.queue
		s.queue = nil
		s.mu.Unlock()
		for _, q := range queue {
			if st.Send(q) != nil {
				return // the reader has the reason
			}
		}
	}
}

// end tells all frames that wait.
func (s *stream) end(err error) {
	s.mu.Lock()
	s.broken = err
	pending := s.pending
	s.pending = nil
	s.mu.Unlock()
	for _, done := range pending {
		done(nil, err)
	}
}
