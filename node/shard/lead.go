package shard

import (
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/fsm"
)

// sweepEvery is how often a leader looks whether something has expired.
const sweepEvery = 500 * time.Millisecond

// sweepBehind is how late the removal of what has expired may be before it takes all the time that it needs. Nobody sees
// the difference but the disk.
const sweepBehind = 5000

// untilTick is how long it is until the next tick. All groups of a process tick together: one wake-up instead of many.
func untilTick() time.Duration {
	now := time.Now()
	return now.Truncate(sweepEvery).Add(sweepEvery).Sub(now)
}

// watch follows this replica's leadership: it begins each term with a TermStart entry, removes what expires, and
// restarts the Raft instance when that is needed. It is the only goroutine that replaces the instance.
func (g *Group) watch() {
	tick := time.NewTimer(untilTick())
	defer tick.Stop()
	var stuckSince time.Time
	for {
		select {
		case <-g.ctx.Done():
			return
		case reason := <-g.redo:
			// The received state is in place and stands for all that the log held.
			g.follow(0)
			g.restart(reason, true)
		case <-g.poke:
			g.followState()
		case <-tick.C:
			tick.Reset(untilTick())
			g.followState()
			for end := time.Now().Add(sweepEvery); g.IsLeader() && time.Now().Before(end); {
				begin := time.Now()
				if !g.sweep(&stuckSince) {
					break
				}
				g.yield(time.Since(begin))
			}
		}
	}
}

func (g *Group) askRestart(reason string) {
	select {
	case g.redo <- reason:
	default:
	}
}

// followState compares what Raft says with what was announced.
func (g *Group) followState() {
	r := g.raft()
	term := r.CurrentTerm()
	if r.State() != raft.Leader {
		g.follow(0)
		return
	}
	if g.ready.Load() == term {
		return
	}
	g.clock.start(g.machine.Applied().Time)
	err := g.append(&fsm.Entry{Kind: fsm.TermStart}, 16).Error()
	switch {
	case err == nil:
		g.follow(term)
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrRaftShutdown):
	default:
		g.log.Warn("could not begin the term", "term", term, "error", err)
	}
}

// follow records the term that this replica serves as leader, 0 for none, and tells the node of a change.
func (g *Group) follow(term uint64) {
	old := g.ready.Swap(term)
	if old == term {
		return
	}
	if term != 0 {
		g.log.Info("leading", "term", term)
	}
	if g.cfg.OnLead != nil {
		g.cfg.OnLead(term != 0, max(term, old))
	}
}

// sweep proposes the removal of what is due, and reports whether there is more: a sweep is bounded, so that commands
// come in between. It also notices a Raft instance that leads but refuses all entries
// because a leadership transfer never ended (hashicorp/raft #696).
func (g *Group) sweep(stuckSince *time.Time) (more bool) {
	if !g.due() && stuckSince.IsZero() {
		return false
	}
	err := g.append(&fsm.Entry{Kind: fsm.Sweep}, 16).Error()
	switch {
	case !errors.Is(err, raft.ErrLeadershipTransferInProgress):
		*stuckSince = time.Time{}
	case stuckSince.IsZero():
		*stuckSince = time.Now()
	case time.Since(*stuckSince) > 5*g.cfg.Timing.Heartbeat:
		*stuckSince = time.Time{}
		g.follow(0)
		g.restart("a leadership transfer did not end", false)
	}
	return err == nil && g.due()
}

// yield leaves as much time to commands as the sweeps before it took, unless so much is due that they would not keep up:
// thousands of rows that were made in one moment end in one moment too.
func (g *Group) yield(took time.Duration) {
	if at := g.machine.NextExpiry(); at != 0 && g.clock.now()-at > sweepBehind {
		return
	}
	t := time.NewTimer(min(took, sweepEvery/10))
	defer t.Stop()
	select {
	case <-t.C:
	case <-g.ctx.Done():
	}
}

func (g *Group) due() bool {
	at := g.machine.NextExpiry()
	return at != 0 && at <= g.clock.now()
}

// IsLeader reports that this replica serves as leader.
func (g *Group) IsLeader() bool {
	_, ok := g.leading(g.raft())
	return ok
}

// Leader names the leading replica as far as known, "" if not.
func (g *Group) Leader() (replicaID string, term uint64) {
	r := g.raft()
	_, id := r.LeaderWithID()
	return string(id), r.CurrentTerm()
}

// Now is the leader's time, with which it stamps entries.
func (g *Group) Now() fsm.Time { return g.clock.now() }

// Status is a moment of a replica.
type Status struct {
	Group     uint32
	ReplicaID string
	State     string // leader, follower, candidate or shutdown
	Leader    string
	Term      uint64
	Commit    uint64
	Applied   uint64
	Last      uint64
	Queued    int // operations that wait to be proposed
	Entries   uint64
	Frames    uint64
	Commands  uint64
	Time      fsm.Time
	SizeBytes uint64
	Sum       fsm.Sum // of the last state that was hashed
	Diverged  uint64  // how often this replica found another one, or itself, to differ
}

// Status tells where the replica is.
func (g *Group) Status() Status {
	r := g.raft()
	a := g.machine.Applied()
	leader, term := g.Leader()
	size, err := g.cfg.State.Size()
	if err != nil {
		g.log.Warn("could not estimate the size", "error", err)
	}
	g.proposer.mu.Lock()
	queued := g.proposer.ops
	g.proposer.mu.Unlock()
	return Status{
		Group: g.cfg.Group, ReplicaID: g.cfg.ReplicaID, State: stateNames[r.State()], Leader: leader, Term: term,
		Commit: r.CommitIndex(), Applied: a.Index, Last: r.LastIndex(), Queued: queued, Time: a.Time, SizeBytes: size,
		Entries: g.proposer.entries.Load(), Frames: g.proposer.frames.Load(), Commands: g.proposer.commands.Load(),
		Sum: g.Sum(), Diverged: g.agreement.differ.Load(),
	}
}

var stateNames = map[raft.RaftState]string{
	raft.Leader: "leader", raft.Follower: "follower", raft.Candidate: "candidate", raft.Shutdown: "shutdown",
}

// HandOver gives leadership to another voter, if there is one, and returns when that has succeeded or failed.
func (g *Group) HandOver() {
	r := g.raft()
	if r.State() != raft.Leader || len(g.voters(r)) < 2 {
		return
	}
	g.members.Lock()
	defer g.members.Unlock()
	if err := r.LeadershipTransfer().Error(); err != nil {
		g.log.Info("leadership was not handed over", "error", fmt.Errorf("transfer: %w", err))
	}
}
