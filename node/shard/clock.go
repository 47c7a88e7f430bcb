package shard

import (
	"sync"
	"time"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage/plant"
)

// clock stamps entries. From the election on it follows the monotonic clock, so that a wall clock that is set while this
// replica leads changes nothing, and it never goes back.
type clock struct {
	wall func() time.Time

	mu    sync.Mutex
	base  fsm.Time  // the wall clock at the election
	since time.Time // the same moment by the monotonic clock; zero before the first election
	last  fsm.Time
}

// start begins a leadership at the node's wall clock, not before the state's time.
func (c *clock) start(state fsm.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.set()
	c.last = max(c.last, state)
}

func (c *clock) set() {
	c.base, c.since = fsm.Time(c.wall().UnixMilli()), time.Now()
	if plant.On(plant.WrongClock) {
		c.base += 5000
	}
}

// raise makes the clock go on from the state's time if it is behind.
func (c *clock) raise(state fsm.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = max(c.last, state)
}

// now is the leader's time.
func (c *clock) now() fsm.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.since.IsZero() {
		c.set()
	}
	c.last = max(c.last, c.base+fsm.Time(time.Since(c.since).Milliseconds()))
	return c.last
}
