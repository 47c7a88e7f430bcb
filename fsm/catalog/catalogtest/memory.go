// Package catalogtest has what tests of the catalog and of its readers need: a store in memory whose views cost nothing,
// and a driver of a machine that tries more than a test asks for.
package catalogtest

import (
	"bytes"
	"sync/atomic"

	"github.com/zeebo/xxh3"

	"github.com/holdfastdb/holdfast/storage/kv"
)

// Memory is a store of one shard. Its content is a tree that is never changed in place, so that a view or a batch is
// just a root: large states stay cheap to look at after each step. One goroutine writes, any may read.
type Memory struct {
	root atomic.Pointer[node]
	// Writes counts the changes of keys that are not the machine's own, also those that changed nothing.
	Writes int
}

// NewBatch implements fsm.Store.
func (s *Memory) NewBatch() kv.Batch { return &view{store: s, root: s.root.Load()} }

// View implements fsm.Store.
func (s *Memory) View() kv.View { return &view{root: s.root.Load()} }

// Equal reports whether both stores have the same keys with the same values.
func (s *Memory) Equal(other *Memory) bool { return s.root.Load().equal(other.root.Load()) }

// node is one of a treap: keys are in order from left to right, weights from top to bottom. Weights follow from the
// keys, so that the same content always has the same shape.
type node struct {
	key         string
	value       []byte
	weight      uint64
	left, right *node
}

func (n *node) get(key string) ([]byte, bool) {
	for n != nil {
		switch {
		case key < n.key:
			n = n.left
		case key > n.key:
			n = n.right
		default:
			return n.value, true
		}
	}
	return nil, false
}

// split parts the tree into what is before key and what is after it; key itself is dropped.
func (n *node) split(key string) (left, right *node) {
	if n == nil {
		return nil, nil
	}
	switch {
	case key < n.key:
		c := *n
		left, c.left = n.left.split(key)
		return left, &c
	case key > n.key:
		c := *n
		c.right, right = n.right.split(key)
		return &c, right
	}
	return n.left, n.right
}

func (n *node) set(added *node) *node {
	if n == nil || added.weight > n.weight || added.key == n.key {
		added.left, added.right = n.split(added.key)
		return added
	}
	c := *n
	if added.key < n.key {
		c.left = n.left.set(added)
	} else {
		c.right = n.right.set(added)
	}
	return &c
}

func (n *node) remove(key string) *node {
	if _, found := n.get(key); !found {
		return n
	}
	if n.key == key {
		return merge(n.left, n.right)
	}
	c := *n
	if key < n.key {
		c.left = n.left.remove(key)
	} else {
		c.right = n.right.remove(key)
	}
	return &c
}

func merge(left, right *node) *node {
	switch {
	case left == nil:
		return right
	case right == nil:
		return left
	case left.weight > right.weight:
		c := *left
		c.right = merge(left.right, right)
		return &c
	}
	c := *right
	c.left = merge(left, right.left)
	return &c
}

func (n *node) equal(o *node) bool {
	if n == o {
		return true
	}
	return n != nil && o != nil && n.key == o.key && bytes.Equal(n.value, o.value) && n.left.equal(o.left) && n.right.equal(o.right)
}

// view is a view or, with a store, a batch.
type view struct {
	store  *Memory
	root   *node
	writes int
	after  *view // the next batch, which sees what comes to this one late
}

func (v *view) Get(key []byte) ([]byte, error) {
	value, found := v.root.get(string(key))
	if !found {
		return nil, kv.ErrNotFound
	}
	return value, nil
}

func (v *view) Set(key, value []byte) {
	v.count(key)
	k := string(key)
	for ; v != nil; v = v.after {
		v.root = v.root.set(&node{key: k, value: bytes.Clone(value), weight: xxh3.HashString(k)})
	}
}

func (v *view) Delete(key []byte) {
	v.count(key)
	for ; v != nil; v = v.after {
		v.root = v.root.remove(string(key))
	}
}

func (v *view) count(key []byte) {
	if key[0] != 0 {
		v.writes++
	}
}

func (v *view) Next() (kv.Batch, error) {
	v.after = &view{store: v.store, root: v.root}
	return v.after, nil
}

func (v *view) Commit() {
	v.store.root.Store(v.root)
	v.store.Writes += v.writes
	v.after = nil
}

func (v *view) Wait() error  { return nil }
func (v *view) Close() error { return nil }

func (v *view) Iter(lower, upper []byte) (kv.Iterator, error) {
	it := &iterator{upper: upper}
	from := string(lower)
	for n := v.root; n != nil; {
		if n.key >= from {
			it.path = append(it.path, n)
			n = n.left
		} else {
			n = n.right
		}
	}
	return it, nil
}

// iterator keeps the nodes whose turn is still to come and whose left side is done, the next one last.
type iterator struct {
	upper []byte
	path  []*node
	at    *node
}

func (it *iterator) Next() bool {
	if len(it.path) == 0 {
		return false
	}
	it.at = it.path[len(it.path)-1]
	it.path = it.path[:len(it.path)-1]
	if it.upper != nil && it.at.key >= string(it.upper) {
		it.path = nil
		return false
	}
	for n := it.at.right; n != nil; n = n.left {
		it.path = append(it.path, n)
	}
	return true
}

func (it *iterator) Key() []byte   { return []byte(it.at.key) }
func (it *iterator) Value() []byte { return it.at.value }
func (it *iterator) Err() error    { return nil }
func (it *iterator) Close() error  { return nil }
