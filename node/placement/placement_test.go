package placement_test

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/holdfastdb/holdfast/fsm/catalog"
	"github.com/holdfastdb/holdfast/node/placement"
)

// nodes makes active nodes; a name such as "a/z1" has a zone.
func nodes(names ...string) []catalog.Node {
	var list []catalog.Node
	for _, name := range names {
		n := catalog.Node{ID: name[:1], State: catalog.Active}
		if len(name) > 1 {
			n.Zone = name[2:]
		}
		list = append(list, n)
	}
	return list
}

// shard makes a shard with a voter on each node, and a learner on those whose name ends with "?".
func shard(id uint32, on ...string) catalog.Shard {
	s := catalog.Shard{ID: id, Epoch: 7}
	for _, name := range on {
		r := catalog.Replica{Node: name[:1], Role: catalog.Voter}
		if len(name) > 1 {
			r.Role = catalog.Learner
		}
		s.Replicas = append(s.Replicas, r)
	}
	return s
}

func TestPlan(t *testing.T) {
	everybody := func(string) bool { return true }
	for name, tt := range map[string]struct {
		nodes  []catalog.Node
		shards []catalog.Shard
		alive  func(string) bool
		want   string
	}{
		"nothing to do":              {nodes("a", "b", "c"), []catalog.Shard{shard(1, "a", "b", "c")}, everybody, ""},
		"one at a time":              {nodes("a", "b", "c"), []catalog.Shard{shard(1, "a")}, everybody, "1→b"},
		"spread over the others":     {nodes("a", "b", "c"), []catalog.Shard{shard(1, "a"), shard(2, "a")}, everybody, "1→b 2→c"},
		"a learner first":            {nodes("a", "b", "c"), []catalog.Shard{shard(1, "a", "b?")}, everybody, ""},
		"not to the dead":            {nodes("a", "b", "c"), []catalog.Shard{shard(1, "a")}, func(id string) bool { return id != "b" }, "1→c"},
		"nobody is left":             {nodes("a", "b"), []catalog.Shard{shard(1, "a", "b")}, everybody, ""},
		"another zone":               {nodes("a/x", "b/x", "c/y"), []catalog.Shard{shard(1, "a")}, everybody, "1→c"},
		"the same zone if must be":   {nodes("a/x", "b/x"), []catalog.Shard{shard(1, "a")}, everybody, "1→b"},
		"a zone before a light load": {nodes("a/x", "b/x", "c/y"), []catalog.Shard{shard(1, "a"), shard(2, "c"), shard(3, "c")}, everybody, "1→c 2→b 3→a"},
	} {
		t.Run(name, func(t *testing.T) {
			topology := &catalog.Topology{Cluster: catalog.Cluster{Replicas: 3}, Nodes: tt.nodes, Shards: tt.shards}
			got := ""
			for i, a := range placement.Plan(topology, tt.alive) {
				if a.Epoch != 7 {
					t.Errorf("planned on epoch %d", a.Epoch)
				}
				if i > 0 {
					got += " "
				}
				got += fmt.Sprintf("%d→%s", a.Shard, a.Node)
			}
			if got != tt.want {
				t.Errorf("planned %q, want %q", got, tt.want)
			}
		})
	}
}

func TestNodesThatLeaveGetNothing(t *testing.T) {
	list := nodes("a", "b", "c")
	list[1].State = "draining"
	plan := placement.Plan(&catalog.Topology{Cluster: catalog.Cluster{Replicas: 3}, Nodes: list, Shards: []catalog.Shard{shard(1, "a")}}, func(string) bool { return true })
	if len(plan) != 1 || plan[0].Node != "c" {
		t.Errorf("planned %+v", plan)
	}
}

// Carried out step by step, plans end, with every shard at its number of replicas and the nodes about evenly loaded.
func TestPlansComeToAnEvenEnd(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		count := rapid.IntRange(1, 7).Draw(t, "nodes")
		replicas := rapid.IntRange(1, 5).Draw(t, "replicas")
		topology := &catalog.Topology{Cluster: catalog.Cluster{Replicas: replicas}}
		for i := range count {
			topology.Nodes = append(topology.Nodes, catalog.Node{ID: string(rune('a' + i)), State: catalog.Active})
		}
		for i := range rapid.IntRange(1, 40).Draw(t, "shards") {
			topology.Shards = append(topology.Shards, shard(uint32(i+1), "a")) // as a bootstrap makes them
		}
		load := map[string]int{"a": len(topology.Shards)}
		for step := 0; ; step++ {
			plan := placement.Plan(topology, func(string) bool { return true })
			if len(plan) == 0 {
				break
			}
			if step > replicas {
				t.Fatalf("still planning after %d steps: %+v", step, plan)
			}
			for _, a := range plan {
				s := &topology.Shards[a.Shard-1]
				if slices.ContainsFunc(s.Replicas, func(r catalog.Replica) bool { return r.Node == a.Node }) {
					t.Fatalf("shard %d is on %s already", a.Shard, a.Node)
				}
				s.Replicas = append(s.Replicas, catalog.Replica{Node: a.Node, Role: catalog.Voter})
				load[a.Node]++
			}
		}
		for _, s := range topology.Shards {
			if len(s.Replicas) != min(count, replicas) {
				t.Fatalf("shard %d has %d replicas of %d on %d nodes", s.ID, len(s.Replicas), replicas, count)
			}
		}
		delete(load, "a") // has all from the start
		if len(load) > 0 {
			least, most := slices.Min(slices.Collect(maps.Values(load))), slices.Max(slices.Collect(maps.Values(load)))
			if most-least > 2 { // one shard after the other, each on the best node that is left for it
				t.Fatalf("uneven: %v", load)
			}
		}
	})
}

func TestLeadersAreSpreadOverVoters(t *testing.T) {
	leads := map[string]int{}
	for id := range uint32(9) {
		s := shard(id, "c", "a", "b", "d?")
		leads[placement.Leader(&s)]++
	}
	if !maps.Equal(leads, map[string]int{"a": 3, "b": 3, "c": 3}) {
		t.Errorf("nine shards are led by %v", leads)
	}
	none := shard(1, "a?")
	if got := placement.Leader(&none); got != "" {
		t.Errorf("a shard without voters is led by %q", got)
	}
}
