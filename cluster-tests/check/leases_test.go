package check

import (
	"testing"
	"time"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/cluster-tests/history"
	"github.com/holdfastdb/holdfast/cluster-tests/models"
	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/counter"
)

// A holder lets pass what it was lent, as long as it is lent; what it gives back it has not used.
func TestWhatHoldersSpendIsComparedWithWhatTheyWereLent(t *testing.T) {
	for _, test := range []struct {
		name   string
		does   func(w *world)
		broken bool
	}{
		{"all of it", func(w *world) {
			n := w.lease("a", 4).Granted
			w.spend("a", n, 5*time.Millisecond)
		}, false},
		{"more than was granted", func(w *world) {
			n := w.lease("a", 4).Granted
			w.spend("a", n, 5*time.Millisecond)
			w.spend("a", 1, 6*time.Millisecond)
		}, true},
		{"too late", func(w *world) {
			w.lease("a", 4)
			w.spend("a", 1, 1001*time.Millisecond)
		}, true},
		{"what was given back", func(w *world) {
			g := w.lease("a", 4)
			w.spend("a", g.Granted, 5*time.Millisecond)
			w.lease("a", 0, counter.LeaseReturn{ID: g.ID, Unused: 1})
		}, true},
		{"the rest is given back", func(w *world) {
			g := w.lease("a", 4)
			w.spend("a", g.Granted-1, 5*time.Millisecond)
			w.lease("a", 0, counter.LeaseReturn{ID: g.ID, Unused: 1})
		}, false},
		{"what another holder was lent", func(w *world) {
			w.lease("a", 4)
			w.spend("a", 1, 5*time.Millisecond)
			w.check("b")
			w.ops[len(w.ops)-1].Process, w.ops[len(w.ops)-1].Trace.Client = "q", [16]byte{2}
			w.ops[len(w.ops)-2].Process = "q"
			w.ops = append(w.ops[:len(w.ops)-1:len(w.ops)-1], history.Op{Process: "q", Trace: client.Trace{Shard: theShard, Client: [16]byte{2}, Seq: 1000}})
		}, true},
		{"of another limit", func(w *world) {
			w.check("b")
			w.lease("a", 4)
			w.spend("b", 1, 5*time.Millisecond)
		}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			w.check("a") // tells which limit applies
			test.does(w)
			r := Replay(map[uint32][]Entry{theShard: Stamped(w.log, time.UnixMilli(0))}, w.ops)
			if r.Lent == 0 {
				t.Error("nothing was judged")
			}
			if test.broken {
				finds(t, r.Violations, KindLease)
			} else if len(r.Violations) > 0 {
				t.Error(r.Violations)
			}
		})
	}
}

// told is an operation on a resource of the same name as its algorithm, at a shard time and about then by the clock.
func told(resource, kind string, at fsm.Time, allowed bool) history.Op {
	clock := time.Duration(at) * time.Millisecond
	return history.Op{
		Process: "p", Call: clock, Return: clock, Outcome: history.Definite, Output: client.Decision{Allowed: allowed},
		Input: models.LimitOp{Kind: kind, Request: client.Request{Client: "a", Resource: resource}},
		Trace: client.Trace{Shard: 1, Index: 1, Time: time.UnixMilli(int64(at))},
	}
}

// Promises needs no log: what callers were told is enough.
func TestCallersWhoWereAllowedTooMuchAreFound(t *testing.T) {
	rules := map[string]counter.Params{
		"bucket": {Algorithm: counter.TokenBucket, Rate: 1, Window: 1000, Burst: 2},
		"log":    {Algorithm: counter.SlidingLog, Rate: 2, Window: 1000},
		"slots":  {Algorithm: counter.Concurrency, Rate: 1, Window: 1000},
	}
	check := func(resource string, at fsm.Time) history.Op { return told(resource, models.KindCheck, at, true) }
	lease := func(from, to time.Duration) history.Op {
		op := told("bucket", models.KindLease, 0, true)
		op.Trace, op.Call, op.Return = client.Trace{}, from*time.Millisecond, to*time.Millisecond
		return op
	}
	release := func(at fsm.Time) history.Op { return told("slots", models.KindRelease, at, false) }
	unknown := func(op history.Op) history.Op {
		op.Outcome, op.Output = history.Unknown, nil
		return op
	}
	for _, test := range []struct {
		name   string
		ops    []history.Op
		broken bool
	}{
		{"a burst", []history.Op{check("bucket", 100), check("bucket", 100)}, false},
		{"a burst and one more", []history.Op{check("bucket", 100), check("bucket", 100), check("bucket", 1099)}, true},
		{"one that was denied", []history.Op{check("bucket", 100), check("bucket", 100), told("bucket", models.KindCheck, 200, false)}, false},
		{"one of unknown outcome", []history.Op{check("bucket", 100), check("bucket", 100), unknown(check("bucket", 1000))}, false},
		{"after a reset", []history.Op{check("bucket", 100), check("bucket", 100), told("bucket", models.KindReset, 500, false), check("bucket", 600)}, false},
		{"too many after a reset", []history.Op{told("bucket", models.KindReset, 500, false), check("bucket", 600), check("bucket", 600), check("bucket", 600)}, true},
		{"of a lease", []history.Op{check("bucket", 100), check("bucket", 120), lease(105, 110)}, true},
		{"of a lease, maybe later", []history.Op{check("bucket", 100), check("bucket", 100), lease(105, 1105)}, false},
		{"a log", []history.Op{check("log", 100), check("log", 1099), check("log", 1099)}, true},
		{"a slot", []history.Op{check("slots", 100), release(500), check("slots", 500)}, false},
		{"a slot that is in use", []history.Op{check("slots", 100), release(500), check("slots", 499)}, true},
		{"a slot that is kept", []history.Op{check("slots", 100), check("slots", 1099)}, true},
		{"a slot that ends", []history.Op{check("slots", 100), check("slots", 1100)}, false},
		{"a slot, maybe released", []history.Op{check("slots", 100), unknown(release(200)), check("slots", 300)}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			at := func(d time.Duration) (fsm.Time, fsm.Time) { ms := fsm.Time(d.Milliseconds()); return ms, ms }
			judged, broken := Promises(test.ops, rules, at)
			if judged == 0 {
				t.Error("nothing was judged")
			}
			if test.broken {
				finds(t, broken, KindPromise)
			} else if len(broken) > 0 {
				t.Error(broken)
			}
		})
	}
}
