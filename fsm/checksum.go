package fsm

import (
	"encoding/binary"
	"fmt"

	"github.com/zeebo/xxh3"

	"github.com/holdfastdb/holdfast/storage/kv"
)

// Sum is the hash of a shard's whole state after an entry. Replicas that applied the same log have the same.
type Sum struct {
	Index uint64
	Hash  uint64
}

// OnChecksum has f called, from Apply, for each Checksum entry: with its position, what the entry says of the states that
// replicas had before, and a view of the state right after it, which f closes when it has hashed it, later and elsewhere:
// that takes long for a large state, and commands go on meanwhile. Call it before the first Apply.
func (m *Machine) OnChecksum(f func(index uint64, e *Entry, view kv.View)) { m.onSum = f }

// checksum brings the store up to this entry. It changes nothing that the state machine would not write sooner or later.
func (m *Machine) checksum(e *Entry) error {
	if m.onSum == nil {
		return nil
	}
	m.unflushed++ // this entry's position is part of the state, too
	if err := m.Flush(); err != nil {
		return err
	}
	m.onSum(m.applied.Index, e, m.store.View())
	return nil
}

// HashState hashes everything that a view of a shard has, in the order of the keys: the rows of all data types, the
// windows of the clients, the expiry index, and the position. pause is called after each row with its size; its error ends
// the work.
func HashState(r kv.Reader, pause func(bytes int) error) (uint64, error) {
	it, err := r.Iter(nil, nil)
	if err != nil {
		return 0, fmt.Errorf("hash state: %w", err)
	}
	defer it.Close()
	h := xxh3.New()
	var buf []byte
	for it.Next() {
		buf = binary.AppendUvarint(buf[:0], uint64(len(it.Key())))
		buf = append(buf, it.Key()...)
		buf = binary.AppendUvarint(buf, uint64(len(it.Value())))
		buf = append(buf, it.Value()...)
		_, _ = h.Write(buf) // never fails
		if err := pause(len(buf)); err != nil {
			return 0, err
		}
	}
	if err := it.Err(); err != nil {
		return 0, fmt.Errorf("hash state: %w", err)
	}
	return h.Sum64(), nil
}
