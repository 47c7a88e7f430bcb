package fsm

import (
	"testing"

	"github.com/holdfastdb/holdfast/fsm/fsmtest"
	"github.com/holdfastdb/holdfast/storage/kv"
)

// counting is a store that knows how many batches are open.
type counting struct {
	*fsmtest.Memory
	open int
}

type countedBatch struct {
	kv.Batch
	of *counting
}

func (s *counting) NewBatch() kv.Batch {
	s.open++
	return &countedBatch{s.Memory.NewBatch(), s}
}

func (b *countedBatch) Close() error {
	b.of.open--
	return b.Batch.Close()
}

// A batch that nobody uses any more may hold on to files of the store, which then cannot be closed.
func TestReloadClosesTheBatchBefore(t *testing.T) {
	store := &counting{Memory: fsmtest.NewMemory()}
	reg, err := New()
	if err != nil {
		t.Fatal(err)
	}
	m, err := Open(reg, store)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := m.Reload(); err != nil {
			t.Fatal(err)
		}
	}
	if store.open != 1 {
		t.Errorf("%d batches are open", store.open)
	}
	if err := m.Close(); err != nil || store.open != 0 {
		t.Errorf("after Close: %v, %d batches are open", err, store.open)
	}
}
