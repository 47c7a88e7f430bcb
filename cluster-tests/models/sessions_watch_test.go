package models

import (
	"testing"
	"time"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/cluster-tests/history"
)

const watchedShard = 1

// toldAt is what a watch tells at a second.
func toldAt(at int, kind client.SessionEventKind, id string, index uint64) WatchedEvent {
	return WatchedEvent{Seen: time.Duration(at) * time.Second, Shard: watchedShard, SessionEvent: SessionEvent{Kind: kind, Session: id, Index: index}}
}

// Without a log, a watch must keep to the order, and tell what was acknowledged.
func TestAWatchIsJudgedWithoutTheLog(t *testing.T) {
	var (
		followed = toldAt(0, client.EventFollowed, "", 0)
		created  = toldAt(1, client.EventCreated, "a", 5)
		changed  = toldAt(2, client.EventChanged, "a", 6)
		ended    = toldAt(3, client.EventEnded, "a", 7)
		lost     = toldAt(4, client.EventLost, "", 0)
		again    = toldAt(5, client.EventFollowed, "", 0)
		other    = toldAt(6, client.EventCreated, "b", 6)
	)
	begin := loginAt(1000, "a")
	begin.Trace.Shard = watchedShard
	brief := begin
	brief.Input = SessionOp{Kind: KindLogin, User: theUser, Brief: true}
	ends := []history.Op{begin, revokeAt(2000, "a", 1)}
	for _, test := range []struct {
		name   string
		ops    []history.Op
		told   []WatchedEvent
		end    int // of the watch, in seconds
		broken bool
	}{
		{"all of it", ends, []WatchedEvent{followed, created, changed, ended}, 60, false},
		{"with a gap", ends, []WatchedEvent{followed, created, lost, again, ended}, 60, false},
		{"before it is followed", nil, []WatchedEvent{created, changed, followed, ended}, 60, false},
		{"two of an entry", nil, []WatchedEvent{followed, changed, other}, 60, false},
		{"back to an earlier entry", nil, []WatchedEvent{followed, ended, other}, 60, true},
		{"back after a gap", nil, []WatchedEvent{followed, ended, lost, again, other}, 60, true},
		{"begun twice", nil, []WatchedEvent{followed, created, created}, 60, true},
		{"begun after it changed", nil, []WatchedEvent{followed, changed, toldAt(7, client.EventCreated, "a", 8)}, 60, true},
		{"ended twice, with a gap between", ends, []WatchedEvent{followed, created, ended, lost, again, ended}, 60, true},
		{"changed after its end", ends, []WatchedEvent{followed, ended, toldAt(7, client.EventChanged, "a", 8)}, 60, true},
		{"followed twice", nil, []WatchedEvent{followed, again}, 60, true},
		{"lost without having been followed", nil, []WatchedEvent{lost}, 60, true},
		{"an end that is not told", ends, []WatchedEvent{followed, created}, 60, true},
		{"an end that may still be told", ends, []WatchedEvent{followed, created}, 20, false},
		{"an end in a gap", ends, []WatchedEvent{followed, created, lost, again}, 60, false},
		{"an end that is not told, long before a gap", ends, []WatchedEvent{followed, created, toldAt(50, client.EventLost, "", 0)}, 60, true},
		{"an end before the watch", ends, []WatchedEvent{again}, 60, false},
		{"an end by itself", []history.Op{brief, revokeAt(2000, "a", 1)}, []WatchedEvent{followed, created}, 60, false},
		{"a begin that is not told", ends[:1], []WatchedEvent{followed}, 60, true},
		{"a begin that may still be told", ends[:1], []WatchedEvent{followed}, 20, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			j := judgeSessions(append(test.ops, history.Op{
				Call: time.Duration(test.end) * time.Second, Outcome: history.Definite, Input: SessionOp{Kind: KindWatch}, Output: test.told,
			}))
			if (len(j.Violations) > 0) != test.broken {
				t.Errorf("broken is %v, want %v: %v", !test.broken, test.broken, j.Violations)
			}
			for _, v := range j.Violations {
				if v.Kind != BrokenWatch {
					t.Errorf("a violation of kind %s", v.Kind)
				}
			}
		})
	}
}

// What was looked at is what was told while the shard was followed.
func TestEventsOfAGapAreNotCounted(t *testing.T) {
	told := []WatchedEvent{
		toldAt(0, client.EventCreated, "a", 1), toldAt(1, client.EventFollowed, "", 0), toldAt(2, client.EventCreated, "b", 2),
		toldAt(3, client.EventLost, "", 0), toldAt(4, client.EventCreated, "c", 3),
	}
	j := judgeSessions([]history.Op{{Call: time.Minute, Outcome: history.Definite, Input: SessionOp{Kind: KindWatch}, Output: told}})
	if n := j.Looked[lookedWatched]; n != 1 {
		t.Errorf("%d events were looked at, want 1", n)
	}
}
