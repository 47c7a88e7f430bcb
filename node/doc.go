// Package node is one Holdfast process: it opens the storage, the transport and the Raft groups that the catalog gives
// it, and carries requests to whichever node leads the group they are for.
package node
