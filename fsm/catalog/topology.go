package catalog

import (
	"fmt"
	"slices"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage/kv"
)

// Cluster is what the cluster as a whole is.
type Cluster struct {
	ID       string
	Shards   uint32
	Replicas int
	Created  fsm.Time
	// Epoch counts the changes of nodes and shards.
	Epoch uint64
	// Revision counts the changes of policies, assignments and domains.
	Revision uint64
	// Policies is the highest policy number used.
	Policies uint32
}

// Node is a member of the cluster.
type Node struct {
	ID, Name                 string
	GRPC, HTTP, Peer, Gossip string
	Zone                     string `json:",omitempty"`
	State                    NodeState
	Joined                   fsm.Time
}

// NodeState is what operators want of a node.
type NodeState string

// The states of a node. Draining and removal have their place here before there is code for them.
const (
	Active   NodeState = "active"
	Draining NodeState = "draining"
	Removed  NodeState = "removed"
)

// Role is what a replica does in its group.
type Role string

// The roles.
const (
	Voter   Role = "voter"
	Learner Role = "learner"
)

// Replica is one copy of a shard. Gen is never used again in a shard: a replica that comes back from the dead cannot be
// taken for another one.
type Replica struct {
	Node string
	Gen  uint32
	Role Role
}

// ID is the replica's id in its Raft group.
func (r Replica) ID() string { return ReplicaID(r.Node, r.Gen) }

// ReplicaID builds the id under which a replica is known in its Raft group.
func ReplicaID(node string, gen uint32) string { return fmt.Sprintf("%s/%d", node, gen) }

// Shard is a range of slots and its replicas.
type Shard struct {
	ID          uint32
	First, Last uint16
	// Epoch counts the changes of Replicas; a change names the epoch that it was planned on.
	Epoch    uint64
	Gens     uint32 // the highest Gen used
	Replicas []Replica
}

// Slots is how many slots there are.
const Slots = 1 << 16

// MaxShards bounds the shards of a cluster.
const MaxShards = 1024

// SplitSlots returns the slots of shard number i of n, counted from 0.
func SplitSlots(i, n uint32) (first, last uint16) {
	return uint16(uint64(i) * Slots / uint64(n)), uint16(uint64(i+1)*Slots/uint64(n) - 1)
}

// Bootstrap makes a cluster of one node that holds all shards.
type Bootstrap struct {
	ClusterID string
	Shards    uint32
	Replicas  int
	Node      Node
}

func bootstrap(tx *fsm.Tx, q *Body[Bootstrap]) (Body[Cluster], error) {
	old, found, err := get[Cluster](tx, []byte(keyCluster))
	if err != nil {
		return Body[Cluster]{}, err
	}
	if found {
		if old.ID == q.V.ClusterID {
			return Body[Cluster]{old}, nil
		}
		return Body[Cluster]{}, fsm.Errorf(fsm.Conflict, "this is cluster %s already", old.ID)
	}
	c := Cluster{ID: q.V.ClusterID, Shards: q.V.Shards, Replicas: q.V.Replicas, Created: tx.Now(), Epoch: 1}
	if c.ID == "" || c.Shards < 1 || c.Shards > MaxShards || c.Replicas < 1 || q.V.Node.ID == "" {
		return Body[Cluster]{}, fsm.Errorf(fsm.Invalid, "a cluster needs an id, 1 to %d shards, replicas and a node", MaxShards)
	}
	set(tx, []byte(keyCluster), c)
	node := q.V.Node
	node.State, node.Joined = Active, tx.Now()
	set(tx, []byte(prefixNode+node.ID), node)
	for i := range c.Shards {
		s := Shard{ID: i + 1, Epoch: 1, Gens: 1, Replicas: []Replica{{Node: node.ID, Gen: 1, Role: Voter}}}
		s.First, s.Last = SplitSlots(i, c.Shards)
		set(tx, numbered(prefixShard, s.ID), s)
	}
	return Body[Cluster]{c}, nil
}

// cluster reads the cluster record for a command.
func cluster(tx *fsm.Tx) (Cluster, error) {
	c, found, err := get[Cluster](tx, []byte(keyCluster))
	if err == nil && !found {
		err = fsm.Errorf(fsm.NotFound, "the cluster is not set up yet")
	}
	return c, err
}

// putNode takes a node in, or learns its new addresses.
func putNode(tx *fsm.Tx, q *Body[Node]) (Body[Cluster], error) {
	c, err := cluster(tx)
	if err != nil {
		return Body[Cluster]{}, err
	}
	n := q.V
	if n.ID == "" || n.Peer == "" {
		return Body[Cluster]{}, fsm.Errorf(fsm.Invalid, "a node needs an id and an address")
	}
	old, found, err := get[Node](tx, []byte(prefixNode+n.ID))
	switch {
	case err != nil:
		return Body[Cluster]{}, err
	case found && old.State == Removed:
		return Body[Cluster]{}, fsm.Errorf(fsm.Conflict, "node %s was removed; start it with an empty data directory", n.ID)
	case found:
		n.State, n.Joined = old.State, old.Joined
	default:
		n.State, n.Joined = Active, tx.Now()
	}
	if n != old {
		c.Epoch++
		set(tx, []byte(keyCluster), c)
		set(tx, []byte(prefixNode+n.ID), n)
	}
	return Body[Cluster]{c}, nil
}

