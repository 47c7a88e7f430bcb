package node

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"time"
)

// What a node knows of its clock outlives its process. When all nodes lose their power, the first two that are back may be a
// majority of a shard, and of two clocks that differ nobody can say which is right: the one that was wrong before must not
// lead by it until a third is there. It may have been set right in the meantime; then it says so once it agrees with another.

const clockFile = "clock.json"

// clockVerdict is what the file holds: how far the right time was ahead of this node's clock when clocks were compared last.
type clockVerdict struct {
	AheadMillis int64 `json:"right_time_ahead_ms"`
}

// rememberClock keeps a verdict that differs from the one that is kept. A node whose clock was never wrong keeps none.
// The clock is judged again with each comparison, so a verdict that cannot be written is only a pity.
func (n *Node) rememberClock(ahead time.Duration) {
	if (ahead-n.clockKept).Abs() <= maxClockOffset && (ahead == 0) == (n.clockKept == 0) {
		return
	}
	b, err := json.Marshal(clockVerdict{AheadMillis: ahead.Milliseconds()})
	if err == nil {
		err = replaceFile(n.filesystem(), n.cfg.Dir, clockFile, append(b, '\n'))
	}
	if err != nil {
		n.log.Warn("what is known of this node's clock was not kept", "file", clockFile, "error", err)
		return
	}
	n.clockKept = ahead
}

// recallClock takes the clock for as wrong as it was when the last process of this node compared it.
func (n *Node) recallClock() {
	filesystem := n.filesystem()
	f, err := filesystem.Open(filesystem.PathJoin(n.cfg.Dir, clockFile))
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var kept clockVerdict
	if err == nil {
		var b []byte
		if b, err = io.ReadAll(io.LimitReader(f, 4<<10)); err == nil {
			err = json.Unmarshal(b, &kept)
		}
		err = errors.Join(err, f.Close())
	}
	if err != nil { // the node does as one does that was never compared
		n.log.Warn("what was known of this node's clock cannot be read", "file", clockFile, "error", err)
		return
	}
	n.clockKept = time.Duration(kept.AheadMillis) * time.Millisecond
	n.clockAhead.Store(int64(n.clockKept))
}
