package check

import (
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/cluster-tests/history"
	"github.com/holdfastdb/holdfast/cluster-tests/models"
	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/rpc"
)

// mixed is a history of three keys with all outcomes.
func mixed(t *testing.T) *world {
	w := newWorld(t)
	for range 7 {
		for _, key := range []string{"a", "b", "c"} {
			w.check(key)
		}
		w.peek("b")
	}
	lost := w.check("c") // the answer to an executed one
	lost.Outcome, lost.Output, lost.Return = history.Unknown, nil, time.Hour
	lost.Trace.Index, lost.Trace.Time = 0, time.Time{}
	gone := w.begin(models.KindCheck, "a") // and one that never came
	gone.Outcome, gone.Return, gone.Trace = history.Unknown, time.Hour, client.Trace{Shard: theShard, Client: [16]byte{1}, Seq: 1000}
	failed := gone
	failed.Outcome, failed.Trace.Seq = history.Failed, 1001
	local := w.begin(models.KindCheck, "a")
	local.Output = client.Decision{Allowed: true}
	w.ops = append(w.ops, gone, failed, local)
	return w
}

func TestAHistoryWithoutFaultsIsFine(t *testing.T) {
	w := mixed(t)
	w.entry(fsm.Entry{Kind: fsm.Sweep})
	w.log = append(w.log, Entry{Index: uint64(len(w.log) + 1), Term: 1, Type: raft.LogConfiguration, Data: []byte("of Raft")})
	r := w.replay()
	if len(r.Violations) > 0 {
		t.Fatal(r.Violations)
	}
	if r.Definite != 29 || r.Unknown != 2 || r.Executed != 1 || r.Failed != 1 || r.Local != 1 || r.Checked != 28 || r.Queries != 7 || r.Unclear != 0 {
		t.Errorf("%+v", r)
	}
}

// Each way to break a promise is found, and named.
func TestReplayFinds(t *testing.T) {
	for _, test := range []struct {
		name, kind string
		breaks     func(w *world)
	}{
		{"an answer that allows what is used up", "result", func(w *world) {
			d := w.ops[len(w.ops)-8].Output.(client.Decision)
			d.Allowed = !d.Allowed
			w.ops[len(w.ops)-8].Output = d
		}},
		{"an answer with another rest", "result", func(w *world) {
			w.ops[5].Output.(client.Decision).Limits[0].Remaining++
		}},
		{"an acknowledged operation that is nowhere", "lost", func(w *world) { w.ops[4].Trace.Seq = 500 }},
		{"a log without its end", "lost", func(w *world) { w.log = w.log[:len(w.log)-3] }},
		{"a log with a gap", "log", func(w *world) {
			w.ops = nil
			w.log = append(w.log[:4], w.log[5:]...)
		}},
		{"an entry that does not read", "log", func(w *world) {
			w.ops = nil
			w.log[4].Data = append([]byte(nil), w.log[4].Data...)
			w.log[4].Data[8]++
		}},
		{"no log of the shard", "log", func(w *world) { w.ops[0].Trace.Shard = 9 }},
		{"a failed operation with an effect", "effect", func(w *world) { w.ops[0].Outcome = history.Failed }},
		{"an order that is not that of time", "order", func(w *world) { w.ops[12].Return = w.ops[4].Call - 1 }},
		{"a place that is not that of the log", "order", func(w *world) { w.ops[4].Trace.Index++ }},
		{"another time", "time", func(w *world) { w.ops[4].Trace.Time = w.ops[4].Trace.Time.Add(time.Millisecond) }},
		{"a query of an old state", "order", func(w *world) {
			old, late := w.ops[3], w.peek("b")
			late.Trace, late.Output = old.Trace, old.Output
		}},
		{"a query of no state at all", "result", func(w *world) {
			w.ops[11].Output = w.ops[3].Output
		}},
		{"a query of what is not committed", "lost", func(w *world) { w.peek("b").Trace.Index = 10_000 }},
		{"a query that does not tell of its place", "lost", func(w *world) { w.peek("b").Trace.Index = 0 }},
		{"an answer that does not tell of its shard", "lost", func(w *world) {
			w.limited()
			w.ops[4].Trace = client.Trace{}
			w.ops = w.ops[:len(w.ops)-1]
		}},
		{"an answer without the limit that applies", "result", func(w *world) {
			w.ops[5].Output = client.Decision{Allowed: true, Remaining: client.Unlimited}
			w.limited()
		}},
		{"an answer that no shard gave where a limit applies", "result", func(w *world) { w.limited() }},
		{"a question answered without the limit that applies", "result", func(w *world) {
			w.ops = w.ops[:len(w.ops)-1]
			w.ops[3].Output = client.Decision{Allowed: true}
			w.limited()
		}},
		{"a repeated frame that was executed again", "result", func(w *world) {
			// Without a window the second try counts once more, and everyone after it is told so.
			f := fsm.Frame{Client: [16]byte{2}, Seq: 1, Deadline: w.now + 10_000, Calls: []fsm.Call{takeCall("d", 1)}}
			w.entry(fsm.Entry{Frames: []fsm.Frame{f}})
			again := f
			again.Client = [16]byte{}
			w.entry(fsm.Entry{Frames: []fsm.Frame{again}})
			w.log[len(w.log)-1].Data = (&fsm.Entry{Time: w.now, Frames: []fsm.Frame{f}}).Append(nil)
			w.check("d")
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := mixed(t)
			test.breaks(w)
			finds(t, w.replay().Violations, test.kind)
		})
	}
}

// An operation that its frame only holds the place of is found where it was carried out.
func TestOperationsThatAreCarriedOutElsewhere(t *testing.T) {
	w := newWorld(t)
	op := w.begin(models.KindCheck, "a")
	f := w.frame(fsm.Noop())
	out := w.entry(fsm.Entry{Frames: []fsm.Frame{f}}).Frames[0]
	op.Trace = trace(out.Index, out.Time)
	op.Trace.Seq = f.Seq
	elsewhere := fsm.Frame{
		Client: rpc.OperationClient(op.Trace.Client, theShard, f.Seq, 0), Seq: 1, Deadline: w.now + 10_000, Calls: []fsm.Call{takeCall("a", 1)},
	}
	done := w.entry(fsm.Entry{Frames: []fsm.Frame{elsewhere}}).Frames[0]
	op.Output = w.decision(done.Results[0], done.Time)
	w.ops = append(w.ops, op)
	if r := w.replay(); len(r.Violations) > 0 {
		t.Error(r.Violations)
	}
	w.log = w.log[:len(w.log)-1]
	finds(t, w.replay().Violations, "result")
}