// AddReplica gives a shard another replica, a learner at first.
type AddReplica struct {
	Shard uint32
	Epoch uint64 // of the shard, as planned on
	Node  string
}

func addReplica(tx *fsm.Tx, q *Body[AddReplica]) (Body[Shard], error) {
	s, err := shardAt(tx, q.V.Shard, q.V.Epoch)
	if err != nil {
		return Body[Shard]{}, err
	}
	n, found, err := get[Node](tx, []byte(prefixNode+q.V.Node))
	if err != nil {
		return Body[Shard]{}, err
	}
	if !found || n.State != Active {
		return Body[Shard]{}, fsm.Errorf(fsm.Conflict, "node %s takes no replicas", q.V.Node)
	}
	if slices.ContainsFunc(s.Replicas, func(r Replica) bool { return r.Node == n.ID }) {
		return Body[Shard]{}, fsm.Errorf(fsm.Conflict, "node %s has a replica of shard %d already", n.ID, s.ID)
	}
	s.Gens++
	s.Replicas = append(s.Replicas, Replica{Node: n.ID, Gen: s.Gens, Role: Learner})
	return putShard(tx, s)
}

// SetReplica records the role that a replica has in its Raft group.
type SetReplica struct {
	Shard uint32
	Epoch uint64
	Node  string
	Role  Role
}

func setReplica(tx *fsm.Tx, q *Body[SetReplica]) (Body[Shard], error) {
	s, err := shardAt(tx, q.V.Shard, q.V.Epoch)
	if err != nil {
		return Body[Shard]{}, err
	}
	i := slices.IndexFunc(s.Replicas, func(r Replica) bool { return r.Node == q.V.Node })
	if i < 0 || q.V.Role != Voter && q.V.Role != Learner {
		return Body[Shard]{}, fsm.Errorf(fsm.NotFound, "shard %d has no replica on node %s", s.ID, q.V.Node)
	}
	s.Replicas[i].Role = q.V.Role
	return putShard(tx, s)
}

func shardAt(tx *fsm.Tx, id uint32, epoch uint64) (Shard, error) {
	s, found, err := get[Shard](tx, numbered(prefixShard, id))
	switch {
	case err != nil:
		return s, err
	case !found:
		return s, fsm.Errorf(fsm.NotFound, "no shard %d", id)
	case s.Epoch != epoch:
		return s, fsm.Errorf(fsm.Conflict, "shard %d is at epoch %d, not %d: plan again", id, s.Epoch, epoch)
	}
	return s, nil
}

func putShard(tx *fsm.Tx, s Shard) (Body[Shard], error) {
	c, err := cluster(tx)
	if err != nil {
		return Body[Shard]{}, err
	}
	c.Epoch++
	s.Epoch++
	set(tx, []byte(keyCluster), c)
	set(tx, numbered(prefixShard, s.ID), s)
	return Body[Shard]{s}, nil
}

// Topology is the cluster with its nodes, by id, and its shards, by number.
type Topology struct {
	Cluster Cluster
	Nodes   []Node
	Shards  []Shard
}

// Node finds a node by its id.
func (t *Topology) Node(id string) (Node, bool) {
	i := slices.IndexFunc(t.Nodes, func(n Node) bool { return n.ID == id })
	if i < 0 {
		return Node{}, false
	}
	return t.Nodes[i], true
}

// ReadTopology reads the topology of a view of the type's keys; found is false before the bootstrap. Known is an earlier
// one, or nil: of the same epoch its nodes and shards are taken, so that policies may change often in a large cluster.
func ReadTopology(r kv.Reader, known *Topology) (t Topology, found bool, err error) {
	if t.Cluster, found, err = get[Cluster](r, []byte(keyCluster)); err != nil || !found {
		return t, found, err
	}
	if known != nil && known.Cluster.ID == t.Cluster.ID && known.Cluster.Epoch == t.Cluster.Epoch {
		t.Nodes, t.Shards = known.Nodes, known.Shards
		return t, true, nil
	}
	err = each(r, []byte(prefixNode), after([]byte(prefixNode)), func(_ []byte, n Node) bool {
		t.Nodes = append(t.Nodes, n)
		return true
	})
	if err != nil {
		return t, false, err
	}
	err = each(r, []byte(prefixShard), after([]byte(prefixShard)), func(_ []byte, s Shard) bool {
		t.Shards = append(t.Shards, s)
		return true
	})
	return t, err == nil, err
}

func topology(v *fsm.View, _ *Body[Nothing]) (Body[Topology], error) {
	t, _, err := ReadTopology(v, nil)
	return Body[Topology]{t}, err
}
