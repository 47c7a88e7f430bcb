package fsm

import (
	"bytes"
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

func TestWhatHappensToAFrame(t *testing.T) {
	id := [16]byte{1}
	frame := func(seq, ack uint64, deadline Time) Frame {
		return Frame{Client: id, Seq: seq, AckUpTo: ack, Deadline: epoch + deadline, Calls: []Call{call(opAppend, "a", seq)}}
	}
	for _, test := range []struct {
		name   string
		before []Frame
		at     Time
		frame  Frame
		want   Code
		replay bool
	}{
		{name: "the first", frame: frame(1, 0, 100), want: OK},
		{name: "the next", before: []Frame{frame(1, 0, 100)}, frame: frame(2, 1, 100), want: OK},
		{name: "out of order", before: []Frame{frame(3, 0, 100)}, frame: frame(2, 0, 100), want: OK},
		{name: "again", before: []Frame{frame(1, 0, 100)}, frame: frame(1, 0, 100), want: OK, replay: true},
		{name: "again after its deadline", before: []Frame{frame(1, 0, 100)}, at: 200, frame: frame(1, 0, 100), want: OK, replay: true},
		{name: "for the first time after its deadline", at: 101, frame: frame(1, 0, 100), want: Expired},
		{name: "at its deadline", at: 100, frame: frame(1, 0, 100), want: OK},
		{name: "acknowledged by a later one", before: []Frame{frame(2, 1, 100)}, frame: frame(1, 0, 100), want: Stale},
		{name: "one whose place a later one took", before: []Frame{frame(MaxWindow+1, MaxWindow, 100)}, frame: frame(1, 0, 100), want: Stale},
		{name: "beyond the window", before: []Frame{frame(1, 0, 100)}, frame: frame(MaxWindow+1, 0, 100), want: WindowFull},
		{name: "beyond the window, with an acknowledgement", before: []Frame{frame(1, 0, 100)}, frame: frame(MaxWindow+1, 1, 100), want: OK},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newRig(t)
			for _, f := range test.before {
				if out := r.frame(f); out.Code != OK {
					t.Fatalf("frame %d: %+v", f.Seq, out)
				}
			}
			list := r.list("a")
			r.now = epoch + test.at
			out := r.frame(test.frame)
			if out.Code != test.want || out.Replayed != test.replay {
				t.Errorf("%v, replayed %v; want %v, %v: %s", out.Code, out.Replayed, test.want, test.replay, out.Message)
			}
			if executed := r.list("a") != list; executed != (test.want == OK && !test.replay) {
				t.Errorf("list %s, before %s", r.list("a"), list)
			}
		})
	}
}

func TestAKeyUsedForAnotherRequestIsRefused(t *testing.T) {
	r := newRig(t)
	f := Frame{Client: [16]byte{1}, Seq: 1, Deadline: epoch + 100, Retain: 1000, Fingerprint: 5, Calls: []Call{call(opAppend, "a", 1)}}
	r.frame(f)
	f.Fingerprint = 6
	if out := r.frame(f); out.Code != Conflict {
		t.Errorf("another fingerprint: %+v", out)
	}
	f.Fingerprint = 5
	if out := r.frame(f); !out.Replayed {
		t.Errorf("the same fingerprint: %+v", out)
	}
	if got := r.list("a"); got != "[1]" {
		t.Errorf("list %s", got)
	}
}

func TestAnonymousFramesHaveNoRecord(t *testing.T) {
	r := newRig(t)
	for range 2 {
		r.frame(Frame{Deadline: epoch + 1, Calls: []Call{call(opAppend, "a", 1)}})
	}
	r.now += 2
	if out := r.frame(Frame{Deadline: epoch + 1, Calls: []Call{call(opAppend, "a", 1)}}); out.Code != Expired {
		t.Errorf("after its deadline: %+v", out)
	}
	if got := r.list("a"); got != "[1 1]" {
		t.Errorf("list %s", got)
	}
	if n := r.m.Applied().Clients; n != 0 {
		t.Errorf("%d clients", n)
	}
}

// I5.
func TestAClientIsForgottenWhenNoDuplicateCanHaveAnEffect(t *testing.T) {
	r := newRig(t)
	f := Frame{Client: [16]byte{1}, Seq: 1, Deadline: epoch + 1000, Calls: []Call{call(opAppend, "a", 1)}}
	r.frame(f)
	second := f
	second.Seq, second.Deadline = 2, epoch+5000
	r.frame(second)
	forgotten := second.Deadline + 2*MaxDeadline
	for _, at := range []Time{f.Deadline + 2*MaxDeadline, forgotten - 1} {
		r.now = at
		r.apply(Entry{Kind: Sweep})
		if n := r.m.Applied().Clients; n != 1 {
			t.Fatalf("forgotten at %d", at-epoch)
		}
		if out := r.frame(second); !out.Replayed {
			t.Errorf("a duplicate at %d: %+v", at-epoch, out)
		}
	}
	r.now = forgotten
	r.apply(Entry{Kind: Sweep})
	if n := r.m.Applied().Clients; n != 0 {
		t.Errorf("%d clients after the end", n)
	}
	if out := r.frame(second); out.Code != Expired {
		t.Errorf("a duplicate after the end: %+v", out)
	}
	r.flush()
	for key := range r.store.Keys {
		if key[:2] == prefixWindow {
			t.Errorf("left: %x", key)
		}
	}
	if got := r.list("a"); got != "[1 1]" {
		t.Errorf("list %s", got)
	}
}

