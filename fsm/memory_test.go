package fsm

import (
	"testing"

	"github.com/holdfastdb/holdfast/fsm/fsmtest"
)

// What is cached is bounded by its size, not only by its number: a thousand clients with large results are few, and do not
// fit. What was forgotten is read again.
func TestCachedResultsAreBoundedByTheirSize(t *testing.T) {
	m := newRig(t).m
	results := AppendResults(nil, []Result{{Body: make([]byte, 1<<20)}})
	id := func(i int) [16]byte { return [16]byte{1, byte(i)} }
	for i := range 40 {
		c, err := m.loadClient(id(i))
		if err != nil {
			t.Fatal(err)
		}
		for seq := range uint64(2) {
			m.record(c, &Frame{Client: id(i), Seq: seq + 1, Deadline: 1}, results)
		}
		sum := 0
		for _, c := range m.clients {
			for s := range c.slots {
				sum += len(c.slots[s].results)
			}
		}
		if m.resultBytes != sum || sum > clientCacheBytes+2*len(results) {
			t.Fatalf("after client %d there are %d bytes of results, counted as %d", i, sum, m.resultBytes)
		}
	}
	c, err := m.loadClient(id(0))
	if err != nil || !c.known || len(c.slots[2].results) != len(results) {
		t.Errorf("the first client, read again: %v, %v", c.known, err)
	}
}

func TestCachedRowsAreBoundedByTheirSize(t *testing.T) {
	for _, memory := range []int{MaxMemory, MaxMemory / 64} {
		c := newRowCache(memory)
		row := make(numbers, 64<<10)
		for i := 0; !c.full(); i++ {
			if i > share(rowCacheBytes, memory)/len(row)+1 {
				t.Fatalf("%d rows of %d bytes are not too many", i, len(row))
			}
			c.put([]byte{byte(i >> 8), byte(i)}, &row)
			c.flush(fsmtest.NewMemory().NewBatch())
		}
		c.age()
		if c.full() || c.bytes != 0 {
			t.Errorf("after a generation %d bytes are counted", c.bytes)
		}
		if c.lookup([]byte{0, 0}) == nil || c.bytes != len(row) {
			t.Errorf("a row used again counts %d bytes", c.bytes)
		}
	}
}

// What one process runs shares its memory, however many there are.
func TestMachinesKeepTheirPartOfTheMemory(t *testing.T) {
	const machines = 64
	reg := newRig(t).reg.Within(MaxMemory / machines)
	for name, bound := range map[string]int{
		"rows": rowCacheSize, "row bytes": rowCacheBytes, "clients": clientCacheSize, "results": clientCacheBytes, "log": maxUnflushed,
	} {
		if all := machines * share(bound, reg.memory); all > bound || all < bound*9/10 {
			t.Errorf("%s: %d machines keep %d, one alone %d", name, machines, all, bound)
		}
	}
	if reg.Within(10*MaxMemory).memory != MaxMemory {
		t.Error("with much memory a machine keeps more than it is of use for")
	}
}
