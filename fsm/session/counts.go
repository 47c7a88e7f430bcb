package session

import (
	"encoding/binary"
	"fmt"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage/wire"
)

// counts are the analytics of a shard. active includes what is over and not swept yet.
type counts struct {
	active  [kinds + 1]uint64   // by Kind
	created [kinds + 1]uint64   // by Kind
	ended   [reasons + 1]uint64 // by Reason
}

func (c *counts) each(f func(*uint64)) {
	for i := range c.active[1:] {
		f(&c.active[1+i])
		f(&c.created[1+i])
	}
	for i := range c.ended[1:] {
		f(&c.ended[1+i])
	}
}

// Append implements fsm.Row.
func (c *counts) Append(dst []byte) []byte {
	c.each(func(n *uint64) { dst = binary.AppendUvarint(dst, *n) })
	return dst
}

func decodeCounts(b []byte) (fsm.Row, error) {
	d := wire.NewDecoder(b)
	c := new(counts)
	c.each(func(n *uint64) { *n = d.Uvarint() })
	if err := d.End("session counts"); err != nil {
		return nil, err
	}
	return c, nil
}

func changeCounts(tx *fsm.Tx, change func(*counts)) error {
	stored, err := tx.Row([]byte(keyCounts), decodeCounts)
	if err != nil {
		return fmt.Errorf("read session counts: %w", err)
	}
	c, _ := stored.(*counts)
	if c == nil {
		c = new(counts)
	}
	change(c)
	tx.PutRow([]byte(keyCounts), c)
	return nil
}
