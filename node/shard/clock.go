package shard

import (
	"sync"
	"time"

	"github.com/holdfastdb/holdfast/fsm"
)

// clock stamps entries. From the election on it follows the monotonic clock, so that a wall clock that is set while this
// replica leads changes nothing, and it never goes back.
type clock struct {
	mu   sync.Mutex
	base time.Time // with a monotonic reading; zero before the first election
	last fsm.Time
}

// start begins a leadership at the node's wall clock, not before the state's time.
func (c *clock) start(state fsm.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.base = time.Now()
	c.last = max(c.last, state)
}

// now is the leader's time.
func (c *clock) now() fsm.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.base.IsZero() {
		c.base = time.Now()
	}
	c.last = max(c.last, fsm.Time(c.base.UnixMilli()+time.Since(c.base).Milliseconds()))
	return c.last
}