// Whether what a client did is in the store or only in memory when it is forgotten: those who stay are remembered, and nothing of
// it is written afterwards.
func TestWhoIsForgottenLeavesTheOthersAlone(t *testing.T) {
	for _, written := range []bool{false, true} {
		r := newRig(t)
		gone := Frame{Client: [16]byte{1}, Seq: 1, Deadline: epoch + 1000, Calls: []Call{call(opAppend, "a", 1)}}
		r.frame(gone)
		if written {
			r.flush()
		}
		r.now = gone.Deadline + 2*MaxDeadline
		stays := Frame{Client: [16]byte{2}, Seq: 1, Deadline: r.now + 1000, Calls: []Call{call(opAppend, "a", 2)}}
		r.frame(stays)
		r.apply(Entry{Kind: Sweep})
		for range 2 {
			if n := r.m.Applied().Clients; n != 1 {
				t.Fatalf("written %v: %d clients", written, n)
			}
			if out := r.frame(gone); out.Code != Expired {
				t.Errorf("written %v: a duplicate of who is gone: %+v", written, out)
			}
			if out := r.frame(stays); !out.Replayed {
				t.Errorf("written %v: a duplicate of who stays: %+v", written, out)
			}
			r.flush()
			for key := range r.store.Keys {
				if key[:2] == prefixWindow && key[2] == 1 {
					t.Errorf("written %v: left: %x", written, key)
				}
			}
			r.reopen()
		}
	}
}

func TestTooManyClientsAreRefusedAndNobodyIsForgottenForThem(t *testing.T) {
	r := newRig(t)
	r.m.applied.Clients = MaxClients - 1
	known := Frame{Client: [16]byte{1}, Seq: 1, Deadline: epoch + 100, Calls: []Call{call(opAppend, "a", 1)}}
	if out := r.frame(known); out.Code != OK {
		t.Fatalf("the last one: %+v", out)
	}
	if out := r.frame(Frame{Client: [16]byte{2}, Seq: 1, Deadline: epoch + 100, Calls: known.Calls}); out.Code != Exhausted {
		t.Errorf("one too many: %+v", out)
	}
	known.Seq = 2
	if out := r.frame(known); out.Code != OK {
		t.Errorf("one that is known: %+v", out)
	}
}

// Keys and the operations that frames carry into other groups come by the hundred thousand: they keep nobody out.
func TestOneShotClientsAreCountedApart(t *testing.T) {
	r := newRig(t)
	once := func(n byte) Frame {
		return Frame{Client: OneShot([16]byte{0xff, 15: n << 1}), Seq: 1, Deadline: epoch + 100, Calls: []Call{call(opAppend, "a", 1)}}
	}
	stays := Frame{Client: [16]byte{1}, Seq: 1, Deadline: epoch + 100, Calls: []Call{call(opAppend, "a", 1)}}
	r.m.applied.OneShots = MaxOneShots - 1
	if out := r.frame(once(1)); out.Code != OK {
		t.Fatalf("the last one: %+v", out)
	}
	if out := r.frame(once(2)); out.Code != Exhausted {
		t.Errorf("one too many: %+v", out)
	}
	if out := r.frame(stays); out.Code != OK {
		t.Errorf("a client that stays: %+v", out)
	}
	if out := r.frame(once(1)); !out.Replayed {
		t.Errorf("the last one again: %+v", out)
	}
	r.flush()
	r.reopen()
	if a := r.m.Applied(); a.Clients != 1 || a.OneShots != MaxOneShots {
		t.Errorf("after a restart: %d clients and %d of one request", a.Clients, a.OneShots)
	}
	r.now = stays.Deadline + 2*MaxDeadline
	r.apply(Entry{Kind: Sweep})
	if a := r.m.Applied(); a.Clients != 0 || a.OneShots != MaxOneShots-1 {
		t.Errorf("when they are forgotten: %d clients and %d of one request", a.Clients, a.OneShots)
	}
}

func TestOneShotIDsDifferAndNoneIsNobodys(t *testing.T) {
	if OneShot([16]byte{}) == ([16]byte{}) {
		t.Error("the id of nobody")
	}
	a, b := OneShot([16]byte{4: 1}), OneShot([16]byte{4: 2})
	if a == b || !isOneShot(&a) || isOneShot(&[16]byte{1}) {
		t.Errorf("%x and %x", a, b)
	}
}

