package shard

import (
	"context"
	"fmt"

	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/fsm"
)

// Member is a replica in the group's Raft configuration.
type Member struct {
	ReplicaID string
	Voter     bool
}

// Members lists the group's replicas as this one knows them.
func (g *Group) Members() []Member {
	var members []Member
	for _, s := range g.raft().GetConfiguration().Configuration().Servers {
		members = append(members, Member{ReplicaID: string(s.ID), Voter: s.Suffrage == raft.Voter})
	}
	return members
}

// AddLearner adds a replica that gets the log and has no vote. Every new replica starts so: Raft's AddVoter would count
// it for the quorum before it has anything.
func (g *Group) AddLearner(ctx context.Context, replicaID string) error {
	return g.change(ctx, "add learner "+replicaID, func(r *raft.Raft) raft.IndexFuture {
		return r.AddNonvoter(raft.ServerID(replicaID), raft.ServerAddress(replicaID), 0, enqueueTimeout)
	})
}

// Promote makes a learner a voter. The caller has made sure that it is caught up.
func (g *Group) Promote(ctx context.Context, replicaID string) error {
	return g.change(ctx, "promote "+replicaID, func(r *raft.Raft) raft.IndexFuture {
		return r.AddVoter(raft.ServerID(replicaID), raft.ServerAddress(replicaID), 0, enqueueTimeout)
	})
}

// Demote makes a voter a learner.
func (g *Group) Demote(ctx context.Context, replicaID string) error {
	return g.change(ctx, "demote "+replicaID, func(r *raft.Raft) raft.IndexFuture {
		return r.DemoteVoter(raft.ServerID(replicaID), 0, enqueueTimeout)
	})
}

// Remove takes a replica out of the group.
func (g *Group) Remove(ctx context.Context, replicaID string) error {
	return g.change(ctx, "remove "+replicaID, func(r *raft.Raft) raft.IndexFuture {
		return r.RemoveServer(raft.ServerID(replicaID), 0, enqueueTimeout)
	})
}

// lockMembers waits for the turn to change the group; the turn may last for a transfer.
func (g *Group) lockMembers(ctx context.Context) error {
	select {
	case g.members <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (g *Group) unlockMembers() { <-g.members }

func (g *Group) change(ctx context.Context, what string, start func(*raft.Raft) raft.IndexFuture) error {
	if err := g.lockMembers(ctx); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer g.unlockMembers()
	if !g.IsLeader() {
		return fmt.Errorf("%s: %w", what, fsm.ErrNotLeader)
	}
	in := g.current.Load()
	if !in.enter() {
		return fmt.Errorf("%s: %w", what, fsm.ErrNotLeader)
	}
	if err := in.wait(ctx, start(in.raft)); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	g.log.Info("group changed", "change", what)
	return nil
}
