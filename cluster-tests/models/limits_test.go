package models

import (
	"bytes"
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/counter"
	"github.com/holdfastdb/holdfast/fsm/fsmtest"
)

// both executes the same log by the state machine and by the model.
type both struct {
	t       *rapid.T // draws; nil in a test that says itself what is executed
	failed  fatal
	machine *fsm.Machine
	model   *Shard
	now     fsm.Time
	seq     [4]uint64

	calendar counter.Calendar
	holds    []uint64
	sent     []fsm.Frame
}

type fatal interface {
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

func drawn(t *rapid.T) *both {
	b := newBoth(t)
	b.t, b.calendar = t, counter.Calendar(rapid.IntRange(0, 6).Draw(t, "calendar"))
	return b
}

func newBoth(t fatal) *both {
	reg, err := fsm.New(counter.Type())
	if err != nil {
		t.Fatal(err)
	}
	m, err := fsm.Open(reg, fsmtest.NewMemory())
	if err != nil {
		t.Fatal(err)
	}
	return &both{failed: t, machine: m, model: NewShard(Types(), 1), now: 1_700_000_000_123}
}

// entry executes an entry and compares all that was executed in it.
func (b *both) entry(e fsm.Entry) {
	e.Time = b.now
	data := e.Append(nil)
	index := b.model.Index + 1
	outs, err := b.machine.Apply([]fsm.LogEntry{{Index: index, Term: 1, Data: data}})
	if err != nil {
		b.failed.Fatalf("apply: %v", err)
	}
	if err := b.model.Apply(index, data); err != nil {
		b.failed.Fatalf("model: %v", err)
	}
	for i, f := range e.Frames {
		b.compare(&f, &outs[0].Frames[i])
	}
}

func (b *both) compare(f *fsm.Frame, out *fsm.FrameOutcome) {
	done := b.model.Done(FrameID{f.Client, f.Seq})
	if out.Code != fsm.OK {
		if len(done) > 0 && done[0].Index == b.model.Index {
			b.failed.Fatalf("frame %d: refused with %s, executed by the model", f.Seq, out.Code)
		}
		return
	}
	if len(done) != len(out.Results) {
		b.failed.Fatalf("frame %d: %d results, the model has %d", f.Seq, len(out.Results), len(done))
	}
	for i, x := range done {
		got := out.Results[i]
		if x.Index != out.Index || x.Time != out.Time {
			b.failed.Fatalf("executed at %d (%d), the model says %d (%d)", out.Index, out.Time, x.Index, x.Time)
		}
		if got.Code != x.Result.Code || got.Code == fsm.OK && !bytes.Equal(got.Body, x.Result.Body) {
			b.failed.Fatalf("command %d of type %d at %d:\n%s %s\nthe model says\n%s %s", x.Call.Op, x.Call.Type, b.now,
				got.Code, tell(x.Call.Op, got.Body), x.Result.Code, tell(x.Call.Op, x.Result.Body))
		}
		b.remember(x)
	}
}

func tell(op uint8, body []byte) any {
	switch op {
	case counter.OpTake, counter.OpReserve:
		r, _ := counter.DecodeTakeResult(body)
		return fmt.Sprintf("%+v", r)
	case counter.OpLease:
		r, _ := counter.DecodeLeaseResult(body)
		return fmt.Sprintf("%+v", r)
	}
	return body
}

func (b *both) remember(x Execution) {
	if x.Result.Code != fsm.OK {
		return
	}
	switch x.Call.Op {
	case counter.OpTake, counter.OpReserve:
		if r, _ := counter.DecodeTakeResult(x.Result.Body); r.Hold != 0 {
			b.holds = append(b.holds, r.Hold)
		}
	case counter.OpLease:
		if r, _ := counter.DecodeLeaseResult(x.Result.Body); r.ID != 0 {
			b.holds = append(b.holds, r.ID)
		}
	}
}

// rules are what a policy may say, and after it was changed.
func (b *both) rules(key byte, changes bool) counter.Params {
	version := 0
	if changes {
		version = rapid.IntRange(0, 2).Draw(b.t, "version")
	}
	windows := [...]fsm.Millis{1000, 700, 60_000}
	p := counter.Params{Algorithm: counter.Algorithm(1 + key%6), Rate: uint32(3 + version), Window: windows[(int(key)/6+version)%3], Burst: uint32(5 + 2*version)}
	if changes && version == 2 && rapid.IntRange(0, 4).Draw(b.t, "other algorithm") == 0 {
		p.Algorithm = counter.Algorithm(rapid.IntRange(1, 6).Draw(b.t, "algorithm"))
	}
	if p.Algorithm == counter.FixedWindow && key >= 6 {
		p.Calendar = b.calendar
	}
	return p
}

func (b *both) limits(changes bool) []counter.Limit {
	var list []counter.Limit
	first := rapid.IntRange(0, 11).Draw(b.t, "key")
	for i := range rapid.SampledFrom([]int{1, 1, 1, 2, 3}).Draw(b.t, "limits") {
		key := byte((first + 5*i) % 12)
		list = append(list, counter.Limit{
			Key: counter.Key{key}, Policy: uint32(key) + 1, Shadow: rapid.IntRange(0, 9).Draw(b.t, "shadow") == 0, Params: b.rules(key, changes),
		})
	}
	return list
}

func (b *both) someHold() uint64 {
	if len(b.holds) == 0 {
		return 7
	}
	return b.holds[max(0, len(b.holds)-1-rapid.IntRange(0, 5).Draw(b.t, "hold"))]
}

func keysOf(limits []counter.Limit) (keys []counter.Key) {
	for _, l := range limits {
		keys = append(keys, l.Key)
	}
	return keys
}

func (b *both) call(changes bool) fsm.Call {
	limits := b.limits(changes)
	weight := uint32(rapid.IntRange(1, 4).Draw(b.t, "weight"))
	ttl := rapid.SampledFrom([]fsm.Millis{1, 300, 1000, 50_000}).Draw(b.t, "ttl")
	var q interface{ Append([]byte) []byte }
	op := rapid.SampledFrom([]uint8{counter.OpTake, counter.OpTake, counter.OpTake, counter.OpReserve, counter.OpSettle, counter.OpLease, counter.OpReset}).Draw(b.t, "op")
	switch op {
	case counter.OpTake:
		q = &counter.TakeRequest{Weight: weight, Limits: limits}
	case counter.OpReserve:
		q = &counter.ReserveRequest{TTL: ttl, TakeRequest: counter.TakeRequest{Weight: weight, Limits: limits}}
	case counter.OpSettle:
		q = &counter.SettleRequest{ID: b.someHold(), Mode: counter.SettleMode(rapid.IntRange(1, 2).Draw(b.t, "mode")), Actual: uint32(rapid.IntRange(0, 5).Draw(b.t, "actual")), Keys: keysOf(limits)}
	case counter.OpLease:
		l := &counter.LeaseRequest{Want: weight, TTL: ttl, Limits: limits}
		if rapid.Bool().Draw(b.t, "returns") {
			l.Returns = []counter.LeaseReturn{{ID: b.someHold(), Unused: uint32(rapid.IntRange(0, 3).Draw(b.t, "unused"))}}
		}
		q = l
	case counter.OpReset:
		q = &counter.ResetRequest{Keys: keysOf(limits)}
	}
	return fsm.Call{Type: counter.TypeID, Op: op, Body: q.Append(nil)}
}

// frame is a new frame of one of four clients, or one that was sent before.
func (b *both) frame(changes bool) fsm.Frame {
	if len(b.sent) > 0 && rapid.IntRange(0, 4).Draw(b.t, "again") == 0 {
		return b.sent[len(b.sent)-1-rapid.IntRange(0, min(len(b.sent)-1, 20)).Draw(b.t, "which")]
	}
	c := rapid.IntRange(0, 3).Draw(b.t, "client")
	b.seq[c] += uint64(rapid.SampledFrom([]int{1, 1, 1, 2}).Draw(b.t, "seq"))
	f := fsm.Frame{Client: [16]byte{byte(c + 1)}, Seq: b.seq[c], Deadline: b.now + fsm.Time(rapid.SampledFrom([]int{-1, 10_000, 60_000}).Draw(b.t, "deadline"))}
	f.AckUpTo = f.Seq - min(f.Seq, uint64(rapid.SampledFrom([]int{1, 1, 2, 20}).Draw(b.t, "open")))
	for range rapid.IntRange(1, 3).Draw(b.t, "calls") {
		call := b.call(changes)
		if rapid.IntRange(0, 9).Draw(b.t, "noop") == 0 {
			call = fsm.Noop()
		}
		f.Calls = append(f.Calls, call)
	}
	b.sent = append(b.sent, f)
	return f
}

func (b *both) run(changes bool) {
	for range rapid.IntRange(1, 60).Draw(b.t, "entries") {
		b.now += fsm.Time(rapid.SampledFrom([]int64{0, 0, 1, 100, 333, 334, 1000, 20_000, 70_000, 300_000, 100_000_000, 3_456_000_000, -50}).Draw(b.t, "passes"))
		if rapid.IntRange(0, 4).Draw(b.t, "sweep") == 0 {
			b.entry(fsm.Entry{Kind: fsm.Sweep})
			continue
		}
		e := fsm.Entry{}
		for range rapid.IntRange(1, 2).Draw(b.t, "frames") {
			e.Frames = append(e.Frames, b.frame(changes))
		}
		b.entry(e)
	}
}

// The model and the state machine know nothing of each other, and answer alike: every algorithm, with repeated and late
// frames, reservations, leases and resets, sweeps, and policies that change.
func TestTheModelAnswersAsTheStateMachineDoes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) { drawn(t).run(true) })
}

