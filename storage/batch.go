package storage

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2"

	"github.com/holdfastdb/holdfast/storage/kv"
)

// reader is what batches and views read through: the database or a snapshot of it.
type reader interface {
	Get(key []byte) ([]byte, io.Closer, error)
	NewIter(o *pebble.IterOptions) (*pebble.Iterator, error)
}

// batch keeps its writes in a map, so that a key written often within the batch is stored once, and so that reads of
// own writes need no indexed batch.
type batch struct {
	s       *Shard
	writes  []write
	index   map[string]int
	key     []byte // scratch
	pending io.Closer
	before  *commit // may be under way still, nil if nothing is
	done    bool
}

// commit is a batch that is being written. Nobody changes it any more, so that the batch after it may read it.
type commit struct {
	*batch
	finished chan struct{}
	err      error // once finished
}

type write struct {
	key     string // with the shard's prefix
	value   []byte
	deleted bool
}

// NewBatch begins a set of changes. Batches of one shard are used one at a time.
func (s *Shard) NewBatch() kv.Batch {
	return &batch{s: s, index: make(map[string]int)}
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
	w := b.own(full)
	if w == nil && b.before != nil {
		select {
		case <-b.before.finished:
			if err := b.Wait(); err != nil {
				return nil, err
			}
		default:
			w = b.before.own(full)
		}
	}
	if w != nil {
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

// own finds a write of this batch.
func (b *batch) own(full []byte) *write {
	if i, ok := b.index[string(full)]; ok {
		return &b.writes[i]
	}
	return nil
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

func (b *batch) put(key, value []byte, deleted bool) {
	full := b.full(key)
	if w := b.own(full); w != nil {
		// A new slice: Get may have handed out the old one.
		w.value, w.deleted = bytes.Clone(value), deleted
		return
	}
	w := write{key: string(full), value: bytes.Clone(value), deleted: deleted}
	b.index[w.key] = len(b.writes)
	b.writes = append(b.writes, w)
}

func (b *batch) Set(key, value []byte) { b.put(key, value, false) }
func (b *batch) Delete(key []byte)     { b.put(key, nil, true) }

// manyWrites take a millisecond.
const manyWrites = 256

func (b *batch) Next() (kv.Batch, error) {
	if b.done {
		return nil, errors.New("storage: batch is spent")
	}
	b.done = true
	b.release()
	if err := b.Wait(); err != nil {
		return nil, err
	}
	c := &commit{batch: b, finished: make(chan struct{})}
	go func() { // ends by itself; Next, Wait and Close of the next batch wait for it
		many := len(b.writes) > manyWrites
		if many {
			b.s.e.opts.OnWork(true)
		}
		c.err = b.write()
		if many {
			b.s.e.opts.OnWork(false)
		}
		close(c.finished)
	}()
	return &batch{s: b.s, index: make(map[string]int), before: c}, nil
}

func (b *batch) Wait() error {
	if b.before == nil {
		return nil
	}
	<-b.before.finished
	if err := b.before.err; err != nil {
		return err
	}
	b.before = nil
	return nil
}

func (b *batch) write() error {
	// Neighbours find each other's place in the memtable. The batch itself stays as it is for who reads it.
	sorted := slices.Clone(b.writes)
	slices.SortFunc(sorted, func(x, y write) int { return strings.Compare(x.key, y.key) })
	p := b.s.e.db.NewBatch()
	defer p.Close()
	var key []byte
	for i := range sorted {
		w := &sorted[i]
		key = append(key[:0], w.key...)
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
	b.done = true
	b.release()
	return b.Wait()
}

func (b *batch) Iter(lower, upper []byte) (kv.Iterator, error) {
	if err := b.Wait(); err != nil {
		return nil, err
	}
	it, err := b.s.iter(b.s.e.db, lower, upper)
	if err != nil || len(b.writes) == 0 {
		return it, err
	}
	from := append(slices.Clone(b.s.prefix), lower...)
	to := b.s.upper(upper)
	merged := &mergedIter{stored: it}
	for _, w := range b.writes {
		if w.key >= string(from) && w.key < string(to) {
			w.key = w.key[prefixBytes:]
			merged.own = append(merged.own, w)
		}
	}
	slices.SortFunc(merged.own, func(a, b write) int { return bytes.Compare([]byte(a.key), []byte(b.key)) })
	return merged, nil
}

func (s *Shard) upper(upper []byte) []byte {
	if upper == nil {
		return s.end
	}
	return append(slices.Clone(s.prefix), upper...)
}

func (s *Shard) iter(r reader, lower, upper []byte) (*iterator, error) {
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

// mergedIter lays a batch's own writes over what is stored.
type mergedIter struct {
	stored *iterator
	own    []write // sorted, without the prefix
	at     int
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
		if m.at == len(m.own) {
			if !m.valid {
				return false
			}
			return m.takeStored()
		}
		w := &m.own[m.at]
		if m.valid {
			switch c := bytes.Compare(m.stored.Key(), []byte(w.key)); {
			case c < 0:
				return m.takeStored()
			case c == 0:
				m.valid = false // the own write hides it
			}
		}
		m.at++
		if !w.deleted {
			m.key, m.value = append(m.key[:0], w.key...), w.value
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
