package fsm

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/holdfastdb/holdfast/fsm/fsmtest"
	"github.com/holdfastdb/holdfast/storage/kv"
)

// Rows are encoded a few at a time while commands change them. What comes to the store is the state of one moment all the
// same, that of the position it is stored with, and commands and queries see the newest.
func TestRowsWrittenInStepsAreOfOneMoment(t *testing.T) {
	runs, partly := 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		r := newTold(t, rapid.SampledFrom([]int{MaxMemory, MaxMemory / 2048, MaxMemory / 8192, 1}).Draw(rt, "memory"))
		keys := []string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q", "r", "s", "t"}
		state := map[string][]uint64{} // of the told rows
		rows := map[string]bool{}      // of the other type, which a command counts
		moments := []map[string][]uint64{{}}
		show := func(numbers []uint64) string {
			if numbers == nil {
				return "-"
			}
			return fmt.Sprint(numbers)
		}
		runs++
		for i := range rapid.IntRange(1, 150).Draw(rt, "steps") {
			key := rapid.SampledFrom(keys).Draw(rt, "key")
			switch rapid.SampledFrom([]string{"tell", "tell", "tell", "forget", "append", "count", "ask", "flush", "restart"}).Draw(rt, "step") {
			case "tell":
				r.frame(Frame{Calls: []Call{tell(opTell, key, uint64(i))}})
				state[key] = append(slices.Clone(state[key]), uint64(i))
			case "forget":
				r.frame(Frame{Calls: []Call{tell(opForget, key, 0)}})
				delete(state, key)
			case "append":
				r.frame(Frame{Calls: []Call{call(opAppendRow, key, uint64(i))}})
				rows[key] = true
			case "count":
				if got := r.frame(Frame{Calls: []Call{call(opCount, "", 0)}}).Results[0].Body; string(got) != string([]byte{byte(len(rows))}) {
					rt.Fatalf("a command counts %v rows, want %d", got, len(rows))
				}
			case "ask":
				if got := r.inMemory(key); got != show(state[key]) {
					rt.Fatalf("%s is %s, want %s", key, got, show(state[key]))
				}
				continue
			case "flush":
				r.flush()
				continue
			case "restart":
				r.reopen()
				continue
			}
			moments = append(moments, maps.Clone(state))
			bytes := 0
			for _, row := range r.m.rows.young {
				bytes += row.size
			}
			if bytes != r.m.rows.bytes {
				rt.Fatalf("%d bytes of rows are counted as %d", bytes, r.m.rows.bytes)
			}
			if r.m.sealed != nil && len(r.m.rows.frozen) > 0 {
				partly++
			}
			stored := &rig{t: t, reg: r.reg, store: &fsmtest.Memory{Keys: r.store.Keys}}
			applied, err := ReadApplied(stored.store.View())
			if err != nil {
				rt.Fatal(err)
			}
			for _, key := range keys {
				if got, want := stored.inStore(key), show(moments[applied.Index][key]); got != want {
					rt.Fatalf("the store is at entry %d of %d, and %s is %s there, want %s", applied.Index, len(moments)-1, key, got, want)
				}
			}
		}
	})
	if runs >= 20 && partly < runs { // or it was another test
		t.Errorf("in %d runs rows waited to be encoded after %d entries only", runs, partly)
	}
}

// An entry does not wait for all that changed before it.
func TestApplyEncodesFewRowsAtATime(t *testing.T) {
	r := newRig(t)
	for i := range 2 * settleRows {
		r.frame(Frame{Calls: []Call{call(opAppendRow, fmt.Sprint(i), 1)}})
	}
	if err := r.m.beginFlush(); err != nil {
		t.Fatal(err)
	}
	for i, left := range []int{settleRows, 0} {
		if r.m.sealed == nil {
			t.Fatalf("all is written after %d entries", i)
		}
		r.frame(Frame{Calls: []Call{call(opAppendRow, "next", 1)}})
		if got := len(r.m.rows.frozen); got != left {
			t.Errorf("after %d entries %d rows wait, want %d", i+1, got, left)
		}
	}
	if r.m.sealed != nil || len(r.store.Keys) != 2*settleRows+1 {
		t.Errorf("%d keys are written, want %d rows and the position", len(r.store.Keys), 2*settleRows)
	}
	// A flush does not leave anything behind.
	if err := r.m.beginFlush(); err != nil {
		t.Fatal(err)
	}
	r.frame(Frame{Calls: []Call{call(opRefuse, "", 0)}})
	r.flush()
	if got, want := r.list("rnext"), "[1 1]"; r.m.sealed != nil || got != want {
		t.Errorf("after a flush the last row is %s, want %s", got, want)
	}
}

