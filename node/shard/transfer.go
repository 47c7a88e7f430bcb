package shard

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/fsm"
)

// A leadership transfer that times out may leave something behind in the Raft instance on which the next transfer to the
// same replica hangs, and with it the instance refuses all entries for ever (hashicorp/raft #696). So there is one
// transfer at a time, to a replica that is caught up, and never a second one to the same replica in a term.

// attempts are the replicas that a transfer went to in a term.
type attempts struct {
	mu   sync.Mutex
	term uint64
	to   map[string]bool
}

func (a *attempts) has(term uint64, replicaID string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.term == term && a.to[replicaID]
}

func (a *attempts) add(term uint64, replicaID string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.term != term || a.to == nil {
		a.term, a.to = term, make(map[string]bool)
	}
	a.to[replicaID] = true
}

// ErrTried is returned, wrapped, by a transfer to a replica that did not take leadership in this term before.
var ErrTried = errors.New("it did not take leadership in this term before: wait for another leader")

// TransferLeadership hands leadership to a voter, which the caller has made sure is caught up.
func (g *Group) TransferLeadership(ctx context.Context, replicaID string) error {
	if err := g.lockMembers(ctx); err != nil {
		return fmt.Errorf("transfer leadership: %w", err)
	}
	defer g.unlockMembers()
	if !g.IsLeader() {
		return fmt.Errorf("transfer leadership: %w", fsm.ErrNotLeader)
	}
	return g.transfer(ctx, replicaID)
}

// Tried tells that leadership cannot be transferred to a replica in this term any more.
func (g *Group) Tried(replicaID string) bool {
	return g.tried.has(g.raft().CurrentTerm(), replicaID)
}

// transfer hands leadership over. The caller has the turn.
func (g *Group) transfer(ctx context.Context, replicaID string) error {
	in := g.current.Load()
	term := in.raft.CurrentTerm()
	if g.tried.has(term, replicaID) {
		return fmt.Errorf("transfer leadership to %s: %w", replicaID, ErrTried)
	}
	g.tried.add(term, replicaID)
	if !in.enter() {
		return fmt.Errorf("transfer leadership to %s: %w", replicaID, fsm.ErrNotLeader)
	}
	future := in.raft.LeadershipTransferToServer(raft.ServerID(replicaID), raft.ServerAddress(replicaID))
	if err := in.wait(ctx, future); err != nil {
		in.suspect() // the watcher finds out whether it takes entries
		return fmt.Errorf("transfer leadership to %s: %w", replicaID, err)
	}
	return nil
}

// handOverTimeout bounds how long a replica looks for another one to lead.
const handOverTimeout = 10 * time.Second

// HandOver gives leadership to another voter, if one is fit for it, and returns when that has succeeded or failed.
func (g *Group) HandOver(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, handOverTimeout)
	defer cancel()
	if g.lockMembers(ctx) != nil {
		return
	}
	defer g.unlockMembers()
	for _, id := range g.voters(g.raft()) {
		r := g.raft()
		if r.State() != raft.Leader || ctx.Err() != nil {
			return
		}
		if id == g.cfg.ReplicaID || g.tried.has(r.CurrentTerm(), id) || g.cfg.Fit != nil && !g.cfg.Fit(ctx, id) {
			continue
		}
		err := g.transfer(ctx, id)
		if err == nil {
			return
		}
		g.log.Info("leadership was not handed over", "replica", id, "error", err)
	}
}
