package models

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/cluster-tests/history"
	"github.com/holdfastdb/holdfast/fsm/session"
)

// SessionEvent is something that happened to a session, as a log has it.
type SessionEvent struct {
	Kind    client.SessionEventKind `json:"kind"`
	Session string                  `json:"session,omitempty"`
	Reason  string                  `json:"reason,omitempty"`
	At      int64                   `json:"at,omitempty"` // in milliseconds
	Index   uint64                  `json:"index,omitempty"`
}

func (e SessionEvent) String() string {
	return fmt.Sprintf("%s %q of session %s at entry %d, %d", e.Kind, e.Reason, e.Session, e.Index, e.At)
}

// WatchedEvent is what a watch told of a shard, and when, on the clock of the history.
type WatchedEvent struct {
	Seen  time.Duration `json:"seen_ns"`
	Shard uint32        `json:"shard"`
	Why   string        `json:"why,omitempty"` // the shard was lost
	SessionEvent
}

// watch watches from the begin of a history to its end.
type watch struct {
	stop  context.CancelFunc
	ended chan struct{}
	told  []WatchedEvent
}

func startWatch(by *Process) *watch {
	ctx, stop := context.WithCancel(context.Background()) // a watch also ends with its client
	w := &watch{stop: stop, ended: make(chan struct{})}
	go func() {
		defer close(w.ended)
		for e := range by.Client.Sessions().Watch(ctx) {
			w.told = append(w.told, watched(time.Since(by.History.Start()), e))
		}
	}()
	return w
}

func watched(seen time.Duration, e client.SessionEvent) WatchedEvent {
	told := WatchedEvent{Seen: seen, Shard: e.Shard, SessionEvent: SessionEvent{Kind: e.Kind, Session: e.SessionID, Reason: e.Reason, Index: e.Index}}
	if e.Index != 0 {
		told.At = e.At.UnixMilli()
	}
	if e.Err != nil {
		told.Why = e.Err.Error()
	}
	return told
}

// end gives the history what was told. It takes no time: of an operation as long as the history, others would think that
// somebody waited for it.
func (w *watch) end(by *Process) {
	p := by.History.Begin(by.Name, SessionOp{Kind: KindWatch})
	w.stop()
	<-w.ended
	p.End(w.told, client.Trace{}, nil)
}

const (
	// mostSilence is longer than a leader that cannot tell what happens any more is still believed.
	mostSilence = 20 * time.Second
	// longHistory surely has shards that are followed for longer than that.
	longHistory = 5 * time.Minute
)

// span is a time in which a shard was followed.
type span struct{ from, to time.Duration }

func (f *fates) judgeWatches(j *Judged, ops []history.Op) {
	for i := range ops {
		if told, is := ops[i].Output.([]WatchedEvent); is {
			f.judgeWatch(j, told, ops[i].Call)
		}
	}
}

// judgeWatch looks at a watch without a log: the events of a shard never go back, a session begins before and ends after all
// else, and who follows its shard from before its login on is told of its begin and its end, if they were acknowledged.
func (f *fates) judgeWatch(j *Judged, told []WatchedEvent, end time.Duration) {
	violate := func(format string, args ...any) {
		j.Violations = append(j.Violations, violation(BrokenWatch, format, args...))
	}
	followed := make(map[uint32][]span)
	index := make(map[uint32]uint64)
	kinds := make(map[string][]client.SessionEventKind) // by session
	for _, e := range told {
		spans, before := followed[e.Shard], kinds[e.Session]
		follows := len(spans) > 0 && spans[len(spans)-1].to == end
		switch {
		case e.Kind == client.EventFollowed && !follows:
			followed[e.Shard] = append(spans, span{e.Seen, end})
		case e.Kind == client.EventLost && follows:
			spans[len(spans)-1].to = e.Seen
		case e.Kind == client.EventFollowed || e.Kind == client.EventLost:
			violate("shard %d is %s twice", e.Shard, e.Kind)
		default:
			if follows {
				j.Looked[lookedWatched]++
			}
			if e.Index < index[e.Shard] {
				violate("shard %d: %s is told after entry %d", e.Shard, e.SessionEvent, index[e.Shard])
			}
			if slices.Contains(before, client.EventEnded) || e.Kind == client.EventCreated && len(before) > 0 {
				violate("shard %d: %s is told after it was %s", e.Shard, e.SessionEvent, before)
			}
			index[e.Shard], kinds[e.Session] = e.Index, append(before, e.Kind)
		}
	}
	for id, one := range f.of {
		told := func(kind client.SessionEventKind, acknowledged time.Duration) {
			told := slices.Contains(kinds[id], kind)
			must := slices.ContainsFunc(followed[one.login.Trace.Shard], func(s span) bool {
				return s.from <= one.login.Call && acknowledged+mostSilence <= s.to
			})
			if must {
				j.Looked[lookedTold]++
			}
			if must && !told {
				violate("shard %d: nobody is told that session %s was %s, acknowledged at %s", one.login.Trace.Shard, id, kind, acknowledged)
			}
		}
		told(client.EventCreated, one.login.Return)
		if one.over != never && !one.login.Input.(SessionOp).Brief { // else its time may be over, and the next sweep ends it
			told(client.EventEnded, one.over)
		}
	}
}

// signs are how events tell them.
var signs = map[session.Sign]string{
	session.NetworkChanged: "network_changed", session.DeviceChanged: "device_changed", session.Burst: "validation_burst",
	session.TwoNetworks: "two_networks",
}

// happened notes an event.
func (s *sessions) happened(m *Moment, kind client.SessionEventKind, k session.Key, reason string) {
	s.events = append(s.events, SessionEvent{Kind: kind, Session: idOfSession(k), Reason: reason, At: int64(m.Now), Index: m.Index})
}

// judgeWatch compares what a watch told of a shard with the log: all of it is there, in the same order, and nothing is missing
// between two events that were told while the shard was followed, nor of an entry of which something was told.
func (s *sessions) judgeWatch(shard uint32, told []WatchedEvent) (broken []Violation) {
	next := 0 // the first event of the log that may be told
	var followed, sure bool
	for _, e := range told {
		switch {
		case e.Shard != shard:
		case e.Kind == client.EventFollowed:
			followed, sure = true, false
		case e.Kind == client.EventLost:
			if sure && s.together(next) {
				broken = append(broken, violation(BrokenWatch, "%s is not told before the shard is lost", s.events[next]))
			}
			followed, sure = false, false
		default:
			i, found := s.place(next, e.SessionEvent)
			if !found {
				broken = append(broken, violation(BrokenWatch, "%s is told at %s, and the log does not have it there", e.SessionEvent, e.Seen))
				continue
			}
			if i > next && (sure || s.together(i)) {
				broken = append(broken, violation(BrokenWatch, "%s is not told before %s", s.events[i-1], e.SessionEvent))
			}
			next, sure = i+1, followed
		}
	}
	return broken
}

// together tells whether an event is of the same entry as the one before.
func (s *sessions) together(i int) bool {
	return i > 0 && i < len(s.events) && s.events[i].Index == s.events[i-1].Index
}

// place finds an event of the log, from the next one on that may be told.
func (s *sessions) place(next int, e SessionEvent) (i int, found bool) {
	i, _ = slices.BinarySearchFunc(s.events, e.Index, func(a SessionEvent, index uint64) int { return cmp.Compare(a.Index, index) })
	for i = max(i, next); i < len(s.events) && s.events[i].Index == e.Index; i++ {
		if s.events[i] == e {
			return i, true
		}
	}
	return 0, false
}
