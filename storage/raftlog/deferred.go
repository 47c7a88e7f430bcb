package raftlog

import (
	"math"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"
)

// Durability tells what of a log is on disk, when StoreLogs does not wait for that. Raft's promises then hold only as far
// as this says; see Log.Defer.
type Durability interface {
	// Durable is an index up to which all entries are on disk; math.MaxUint64 if the whole log is.
	Durable() uint64
	// When calls done once the entry, as it is now in the log, is on disk with all before it, or with the reason why it
	// will not be: at once, or later from another goroutine, which done must not block.
	When(index uint64, done func(error))
}

// deferred are the entries of a group that were written and are not on disk yet.
type deferred struct {
	sync *syncer
	on   atomic.Bool

	mu      sync.Mutex
	pending []written // in the order of writing
}

// written is one call of StoreLogs.
type written struct {
	first  uint64 // its lowest index
	writes uint64 // what the syncer counted
}

// add notes entries that were written.
func (d *deferred) add(w written) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.prune()
	d.pending = append(d.pending, w)
}

// prune forgets what is durable. Called with mu held.
func (d *deferred) prune() {
	durable := d.sync.durable()
	n := 0
	for n < len(d.pending) && d.pending[n].writes <= durable {
		n++
	}
	d.pending = append(d.pending[:0], d.pending[n:]...)
}

// Durable implements Durability. The lowest index of all that waits bounds it, also if that entry was replaced since.
func (d *deferred) Durable() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.prune()
	durable := uint64(math.MaxUint64)
	for _, w := range d.pending {
		durable = min(durable, w.first-1)
	}
	return durable
}

// When implements Durability. An entry that was written twice is in the newest write that begins at or before it: what
// came later and begins after it does not concern it.
func (d *deferred) When(index uint64, done func(error)) {
	d.mu.Lock()
	writes := uint64(0)
	for _, w := range d.pending {
		if w.first <= index {
			writes = w.writes
		}
	}
	d.mu.Unlock()
	d.sync.when(writes, done)
}

// may tells whether the entries need not be on disk when StoreLogs returns. Raft acts on what is not a command, such as a
// new configuration, by itself.
func (d *deferred) may(logs []*raft.Log) bool {
	if !d.on.Load() {
		return false
	}
	for _, l := range logs {
		if l.Type != raft.LogCommand {
			return false
		}
	}
	return true
}
