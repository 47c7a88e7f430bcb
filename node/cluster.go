package node

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/catalog"
	"github.com/holdfastdb/holdfast/node/shard"
	"github.com/holdfastdb/holdfast/rpc/raftnet"
	"github.com/holdfastdb/holdfast/storage/kv"
)

// Calls between nodes.
const (
	callStatus    = "status"
	callCatalogAt = "catalog-at" // waits until the node's catalog includes an entry
	callTransfer  = "transfer"
)

func randomID() (id [16]byte) {
	_, _ = rand.Read(id[:]) // never fails: crypto/rand stops the process instead
	return id
}

// readTopology reads the catalog's topology from the local replica and reports whether the catalog has changed at all.
func (n *Node) readTopology() bool {
	g, ok := n.Group(catalogGroup)
	if !ok || g.Applied().Index == 0 {
		return false
	}
	view, err := g.View()
	if err != nil {
		return false // the node is stopping
	}
	defer view.Close()
	old := n.topology.Load()
	t, found, err := catalog.ReadTopology(catalog.View(view), old)
	if err != nil {
		n.cfg.OnFatal(fmt.Errorf("read the catalog: %w", err))
		return false
	}
	if !found || old != nil && old.Cluster == t.Cluster {
		return false
	}
	n.topology.Store(&t)
	// After a crash the node finds the others by what is on disk, before a leader has told it how far to read its log.
	if err := n.state.Sync(); err != nil {
		n.cfg.OnFatal(fmt.Errorf("keep the topology: %w", err))
	}
	return true
}

// WatchCatalog calls f, from one goroutine at a time, after the catalog has changed here. It must not block. The
// returned function ends that.
func (n *Node) WatchCatalog(f func()) (stop func()) {
	w := &n.watchers
	w.Lock()
	defer w.Unlock()
	id := w.next
	w.next++
	w.list[id] = f
	return func() {
		w.Lock()
		defer w.Unlock()
		delete(w.list, id)
	}
}

func (n *Node) notify() {
	n.watchers.Lock()
	defer n.watchers.Unlock()
	for _, f := range n.watchers.list {
		f()
	}
}

// CatalogView is a consistent view of this node's copy of the catalog, which the caller closes. Read it with the
// functions of package catalog, through catalog.View.
func (n *Node) CatalogView() kv.View {
	if g, ok := n.Group(catalogGroup); ok {
		if view, err := g.View(); err == nil {
			return view
		}
	}
	return n.state.Shard(catalogGroup).View()
}

// Topology is the cluster as this node's copy of the catalog has it; nil before the node has one.
func (n *Node) Topology() *catalog.Topology { return n.topology.Load() }

// ShardOf finds the shard of a routing key; false before the topology is known.
func (n *Node) ShardOf(routingKey string) (uint32, bool) {
	t := n.topology.Load()
	if t == nil {
		return 0, false
	}
	slot := uint16(xxh3.HashString(routingKey) >> 48)
	for i := range t.Shards {
		if s := &t.Shards[i]; slot >= s.First && slot <= s.Last {
			return s.ID, true
		}
	}
	return 0, false
}

// Do executes calls as one atomic step of a group, wherever it is led, exactly once as long as this node lives.
func (n *Node) Do(ctx context.Context, group uint32, calls []fsm.Call) (fsm.FrameOutcome, error) {
	return n.gateway.do(ctx, group, calls)
}

// Propose has a frame executed wherever its group is led.
func (n *Node) Propose(ctx context.Context, group uint32, f *fsm.Frame) (fsm.FrameOutcome, error) {
	return n.router.propose(ctx, group, f)
}

// Query answers calls linearizably wherever the group is led.
func (n *Node) Query(ctx context.Context, group uint32, calls []fsm.Call) ([]fsm.Result, fsm.Applied, error) {
	return n.router.query(ctx, group, calls)
}

// Catalog executes one catalog command and returns its answer when every node that is alive has the change, or after
// policyWait: what a policy says is then true everywhere.
func (n *Node) Catalog(ctx context.Context, call fsm.Call) ([]byte, error) {
	out, err := n.gateway.do(ctx, catalogGroup, []fsm.Call{call})
	if err != nil {
		return nil, err
	}
	if err := out.Results[0].Err(); err != nil {
		return nil, err
	}
	n.spread(ctx, out.Index)
	return out.Results[0].Body, nil
}

// policyWait bounds how long a change waits for nodes that do not answer.
const policyWait = 2 * time.Second

func (n *Node) spread(ctx context.Context, index uint64) {
	t := n.topology.Load()
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, policyWait)
	defer cancel()
	request := binary.AppendUvarint(nil, index)
	var asked sync.WaitGroup
	for _, node := range t.Nodes {
		if !n.alive(node.ID) {
			continue
		}
		asked.Go(func() {
			if _, err := n.net.Call(ctx, node.ID, callCatalogAt, request); err != nil {
				n.log.Warn("a node may be late with a change of the catalog", "peer", node.Name, "error", err)
			}
		})
	}
	asked.Wait()
}

func (n *Node) serveCatalogAt(ctx context.Context, _ string, request []byte) ([]byte, error) {
	index, used := binary.Uvarint(request)
	g, ok := n.Group(catalogGroup)
	if used <= 0 || !ok {
		return nil, errors.New("no catalog here")
	}
	if err := g.WaitApplied(ctx, index); err != nil {
		return nil, err
	}
	n.notify()
	return nil, nil
}

// Status is what a node says of itself.
type Status struct {
	NodeID   string
	DiskFull bool // it takes no commands
	Groups   []shard.Status
}

// LocalStatus tells of the replicas on this node.
func (n *Node) LocalStatus() Status {
	s := Status{NodeID: n.identity.NodeID, DiskFull: n.full.Load()}
	for _, m := range n.members() {
		s.Groups = append(s.Groups, m.Status())
	}
	return s
}