// Which frames are executed, from any order of numbers, acknowledgements, deadlines and pauses.
func TestTheModelExecutesTheFramesThatTheStateMachineDoes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := drawn(t)
		most := rapid.SampledFrom([]uint64{2, 40}).Draw(t, "acknowledged at most")
		for range rapid.IntRange(1, 80).Draw(t, "entries") {
			b.now += fsm.Time(rapid.SampledFrom([]int64{0, 0, 0, 0, 30_000, 200_000}).Draw(t, "passes"))
			if rapid.IntRange(0, 5).Draw(t, "sweep") == 0 {
				b.entry(fsm.Entry{Kind: fsm.Sweep})
				continue
			}
			seq := rapid.Uint64Range(1, 40).Draw(t, "seq")
			b.entry(fsm.Entry{Frames: []fsm.Frame{{
				Client: [16]byte{1}, Seq: seq, AckUpTo: rapid.Uint64Range(0, min(seq-1, most)).Draw(t, "acknowledged"),
				Deadline: b.now + fsm.Time(rapid.SampledFrom([]int{-1, 60_000}).Draw(t, "deadline")), Calls: []fsm.Call{fsm.Noop()},
			}}})
		}
	})
}

// As long as policies do not change, nothing that the state machine allows breaks their promise.
func TestTheStateMachineNeverOverAdmits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := drawn(t)
		b.run(false)
		if broken := b.model.Broken(); len(broken) > 0 {
			t.Fatal(broken)
		}
	})
}

