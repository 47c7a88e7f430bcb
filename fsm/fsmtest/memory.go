// Package fsmtest has what tests of state machines need.
package fsmtest

import (
	"bytes"
	"errors"
	"maps"
	"slices"

	"github.com/holdfastdb/holdfast/storage/kv"
)

// Memory is a store of one shard in a map: slow to iterate, but there is nothing in it to get wrong.
type Memory struct{ Keys map[string][]byte }

// NewMemory makes an empty store.
func NewMemory() *Memory { return &Memory{Keys: make(map[string][]byte)} }

// NewBatch implements fsm.Store.
func (s *Memory) NewBatch() kv.Batch { return &batch{store: s, changes: make(map[string][]byte)} }

// View implements fsm.Store.
func (s *Memory) View() kv.View { return &batch{store: s.Clone()} }

// Clone copies the store.
func (s *Memory) Clone() *Memory { return &Memory{maps.Clone(s.Keys)} }

// Equal reports whether both stores have the same keys with the same values.
func (s *Memory) Equal(other *Memory) bool { return maps.EqualFunc(s.Keys, other.Keys, bytes.Equal) }

// batch keeps what changed until Commit; a nil value is a deletion.
type batch struct {
	store     *Memory
	before    *batch // or nil
	changes   map[string][]byte
	committed bool
}

func (b *batch) Get(key []byte) ([]byte, error) {
	value, ok := b.changes[string(key)]
	if !ok && b.before != nil {
		value, ok = b.before.changes[string(key)]
	}
	if !ok {
		value = b.store.Keys[string(key)]
	}
	if value == nil {
		return nil, kv.ErrNotFound
	}
	return value, nil
}

func (b *batch) Set(key, value []byte) {
	b.changes[string(key)] = append(make([]byte, 0, len(value)), value...)
}

func (b *batch) Delete(key []byte) { b.changes[string(key)] = nil }

func (b *batch) apply(to map[string][]byte) {
	for k, v := range b.changes {
		if v == nil {
			delete(to, k)
		} else {
			to[k] = v
		}
	}
}

func (b *batch) Next() (kv.Batch, error) {
	if b.before != nil && !b.before.committed {
		return nil, errors.New("the batch before is not committed")
	}
	b.before = nil // it is in the store
	return &batch{store: b.store, before: b, changes: make(map[string][]byte)}, nil
}

func (b *batch) Commit() {
	b.apply(b.store.Keys)
	b.committed = true
}

func (b *batch) Wait() error  { return nil }
func (b *batch) Close() error { return nil }

func (b *batch) Iter(lower, upper []byte) (kv.Iterator, error) {
	all := maps.Clone(b.store.Keys)
	if b.before != nil {
		b.before.apply(all)
	}
	b.apply(all)
	it := &iterator{all: all}
	for _, k := range slices.Sorted(maps.Keys(all)) {
		if k >= string(lower) && (upper == nil || k < string(upper)) {
			it.keys = append(it.keys, k)
		}
	}
	return it, nil
}

type iterator struct {
	all  map[string][]byte
	keys []string
	at   int
}

func (it *iterator) Next() bool    { it.at++; return it.at <= len(it.keys) }
func (it *iterator) Key() []byte   { return []byte(it.keys[it.at-1]) }
func (it *iterator) Value() []byte { return it.all[it.keys[it.at-1]] }
func (it *iterator) Err() error    { return nil }
func (it *iterator) Close() error  { return nil }
