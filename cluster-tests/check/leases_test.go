package check

import (
	"testing"
	"time"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/cluster-tests/history"
	"github.com/holdfastdb/holdfast/cluster-tests/models"
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
			w.ops = append(w.ops[:len(w.ops)-1:len(w.ops)-1], history.Op{Process: "q", Input: models.LimitOp{Kind: models.KindCheck}, Trace: client.Trace{Shard: theShard, Client: [16]byte{2}, Seq: 1000}})
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
			r := Replay(models.Types(), map[uint32][]Entry{theShard: Stamped(w.log, time.UnixMilli(0))}, w.ops)
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