// What once was executed in two ways, when the model was made.
func TestTheModelAgreesOnWhatItOnceDidNot(t *testing.T) {
	frame := func(b *both, seq, acked uint64, calls ...fsm.Call) fsm.Frame {
		return fsm.Frame{Client: [16]byte{1}, Seq: seq, AckUpTo: acked, Deadline: b.now + 60_000, Calls: append(calls, fsm.Noop())}
	}
	limit := func(p counter.Params) []counter.Limit {
		return []counter.Limit{{Key: counter.Key{7}, Policy: 8, Params: p}}
	}
	take := func(p counter.Params) fsm.Call {
		return fsm.Call{Type: counter.TypeID, Op: counter.OpTake, Body: (&counter.TakeRequest{Weight: 1, Limits: limit(p)}).Append(nil)}
	}
	lease := func(p counter.Params) fsm.Call {
		return fsm.Call{Type: counter.TypeID, Op: counter.OpLease, Body: (&counter.LeaseRequest{Want: 4, TTL: 1, Limits: limit(p)}).Append(nil)}
	}
	bucket := counter.Params{Algorithm: counter.TokenBucket, Rate: 3, Window: 1000, Burst: 5}
	for name, run := range map[string]func(b *both, entry func(...fsm.Frame)){
		"a frame after a later one": func(b *both, entry func(...fsm.Frame)) {
			entry(frame(b, 2, 0))
			entry(frame(b, 1, 0))
		},
		"a late frame of a client that was forgotten in between": func(b *both, entry func(...fsm.Frame)) {
			entry(frame(b, 1, 0))
			b.now += 200_000
			entry(frame(b, 3, 0))
			b.entry(fsm.Entry{Kind: fsm.Sweep})
			entry(frame(b, 2, 0))
		},
		"the next frame in a slot that is in use": func(b *both, entry func(...fsm.Frame)) {
			entry(frame(b, 7, 0))
			entry(frame(b, 7+fsm.MaxWindow, 0))
		},
		"a frame repeated long after, and again after a sweep": func(b *both, entry func(...fsm.Frame)) {
			first := frame(b, 1, 0, take(bucket))
			entry(first)
			b.now += 300_000
			second := frame(b, 2, 1, take(bucket))
			entry(second, first)
			b.entry(fsm.Entry{Kind: fsm.Sweep})
			entry(second)
		},
		"a bucket a millisecond later": func(b *both, entry func(...fsm.Frame)) {
			entry(frame(b, 1, 0, take(bucket), take(bucket)))
			b.now++
			entry(frame(b, 2, 1, take(bucket)))
		},
		"half of what is free is lent": func(b *both, entry func(...fsm.Frame)) {
			entry(frame(b, 1, 0, lease(bucket)))
			entry(frame(b, 2, 1, lease(counter.Params{Algorithm: counter.SlidingWindow, Rate: 3, Window: 1000})))
		},
		"a week": func(b *both, entry func(...fsm.Frame)) {
			entry(frame(b, 1, 0, take(counter.Params{Algorithm: counter.FixedWindow, Rate: 3, Window: counter.Week.Window(), Calendar: counter.Week})))
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBoth(t)
			run(b, func(frames ...fsm.Frame) { b.entry(fsm.Entry{Frames: frames}) })
			if broken := b.model.Broken(); len(broken) > 0 {
				t.Error(broken)
			}
		})
	}
}
