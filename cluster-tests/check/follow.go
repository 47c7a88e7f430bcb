package check

import (
	"fmt"

	"github.com/holdfastdb/holdfast/fsm/catalog"
	"github.com/holdfastdb/holdfast/storage/kv"
)

// Follower follows the changes of policies on one node, as the node itself does: each life of a node has one. It is used by
// one goroutine.
type Follower struct {
	at   uint64
	seen []Change
}

// Read notes what changed since the last time, from a view of the node's catalog.
func (f *Follower) Read(view kv.Reader) error {
	changes, revision, err := catalog.Changes(catalog.View(view), f.at)
	switch {
	case catalog.IsBehind(err):
		f.seen = append(f.seen, Change{Revision: revision, Whole: true})
		f.at = revision
		return nil
	case err != nil:
		return fmt.Errorf("read changes after revision %d: %w", f.at, err)
	}
	for _, c := range changes {
		f.seen = append(f.seen, Change{Revision: c.Revision, Value: c})
		f.at = c.Revision
	}
	return nil
}

// Seen lists what the follower saw, for Watches.
func (f *Follower) Seen() []Change { return f.seen }

// At is the revision up to which the follower has seen everything.
func (f *Follower) At() uint64 { return f.at }

// FollowerAt is a follower that begins at a revision.
func FollowerAt(revision uint64) Follower { return Follower{at: revision} }
