// Package holdfast is the root of a replicated, sharded datastore; it holds no code. Data flows down through the folders:
//
//	cmd/holdfast   the program: flags, wiring, the command line
//	client         the Go SDK
//	rpc            services, REST and foreign protocols; what they have in common with the SDK
//	node           one process of a cluster: Raft groups, placement, gossip
//	fsm            the state machines: what commands mean
//	storage        Pebble: the state and the Raft log
//	cluster-tests  whole clusters under faults
//
// Read ARCHITECTURE.md first, then fsm/doc.go, node/shard/group.go and client/client.go.
package holdfast
