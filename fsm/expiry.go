package fsm

import (
	"fmt"

	"github.com/holdfastdb/holdfast/storage/kv"
	"github.com/holdfastdb/holdfast/storage/plant"
)

// MaxSweep bounds the rows that one Sweep entry looks at, so that expiry never delays commands for long: a row that is
// not in memory takes about 10 µs.
const MaxSweep = 256

// expireAt adds a row to the expiry index (I6). A time that has passed already means now.
func (m *Machine) expireAt(typeID uint8, key []byte, at Time) {
	at = max(at, m.applied.Time)
	m.key = appendExpiryKey(m.key[:0], at, typeID, key)
	if !plant.On(plant.LoseExpiry) {
		m.set(m.key, nil)
	}
	if m.next == 0 || at < m.next {
		m.next = at
	}
}

type dueRow struct {
	index  []byte
	typeID uint8
	key    []byte
}

// sweep looks at the rows whose expiry is due, oldest first, at most MaxSweep of them.
func (m *Machine) sweep() error {
	due, err := m.due()
	if err != nil {
		return fmt.Errorf("read expiry index: %w", err)
	}
	tx := Tx{m: m, index: m.applied.Index}
	for _, row := range due {
		m.del(row.index)
		if row.typeID == 0 {
			if err := m.sweepClient(row.key); err != nil {
				return err
			}
			continue
		}
		t, ok := m.reg.byID[row.typeID]
		if !ok || t.Sweep == nil {
			return fmt.Errorf("%w: type %d in the expiry index: upgrade this node", ErrCorrupt, row.typeID)
		}
		tx.typeID = row.typeID
		if err := t.Sweep(&tx, row.key); err != nil {
			return fmt.Errorf("sweep a row of %s: %w", t.Name, err)
		}
		tx.op++
	}
	m.next, err = firstExpiry(m.batch, m.swept)
	return err
}

// due collects the rows to sweep. It starts at the last row swept before, to step over no tombstones.
func (m *Machine) due() ([]dueRow, error) {
	it, err := m.batch.Iter(appendExpiryTime([]byte(prefixExpiry), m.swept), appendExpiryTime([]byte(prefixExpiry), m.applied.Time+1))
	if err != nil {
		return nil, err
	}
	defer it.Close()
	var due []dueRow
	for len(due) < MaxSweep && it.Next() {
		index := append([]byte(nil), it.Key()...)
		at, typeID, key, ok := splitExpiryKey(index)
		if !ok {
			return nil, fmt.Errorf("%w: expiry index", ErrCorrupt)
		}
		m.swept = at
		due = append(due, dueRow{index: index, typeID: typeID, key: key})
	}
	return due, it.Err()
}

// firstExpiry returns the earliest time in the index at or after from, 0 if there is none.
func firstExpiry(r kv.Reader, from Time) (Time, error) {
	it, err := r.Iter(appendExpiryTime([]byte(prefixExpiry), from), []byte("\x00y"))
	if err != nil {
		return 0, err
	}
	defer it.Close()
	if !it.Next() {
		return 0, it.Err()
	}
	at, _, _, ok := splitExpiryKey(it.Key())
	if !ok {
		return 0, fmt.Errorf("%w: expiry index", ErrCorrupt)
	}
	return at, nil
}
