package fsm

import (
	"errors"
	"testing"

	"github.com/holdfastdb/holdfast/fsm/fsmtest"
	"github.com/holdfastdb/holdfast/storage/kv"
)

func noPause(int) error { return nil }

func hashOf(t *testing.T, r kv.Reader) uint64 {
	t.Helper()
	h, err := HashState(r, noPause)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// seen is what OnChecksum was told.
type seen struct {
	Index, Hash uint64
	agreed      Sum
}

func (r *rig) watchSums() *[]seen {
	list := new([]seen)
	r.m.OnChecksum(func(index uint64, e *Entry, view kv.View) {
		*list = append(*list, seen{index, hashOf(r.t.(*testing.T), view), e.Agreed})
		if err := view.Close(); err != nil {
			r.t.Error(err)
		}
	})
	return list
}

// A replica that writes its state after every entry and one that has all of it in memory have the same sum at the same
// entry: rows, windows, what expires, and the position.
func TestSumsDependOnTheLogAlone(t *testing.T) {
	lazy, eager := newRig(t), newRig(t)
	sums, eagerSums := lazy.watchSums(), eager.watchSums()
	entries := []Entry{
		{Frames: []Frame{{Client: [16]byte{1}, Seq: 1, Deadline: epoch + 1000, Calls: []Call{call(opAppendRow, "a", 1), expiring("b", 2, 50)}}}},
		{Frames: []Frame{{Client: [16]byte{2}, Seq: 1, Deadline: epoch + 1000, Calls: []Call{call(opAppendRow, "a", 3)}}}},
		{Kind: Checksum, Agreed: Sum{Index: 7, Hash: 8}},
		{Kind: Checksum},
		{Kind: Sweep},
		{Frames: []Frame{{Calls: []Call{call(opAppend, "c", 1)}}}},
		{Kind: Checksum},
	}
	for _, e := range entries {
		lazy.now, eager.now = lazy.now+20, eager.now+20
		lazy.apply(e)
		eager.apply(e)
		eager.flush()
	}
	if len(*sums) != 3 || (*sums)[0].agreed != (Sum{Index: 7, Hash: 8}) || (*sums)[0].Index != 3 || (*sums)[2].Index != 7 {
		t.Fatalf("%+v", *sums)
	}
	for i, s := range *sums {
		if (*eagerSums)[i] != s {
			t.Errorf("sum %d is %+v, and %+v for who flushed always", i, s, (*eagerSums)[i])
		}
		if i > 0 && s.Hash == (*sums)[i-1].Hash {
			t.Errorf("sum %d is that of the one before: the position counts", i)
		}
	}
	// The view was of that very moment.
	lazy.apply(Entry{Frames: []Frame{{Calls: []Call{call(opAppend, "c", 2)}}}})
	if got := hashOf(t, eager.store.View()); got != (*sums)[2].Hash {
		t.Errorf("the stored state hashes to %x, the sum is %x", got, (*sums)[2].Hash)
	}
}

// After a restart a replica that applies the entry again has the sum again; without a listener the entry does nothing.
func TestASumIsTakenAgainAfterARestart(t *testing.T) {
	r := newRig(t)
	sums := r.watchSums()
	r.frame(Frame{Calls: []Call{call(opAppend, "a", 1)}})
	r.apply(Entry{Kind: Checksum})
	first := (*sums)[0]
	r.store = fsmtest.NewMemory()
	m, err := Open(r.reg, r.store)
	if err != nil {
		t.Fatal(err)
	}
	r.m = m
	sums = r.watchSums()
	if _, err := m.Apply(r.log); err != nil {
		t.Fatal(err)
	}
	if len(*sums) != 1 || (*sums)[0] != first {
		t.Errorf("%+v after %+v", *sums, first)
	}
	r.reopen()
	r.apply(Entry{Kind: Checksum})
	if got := r.m.Applied().Index; got != 3 {
		t.Errorf("applied %d", got)
	}
}

func TestEveryDifferenceChangesTheHash(t *testing.T) {
	state := func(pairs ...string) *fsmtest.Memory {
		m := fsmtest.NewMemory()
		for i := 0; i < len(pairs); i += 2 {
			m.Keys[pairs[i]] = []byte(pairs[i+1])
		}
		return m
	}
	hashes := make(map[uint64]int)
	for i, m := range []*fsmtest.Memory{
		state(), state("a", ""), state("a", "b"), state("a", "b", "c", ""), state("a", "", "b", ""), state("ab", ""),
		state("a", "bc"), state("ab", "c"), state("a", "c", "b", ""), state("a", "\x01b"), state("a", "", "\x01b", ""),
	} {
		h := hashOf(t, m.View())
		if other, taken := hashes[h]; taken {
			t.Errorf("states %d and %d have one hash", other, i)
		}
		hashes[h] = i
	}
}

func TestHashingCanBeEnded(t *testing.T) {
	m := fsmtest.NewMemory()
	m.Keys["a"], m.Keys["b"] = []byte("1"), []byte("2")
	end, rows := errors.New("end"), 0
	_, err := HashState(m.View(), func(bytes int) error {
		if rows++; bytes != 4 {
			t.Errorf("a row of %d bytes", bytes)
		}
		return end
	})
	if !errors.Is(err, end) || rows != 1 {
		t.Errorf("%v after %d rows", err, rows)
	}
}