// Entries that change many rows encode as many of those before, and more.
func TestWhatWaitsIsEncodedBeforeThereIsAsMuchAgain(t *testing.T) {
	r := newRig(t)
	change := func(from, n int) {
		t.Helper()
		e := Entry{}
		for ; n > 0; n -= 64 {
			f := Frame{}
			for i := range 64 {
				f.Calls = append(f.Calls, call(opAppendRow, fmt.Sprint(from+n-i), 1))
			}
			e.Frames = append(e.Frames, f)
		}
		r.apply(e)
	}
	const rows = 16 * settleRows
	change(0, rows)
	if err := r.m.beginFlush(); err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		if r.m.sealed == nil {
			t.Fatalf("all is written after %d entries", i)
		}
		change(rows*(1+i), rows/8)
	}
	if r.m.sealed != nil {
		t.Errorf("after half as many changes %d of %d rows wait", len(r.m.rows.frozen), rows)
	}
}

// Rows that are asked for do not push out those that are in no batch yet.
func TestWhatWaitsToBeEncodedIsNotForgotten(t *testing.T) {
	r := newTold(t, MaxMemory/2048)
	name := func(i int) string { return fmt.Sprint("key", i) }
	stored, fresh := 5*r.m.rows.most, r.m.rows.most
	for i := range stored {
		r.frame(Frame{Calls: []Call{tell(opTell, name(i), 1)}})
	}
	r.flush()
	var calls []Call
	for i := range fresh {
		calls = append(calls, tell(opTell, name(stored+i), 1))
	}
	r.frame(Frame{Calls: calls})
	if waiting := len(r.m.rows.frozen); waiting != fresh {
		t.Fatalf("%d rows wait to be encoded, want %d", waiting, fresh)
	}
	for i := range stored + fresh {
		if got := r.inMemory(name(i)); got != "[1]" {
			t.Errorf("%s is %s", name(i), got)
		}
	}
}

// What waits to be encoded when a received state takes the place of the old one belongs to the old one.
func TestReloadDropsWhatWaitsToBeEncoded(t *testing.T) {
	r := newTold(t, MaxMemory)
	r.frame(Frame{Calls: []Call{tell(opTell, "a", 1)}})
	if err := r.m.beginFlush(); err != nil {
		t.Fatal(err)
	}
	if err := r.m.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := r.m.Reload(); err != nil {
		t.Fatal(err)
	}
	r.flush()
	if len(r.store.Keys) != 0 || r.m.Applied().Index != 0 || r.inMemory("a") != "-" {
		t.Errorf("there is still %v at %d", r.store.Keys, r.m.Applied().Index)
	}
}

// broken is a store that cannot be read.
type broken struct{ *fsmtest.Memory }

func (s broken) View() kv.View { return brokenView{s.Memory.View()} }

type brokenView struct{ kv.View }

func (brokenView) Get([]byte) ([]byte, error) { return nil, errors.New("unreadable") }

// After a received state that cannot be read nothing of the old one may come to the store.
func TestNothingIsWrittenAfterAReloadThatFailed(t *testing.T) {
	r := newTold(t, MaxMemory)
	r.frame(Frame{Calls: []Call{tell(opTell, "a", 1)}})
	if err := r.m.beginFlush(); err != nil {
		t.Fatal(err)
	}
	r.m.store = broken{r.store}
	if err := r.m.Reload(); err == nil {
		t.Fatal("an unreadable store was read")
	}
	if err := r.m.Flush(); err == nil || len(r.store.Keys) != 0 {
		t.Errorf("flushed, with %v; the store has %v", err, r.store.Keys)
	}
	if _, err := r.m.Apply(r.log); err == nil {
		t.Error("entries are applied to an unknown state")
	}
	r.m.store = r.store
	if err := r.m.Reload(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.m.Apply(r.log); err != nil {
		t.Errorf("after the store was read: %v", err)
	}
}
