package client

import (
	"context"
	"iter"
	"sync"
	"time"

	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// SessionEventKind is what an event tells.
type SessionEventKind string

// The kinds. EventFollowed and EventLost are of a shard, the others of a session.
const (
	EventCreated    SessionEventKind = "created"
	EventEnded      SessionEventKind = "ended"
	EventChanged    SessionEventKind = "changed"
	EventSuspicious SessionEventKind = "suspicious"
	// EventFollowed: from here on no event of the shard is missing, until an EventLost.
	EventFollowed SessionEventKind = "followed"
	// EventLost: what happens in the shard from here until its next EventFollowed may be missing.
	EventLost SessionEventKind = "lost"
)

// SessionEvent is something that happened to a session, or to the watch.
type SessionEvent struct {
	Kind      SessionEventKind
	SessionID string
	// Reason is an EndReason of a session that ended. Of a suspicious one it is network_changed, two_networks, device_changed or
	// validation_burst; a refresh token that was used twice ends its session.
	Reason string
	// At is when it happened, by the shard's clock, and Index where in the log of Shard: the events of one entry share it.
	At    time.Time
	Shard uint32
	Index uint64
	// Err is why the shard was lost.
	Err error
}

const (
	// watchPing is how often a leader that is watched must show that it still leads.
	watchPing = 5 * time.Second
	// watchSilence is how long it may be silent.
	watchSilence = 2 * watchPing
)

// Watch yields what happens to all sessions of the cluster from now on, until ctx ends or the client is closed. The events
// of one shard, and so of one user, come in the order in which they happened; those of different shards do not.
//
// Events are not kept for who was not there. When a shard gets another leader, when the connection is lost, or when the
// loop is so slow that a node has to drop what waits for it, the shard is followed again by itself, and an EventLost and
// an EventFollowed enclose what may be missing: then ask for what must not be missed, with Get, List or History. No event
// comes twice.
func (s *Sessions) Watch(ctx context.Context) iter.Seq[SessionEvent] {
	return func(yield func(SessionEvent) bool) {
		ctx, stop := context.WithCancel(ctx)
		defer context.AfterFunc(s.c.ctx, stop)()
		told := make(chan SessionEvent)
		var watchers sync.WaitGroup
		defer watchers.Wait()
		defer stop()
		for _, shard := range s.c.routes.Load().shards {
			w := &watcher{c: s.c, shard: shard.Shard, told: told}
			watchers.Go(func() { w.run(ctx) })
		}
		for {
			select {
			case e := <-told:
				if !yield(e) {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}
}

// watcher follows one shard from leader to leader.
type watcher struct {
	c     *Client
	shard uint32
	told  chan<- SessionEvent
	last  uint64 // the entry of the newest event that was told
}

func (w *watcher) tell(ctx context.Context, e SessionEvent) {
	e.Shard = w.shard
	if ctx.Err() != nil {
		return // though somebody may still be there to take it
	}
	select {
	case w.told <- e:
	case <-ctx.Done():
	}
}

func (w *watcher) run(ctx context.Context) {
	for pause := feedPause; ; pause = min(2*pause, maxFeedPause) {
		followed, err := w.follow(ctx)
		if followed {
			w.tell(ctx, SessionEvent{Kind: EventLost, Err: err})
			pause = feedPause
		}
		if sleep(ctx, pause) != nil {
			return
		}
		_ = w.c.refresh(ctx) // or the next stream is tried where the leader was
	}
}

// follow follows one leader as long as it leads, and tells whether it ever answered.
func (w *watcher) follow(ctx context.Context) (followed bool, err error) {
	// Not with the caller's deadline: the node would end the stream at that moment, which looks like a loss.
	stream, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })()
	st, err := w.c.follow(stream, cancel, w.shard)
	if err != nil {
		return false, err
	}
	var pings sync.WaitGroup
	defer pings.Wait()
	defer cancel(nil)
	pings.Go(func() { w.ping(stream, st) })
	silent := time.AfterFunc(watchSilence, func() { cancel(errSilent) })
	defer silent.Stop()
	for {
		r, err := st.Recv()
		if err != nil {
			cancel(err)
			return followed, context.Cause(stream)
		}
		silent.Stop() // who takes the events may take time
		// A new leader may still have to execute what the former told of. The events of an entry come together.
		known := w.last
		for _, e := range r.Events {
			if e.Index > known {
				w.tell(ctx, sessionEvent(e))
				w.last = max(w.last, e.Index)
			}
		}
		if r.Pong != 0 && !followed {
			followed = true
			w.tell(ctx, SessionEvent{Kind: EventFollowed})
		}
		silent.Reset(watchSilence)
	}
}

// ping asks again and again until the stream ends.
func (w *watcher) ping(ctx context.Context, st events) {
	for n := uint64(1); ; n++ {
		if st.Send(&pb.FollowRequest{Shard: w.shard, Ping: n}) != nil || sleep(ctx, watchPing) != nil {
			return // the reader has the reason
		}
	}
}

func sessionEvent(m *pb.SessionEvent) SessionEvent {
	return SessionEvent{
		Kind: SessionEventKind(m.Event), SessionID: m.SessionId, Reason: m.Reason, At: moment(m.At), Index: m.Index,
	}
}
