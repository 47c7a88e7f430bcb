package client

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
	"github.com/holdfastdb/holdfast/rpc/sessiontoken"
)

// feed follows what happens to the sessions of one shard while somebody wants to know.
type feed struct {
	k     *sessionCache
	shard uint32
	// wanted is the smallest bound that was asked for since it was last looked at, 0 for none.
	wanted  atomic.Int64
	running atomic.Bool

	mu     sync.Mutex
	stream *followed // nil while none is known to be whole
	byUser map[userKey][]*cached

	// Of the goroutine that runs, and the one that it has ping.
	every time.Duration
	last  int64 // when somebody wanted to know
}

// followed is one stream of events from a shard's leader.
//
// A pong is sent after the leader has made sure that it led when the ping came, and after all events of what was
// acknowledged by then. So when it has come, and the events before it are dealt with, every entry that is left was true
// when the ping was sent: if it began while the stream was there, for only then no event can have been missed. The stream
// is there for certain from its first pong. When it is cut, or hangs, confirmed stays what it is, and the entries grow
// old. An entry never moves to another stream.
type followed struct {
	confirmed atomic.Int64 // when the last ping that was answered was sent

	mu     sync.Mutex
	number uint64 // of the last ping
	sent   int64  // when it was sent
	open   bool   // it is not answered
}

const (
	// pingsInBound is how often the leader is asked within the smallest bound.
	pingsInBound = 4
	minPing      = 10 * time.Millisecond
	maxPing      = time.Second
	// pongPatience is how long a ping may take before another stream is tried.
	pongPatience = time.Second
	// feedIdle is how long the shard is followed after nobody wanted to know any more.
	feedIdle                = time.Minute
	feedPause, maxFeedPause = 50 * time.Millisecond, time.Second
)

// wish notes a bound that somebody asks for. It is called very often, and so writes only when it must.
func (f *feed) wish(bound time.Duration) {
	if w := f.wanted.Load(); w == 0 || int64(bound) < w {
		f.wanted.Store(int64(bound))
	}
}

// add takes an entry whose validation begins now.
func (f *feed) add(e *cached) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e.begun, e.stream = f.k.now(), f.stream
	user := userOf(e.id)
	f.byUser[user] = append(f.byUser[user], e)
}

// remove takes an entry that nobody will find any more.
func (f *feed) remove(e *cached) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.keep(userOf(e.id), func(other *cached) bool { return other != e })
}

// keep drops the entries of a user that are not to stay. Called with mu held.
func (f *feed) keep(user userKey, stays func(*cached) bool) {
	list := slices.DeleteFunc(f.byUser[user], func(e *cached) bool { return !stays(e) })
	if len(list) == 0 {
		delete(f.byUser, user)
	} else {
		f.byUser[user] = list
	}
}

// end kills the entries of a session, or of all sessions of a user, also those whose validation is under way.
func (f *feed) end(user userKey, id *sessiontoken.ID) {
	var dead []*cached
	f.mu.Lock()
	f.keep(user, func(e *cached) bool {
		if id != nil && e.id != *id {
			return true
		}
		e.dead.Store(true)
		dead = append(dead, e)
		return false
	})
	f.mu.Unlock()
	f.k.bury(dead)
}

// follow makes sure that the shard is followed.
func (f *feed) follow() {
	if !f.running.Load() && f.running.CompareAndSwap(false, true) {
		f.k.c.spawn(f.run)
	}
}

var errIdle = errors.New("nobody wants to know")

// run follows the shard until nobody wants to know any more, or the client is closed.
func (f *feed) run() {
	defer f.running.Store(false)
	c := f.k.c
	f.every, f.last = maxPing, f.k.now()
	for pause := feedPause; ; pause = min(2*pause, maxFeedPause) {
		began := time.Now()
		err := f.listen()
		f.mu.Lock()
		f.stream = nil
		f.mu.Unlock()
		if errors.Is(err, errIdle) || !f.look() {
			return
		}
		if time.Since(began) > maxFeedPause {
			pause = feedPause
		}
		if sleep(c.ctx, pause) != nil {
			return
		}
		_ = c.refresh(c.ctx) // or the next stream is tried where the leader was
	}
}

// look learns what was asked for lately; false if it was nothing for a while.
func (f *feed) look() bool {
	now := f.k.now()
	if bound := time.Duration(f.wanted.Swap(0)); bound > 0 {
		f.last, f.every = now, max(minPing, min(bound/pingsInBound, maxPing))
	}
	return now-f.last < int64(feedIdle)
}

// events is a stream of what happens to the sessions of a shard.
type events = grpc.BidiStreamingClient[pb.FollowRequest, pb.FollowResponse]

// follow opens one at the shard's leader. It lasts as long as ctx, which cancel ends.
func (c *Client) follow(ctx context.Context, cancel context.CancelCauseFunc, shard uint32) (events, error) {
	addr := c.routes.Load().leaders[shard]
	if addr == "" {
		return nil, errors.New("the shard has no leader")
	}
	conn, err := c.conn(addr)
	if err != nil {
		return nil, err
	}
	late := time.AfterFunc(connectTimeout, func() { cancel(context.DeadlineExceeded) })
	st, err := pb.NewSessionsClient(conn).Follow(ctx)
	if !late.Stop() && err == nil {
		err = context.DeadlineExceeded
	}
	return st, err
}

// listen follows one stream until it ends.
func (f *feed) listen() error {
	c := f.k.c
	ctx, cancel := context.WithCancelCause(c.ctx)
	defer cancel(nil)
	st, err := c.follow(ctx, cancel, f.shard)
	if err != nil {
		return err
	}
	s := &followed{}
	var pings sync.WaitGroup
	pings.Go(func() { cancel(f.ping(ctx, st, s)) })
	defer pings.Wait()
	for {
		r, err := st.Recv()
		if err != nil {
			cancel(err)
			return context.Cause(ctx)
		}
		for _, e := range r.Events {
			f.happened(e)
		}
		if s.answered(r.Pong) {
			f.mu.Lock()
			f.stream = s
			f.mu.Unlock()
		}
	}
}

// happened drops what an event makes doubtful.
func (f *feed) happened(e *pb.SessionEvent) {
	if e.Event == "created" {
		return
	}
	if id, err := sessiontoken.ParseID(e.SessionId); err == nil {
		f.end(userOf(id), &id)
	}
}

// ping asks the leader again and again, and tells why it stopped.
func (f *feed) ping(ctx context.Context, st events, s *followed) error {
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-t.C:
		}
		if !f.look() {
			return errIdle
		}
		t.Reset(f.every)
		number, waited := s.next(f.k.now())
		switch {
		case waited > pongPatience:
			return errSilent
		case number == 0:
			continue
		}
		if err := st.Send(&pb.FollowRequest{Shard: f.shard, Ping: number}); err != nil {
			return err
		}
	}
}

// next numbers a ping; 0 while one before is not answered, and for how long it has not been.
func (s *followed) next(now int64) (number uint64, waited time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open {
		return 0, time.Duration(now - s.sent)
	}
	s.number++
	s.sent, s.open = now, true
	return s.number, 0
}

// answered notes a pong; false if it is none, or not of the ping that waits.
func (s *followed) answered(pong uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.open || pong != s.number {
		return false
	}
	s.open = false
	s.confirmed.Store(s.sent)
	return true
}
