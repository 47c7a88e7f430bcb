package rpc

import (
	"context"
	"fmt"
	"sync"

	"google.golang.org/grpc"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/session"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
	"github.com/holdfastdb/holdfast/storage/plant"
)

// maxEvents bounds what waits for a follower; one that is slower starts again.
const maxEvents = 16 << 10

// Follow implements the service. A follower learns of what its shard's leader applies, in order. It knows to be up to date
// by pings: the answer to one follows all events of what was acknowledged before the ping was sent.
func (s *sessions) Follow(st grpc.BidiStreamingServer[pb.FollowRequest, pb.FollowResponse]) error {
	first, err := st.Recv()
	if err != nil {
		return err
	}
	replica, here := s.node.Replica(first.Shard)
	if !here || !replica.IsLeader() {
		return statusOf(fsm.ErrNotLeader)
	}
	ctx, cancel := context.WithCancel(st.Context())
	defer cancel()
	f := &follower{wake: make(chan struct{}, 1), pings: make(chan uint64, 1)}
	stop := replica.Watch(f.applied)
	defer stop()
	f.pings <- first.Ping
	ended := make(chan struct{})
	s.streams.Go(func() { // Recv ends when this returns, at the latest
		defer close(ended)
		for {
			q, err := st.Recv()
			if err != nil {
				return
			}
			select {
			case f.pings <- q.Ping:
			case <-ctx.Done():
				return
			}
		}
	})
	for {
		select {
		case <-s.closing:
			return statusOf(fsm.ErrClosed)
		case <-ended:
			return nil
		case <-ctx.Done():
			return nil
		case <-f.wake:
			if err := f.send(st, 0); err != nil {
				return statusOf(err)
			}
		case ping := <-f.pings:
			asking, done := context.WithTimeout(ctx, requestTimeout)
			_, _, err := replica.Query(asking, []fsm.Call{sessionCall(session.OpCounts, &session.CountsRequest{})})
			done()
			if err == nil {
				err = f.send(st, ping)
			}
			if err != nil {
				return statusOf(err)
			}
		}
	}
}

// follower holds the events that were applied and not sent yet.
type follower struct {
	mu     sync.Mutex
	events []told
	behind bool
	wake   chan struct{}
	pings  chan uint64
}

// told is an event as the group tells of it.
type told struct {
	body  []byte
	index uint64
	at    fsm.Time
}

var errBehind = fmt.Errorf("%w: what happened meanwhile is not known here: follow again", fsm.ErrClosed)

// applied is called by the group for each entry with events; it must not block. Without events it tells of a gap.
func (f *follower) applied(index uint64, at fsm.Time, events []fsm.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range events {
		if plant.On(plant.MissEnds) && e.Body[0] == byte(session.EventEnded) {
			continue
		}
		if plant.On(plant.MissBegins) && e.Body[0] == byte(session.EventCreated) && index%8 == 0 {
			continue
		}
		if e.Type == session.TypeID && len(f.events) <= maxEvents {
			f.events = append(f.events, told{e.Body, index, at})
		}
	}
	f.behind = f.behind || len(events) == 0 || len(f.events) > maxEvents
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

var eventNames = [...]string{
	session.EventCreated: "created", session.EventEnded: "ended", session.EventChanged: "changed", session.EventMarked: "suspicious",
}

var signNames = [...]string{
	session.NetworkChanged: "network_changed", session.DeviceChanged: "device_changed", session.Burst: "validation_burst",
	session.TwoNetworks: "two_networks",
}

func eventMessage(body []byte, index uint64, at fsm.Time) (*pb.SessionEvent, error) {
	e, err := session.DecodeEvent(body)
	if err != nil {
		return nil, err
	}
	m := &pb.SessionEvent{SessionId: idOf(e.Session).String(), Event: eventNames[e.Kind], Index: index, At: timestamp(at)}
	switch e.Kind {
	case session.EventEnded:
		m.Reason = e.Reason.String()
	case session.EventMarked:
		m.Reason = signNames[e.Mark]
	}
	return m, nil
}

// send sends what waits, and the answer to a ping if it is not 0.
func (f *follower) send(st grpc.BidiStreamingServer[pb.FollowRequest, pb.FollowResponse], pong uint64) error {
	f.mu.Lock()
	events, behind := f.events, f.behind
	f.events = nil
	f.mu.Unlock()
	if behind {
		return errBehind
	}
	if len(events) == 0 && pong == 0 {
		return nil
	}
	m := &pb.FollowResponse{Events: make([]*pb.SessionEvent, len(events)), Pong: pong}
	for i, e := range events {
		var err error
		if m.Events[i], err = eventMessage(e.body, e.index, e.at); err != nil {
			return err
		}
	}
	return st.Send(m)
}
