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
	// clockSoon is how often a node compares clocks that has too few to compare with, as after its start: it should know
	// before it is elected.
	clockSoon = 500 * time.Millisecond
)

// clockLoop keeps measuring how far the clocks of the other nodes are from ours, and judges ours.
func (n *Node) clockLoop() {
	ticks := time.NewTimer(0)
	defer ticks.Stop()
	said := false
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-ticks.C:
		}
		others := n.readClocks()
		drift := n.clockDrift()
		offsets := make([]time.Duration, len(others))
		for i, at := range others {
			offsets[i] = aheadOf(at, drift)
		}
		ahead, known := clockError(offsets)
		t := n.topology.Load()
		if known || t != nil && len(t.Nodes) == 1 { // or what was known before still is
			n.clockBase.Store(drift)
			n.clockAhead.Store(int64(ahead))
			select {
			case n.clockNews <- struct{}{}:
			default:
			}
		}
		switch wrong := n.clockWrong(); {
		case !said && wrong:
			n.log.Error("this node's clock differs from that of most others: it hands leadership over; set the clock right", "offset", -n.rightTimeAhead())
		case said && !wrong:
			n.log.Info("this node's clock is right again")
		}
		said = n.clockWrong()
		if t == nil || len(offsets) < min(2, len(t.Nodes)-1) {
			ticks.Reset(clockSoon)
		} else {
			ticks.Reset(clockEvery)
		}
	}
}

// readClocks asks all other nodes that are alive what their clocks say, and returns that as of our monotonic clock's zero:
// on a slow network it may have been read long ago, and ours may have been set since.
func (n *Node) readClocks() []time.Time {
	t := n.topology.Load()
	if t == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(n.ctx, time.Second)
	defer cancel()
	var mu sync.Mutex
	var asked sync.WaitGroup
	var clocks []time.Time
	for _, node := range t.Nodes {
		if node.ID == n.identity.NodeID || !n.alive(node.ID) {
			continue
		}
		asked.Go(func() {
			if _, err := n.net.ConfirmTerms(ctx, node.ID, nil); err != nil {
				return
			}
			if at, ok := n.clockOf(node.ID); ok {
				mu.Lock()
				clocks = append(clocks, at)
				mu.Unlock()
			}
		})
	}
	asked.Wait()
	return clocks
}

// clockOf is what another node's clock said when this process began, by its last reading.
func (n *Node) clockOf(nodeID string) (time.Time, bool) {
	at, ok := n.net.Clock(nodeID)
	return at.Add(-time.Since(n.started)), ok
}

// aheadOf is how far a clock of clockOf is ahead of this node's, which has a drift.
func aheadOf(began time.Time, drift int64) time.Duration {
	return time.Duration(began.UnixNano() - drift)
}

// clockError judges this node's clock by how far the others' are ahead of it. It is wrong if most nodes, this one counted,
// agree with each other and not with it; then the result is how far the right time is ahead, otherwise 0. Where no
// majority agrees nothing is known: a clock that was wrong stays so, and one that was not does too. Among any nodes the one
// with the median clock never learns that it is wrong: every majority that agrees has it in its midst.
func clockError(others []time.Duration) (ahead time.Duration, known bool) {
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
	switch {
	case len(others) == 0:
		return 0, false
	case ahead.Abs() <= maxClockOffset: // this one makes one more that agree
		return 0, (most+1)*2 > len(others)+1
	case most*2 <= len(others)+1:
		return 0, false
	}
	return ahead, true
}

// clockWrong tells that the clock was wrong when it was known last, or was set wrong since, as far as this node can tell.
func (n *Node) clockWrong() bool { return n.rightTimeAhead() != 0 }

// rightTimeAhead is how far the right time is ahead of this node's clock: as it was when clocks were compared last, less by
// how much the clock was set since. 0 if the clock is right.
func (n *Node) rightTimeAhead() time.Duration {
	set := n.clockDrift() - n.clockBase.Load()
	ahead := time.Duration(n.clockAhead.Load() - set)
	if ahead.Abs() <= maxClockOffset {
		return 0
	}
	return ahead
}

// clockDrift is what the wall clock would have said when this process began, in nanoseconds since 1970: it changes only when
// the clock is set.
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
	began, ok := n.clockOf(nodeID)
	return !ok || (aheadOf(began, n.clockDrift())-n.rightTimeAhead()).Abs() <= maxClockOffset
}

// Now is this node's clock, corrected if it is wrong, or a group's time as far as this node knows it if that is later: a
// deadline by a clock that is behind would have passed in the group before it was set.
func (n *Node) Now(group uint32) fsm.Time {
	now := fsm.Time(n.cfg.Clock().Add(n.rightTimeAhead()).UnixMilli())
	if g, ok := n.Group(group); ok {
		return max(now, g.Applied().Time)
	}
	return max(now, n.router.timeOf(group))
}
