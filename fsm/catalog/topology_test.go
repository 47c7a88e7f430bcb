package catalog

import (
	"reflect"
	"testing"

	"github.com/holdfastdb/holdfast/fsm"
)

func TestBootstrap(t *testing.T) {
	c := newCat(t)
	if got := c.topology(); !reflect.DeepEqual(got, Topology{}) {
		t.Errorf("topology of nothing: %+v", got)
	}
	valid := Bootstrap{ClusterID: "c1", Shards: 3, Replicas: 3, Node: firstNode}
	for name, spoil := range map[string]func(*Bootstrap){
		"no id":           func(b *Bootstrap) { b.ClusterID = "" },
		"no shards":       func(b *Bootstrap) { b.Shards = 0 },
		"too many shards": func(b *Bootstrap) { b.Shards = MaxShards + 1 },
		"no replicas":     func(b *Bootstrap) { b.Replicas = 0 },
		"no node":         func(b *Bootstrap) { b.Node.ID = "" },
	} {
		t.Run(name, func(t *testing.T) {
			q := valid
			spoil(&q)
			refused(c, OpBootstrap, q, fsm.Invalid)
		})
	}
	q := valid
	q.Node.State, q.Node.Joined = Removed, 7 // not the caller's to say
	made := done[Cluster](c, OpBootstrap, q)
	equal(t, "cluster", made, Cluster{ID: "c1", Shards: 3, Replicas: 3, Created: c.Now, Epoch: 1})
	node := firstNode
	node.State, node.Joined = Active, c.Now
	first := Replica{"n1", 1, Voter}
	want := Topology{Cluster: made, Nodes: []Node{node}, Shards: []Shard{
		{ID: 1, First: 0, Last: 21844, Epoch: 1, Gens: 1, Replicas: []Replica{first}},
		{ID: 2, First: 21845, Last: 43689, Epoch: 1, Gens: 1, Replicas: []Replica{first}},
		{ID: 3, First: 43690, Last: 65535, Epoch: 1, Gens: 1, Replicas: []Replica{first}},
	}}
	equal(t, "topology", c.topology(), want)

	c.Now += 1000
	q.Shards, q.Node.ID = 8, "n9"
	equal(t, "the second bootstrap", done[Cluster](c, OpBootstrap, q), made)
	q.ClusterID = "c2"
	refused(c, OpBootstrap, q, fsm.Conflict)
	equal(t, "topology", c.topology(), want)
}

// Before there is a cluster, everything else is refused.
func TestNotSetUp(t *testing.T) {
	c := newCat(t)
	refused(c, OpPutNode, firstNode, fsm.NotFound)
	refused(c, OpAddReplica, AddReplica{Shard: 1, Epoch: 1, Node: "n1"}, fsm.NotFound)
	refused(c, OpSetReplica, SetReplica{Shard: 1, Epoch: 1, Node: "n1", Role: Voter}, fsm.NotFound)
	refused(c, OpCreatePolicy, PolicyEdit{Policy: samplePolicy("a")}, fsm.NotFound)
	refused(c, OpUpdatePolicy, PolicyEdit{Policy: Policy{Number: 1}}, fsm.NotFound)
	refused(c, OpDeletePolicy, PolicyRef{Policy: "p1"}, fsm.NotFound)
	refused(c, OpAssign, Assign{Policy: "p1", Clients: []string{"a"}}, fsm.NotFound)
	refused(c, OpUnassign, Assign{Policy: "p1", Clients: []string{"a"}}, fsm.NotFound)
	refused(c, OpPutDomain, Domain{Name: "d", YAML: "y"}, fsm.NotFound)
	if list, revision, err := c.changes(5); list != nil || revision != 5 || err != nil {
		t.Errorf("changes of nothing: %v %d %v", list, revision, err)
	}
}

// Every slot belongs to exactly one shard, and shards differ by at most one slot.
func TestSplitSlots(t *testing.T) {
	for n := uint32(1); n <= MaxShards; n++ {
		next := 0
		for i := range n {
			first, last := SplitSlots(i, n)
			if size := int(last) - int(first) + 1; int(first) != next || size < Slots/int(n) || size > Slots/int(n)+1 {
				t.Fatalf("shard %d of %d has slots %d to %d, the one before ends at %d", i, n, first, last, next-1)
			}
			next = int(last) + 1
		}
		if next != Slots {
			t.Fatalf("%d shards end at slot %d", n, next)
		}
	}
}

func TestPutNode(t *testing.T) {
	c := setUp(t, 1)
	refused(c, OpPutNode, Node{Peer: "h:1"}, fsm.Invalid)
	refused(c, OpPutNode, Node{ID: "n2"}, fsm.Invalid)

	c.Now += 10
	joined := c.Now
	second := Node{ID: "n2", Peer: "h2:3", State: Draining, Joined: 1}
	equal(t, "epoch after a new node", done[Cluster](c, OpPutNode, second).Epoch, 2)
	second.State, second.Joined = Active, joined
	if got, ok := ptr(c.topology()).Node("n2"); !ok || got != second {
		t.Errorf("new node: %+v", got)
	}
	c.Now += 10
	equal(t, "epoch after the same again", done[Cluster](c, OpPutNode, second).Epoch, 2)
	moved := second
	moved.Peer, moved.Zone = "h3:3", "z2"
	equal(t, "epoch after a move", done[Cluster](c, OpPutNode, moved).Epoch, 3)
	if got, _ := ptr(c.topology()).Node("n2"); got != moved {
		t.Errorf("moved node: %+v, want %+v", got, moved)
	}
	if _, ok := ptr(c.topology()).Node("n3"); ok {
		t.Error("a node that nobody put")
	}
	equal(t, "revision: nodes are not policies", c.topology().Cluster.Revision, 0)

	gone := Node{ID: "gone", Peer: "h", State: Removed}
	withRecord(c, []byte(prefixNode+"gone"), gone)
	refused(c, OpPutNode, Node{ID: "gone", Peer: "h2"}, fsm.Conflict)
}

