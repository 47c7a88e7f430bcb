package rpc

import (
	"context"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// watcher is the other end of Follow.
type watcher struct {
	grpc.ServerStream
	ctx   context.Context
	pings chan *pb.FollowRequest
	told  chan *pb.FollowResponse // not read: it takes nothing
	done  chan error
}

// follow follows a shard. Its stream's end is what done tells.
func (c *small) follow(ctx context.Context, shard uint32) *watcher {
	w := &watcher{ctx: ctx, pings: make(chan *pb.FollowRequest), told: make(chan *pb.FollowResponse), done: make(chan error, 1)}
	ctx, cancel := context.WithCancel(ctx)
	w.ctx = ctx
	go func() {
		err := c.Follow(w)
		cancel() // as gRPC does when the service returns
		w.done <- err
	}()
	w.pings <- &pb.FollowRequest{Shard: shard, Ping: 1}
	return w
}

func (w *watcher) Context() context.Context { return w.ctx }

func (w *watcher) Recv() (*pb.FollowRequest, error) {
	select {
	case q, open := <-w.pings:
		if !open {
			return nil, io.EOF
		}
		return q, nil
	case <-w.ctx.Done():
		return nil, w.ctx.Err()
	}
}

func (w *watcher) Send(r *pb.FollowResponse) error {
	select {
	case w.told <- proto.Clone(r).(*pb.FollowResponse):
		return nil
	case <-w.ctx.Done():
		return w.ctx.Err()
	}
}

// until reads events until a ping is answered.
func (w *watcher) until(pong uint64) (events []string, last uint64) {
	for r := range w.told {
		for _, e := range r.Events {
			events = append(events, e.Event+" "+e.Reason)
			last = max(last, e.Index)
		}
		if r.Pong == pong {
			break
		}
	}
	return events, last
}

func (w *watcher) end(t *testing.T) codes.Code {
	t.Helper()
	select {
	case err := <-w.done:
		return status.Code(err)
	case <-time.After(time.Hour):
		t.Fatal("the stream does not end")
		return 0
	}
}

// Whoever follows learns of all that happens, in order; the answer to a ping comes after what was acknowledged before.
func TestAFollowerLearnsOfAllInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newSmall(t, nil)
		defer c.close()
		s := c.of("alice")
		c.login("alice") // before: nobody is told
		w := c.follow(t.Context(), s.id)
		if events, _ := w.until(1); len(events) != 0 {
			t.Errorf("%q", events)
		}
		for round := range uint64(20) {
			m := c.login("alice")
			next, err := c.Rotate(t.Context(), &pb.RotateSessionRequest{Token: m.Token})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Logout(t.Context(), &pb.LogoutRequest{Token: next.Token}); err != nil {
				t.Fatal(err)
			}
			at := s.machine.Applied().Index
			go func() { w.pings <- &pb.FollowRequest{Ping: 2 + round} }()
			events, last := w.until(2 + round)
			if len(events) != 3 || events[0] != "created " || events[1] != "changed " || events[2] != "ended logged_out" || last > at {
				t.Fatalf("%q up to %d of %d", events, last, at)
			}
		}
		close(w.pings)
		if code := w.end(t); code != codes.OK {
			t.Errorf("hung up: %v", code)
		}
		synctest.Wait()
		if len(s.watchers) != 0 {
			t.Error("the shard still tells of its events")
		}
	})
}

// A stream ends when it cannot tell all: after a gap, when its follower is slow, when the node leads no more or stops.
func TestAStreamThatCannotTellAllEnds(t *testing.T) {
	for name, what := range map[string]func(c *small, s *smallShard, w *watcher){
		"a gap": func(_ *small, s *smallShard, _ *watcher) {
			s.mu.Lock()
			defer s.mu.Unlock()
			for f := range s.watchers {
				(*f)(7, 0, nil)
			}
		},
		"a slow follower": func(c *small, _ *smallShard, w *watcher) {
			c.login("alice")
			synctest.Wait() // it waits to tell of that
			for range maxEvents + 2 {
				c.login("alice", func(q *pb.CreateSessionRequest) { q.MaxSessions, q.OnLimit = proto.Uint32(1), onLimitEvict })
			}
			go func() {
				for range w.told {
				}
			}()
		},
		"another leader": func(_ *small, s *smallShard, w *watcher) {
			s.mu.Lock()
			s.follower = true
			s.mu.Unlock()
			synctest.Wait()
			w.pings <- &pb.FollowRequest{Ping: 2}
		},
		"the end of the service": func(c *small, _ *smallShard, _ *watcher) { c.close() },
	} {
		synctest.Test(t, func(t *testing.T) {
			c := newSmall(t, nil)
			if name != "the end of the service" {
				defer c.close()
			}
			s := c.of("alice")
			w := c.follow(t.Context(), s.id)
			w.until(1)
			what(c, s, w)
			if code := w.end(t); code != codes.Unavailable {
				t.Errorf("%s: %v", name, code)
			}
			c.streams.Wait()
			close(w.told)
		})
	}
}

func TestOnlyTheLeaderIsFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newSmall(t, nil)
		defer c.close()
		c.shards[1].follower = true
		for _, shard := range []uint32{1, 99} {
			if code := c.follow(t.Context(), shard).end(t); code != codes.Unavailable {
				t.Errorf("shard %d: %v", shard, code)
			}
		}
	})
}
