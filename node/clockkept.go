package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// What a node knows of its clock outlives its process. When all nodes lose their power, the first two that are back may be a
// majority of a shard, and of two clocks that differ nobody can say which is right: the one that was wrong before must not
// lead by it until a third is there. It may have been set right in the meantime; then it says so once it agrees with another.

const (
	clockFile = "clock.json"
	// clockKeeps is how far a verdict may be from the one that is kept. With the right one a node knows which others are fit
	// to lead, so it is a small part of maxClockOffset.
	clockKeeps = maxClockOffset / 10
)

// clockVerdict is what the file holds: how far the right time was ahead of this node's clock.
type clockVerdict struct {
	AheadMillis int64 `json:"right_time_ahead_ms"`
}

// clockKeeper keeps each verdict that differs from the one that is kept; a node whose clock was never wrong keeps none. It has
// a goroutine of its own, because a disk may hang. The clock is judged again with each comparison, so a verdict that cannot
// be written is only a pity.
func (n *Node) clockKeeper(kept time.Duration) {
	said := false
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-n.clockNews:
		}
		ahead := n.rightTimeAhead()
		if (ahead-kept).Abs() <= clockKeeps && (ahead == 0) == (kept == 0) {
			continue
		}
		err := keepClock(n.filesystem(), n.cfg.Dir, ahead)
		if err == nil {
			kept = ahead
		} else if !said {
			n.log.Warn("what is known of this node's clock was not kept", "file", clockFile, "error", err)
		}
		said = err != nil
	}
}

func keepClock(filesystem vfs.FS, dir string, ahead time.Duration) error {
	b, err := json.Marshal(clockVerdict{AheadMillis: ahead.Milliseconds()})
	if err != nil {
		return err
	}
	return replaceFile(filesystem, dir, clockFile, append(b, '\n'))
}

// recallClock takes the clock for as wrong as it was when the last process of this node compared it, and returns what was kept.
func (n *Node) recallClock() (kept time.Duration) {
	ahead, err := keptClock(n.filesystem(), n.cfg.Dir)
	if err != nil { // the node does as one does that was never compared
		n.log.Warn("what was known of this node's clock cannot be read", "error", err)
		return -1 // which is no verdict, so that the first one takes its place
	}
	n.clockAhead.Store(int64(ahead))
	return ahead
}

// keptClock is the last verdict that was kept, 0 if there is none or the clock was right.
func keptClock(filesystem vfs.FS, dir string) (ahead time.Duration, err error) {
	path := filesystem.PathJoin(dir, clockFile)
	f, err := filesystem.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("open %s: %w", path, err)
	}
	b, err := io.ReadAll(io.LimitReader(f, 4<<10))
	if err = errors.Join(err, f.Close()); err != nil {
		return 0, fmt.Errorf("read %s: %w", path, err)
	}
	var kept clockVerdict
	if err := json.Unmarshal(b, &kept); err != nil {
		return 0, fmt.Errorf("%s is damaged: %w", path, err)
	}
	return time.Duration(kept.AheadMillis) * time.Millisecond, nil
}
