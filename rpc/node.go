// Package rpc serves Holdfast to the outside: gRPC, the stream that SDKs speak, and REST, with one file for each service.
//
// A request is checked here, once: what goes on to a state machine is well-formed. What a node is to these services is
// said by the interfaces in node.go.
package rpc

import (
	"context"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/catalog"
	"github.com/holdfastdb/holdfast/storage/kv"
)

// Node is what the services need of the node they run on. Groups are numbered, 0 is the catalog. Errors of Do, Propose
// and Query are those of package fsm, wrapped.
type Node interface {
	// Ready returns nil when the node serves.
	Ready() error
	// ShardOf finds the group of a routing key; false before the topology is known.
	ShardOf(routingKey string) (group uint32, ok bool)
	// Do executes calls as one step of a group, wherever it is led.
	Do(ctx context.Context, group uint32, calls []fsm.Call) (fsm.FrameOutcome, error)
	// Now is the time from which to count a deadline in a group.
	Now(group uint32) fsm.Time
	// Propose executes a frame wherever its group is led.
	Propose(ctx context.Context, group uint32, f *fsm.Frame) (fsm.FrameOutcome, error)
	// Query answers linearizably wherever the group is led.
	Query(ctx context.Context, group uint32, calls []fsm.Call) ([]fsm.Result, fsm.Applied, error)
	// Catalog executes one catalog command and returns when the nodes that are alive know of it.
	Catalog(ctx context.Context, call fsm.Call) ([]byte, error)
	CatalogView() kv.View
	WatchCatalog(f func()) (stop func())
	// Topology is the cluster as the node knows it, nil before it does.
	Topology() *catalog.Topology
	// Leader names the node that leads a group.
	Leader(group uint32) (nodeID string, term uint64, ok bool)
	Alive(nodeID string) bool
	// Replica is this node's replica of a group, for frames that come to the leader directly.
	Replica(group uint32) (Replica, bool)
	// Statuses asks all nodes for their replicas; a node that does not answer is missing.
	Statuses(ctx context.Context) map[string][]ReplicaStatus
	// LocalReplicas tells of the replicas on this node.
	LocalReplicas() []ReplicaStatus
	// Transfer moves a group's leadership.
	Transfer(ctx context.Context, group uint32, nodeID string) error
}

// Replica is a group's replica on this node.
type Replica interface {
	IsLeader() bool
	// Now is the leader's time.
	Now() fsm.Time
	// Busy tells that a frame would wait too long for its turn: it is better refused.
	Busy() bool
	// ProposeAsync executes a frame and calls done once, unless it returns an error. done must not block. The frame must not
	// change before; when done is called nobody looks at it any more.
	ProposeAsync(f *fsm.Frame, done func(fsm.FrameOutcome, error)) error
	// Watch calls f, in order, for each entry applied from now on whose commands emitted events; f must not block. What a
	// Query tells was watched before. Without events f is told of a gap.
	Watch(f func(index uint64, at fsm.Time, events []fsm.Event)) (stop func())
	// Query answers linearizably from the replica, if it leads.
	Query(ctx context.Context, calls []fsm.Call) ([]fsm.Result, fsm.Applied, error)
}

// ReplicaStatus is where a replica is.
type ReplicaStatus struct {
	Group                 uint32
	ReplicaID, State      string
	Term, Commit, Applied uint64
	SizeBytes             uint64
	Queued                int
	Entries, Commands     uint64
	// Checksum is the entry at which the state was last hashed, Diverged how often replicas were found to differ.
	Checksum, Diverged uint64
}
