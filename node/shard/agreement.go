package shard

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage/kv"
)

// Replicas that apply the same log must have the same state. From time to time the leader proposes a Checksum entry, at
// which every replica hashes its state. Before the next one, the leader asks what the others had, and that entry says
// what most of them agree on; a replica that has something else stops, be it the leader itself. Only the majority can
// tell who is wrong.
//
// What is hashed is a view, so commands go on; a large state is hashed slowly, with pauses. An idle group has no
// checksums once the last change has been compared.

const (
	// checksumEvery is how often a leader proposes a checksum of what changed: a flush of the state, and a quarter of a
	// core while it is hashed.
	checksumEvery = 5 * time.Minute
	// hashBurst is how much is hashed without a pause, and hashShare which part of the time hashing may take.
	hashBurst = 256 << 10
	hashShare = 4
	// askSumsTimeout bounds how long the leader waits for the others.
	askSumsTimeout = 5 * time.Second
)

// DivergedError tells that this replica's state is not that of the majority at the same entry. Something is wrong with its
// memory, its disk or its program; nothing it says can be trusted.
type DivergedError struct {
	Group     uint32
	ReplicaID string
	Index     uint64
	Own, Most uint64 // hashes
}

func (e *DivergedError) Error() string {
	return fmt.Sprintf("group %d: the state of replica %s at entry %d is not that of the other replicas (hash %016x, not %016x): remove this node's data and let it join again",
		e.Group, e.ReplicaID, e.Index, e.Own, e.Most)
}

// agreement is a replica's part in the comparison.
type agreement struct {
	g *Group

	mu     sync.Mutex
	own    fsm.Sum // of the last state that was hashed
	quiet  bool    // nothing changed between the one before and that
	agreed fsm.Sum // what the log says of a state that is not hashed yet
	busy   bool
	closed bool

	differ atomic.Uint64 // replicas found to differ, as the log tells: whoever found it may have been the one, and is gone
}

// at is told of a Checksum entry, from the goroutine that applies.
func (s *agreement) at(index uint64, e *fsm.Entry, view kv.View) {
	s.differ.Add(e.Differ)
	s.mu.Lock()
	if e.Agreed.Index != 0 {
		s.agreed = e.Agreed
	}
	err := s.compare()
	hashes := !s.busy && !s.closed // or this state is not compared
	if hashes {
		s.busy = true
		s.g.work.Go(func() { s.hash(index, view) })
	}
	s.mu.Unlock()
	if !hashes {
		_ = view.Close()
	}
	if err != nil {
		s.g.fatal(err)
	}
}

// close lets no more hashing begin.
func (s *agreement) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
}

func (s *agreement) hash(index uint64, view kv.View) {
	pacer := pacer{ctx: s.g.ctx, since: time.Now()}
	hash, err := fsm.HashState(view, pacer.pause)
	if closeErr := view.Close(); err == nil {
		err = closeErr
	}
	s.mu.Lock()
	s.busy = false
	if err == nil {
		s.quiet = s.own.Index+1 == index
		s.own = fsm.Sum{Index: index, Hash: hash}
		err = s.compare()
	}
	s.mu.Unlock()
	if err != nil {
		s.g.fatal(err) // does nothing when the group is closing
	}
}

// compare tells whether this replica has what most have. Called with mu held.
func (s *agreement) compare() error {
	if s.own.Index == 0 || s.agreed.Index != s.own.Index || s.agreed.Hash == s.own.Hash {
		return nil
	}
	return &DivergedError{
		Group: s.g.cfg.Group, ReplicaID: s.g.cfg.ReplicaID, Index: s.own.Index, Own: s.own.Hash, Most: s.agreed.Hash,
	}
}

func (s *agreement) last() (own fsm.Sum, quiet bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.own, s.quiet
}

// Sum is that of this replica's state at the last Checksum entry.
func (g *Group) Sum() fsm.Sum {
	own, _ := g.agreement.last()
	return own
}

// pacer makes hashing take a share of the time only.
type pacer struct {
	ctx   context.Context
	since time.Time
	bytes int
}

func (p *pacer) pause(bytes int) error {
	if p.bytes += bytes; p.bytes < hashBurst {
		return nil
	}
	p.bytes = 0
	t := time.NewTimer((hashShare - 1) * time.Since(p.since))
	defer t.Stop()
	select {
	case <-t.C:
		p.since = time.Now()
		return nil
	case <-p.ctx.Done():
		return p.ctx.Err()
	}
}

// checksums proposes Checksum entries while this replica leads.
func (g *Group) checksums() {
	every := g.cfg.Timing.Checksum
	if every < 0 {
		return
	}
	for {
		// Not all groups of a node at the same time.
		t := time.NewTimer(every - time.Duration(rand.Int64N(int64(every)/4+1)))
		select {
		case <-t.C:
		case <-g.ctx.Done():
			t.Stop()
			return
		}
		if g.IsLeader() {
			g.checksum()
		}
	}
}

// checksum proposes an entry, unless nothing has changed since the last two.
func (g *Group) checksum() {
	own, quiet := g.agreement.last()
	if quiet && own.Index == g.machine.Applied().Index {
		return
	}
	agreed, differ := g.agreed(own)
	err := g.append(&fsm.Entry{Kind: fsm.Checksum, Agreed: agreed, Differ: differ}, 32).Error()
	if err != nil && g.ctx.Err() == nil {
		g.log.Info("no checksum was taken", "error", err)
	}
}

// agreed finds out what most voters had where this replica had own, and how many had something else. If all answer and
// there is no majority, which takes two replicas or several faults, the leader's state is the one to go on with.
func (g *Group) agreed(own fsm.Sum) (agreed fsm.Sum, differ uint64) {
	if own.Index == 0 {
		return fsm.Sum{}, 0
	}
	var others []string
	voters := g.voters(g.raft())
	for _, id := range voters {
		if id != g.cfg.ReplicaID {
			others = append(others, id)
		}
	}
	votes, answers := map[uint64]int{own.Hash: 1}, 1
	if len(others) > 0 && g.cfg.AskSums != nil {
		ctx, cancel := context.WithTimeout(g.ctx, askSumsTimeout)
		sums := g.cfg.AskSums(ctx, others)
		cancel()
		for id, sum := range sums {
			if sum.Index != own.Index {
				continue
			}
			votes[sum.Hash]++
			answers++
			if sum.Hash != own.Hash {
				g.log.Error("the states of two replicas differ", "replica", id, "index", own.Index, "hash", sum.Hash, "here", own.Hash)
			}
		}
	}
	for hash, n := range votes {
		if 2*n > len(voters) {
			return fsm.Sum{Index: own.Index, Hash: hash}, uint64(answers - n)
		}
	}
	if answers == len(voters) {
		return own, uint64(answers - votes[own.Hash])
	}
	return fsm.Sum{}, uint64(answers - votes[own.Hash])
}
