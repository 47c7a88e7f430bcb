package storage

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/cockroachdb/pebble/v2"
	"github.com/tidwall/btree"

	"github.com/holdfastdb/holdfast/storage/kv"
)

// reader is what batches and views read through: the database or a snapshot of it.
type reader interface {
	Get(key []byte) ([]byte, io.Closer, error)
	NewIter(o *pebble.IterOptions) (*pebble.Iterator, error)
}

// batch keeps its writes in a tree, so that a key written often within the batch is stored once, that reads of own writes
// need no indexed batch, and that they come to the memtable in order, where neighbours find each other's place.
type batch struct {
	s       *Shard
	writes  btree.Map[string, write] // by key, with the shard's prefix
	key     []byte                   // scratch
	pending io.Closer
	before  *batch // may not be in the database yet; nil if it is
	spent   bool   // by Next or Close

	committing bool
	committed  chan struct{} // closed when the commit has ended
	err        error         // how it did
}

type write struct {
	value   []byte
	deleted bool
}

// NewBatch begins a set of changes. There is one at a time for a shard, with those that follow it.
func (s *Shard) NewBatch() kv.Batch { return s.batchAfter(nil) }

func (s *Shard) batchAfter(before *batch) *batch {
	return &batch{s: s, before: before, committed: make(chan struct{})}
}

func (b *batch) full(key []byte) []byte {
	b.key = append(append(b.key[:0], b.s.prefix...), key...)
	return b.key
}

func (b *batch) release() {
	if b.pending != nil {
		_ = b.pending.Close() // releases a cached block; Pebble's closer has no failure
		b.pending = nil
	}
}

func (b *batch) Get(key []byte) ([]byte, error) {
	full := b.full(key)
	w, ok := b.writes.Get(string(full))
	if !ok {
		under, err := b.under()
		if err != nil {
			return nil, err
		}
		if under != nil {
			w, ok = under.writes.Get(string(full))
		}
	}
	if ok {
		if w.deleted {
			return nil, kv.ErrNotFound
		}
		return w.value, nil
	}
	b.release()
	value, closer, err := get(b.s.e.db, full)
	b.pending = closer
	return value, err
}

// under returns the batch before this one if it may not be in the database yet.
func (b *batch) under() (*batch, error) {
	if b.before == nil {
		return nil, nil
	}
	select {
	case <-b.before.committed:
		return nil, b.Wait()
	default:
		return b.before, nil
	}
}

func get(r reader, full []byte) ([]byte, io.Closer, error) {
	value, closer, err := r.Get(full)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil, kv.ErrNotFound
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read: %w", err)
	}
	return value, closer, nil
}

// A new slice for each value: Get may have handed out the old one.
func (b *batch) put(key, value []byte, deleted bool) {
	b.writes.Set(string(b.full(key)), write{bytes.Clone(value), deleted})
}

func (b *batch) Set(key, value []byte) { b.put(key, value, false) }
func (b *batch) Delete(key []byte)     { b.put(key, nil, true) }

func (b *batch) Next() (kv.Batch, error) {
	switch {
	case b.spent:
		return nil, errors.New("storage: batch is spent")
	case b.before != nil && !b.before.committing:
		return nil, errors.New("storage: the batch before is not committed")
	}
	b.spent = true
	b.release()
	if err := b.Wait(); err != nil {
		return nil, err
	}
	return b.s.batchAfter(b), nil
}

// manyWrites take a millisecond.
const manyWrites = 256

func (b *batch) Commit() {
	b.committing = true
	go func() { // ends by itself; Next, Wait and Close of the next batch wait for it
		many := b.writes.Len() > manyWrites
		if many {
			b.s.e.opts.OnWork(true)
		}
		b.err = b.write()
		if many {
			b.s.e.opts.OnWork(false)
		}
		close(b.committed)
	}()
}

func (b *batch) Wait() error {
	if b.before == nil || !b.before.committing {
		return nil
	}
	<-b.before.committed
	if err := b.before.err; err != nil {
		return err
	}
	b.before = nil
	return nil
}

func (b *batch) write() error {
	p := b.s.e.db.NewBatch()
	defer p.Close()
	var key []byte
	for it := b.writes.Iter(); it.Next(); {
		w := it.Value()
		key = append(key[:0], it.Key()...)
		var err error
		if w.deleted {
			err = p.Delete(key, nil)
		} else {
			err = p.Set(key, w.value, nil)
		}
		if err != nil {
			return fmt.Errorf("fill batch of group %d: %w", b.s.group, err)
		}
	}
	if err := p.Commit(pebble.NoSync); err != nil {
		return fmt.Errorf("commit batch of group %d: %w", b.s.group, err)
	}
	return nil
}

