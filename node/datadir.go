package node

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage"
	"github.com/holdfastdb/holdfast/storage/manifest"
	"github.com/holdfastdb/holdfast/storage/raftlog"
)

// A data directory is one thing: the identity says who has promised votes and entries, the logs say what, and the state is
// made of them. A part that is missing must not come back empty under the old identity: the node could vote twice in a
// term, and what it had acknowledged would be lost with a majority of nodes up.

// part is a directory inside the data directory.
type part struct {
	name string
	bolt bool
}

const stateDir, raftDir, catalogDir = "state", "raft", "catalog"

func (n *Node) parts() []part {
	// BoltDB needs real files; with another file system the catalog shares the format of the shards.
	return []part{{stateDir, false}, {raftDir, n.cfg.BoltLog}, {catalogDir, n.cfg.FS == nil}}
}

const adviceLost = "put back what was there; if it is lost, remove the whole data directory and start with --join: the node then enters the cluster as a new one"

// checkDir refuses a data directory of which a part is missing. found tells that it has an identity.
func (n *Node) checkDir(filesystem vfs.FS, found bool) error {
	dir := n.cfg.Dir
	for _, p := range n.parts() {
		path := filesystem.PathJoin(dir, p.name)
		there, err := p.exists(filesystem, path)
		switch {
		case err != nil:
			return fmt.Errorf("data directory %s: %w", dir, err)
		case there && !found: // the identity is written before anything else
			return fmt.Errorf("data directory %s has data in %s, but no identity: %s is missing: %s", dir, p.name, identityFile, adviceLost)
		case !there && n.identity.ClusterID != "": // which is written when all parts are there
			return fmt.Errorf("%s is missing or empty, but by %s this node is a member of cluster %s and may have voted: %s",
				path, identityFile, n.identity.ClusterID, adviceLost)
		}
	}
	return nil
}

func (p part) exists(filesystem vfs.FS, path string) (bool, error) {
	if p.bolt {
		if p.name == catalogDir {
			path = filesystem.PathJoin(path, fmt.Sprintf("group-%d.db", catalogGroup))
		}
		_, err := filesystem.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return err == nil, err
	}
	found, err := pebble.Peek(path, filesystem)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look into %s: %w", path, err)
	}
	return found.Exists, nil
}

// explained adds to an error that tells of damage what to do about it.
func (n *Node) explained(err error) error {
	if !damaged(err) {
		return err
	}
	return fmt.Errorf("%w: the data directory %s is damaged, and this node cannot go on with it: remove it as a whole and start with --join: "+
		"the node then enters the cluster as a new one and gets everything from the others", err, n.cfg.Dir)
}

// damaged tells whether an error says that on the disk is not what was written.
func damaged(err error) bool {
	if errors.Is(err, pebble.ErrCorruption) || errors.Is(err, raftlog.ErrCorrupt) || errors.Is(err, storage.ErrCorrupt) || errors.Is(err, manifest.ErrCorrupt) {
		return true
	}
	return err != nil && slices.ContainsFunc(damageWords, func(words string) bool { return strings.Contains(err.Error(), words) })
}

// damageWords are those of Pebble for damage that it gives no error value of its own: what it finds when it opens, and, the
// first, what it finds later and tells its logger.
var damageWords = []string{"on-disk corruption", "malformed manifest", "object size mismatch", "unknown to the objstorage provider"}

// checkLog refuses the log of a group that is empty though the group has a state: a log that a node has written to keeps at
// least its term.
func checkLog(group uint32, log raftlog.Log, state *storage.Shard) error {
	view := state.View()
	applied, err := fsm.ReadApplied(view)
	_ = view.Close()
	if err != nil {
		return fmt.Errorf("group %d: %w", group, err)
	}
	term, err := log.GetUint64([]byte("CurrentTerm")) // as the Raft library calls it
	if err != nil {
		return fmt.Errorf("read the term of group %d: %w", group, err)
	}
	if term == 0 && applied.Index > 0 {
		return fmt.Errorf("the Raft log of group %d is empty, but its state is at entry %d: %s", group, applied.Index, adviceLost)
	}
	return nil
}
