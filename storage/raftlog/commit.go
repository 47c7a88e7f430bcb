package raftlog

import (
	"runtime"
	"sync"

	"github.com/cockroachdb/pebble/v2"

	"github.com/holdfastdb/holdfast/storage/plant"
)

// groupCommit makes the writes of several groups durable in one batch with one sync. The first writer to come leads: it
// commits what has gathered. Those that come while it does wait, and the first of them leads next. Pebble shares syncs
// too, but begins one as soon as anything is there; what comes a moment later waits for a second one.
type groupCommit struct {
	mu      sync.Mutex
	leading bool
	waiting []*waiter
}

type waiter struct {
	batch *pebble.Batch
	turn  chan struct{} // closed when the batch was committed, or when the waiter is to lead
	done  bool
	err   error
}

// commit makes b durable.
func (c *groupCommit) commit(b *pebble.Batch) error {
	w := &waiter{batch: b, turn: make(chan struct{})}
	c.mu.Lock()
	c.waiting = append(c.waiting, w)
	if c.leading {
		c.mu.Unlock()
		<-w.turn
		if w.done {
			return w.err
		}
	} else {
		c.leading = true
		c.mu.Unlock()
		runtime.Gosched() // groups that are about to write come along
	}
	c.mu.Lock()
	batches := c.waiting
	c.waiting = nil
	c.mu.Unlock()
	err := commitAll(batches)
	c.mu.Lock()
	if len(c.waiting) > 0 {
		close(c.waiting[0].turn)
	} else {
		c.leading = false
	}
	c.mu.Unlock()
	for _, other := range batches {
		if other != w {
			other.done, other.err = true, err
			close(other.turn)
		}
	}
	return err
}

// commitAll commits the batches in order as one.
func commitAll(waiting []*waiter) error {
	b := waiting[0].batch
	for _, w := range waiting[1:] {
		if err := b.Apply(w.batch, nil); err != nil {
			return err
		}
	}
	if plant.On(plant.LogUnsynced) {
		return b.Commit(pebble.NoSync)
	}
	return b.Commit(pebble.Sync)
}
