package shard

import (
	"errors"
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
	for {
		select {
		case <-g.ctx.Done():
			return
		case reason := <-g.redo:
			g.follow(0)
			g.restart(reason)
		case <-g.poke:
			g.followState()
		case <-tick.C:
			tick.Reset(untilTick())
			g.followState()
			g.endStuckTransfer()
			for end := time.Now().Add(sweepEvery); g.IsLeader() && time.Now().Before(end); {
				begin := time.Now()
				if !g.sweep() {
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
		g.current.Load().stuck.Store(nil) // the next term begins anew
		g.follow(0)
		return
	}
	wrong := g.cfg.ClockWrong != nil && g.cfg.ClockWrong()
	if g.ready.Load() == term {
		if wrong || g.cfg.DiskFull != nil && g.cfg.DiskFull() {
			g.HandOver(g.ctx)
		}
		return
	}
	if wrong && g.refuseToLead(term) {
		return
	}
	g.clock.start(g.machine.Applied().Time)
	err := g.append(&fsm.Entry{Kind: fsm.TermStart}, 16).Error()
	switch {
	case err == nil:
		g.clock.raise(g.machine.Applied().Time) // before, the state may have been behind the log
		g.follow(term)
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrRaftShutdown):
	case errors.Is(err, raft.ErrLeadershipTransferInProgress): // the next leader begins its term, or the watchdog ends the transfer
	default:
		g.log.Warn("could not begin the term", "term", term, "error", err)
	}
}

// refuseToLead hands leadership over instead of beginning the term, because this node's clock is wrong. It reports false
// when that has taken so long that a leader with a wrong clock is better than none, and where there is nobody else.
func (g *Group) refuseToLead(term uint64) bool {
	if len(g.voters(g.raft())) < 2 {
		return false
	}
	if g.refused.term != term {
		g.refused.term, g.refused.since = term, time.Now()
		g.log.Warn("elected, but this node's clock is wrong: looking for another leader", "term", term)
	}
	if time.Since(g.refused.since) > refuseBeats*g.cfg.Timing.Heartbeat {
		g.log.Error("leading with a wrong clock, as nobody else could: shard time may jump; set the clock right", "term", term)
		return false
	}
	g.HandOver(g.ctx)
	return true
}

// refuseBeats is how many heartbeats a replica looks for a leader with a better clock.
const refuseBeats = 10

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

// stuckBeats is how many heartbeats a transfer may take. Raft gives it up after two.
const stuckBeats = 5

// endStuckTransfer replaces a Raft instance that leads but refuses all entries because a leadership transfer never ended,
// maybe one of an earlier term (hashicorp/raft #696).
func (g *Group) endStuckTransfer() {
	in := g.current.Load()
	if in.stuck.Load() == nil || in.raft.State() != raft.Leader {
		return
	}
	if g.IsLeader() { // otherwise followState has just tried
		_ = g.append(&fsm.Entry{Kind: fsm.Nudge}, 16).Error()
	}
	if since := in.stuck.Load(); since != nil && time.Since(*since) > stuckBeats*g.cfg.Timing.Heartbeat {
		g.follow(0)
		g.restart("a leadership transfer did not end")
	}
}

// sweep proposes the removal of what is due, and reports whether there is more: a sweep is bounded, so that commands
// come in between.
func (g *Group) sweep() (more bool) {
	if !g.due() {
		return false
	}
	err := g.append(&fsm.Entry{Kind: fsm.Sweep}, 16).Error()
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
