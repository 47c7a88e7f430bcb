package shard

import (
	"context"
	"fmt"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage/kv"
	"github.com/holdfastdb/holdfast/storage/plant"
)

// Linearizable reads without clocks. A read takes the term and the commit index, asks the voters' nodes whether the
// term is still the newest that they know, waits for the state to reach the index, and reads. A node raises its term
// before it votes in it; so if a majority answers, after the read began, that the term is the newest, nobody had been
// elected in a later one before the read began, and whatever was acknowledged by then is covered by the index. The
// index is right only once the leader has committed an entry of its own term: that is TermStart.
//
// raft.VerifyLeader is not enough: it counts acknowledgements of requests that were sent before it was called.

// maxLag is by how much, in milliseconds, shard time may be behind the leader's clock in an answer: an idle shard's time
// stands still, and what has expired since would still be there.
const maxLag = 250

// Query answers read-only calls from the state as of now.
func (g *Group) Query(ctx context.Context, calls []fsm.Call) ([]fsm.Result, fsm.Applied, error) {
	if err := g.sync(ctx); err != nil {
		return nil, fsm.Applied{}, err
	}
	if g.cfg.Registry.Point(calls) {
		return g.machine.query(calls)
	}
	view, err := g.View()
	if err != nil {
		return nil, fsm.Applied{}, err
	}
	defer view.Close()
	results, applied, err := g.cfg.Registry.Query(view, calls)
	if err != nil {
		return nil, fsm.Applied{}, fmt.Errorf("query group %d: %w", g.cfg.Group, err)
	}
	return results, applied, nil
}

// View returns a view of this replica's state as far as it was applied.
func (g *Group) View() (kv.View, error) {
	if err := g.machine.flush(); err != nil {
		return nil, fmt.Errorf("read group %d: %w", g.cfg.Group, err)
	}
	return g.cfg.State.View(), nil
}

// sync returns when the state here includes everything that was acknowledged before the call, at a time that is right.
func (g *Group) sync(ctx context.Context) error {
	r := g.raft()
	term, ok := g.leading(r)
	if plant.On(plant.ReadUnconfirmed) && ok || plant.On(plant.FollowerReads) && !ok {
		return nil
	}
	if !ok {
		return fsm.ErrNotLeader
	}
	if g.clock.now()-g.machine.Applied().Time > maxLag {
		// Committing an entry in this term proves as much as asking.
		return g.tick(ctx)
	}
	index := r.CommitIndex()
	check := TermCheck{Group: g.cfg.Group, Term: term, Self: g.cfg.ReplicaID, Voters: g.voters(r)}
	if err := g.cfg.Confirm(ctx, check); err != nil {
		return fmt.Errorf("%w: %w", fsm.ErrNotLeader, err)
	}
	return g.machine.wait(ctx, index)
}

// nudges moves shard time for reads that wait for it. A read needs an entry that was proposed after it began, so those that
// come while one is under way share the next.
type nudges struct {
	mu      sync.Mutex
	running bool
	next    *nudge // nil if nobody waits for it
}

type nudge struct {
	done chan struct{}
	err  error // once done
}

// tick moves shard time to the leader's clock.
func (g *Group) tick(ctx context.Context) error {
	n := &g.nudges
	n.mu.Lock()
	if n.next == nil {
		n.next = &nudge{done: make(chan struct{})}
	}
	mine := n.next
	if !n.running {
		n.running = true
		go g.nudge() // ends when nobody waits; Raft answers each entry, or refuses it
	}
	n.mu.Unlock()
	select {
	case <-mine.done:
		return mine.err
	case <-ctx.Done():
		return fmt.Errorf("read group %d: %w", g.cfg.Group, ctx.Err())
	}
}

func (g *Group) nudge() {
	n := &g.nudges
	for {
		n.mu.Lock()
		now := n.next
		n.next = nil
		n.running = now != nil
		n.mu.Unlock()
		if now == nil {
			return
		}
		now.err = fromRaft(g.append(&fsm.Entry{Kind: fsm.Nudge}, 16).Error())
		close(now.done)
	}
}

// leading returns the term if r leads and has committed in it.
func (g *Group) leading(r *raft.Raft) (uint64, bool) {
	before := r.CurrentTerm()
	state := r.State()
	after := r.CurrentTerm()
	return after, state == raft.Leader && before == after && g.ready.Load() == after
}

func (g *Group) voters(r *raft.Raft) []string {
	var ids []string
	for _, s := range r.GetConfiguration().Configuration().Servers {
		if s.Suffrage == raft.Voter {
			ids = append(ids, string(s.ID))
		}
	}
	return ids
}
