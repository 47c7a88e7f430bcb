package node

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/holdfastdb/holdfast/fsm/catalog"
	"github.com/holdfastdb/holdfast/node/placement"
	"github.com/holdfastdb/holdfast/node/shard"
)

// The catalog says how the cluster shall be; each node brings about its part, over and over: it opens the replicas that
// it shall have, and for the groups that it leads it makes the Raft configuration what the catalog says, one change at
// a time. The catalog's leader also plans new replicas. Every step can be repeated after a crash of anyone.

const (
	reconcileEvery = time.Second
	// changeTimeout bounds one change of a group.
	changeTimeout = 10 * time.Second
	// promoteLag is how many entries a learner may be behind to become a voter.
	promoteLag = 256
	// settleBeats is how long a group's leader waits before it hands over to the preferred node, in heartbeat timeouts.
	settleBeats = 5
)

func (n *Node) wake() {
	select {
	case n.poke <- struct{}{}:
	default:
	}
}

func (n *Node) reconcileLoop() {
	ticks := time.NewTicker(reconcileEvery)
	defer ticks.Stop()
	led := make(map[uint32]time.Time) // since when this node leads a group
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-n.poke:
		case <-ticks.C:
		}
		if n.readTopology() {
			n.notify()
		}
		t := n.topology.Load()
		if t == nil {
			continue
		}
		n.gossip.SetKnown(gossipAddrs(t, n.identity.NodeID))
		n.openAssigned(t)
		for group, m := range n.members() {
			if !m.IsLeader() {
				delete(led, group)
				continue
			}
			if led[group].IsZero() {
				led[group] = time.Now()
			}
			if group == catalogGroup {
				n.reconcileCatalog(m.Group, t)
			} else if s, ok := shardOf(t, group); ok {
				n.reconcileShard(m.Group, s, time.Since(led[group]) > settleBeats*cmp.Or(n.cfg.Timing.Heartbeat, time.Second))
			}
		}
	}
}

func gossipAddrs(t *catalog.Topology, self string) []string {
	var addrs []string
	for _, node := range t.Nodes {
		if node.ID != self && node.Gossip != "" {
			addrs = append(addrs, node.Gossip)
		}
	}
	return addrs
}

func shardOf(t *catalog.Topology, id uint32) (catalog.Shard, bool) {
	i := slices.IndexFunc(t.Shards, func(s catalog.Shard) bool { return s.ID == id })
	if i < 0 {
		return catalog.Shard{}, false
	}
	return t.Shards[i], true
}

// openAssigned starts the replicas that the catalog gives this node.
func (n *Node) openAssigned(t *catalog.Topology) {
	for i := range t.Shards {
		s := &t.Shards[i]
		for _, r := range s.Replicas {
			if r.Node != n.identity.NodeID {
				continue
			}
			if err := n.openGroup(s.ID, r.Gen, makesGroup(s)); err != nil {
				n.cfg.OnFatal(err) // its files cannot be read
				return
			}
		}
	}
}

// makesGroup tells that the shard's only replica is its first, which makes the group if there is none yet. Nobody adds a
// replica before that: the node that plans opens its own first. Later, a replica that finds nothing has lost it, and must
// not make the shard anew beside the one that the others have.
func makesGroup(s *catalog.Shard) bool { return s.Epoch == 1 && len(s.Replicas) == 1 }

// alive tells whether gossip sees a node.
func (n *Node) alive(id string) bool {
	if id == n.identity.NodeID {
		return true
	}
	m, ok := n.gossip.Member(id)
	return ok && m.Alive
}

// reconcileCatalog makes every node a member of the catalog's group and carries out the placement plan.
func (n *Node) reconcileCatalog(g *shard.Group, t *catalog.Topology) {
	members := g.Members()
	voters := 0
	for _, m := range members {
		if m.Voter {
			voters++
		}
	}
	for _, node := range t.Nodes {
		if node.State == catalog.Removed {
			continue
		}
		id := catalog.ReplicaID(node.ID, 1)
		voter, known := roleOf(members, id)
		switch {
		case !known:
			n.change("add a node to the catalog", func(ctx context.Context) error { return g.AddLearner(ctx, id) })
		case !voter && voters < placement.MaxCatalogVoters && n.caughtUp(n.ctx, g, id):
			n.change("give a node a vote in the catalog", func(ctx context.Context) error { return g.Promote(ctx, id) })
			voters++
		}
	}
	for _, add := range placement.Plan(t, n.alive) {
		n.change("add a replica", func(ctx context.Context) error {
			_, err := n.command(ctx, catalog.Call(catalog.OpAddReplica, add))
			return err
		})
	}
}

func roleOf(members []shard.Member, id string) (voter, known bool) {
	i := slices.IndexFunc(members, func(m shard.Member) bool { return m.ReplicaID == id })
	if i < 0 {
		return false, false
	}
	return members[i].Voter, true
}

// reconcileShard takes the next step of a shard that this node leads.
func (n *Node) reconcileShard(g *shard.Group, s catalog.Shard, settled bool) {
	members := g.Members()
	for _, r := range s.Replicas {
		id := r.ID()
		voter, known := roleOf(members, id)
		switch {
		case !known:
			n.change("add a learner", func(ctx context.Context) error { return g.AddLearner(ctx, id) })
			return
		case !voter:
			if n.caughtUp(n.ctx, g, id) {
				n.change("promote a learner", func(ctx context.Context) error { return g.Promote(ctx, id) })
			}
			return
		case r.Role != catalog.Voter:
			n.change("record a new voter", func(ctx context.Context) error {
				_, err := n.command(ctx, catalog.Call(catalog.OpSetReplica, catalog.SetReplica{
					Shard: s.ID, Epoch: s.Epoch, Node: r.Node, Role: catalog.Voter,
				}))
				return err
			})
			return
		}
	}
	// Everything is as it shall be: leaders are spread.
	preferred := placement.Leader(&s)
	if !settled || preferred == n.identity.NodeID {
		return
	}
	for _, r := range s.Replicas {
		if r.Node == preferred && !g.Tried(r.ID()) && n.fit(n.ctx, g, r.ID()) {
			n.change("hand leadership to the preferred node", func(ctx context.Context) error { return g.TransferLeadership(ctx, r.ID()) })
		}
	}
}

func (n *Node) change(what string, do func(ctx context.Context) error) {
	ctx, cancel := context.WithTimeout(n.ctx, changeTimeout)
	defer cancel()
	if err := do(ctx); err != nil && n.ctx.Err() == nil {
		n.log.Info("a change did not succeed, it will be tried again", "change", what, "error", err)
	}
}

// caughtUp asks a replica how far it is.
func (n *Node) caughtUp(ctx context.Context, g *shard.Group, replicaID string) bool {
	node, _, _ := strings.Cut(replicaID, "/")
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	status, err := n.nodeStatus(ctx, node)
	if err != nil {
		return false
	}
	for _, s := range status.Groups {
		if s.ReplicaID == replicaID && s.Group == g.ID() {
			return s.Applied > 0 && s.Applied+promoteLag >= g.Applied().Index
		}
	}
	return false
}
