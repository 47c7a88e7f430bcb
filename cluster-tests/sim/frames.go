package sim

import (
	"sync/atomic"
	"time"
)

// Frames says how the Raft messages of all nodes are treated, each alone. Connections keep their bytes in order, so this
// is how single messages get lost, arrive twice, and overtake each other.
type Frames struct {
	// Loss, Repeat and Late are how many of 100 are lost, arrive twice, and arrive up to MaxDelay later than the rest.
	Loss, Repeat, Late int
	MaxDelay           time.Duration
}

type frameStats struct{ lost, repeated, late atomic.Uint64 }

// tamper is raftnet's Config.Tamper.
func (c *Cluster) tamper(_ string, send func()) {
	f := c.frames.Load()
	if f == nil {
		send()
		return
	}
	if c.net.Chance(f.Loss) {
		c.frame.lost.Add(1)
		return
	}
	if c.net.Chance(f.Repeat) {
		c.frame.repeated.Add(1)
		time.AfterFunc(c.net.Within(f.MaxDelay), send)
	}
	if c.net.Chance(f.Late) {
		c.frame.late.Add(1)
		time.AfterFunc(c.net.Within(f.MaxDelay), send)
		return
	}
	send()
}
