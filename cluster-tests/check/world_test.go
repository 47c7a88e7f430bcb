package check

import (
	"testing"
	"time"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/cluster-tests/history"
	"github.com/holdfastdb/holdfast/cluster-tests/models"
	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/catalog"
	"github.com/holdfastdb/holdfast/fsm/counter"
	"github.com/holdfastdb/holdfast/fsm/fsmtest"
)

// world makes the log of one shard and the history of its clients, as a cluster without faults would: the real state
// machine answers. Tests then change what they are about.
type world struct {
	t       *testing.T
	reg     *fsm.Registry
	store   *fsmtest.Memory
	machine *fsm.Machine
	log     []Entry
	ops     []history.Op
	// outcomes are what the machine made of the log's entries.
	outcomes []fsm.Outcome
	now      fsm.Time
	clock    time.Duration
	seq      uint64
}

const theShard = 1

var rules = counter.Params{Algorithm: counter.FixedWindow, Rate: 5, Window: 360 * 24 * 3600 * 1000}

func newWorld(t *testing.T, others ...fsm.Type) *world {
	t.Helper()
	w := &world{t: t, store: fsmtest.NewMemory(), now: 1_700_000_000_000}
	var err error
	if w.reg, err = fsm.New(append(others, counter.Type())...); err != nil {
		t.Fatal(err)
	}
	if w.machine, err = fsm.Open(w.reg, w.store); err != nil {
		t.Fatal(err)
	}
	w.entry(fsm.Entry{Kind: fsm.TermStart})
	return w
}

func (w *world) entry(e fsm.Entry) fsm.Outcome {
	w.t.Helper()
	w.now += 10
	e.Time = w.now
	index := uint64(len(w.log) + 1)
	data := e.Append(nil)
	w.log = append(w.log, Entry{Index: index, Term: 1, Data: data})
	outs, err := w.machine.Apply([]fsm.LogEntry{{Index: index, Term: 1, Data: data}})
	if err == nil {
		err = w.machine.Flush()
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.outcomes = append(w.outcomes, outs[0])
	return outs[0]
}

func limitsOf(key string) []counter.Limit {
	return []counter.Limit{{Key: counter.Key([]byte(key + "............")[:12]), Policy: 1, Params: rules}}
}

// frame is the next frame of the only client.
func (w *world) frame(calls ...fsm.Call) fsm.Frame {
	w.seq++
	return fsm.Frame{Client: [16]byte{1}, Seq: w.seq, AckUpTo: w.seq - 1, Deadline: w.now + 10_000, Calls: calls}
}

func takeCall(key string, weight uint32) fsm.Call {
	q := counter.TakeRequest{Weight: weight, Limits: limitsOf(key)}
	return fsm.Call{Type: counter.TypeID, Op: counter.OpTake, Body: q.Append(nil)}
}

// begin is an operation that is called now and returns a little later.
func (w *world) begin(kind, key string) history.Op {
	w.clock += 2 * time.Millisecond
	return history.Op{
		Process: "p", Call: w.clock, Return: w.clock + time.Millisecond, Outcome: history.Definite,
		Input: models.LimitOp{Kind: kind, Request: client.Request{Client: key}},
	}
}

// check is one client's check; the result is its operation, which can be changed.
func (w *world) check(key string) *history.Op {
	w.t.Helper()
	op := w.begin(models.KindCheck, key)
	f := w.frame(takeCall(key, 1))
	out := w.entry(fsm.Entry{Frames: []fsm.Frame{f}}).Frames[0]
	op.Trace = trace(out.Index, out.Time)
	op.Trace.Seq = f.Seq
	op.Output = w.decision(out.Results[0], out.Time)
	w.ops = append(w.ops, op)
	return &w.ops[len(w.ops)-1]
}

// limited has the workload know that a limit applies to each request.
func (w *world) limited() {
	for i := range w.ops {
		in := w.ops[i].Input.(models.LimitOp)
		in.Limited = true
		w.ops[i].Input = in
	}
}

// lease is a lease that is asked for, as an entry of its own; it returns what the log has of it.
func (w *world) lease(key string, want uint32, returns ...counter.LeaseReturn) counter.LeaseResult {
	w.t.Helper()
	q := counter.LeaseRequest{Want: want, TTL: 1000, Returns: returns, Limits: limitsOf(key)}
	f := w.frame(fsm.Call{Type: counter.TypeID, Op: counter.OpLease, Body: q.Append(nil)})
	out := w.entry(fsm.Entry{Frames: []fsm.Frame{f}}).Frames[0]
	r, err := counter.DecodeLeaseResult(out.Results[0].Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// spend is what the holder of a lease tells a caller, so long after the last entry.
func (w *world) spend(key string, weight uint32, after time.Duration) {
	op := w.begin(models.KindLease, key)
	in := op.Input.(models.LimitOp)
	in.Request.Weight = weight
	op.Input, op.Output = in, client.Decision{Allowed: true}
	op.Call = time.Duration(w.now)*time.Millisecond + after
	op.Return = op.Call
	w.ops = append(w.ops, op)
}

// peek is a query in the state as it is.
func (w *world) peek(key string) *history.Op {
	w.t.Helper()
	op := w.begin(models.KindPeek, key)
	q := counter.TakeRequest{Weight: 1, Limits: limitsOf(key)}
	results, at, err := w.reg.Query(w.store.View(), []fsm.Call{{Type: counter.TypeID, Op: counter.OpPeek, Body: q.Append(nil)}})
	if err != nil {
		w.t.Fatal(err)
	}
	op.Trace = trace(at.Index, at.Time)
	op.Trace.Query = true
	op.Output = w.decision(results[0], at.Time)
	w.ops = append(w.ops, op)
	return &w.ops[len(w.ops)-1]
}

func trace(index uint64, at fsm.Time) client.Trace {
	return client.Trace{Shard: theShard, Client: [16]byte{1}, Index: index, Time: time.UnixMilli(int64(at))}
}

// decision is what the SDK makes of a result.
func (w *world) decision(r fsm.Result, now fsm.Time) client.Decision {
	w.t.Helper()
	t, err := counter.DecodeTakeResult(r.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	l := t.Limits[0]
	row := client.LimitState{
		PolicyID: catalog.PolicyID(l.Policy), Limit: rules.Rate, Window: time.Duration(rules.Window) * time.Millisecond,
		Remaining: l.Remaining, Used: l.Used, Denied: l.Denied, ResetAt: time.UnixMilli(int64(now) + l.ResetIn),
		RetryAfter: time.Duration(l.RetryIn) * time.Millisecond,
	}
	return client.Decision{Allowed: t.Allowed, Remaining: l.Remaining, Limits: []client.LimitState{row}}
}

func (w *world) replay() *Report {
	return Replay(models.Types(), map[uint32][]Entry{theShard: w.log}, w.ops)
}

// finds checks that exactly one kind of violation is reported, and that one.
func finds(t *testing.T, violations []Violation, kind string) {
	t.Helper()
	if len(violations) == 0 {
		t.Errorf("nothing is found, want %s", kind)
	}
	for _, v := range violations {
		if v.Kind != kind {
			t.Errorf("want only %s: %s", kind, v)
		}
	}
}
