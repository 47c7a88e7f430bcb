// Package placement plans which node holds which shard. It is pure: a plan follows from what the catalog and gossip say,
// and the node that leads the catalog carries it out.
package placement

import (
	"cmp"
	"slices"

	"github.com/holdfastdb/holdfast/fsm/catalog"
)

// Plan lists the replicas to add, at most one for each shard: a shard's next change waits for the one before. A shard
// that waits for a learner to become a voter gets nothing.
func Plan(t *catalog.Topology, alive func(nodeID string) bool) []catalog.AddReplica {
	load := make(map[string]int, len(t.Nodes)) // replicas by node
	for i := range t.Shards {
		for _, r := range t.Shards[i].Replicas {
			load[r.Node]++
		}
	}
	var plan []catalog.AddReplica
	for i := range t.Shards {
		s := &t.Shards[i]
		if len(s.Replicas) >= t.Cluster.Replicas || slices.ContainsFunc(s.Replicas, func(r catalog.Replica) bool { return r.Role != catalog.Voter }) {
			continue
		}
		if node, ok := target(t, s, load, alive); ok {
			load[node]++
			plan = append(plan, catalog.AddReplica{Shard: s.ID, Epoch: s.Epoch, Node: node})
		}
	}
	return plan
}

// target picks the node for a shard's next replica: in a zone that has none of the shard if possible, then the one with
// the fewest replicas, then the smallest id.
func target(t *catalog.Topology, s *catalog.Shard, load map[string]int, alive func(string) bool) (string, bool) {
	zones := make(map[string]int)
	for _, r := range s.Replicas {
		if n, ok := t.Node(r.Node); ok {
			zones[n.Zone]++
		}
	}
	var free []catalog.Node
	for _, n := range t.Nodes {
		has := slices.ContainsFunc(s.Replicas, func(r catalog.Replica) bool { return r.Node == n.ID })
		if !has && n.State == catalog.Active && alive(n.ID) {
			free = append(free, n)
		}
	}
	if len(free) == 0 {
		return "", false
	}
	best := slices.MinFunc(free, func(a, b catalog.Node) int {
		return cmp.Or(cmp.Compare(zones[a.Zone], zones[b.Zone]), cmp.Compare(load[a.ID], load[b.ID]), cmp.Compare(a.ID, b.ID))
	})
	return best.ID, true
}

// Leader names the node that should lead a shard, so that leaders are spread over the nodes; "" for a shard without
// voters.
func Leader(s *catalog.Shard) string {
	var voters []string
	for _, r := range s.Replicas {
		if r.Role == catalog.Voter {
			voters = append(voters, r.Node)
		}
	}
	if len(voters) == 0 {
		return ""
	}
	slices.Sort(voters)
	return voters[int(s.ID)%len(voters)]
}

// MaxCatalogVoters bounds the voters of the catalog: more would only slow it down.
const MaxCatalogVoters = 5
