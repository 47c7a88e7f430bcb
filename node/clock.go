package node

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/node/shard"
)

// Shard time comes from leaders' clocks, so a node whose clock is wrong should not begin to lead. Nodes tell each other
// their wall clocks; nobody asks an authority.

const (
	// maxClockOffset is how far a leader's clock may be from the others'.
	maxClockOffset = 500 * time.Millisecond
	clockEvery     = 5 * time.Second
	// clockSoon is how often a node that has just started compares clocks, so that it knows before it is elected.
	clockSoon    = 500 * time.Millisecond
	clockHurries = 10
)

// clockLoop keeps measuring how far the clocks of the other nodes are from ours, and judges ours.
func (n *Node) clockLoop() {
	ticks := time.NewTimer(0)
	defer ticks.Stop()
	for round := 0; ; round++ {
		select {
		case <-n.ctx.Done():
			return
		case <-ticks.C:
		}
		drift := n.clockDrift()
		offsets := n.measureClocks()
		ahead := clockError(offsets)
		if t := n.topology.Load(); len(offsets) > 0 || t != nil && len(t.Nodes) == 1 {
			n.clockBase.Store(drift)
		}
		switch was := n.clockAhead.Swap(int64(ahead)); {
		case was == 0 && ahead != 0:
			n.log.Error("this node's clock differs from that of most others: it hands leadership over; set the clock right", "offset", -ahead)
		case was != 0 && ahead == 0:
			n.log.Info("this node's clock is right again")
		}
		if len(offsets) < 2 && round < clockHurries {
			ticks.Reset(clockSoon)
		} else {
			ticks.Reset(clockEvery)
		}
	}
}

// measureClocks asks all other nodes that are alive how far their clocks are ahead of ours.
func (n *Node) measureClocks() []time.Duration {
	t := n.topology.Load()
	if t == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(n.ctx, time.Second)
	defer cancel()
	var mu sync.Mutex
	var asked sync.WaitGroup
	var offsets []time.Duration
	for _, node := range t.Nodes {
		if node.ID == n.identity.NodeID || !n.alive(node.ID) {
			continue
		}
		asked.Go(func() {
			if _, err := n.net.ConfirmTerms(ctx, node.ID, nil); err != nil {
				return
			}
			if d, ok := n.net.ClockOffset(node.ID); ok {
				mu.Lock()
				offsets = append(offsets, d)
				mu.Unlock()
			}
		})
	}
	asked.Wait()
	return offsets
}

// clockError judges this node's clock by how far the others' are ahead of it. It is wrong if most nodes, this one counted,
// agree with each other and not with it; then the result is how far the right time is ahead, otherwise 0. Where no
// majority agrees nobody's clock is wrong, and among any nodes the one with the median clock never thinks so of itself:
// every majority that agrees has it in its midst.
func clockError(others []time.Duration) (ahead time.Duration) {
	most := 0
	for _, a := range others {
		agree := 0
		for _, b := range others {
			if (a - b).Abs() <= maxClockOffset {
				agree++
			}
		}
		if agree > most || agree == most && a.Abs() < ahead.Abs() {
			ahead, most = a, agree
		}
	}
	if ahead.Abs() <= maxClockOffset || most*2 <= len(others)+1 {
		return 0
	}
	return ahead
}

// clockWrong tells that the clock was wrong when clocks were compared, or that it was set since: then it may be.
func (n *Node) clockWrong() bool {
	set := time.Duration(n.clockDrift() - n.clockBase.Load())
	return n.clockAhead.Load() != 0 || set.Abs() > maxClockOffset
}

// clockDrift is the difference between the wall clock and the monotonic one, which changes only when the former is set.
func (n *Node) clockDrift() int64 { return n.cfg.Clock().UnixNano() - int64(time.Since(n.started)) }

// fit tells that a replica of another node could lead the group now.
func (n *Node) fit(ctx context.Context, g *shard.Group, replicaID string) bool {
	nodeID, _, _ := strings.Cut(replicaID, "/")
	return n.alive(nodeID) && n.clockFits(ctx, nodeID) && n.hasRoom(ctx, nodeID) && n.caughtUp(ctx, g, replicaID)
}

// hasRoom tells that another node's disk has room for more.
func (n *Node) hasRoom(ctx context.Context, nodeID string) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	status, err := n.nodeStatus(ctx, nodeID)
	return err == nil && !status.DiskFull
}

// clockFits tells that another node's clock is right, as far as this node can tell.
func (n *Node) clockFits(ctx context.Context, nodeID string) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if _, err := n.net.ConfirmTerms(ctx, nodeID, nil); err != nil {
		return false
	}
	d, ok := n.net.ClockOffset(nodeID)
	return !ok || (d-time.Duration(n.clockAhead.Load())).Abs() <= maxClockOffset
}

// Now is this node's clock, corrected if it is wrong, or a group's time as far as this node knows it if that is later: a
// deadline by a clock that is behind would have passed in the group before it was set.
func (n *Node) Now(group uint32) fsm.Time {
	now := fsm.Time(n.cfg.Clock().Add(time.Duration(n.clockAhead.Load())).UnixMilli())
	if g, ok := n.Group(group); ok {
		return max(now, g.Applied().Time)
	}
	return max(now, n.router.timeOf(group))
}