func (b *batch) Close() error {
	b.spent = true
	b.release()
	return b.Wait()
}

func (b *batch) Iter(lower, upper []byte) (kv.Iterator, error) {
	under, err := b.under() // before the database is looked at, or a commit that ends in between would be in neither
	if err != nil {
		return nil, err
	}
	it, err := b.s.iter(b.s.e.db, lower, upper)
	if err != nil {
		return nil, err
	}
	from, to := string(append(slices.Clone(b.s.prefix), lower...)), string(b.s.upper(upper))
	if under != nil {
		it = under.over(it, from, to)
	}
	return b.over(it, from, to), nil
}

// over lays the batch's writes to [from, to), as they are now, over what is stored.
func (b *batch) over(stored kv.Iterator, from, to string) kv.Iterator {
	own := b.writes.Iter()
	if !own.Seek(from) || own.Key() >= to {
		return stored
	}
	if !b.committing { // it may change while the iterator is in use
		own = b.writes.Copy().Iter()
		own.Seek(from)
	}
	return &mergedIter{stored: stored, own: own, more: true, to: to}
}

func (s *Shard) upper(upper []byte) []byte {
	if upper == nil {
		return s.end
	}
	return append(slices.Clone(s.prefix), upper...)
}

func (s *Shard) iter(r reader, lower, upper []byte) (kv.Iterator, error) {
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: append(slices.Clone(s.prefix), lower...), UpperBound: s.upper(upper)})
	if err != nil {
		return nil, fmt.Errorf("iterate group %d: %w", s.group, err)
	}
	return &iterator{it: it}, nil
}

// iterator walks stored keys of one shard, without the prefix.
type iterator struct {
	it      *pebble.Iterator
	started bool
}

func (i *iterator) Next() bool {
	if !i.started {
		i.started = true
		return i.it.First()
	}
	return i.it.Next()
}
func (i *iterator) Key() []byte   { return i.it.Key()[prefixBytes:] }
func (i *iterator) Value() []byte { return i.it.Value() }
func (i *iterator) Err() error    { return i.it.Error() }
func (i *iterator) Close() error  { return i.it.Close() }

// mergedIter lays a batch's writes over what is stored.
type mergedIter struct {
	stored kv.Iterator
	own    btree.MapIter[string, write] // keys have the shard's prefix
	more   bool                         // own stands on a key before to that was not returned yet
	to     string
	valid  bool // stored stands on a key that was not returned yet
	ended  bool // stored has no more
	key    []byte
	value  []byte
}

func (m *mergedIter) Next() bool {
	for {
		if !m.valid && !m.ended {
			m.valid = m.stored.Next()
			m.ended = !m.valid
		}
		if !m.more {
			return m.valid && m.takeStored()
		}
		key, w := m.own.Key()[prefixBytes:], m.own.Value()
		if m.valid {
			if string(m.stored.Key()) < key {
				return m.takeStored()
			}
			m.valid = string(m.stored.Key()) != key // the own write hides it
		}
		m.more = m.own.Next() && m.own.Key() < m.to
		if !w.deleted {
			m.key, m.value = append(m.key[:0], key...), w.value
			return true
		}
	}
}

func (m *mergedIter) takeStored() bool {
	m.key, m.value = append(m.key[:0], m.stored.Key()...), append([]byte(nil), m.stored.Value()...)
	m.valid = false
	return true
}

func (m *mergedIter) Key() []byte   { return m.key }
func (m *mergedIter) Value() []byte { return m.value }
func (m *mergedIter) Err() error    { return m.stored.Err() }
func (m *mergedIter) Close() error  { return m.stored.Close() }

// view is a read-only moment of one shard. It must be short-lived: an install of a snapshot into the same shard pulls
// its data away.
type view struct {
	s       *Shard
	snap    *pebble.EventuallyFileOnlySnapshot
	key     []byte
	pending io.Closer
}

// View returns a consistent view of the shard as of now.
func (s *Shard) View() kv.View {
	return &view{s: s, snap: s.e.db.NewEventuallyFileOnlySnapshot([]pebble.KeyRange{s.span()})}
}

func (v *view) release() {
	if v.pending != nil {
		_ = v.pending.Close()
		v.pending = nil
	}
}

func (v *view) Get(key []byte) ([]byte, error) {
	v.release()
	v.key = append(append(v.key[:0], v.s.prefix...), key...)
	value, closer, err := get(v.snap, v.key)
	v.pending = closer
	return value, err
}

func (v *view) Iter(lower, upper []byte) (kv.Iterator, error) { return v.s.iter(v.snap, lower, upper) }

func (v *view) Close() error {
	v.release()
	return v.snap.Close()
}