// sender is a client of the model: it has sent frames, and knows what was answered.
type sender struct {
	id      [16]byte
	frames  []Frame
	answers map[uint64][]byte
	acked   uint64
}

// I1 and I4: any sequence of frames, retries and late duplicates, with restarts, flushes and sweeps at any point and
// however the log is cut into calls of Apply, and with any memory, has the effects that the outcomes tell of, each once.
func TestExactlyOnceAgainstAModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := newRig(t)
		r.reg = r.reg.Within(rapid.SampledFrom([]int{MaxMemory, 1}).Draw(rt, "memory"))
		r.reopen()
		var clients []*sender
		for i := range rapid.IntRange(1, 3).Draw(rt, "clients") {
			clients = append(clients, &sender{id: [16]byte{byte(i + 1)}, answers: make(map[uint64][]byte)})
		}
		var effects numbers // what the list must hold
		number := uint64(0)
		for range rapid.IntRange(1, 60).Draw(rt, "steps") {
			r.now += Time(rapid.SampledFrom([]int{0, 1, 50, 500, 30_000, 150_000}).Draw(rt, "passes"))
			s := rapid.SampledFrom(clients).Draw(rt, "client")
			switch rapid.SampledFrom([]string{"new", "new", "new", "retry", "retry", "restart", "flush", "sweep"}).Draw(rt, "step") {
			case "new":
				number++
				f := Frame{
					Client: s.id, Seq: uint64(len(s.frames) + 1), AckUpTo: s.acked, Deadline: r.now + Time(rapid.IntRange(-10, 1000).Draw(rt, "deadline")),
					Calls: []Call{call(opAppendRow, "", number), call(opRefuse, "", 0)},
				}
				s.frames = append(s.frames, f)
				if rapid.Bool().Draw(rt, "lost") {
					continue // it comes later, as a retry
				}
				effects = s.send(rt, r, f, number, effects)
			case "retry":
				if len(s.frames) > 0 {
					f := rapid.SampledFrom(s.frames).Draw(rt, "frame")
					q := appendRequest{}
					if err := q.Decode(f.Calls[0].Body); err != nil {
						rt.Fatal(err)
					}
					effects = s.send(rt, r, f, q.number, effects)
				}
			case "restart":
				r.reopen()
			case "flush":
				r.flush()
			case "sweep":
				r.apply(Entry{Kind: Sweep})
			}
			if rapid.Bool().Draw(rt, "acknowledges") {
				for s.acked+1 <= uint64(len(s.frames)) && s.answers[s.acked+1] != nil {
					s.acked++
				}
			}
		}
		want := "-"
		if len(effects) > 0 {
			want = fmt.Sprint(effects)
		}
		if got := r.list("r"); got != want {
			rt.Fatalf("list %s, want %s", got, want)
		}
		sameHoweverCut(rt, r)
	})
}

// send sends a frame and checks the outcome. It returns the effects that there are now.
func (s *sender) send(rt *rapid.T, r *rig, f Frame, number uint64, effects numbers) numbers {
	out := r.frame(f)
	answer := AppendResults(nil, out.Results)
	known, executed := s.answers[f.Seq]
	switch {
	case out.Code != OK:
		if len(out.Results) > 0 {
			rt.Fatalf("a refused frame has results: %+v", out)
		}
		return effects
	case out.Replayed:
		if !executed || !bytes.Equal(known, answer) {
			rt.Fatalf("frame %d of client %d: replayed %x, executed %v with %x", f.Seq, f.Client[0], answer, executed, known)
		}
		return effects
	case executed:
		rt.Fatalf("frame %d of client %d was executed twice", f.Seq, f.Client[0])
	case r.m.Applied().Time > f.Deadline:
		rt.Fatalf("frame %d was executed after its deadline", f.Seq)
	}
	s.answers[f.Seq] = answer
	return append(effects, number)
}

// sameHoweverCut applies the log again, cut at random, and compares outcomes and state (I1).
func sameHoweverCut(rt *rapid.T, r *rig) {
	r.flush()
	other := newRig(r.t)
	other.reg = other.reg.Within(rapid.SampledFrom([]int{MaxMemory, 1}).Draw(rt, "other memory"))
	other.reopen()
	for rest := r.log; len(rest) > 0; {
		n := rapid.IntRange(1, len(rest)).Draw(rt, "cut")
		if _, err := other.m.Apply(rest[:n]); err != nil {
			rt.Fatal(err)
		}
		if rapid.Bool().Draw(rt, "flushed") {
			other.flush()
		}
		rest = rest[n:]
	}
	other.flush()
	if !r.store.Equal(other.store) {
		rt.Fatalf("the states differ\n%x\n%x", r.store.Keys, other.store.Keys)
	}
}