func (n *Node) serveStatus(context.Context, string, []byte) ([]byte, error) {
	return json.Marshal(n.LocalStatus())
}

func (n *Node) nodeStatus(ctx context.Context, nodeID string) (Status, error) {
	answer, err := n.net.Call(ctx, nodeID, callStatus, nil)
	if err != nil {
		return Status{}, err
	}
	var s Status
	if err := json.Unmarshal(answer, &s); err != nil {
		return Status{}, fmt.Errorf("status of node %s: %w", nodeID, err)
	}
	return s, nil
}

// askSums asks the nodes of a group's replicas for the sums of their states.
func (n *Node) askSums(ctx context.Context, group uint32, replicaIDs []string) map[string]fsm.Sum {
	var mu sync.Mutex
	var asked sync.WaitGroup
	sums := make(map[string]fsm.Sum)
	for _, id := range replicaIDs {
		node, _, _ := strings.Cut(id, "/")
		asked.Go(func() {
			status, err := n.nodeStatus(ctx, node)
			if err != nil {
				return
			}
			for _, s := range status.Groups {
				if s.Group == group && s.ReplicaID == id {
					mu.Lock()
					sums[id] = s.Sum
					mu.Unlock()
				}
			}
		})
	}
	asked.Wait()
	return sums
}

// ClusterStatus asks all nodes; those that do not answer are missing.
func (n *Node) ClusterStatus(ctx context.Context) map[string]Status {
	t := n.topology.Load()
	if t == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	var mu sync.Mutex
	var asked sync.WaitGroup
	all := make(map[string]Status)
	for _, node := range t.Nodes {
		asked.Go(func() {
			if s, err := n.nodeStatus(ctx, node.ID); err == nil {
				mu.Lock()
				all[node.ID] = s
				mu.Unlock()
			}
		})
	}
	asked.Wait()
	return all
}

// Alive tells whether a node answers, as far as gossip knows.
func (n *Node) Alive(nodeID string) bool { return n.alive(nodeID) }

// Leader names the node that leads a group, as far as this node knows, and the term.
func (n *Node) Leader(group uint32) (nodeID string, term uint64, ok bool) {
	if g, here := n.Group(group); here {
		if id, term := g.Leader(); id != "" {
			node, _, _ := strings.Cut(id, "/")
			return node, term, true
		}
	}
	lead, ok := n.gossip.Leader(group)
	return lead.NodeID, lead.Term, ok
}

// GossipAddr is the address to join at.
func (n *Node) GossipAddr() string { return n.gossip.Addr() }

// Ready returns nil when this node serves: it knows the topology, has its replicas, and each knows a leader.
func (n *Node) Ready() error {
	t := n.topology.Load()
	if t == nil {
		return errors.New("the catalog is not here yet")
	}
	if n.ctx.Err() != nil {
		return fsm.ErrClosed
	}
	check := func(group uint32) error {
		g, ok := n.Group(group)
		if !ok {
			return fmt.Errorf("replica of shard %d is not open yet", group)
		}
		if leader, _ := g.Leader(); leader == "" {
			return fmt.Errorf("shard %d has no leader", group)
		} else if leader == g.ReplicaID() && !g.IsLeader() {
			return fmt.Errorf("the leader of shard %d has just been elected", group)
		}
		return nil
	}
	if err := check(catalogGroup); err != nil {
		return err
	}
	for i := range t.Shards {
		for _, r := range t.Shards[i].Replicas {
			if r.Node == n.identity.NodeID {
				if err := check(t.Shards[i].ID); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// transferRequest moves a group's leadership.
type transferRequest struct {
	Group  uint32
	NodeID string
}

// Transfer moves the leadership of a group to a node.
func (n *Node) Transfer(ctx context.Context, group uint32, nodeID string) error {
	leader, _, ok := n.Leader(group)
	if !ok {
		return fmt.Errorf("transfer: %w", errNoLeader)
	}
	if leader == nodeID {
		return nil
	}
	request, err := json.Marshal(transferRequest{group, nodeID})
	if err != nil {
		return fmt.Errorf("transfer: %w", err)
	}
	if _, err = n.net.Call(ctx, leader, callTransfer, request); errors.Is(err, raftnet.ErrUnreachable) || errors.Is(err, raftnet.ErrNoAddress) {
		return fmt.Errorf("transfer: %w: %v", errNoAnswer, err) //nolint:errorlint // what the network said is for people
	}
	return err
}

func (n *Node) serveTransfer(ctx context.Context, _ string, request []byte) ([]byte, error) {
	var q transferRequest
	if err := json.Unmarshal(request, &q); err != nil {
		return nil, fmt.Errorf("transfer: %w", err)
	}
	g, ok := n.Group(q.Group)
	if !ok {
		return nil, errNoLeader
	}
	for _, m := range g.Members() {
		if node, _, _ := strings.Cut(m.ReplicaID, "/"); node == q.NodeID && m.Voter {
			if !n.caughtUp(ctx, g, m.ReplicaID) {
				return nil, fmt.Errorf("node %s is behind: try again later", q.NodeID)
			}
			if !n.hasRoom(ctx, q.NodeID) {
				return nil, fmt.Errorf("the disk of node %s is nearly full: make room first", q.NodeID)
			}
			if !n.clockFits(ctx, q.NodeID) {
				return nil, fmt.Errorf("the clock of node %s is wrong: set it right first", q.NodeID)
			}
			return nil, g.TransferLeadership(ctx, m.ReplicaID)
		}
	}
	return nil, fmt.Errorf("node %s has no vote in shard %d", q.NodeID, q.Group)
}