func ptr[T any](v T) *T { return &v }

// withRecord puts a record in the catalog that no command makes yet, as a later version may.
func withRecord[T any](c *cat, key []byte, v T) {
	c.T.Helper()
	c.Put(append([]byte{TypeID}, key...), Body[T]{v}.Append(nil))
}

func TestReplicas(t *testing.T) {
	c := setUp(t, 2)
	for _, id := range []string{"n2", "n3"} {
		done[Cluster](c, OpPutNode, Node{ID: id, Peer: id})
	}
	withRecord(c, []byte(prefixNode+"drain"), Node{ID: "drain", Peer: "h", State: Draining})
	epoch := c.topology().Cluster.Epoch

	for name, q := range map[string]AddReplica{
		"stale":         {Shard: 1, Epoch: 0, Node: "n2"},
		"too new":       {Shard: 1, Epoch: 2, Node: "n2"},
		"there already": {Shard: 1, Epoch: 1, Node: "n1"},
		"unknown node":  {Shard: 1, Epoch: 1, Node: "n9"},
		"draining node": {Shard: 1, Epoch: 1, Node: "drain"},
	} {
		t.Run(name, func(t *testing.T) { refused(c, OpAddReplica, q, fsm.Conflict) })
	}
	refused(c, OpAddReplica, AddReplica{Shard: 3, Epoch: 1, Node: "n2"}, fsm.NotFound)
	refused(c, OpAddReplica, AddReplica{Shard: 0, Epoch: 1, Node: "n2"}, fsm.NotFound)

	s := done[Shard](c, OpAddReplica, AddReplica{Shard: 1, Epoch: 1, Node: "n2"})
	equal(t, "after an addition", s, Shard{
		ID: 1, First: 0, Last: 32767, Epoch: 2, Gens: 2, Replicas: []Replica{{"n1", 1, Voter}, {"n2", 2, Learner}},
	})
	equal(t, "id", s.Replicas[1].ID(), "n2/2")
	refused(c, OpAddReplica, AddReplica{Shard: 1, Epoch: 1, Node: "n3"}, fsm.Conflict)

	refused(c, OpSetReplica, SetReplica{Shard: 1, Epoch: 1, Node: "n2", Role: Voter}, fsm.Conflict)
	refused(c, OpSetReplica, SetReplica{Shard: 1, Epoch: 2, Node: "n3", Role: Voter}, fsm.NotFound)
	refused(c, OpSetReplica, SetReplica{Shard: 1, Epoch: 2, Node: "n2", Role: "king"}, fsm.NotFound)
	refused(c, OpSetReplica, SetReplica{Shard: 9, Epoch: 2, Node: "n2", Role: Voter}, fsm.NotFound)
	s = done[Shard](c, OpSetReplica, SetReplica{Shard: 1, Epoch: 2, Node: "n2", Role: Voter})
	equal(t, "after a promotion", s.Replicas, []Replica{{"n1", 1, Voter}, {"n2", 2, Voter}})
	equal(t, "epoch of the shard", s.Epoch, 3)

	got := c.topology()
	equal(t, "epoch of the cluster", got.Cluster.Epoch, epoch+2)
	equal(t, "the other shard", got.Shards[1].Epoch, 1)
	equal(t, "the shard", got.Shards[0], s)
}

// The nodes and shards of a known epoch are not read again, whatever else has changed.
func TestAKnownEpochIsNotReadAgain(t *testing.T) {
	c := setUp(t, 2)
	read := func(known *Topology) Topology {
		t.Helper()
		v := c.View()
		defer v.Close()
		got, found, err := ReadTopology(View(v), known)
		if err != nil || !found {
			t.Fatalf("read: %v, found %v", err, found)
		}
		return got
	}
	first := read(nil)
	withRecord(c, []byte(prefixNode+"x"), Node{ID: "x", Peer: "h"}) // without a new epoch, as nothing does it
	equal(t, "nodes of a known epoch", len(read(&first).Nodes), len(first.Nodes))
	c.create("p")
	again := read(&first)
	equal(t, "its revision", again.Cluster.Revision, first.Cluster.Revision+1)
	equal(t, "its nodes", len(again.Nodes), len(first.Nodes))
	equal(t, "its shards", len(again.Shards), 2)
	other := first
	other.Cluster.ID = "c2"
	equal(t, "nodes, if another cluster is known", len(read(&other).Nodes), len(first.Nodes)+1)
	done[Cluster](c, OpPutNode, Node{ID: "y", Peer: "h"})
	equal(t, "nodes of the next epoch", len(read(&again).Nodes), len(first.Nodes)+2)
}
