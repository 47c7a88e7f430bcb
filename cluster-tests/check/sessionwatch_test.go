package check

import (
	"slices"
	"testing"
	"time"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/cluster-tests/history"
	"github.com/holdfastdb/holdfast/cluster-tests/models"
	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/session"
)

var eventKinds = map[session.EventKind]client.SessionEventKind{
	session.EventCreated: client.EventCreated, session.EventEnded: client.EventEnded, session.EventChanged: client.EventChanged,
	session.EventMarked: client.EventSuspicious,
}

var signTexts = map[session.Sign]string{session.Burst: "validation_burst"}

// followed is a watch that was told of all that the state machine told.
func (v *visits) followed() []models.WatchedEvent {
	told := []models.WatchedEvent{{Shard: theShard, SessionEvent: models.SessionEvent{Kind: client.EventFollowed}}}
	for _, out := range v.outcomes {
		for _, emitted := range out.Events {
			e, err := session.DecodeEvent(emitted.Body)
			if err != nil {
				v.t.Fatal(err)
			}
			one := models.SessionEvent{
				Kind: eventKinds[e.Kind], Session: (&visit{key: e.Session}).id().String(), Reason: e.Reason.String() + signTexts[e.Mark],
				At: int64(out.Time), Index: out.Index,
			}
			told = append(told, models.WatchedEvent{Shard: theShard, SessionEvent: one})
		}
	}
	return told
}

// watch has the history have a watch, and judges it by the log.
func (v *visits) watch(told []models.WatchedEvent) *Report {
	ops := append(slices.Clone(v.ops), history.Op{
		Process: "watcher", Outcome: history.Definite, Input: models.SessionOp{Kind: models.KindWatch}, Output: told,
	})
	return Replay(models.Types(), map[uint32][]Entry{theShard: Stamped(v.log, time.UnixMilli(0))}, ops)
}

// The model knows of all events, in the order in which the state machine tells of them.
func TestTheModelOfSessionsTellsWhatTheStateMachineTells(t *testing.T) {
	for seed := range uint64(8) {
		v := visited(t, seed, 500)
		told := v.followed()
		kinds := make(map[client.SessionEventKind]int)
		for _, e := range told {
			kinds[e.Kind]++
		}
		if len(kinds) != 5 || len(told) < 100 {
			t.Errorf("seed %d: %v", seed, kinds)
		}
		if r := v.watch(told); len(r.Violations) > 0 {
			t.Fatalf("seed %d: %d violations, the first: %s", seed, len(r.Violations), r.Violations[0])
		}
	}
}

func TestAWatchThatIsToldWrongIsFound(t *testing.T) {
	v := visited(t, 1, 500)
	told := v.followed()
	// at is the first event of a kind, after some others, whose entry has no other one.
	at := func(kind client.SessionEventKind) int {
		for i := 10; i < len(told)-1; i++ {
			if told[i].Kind == kind && told[i-1].Index != told[i].Index && told[i+1].Index != told[i].Index {
				return i
			}
		}
		t.Fatalf("there is no %s alone", kind)
		return 0
	}
	ended := at(client.EventEnded)
	pair := slices.IndexFunc(told[1:], func(e models.WatchedEvent) bool { return e.Kind == client.EventSuspicious }) + 1 // and what came of it
	gap := func(kinds ...client.SessionEventKind) (list []models.WatchedEvent) {
		for _, kind := range kinds {
			list = append(list, models.WatchedEvent{Shard: theShard, SessionEvent: models.SessionEvent{Kind: kind}})
		}
		return list
	}
	changed := func(i int, change func(e *models.WatchedEvent)) []models.WatchedEvent {
		list := slices.Clone(told)
		change(&list[i])
		return list
	}
	for _, test := range []struct {
		name   string
		told   []models.WatchedEvent
		broken bool
	}{
		{"nothing", told[:1], false},
		{"all of it", told, false},
		{"from some entry on", append(gap(client.EventFollowed), told[ended:]...), false},
		{"up to some entry", told[:ended], false},
		{"a gap", slices.Concat(told[:ended], gap(client.EventLost, client.EventFollowed), told[ended+3:]), false},
		{"a gap, and some of it is told", slices.Concat(told[:ended], gap(client.EventLost), told[ended+1:ended+2], gap(client.EventFollowed), told[ended+4:]), false},
		{"of another shard", changed(ended, func(e *models.WatchedEvent) { e.Shard++ }), true},
		{"one is missing", slices.Delete(slices.Clone(told), ended, ended+1), true},
		{"one is missing of the first entry", append(gap(client.EventFollowed), told[pair+1:]...), true},
		{"one is missing of the last entry before a gap", slices.Concat(told[:pair+1], gap(client.EventLost)), true},
		{"one comes twice", slices.Insert(slices.Clone(told), ended, told[ended]), true},
		{"one comes again after a gap", slices.Concat(told[:ended+1], gap(client.EventLost, client.EventFollowed), told[ended:]), true},
		{"two have changed places", slices.Concat(told[:ended], told[ended+1:ended+2], told[ended:ended+1], told[ended+2:]), true},
		{"another reason", changed(ended, func(e *models.WatchedEvent) { e.Reason = "x" }), true},
		{"another time", changed(ended, func(e *models.WatchedEvent) { e.At++ }), true},
		{"another session", changed(ended, func(e *models.WatchedEvent) { e.Session = "x" }), true},
		{"another entry", changed(ended, func(e *models.WatchedEvent) { e.Index = fsm.MaxOps }), true},
		{"another kind", changed(at(client.EventCreated), func(e *models.WatchedEvent) { e.Kind = client.EventChanged }), true},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := v.watch(test.told)
			if test.broken {
				finds(t, r.Violations, KindWatch)
			} else if len(r.Violations) > 0 {
				t.Error(r.Violations)
			}
		})
	}
}
