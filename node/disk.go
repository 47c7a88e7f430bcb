package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// ErrDiskHangs is for what a node cannot go on: a disk that neither stores nor refuses.
var ErrDiskHangs = errors.New("the disk of the Raft log has not finished a write")

const (
	// diskStall is how long a synced write to a Raft log may take before this node stops claiming to lead: its leaders send
	// nothing any more (see raftnet.Config.DiskStalled), and those that still can hand over.
	diskStall = 2 * time.Second
	// diskGone is how long it may take before the process ends: whoever starts it again may find a disk that works, and
	// nothing waits for this one any longer.
	diskGone  = 20 * time.Second
	diskEvery = time.Second
	// diskReserve is the space that is kept for what must be written, such as what other leaders decide, on a small disk
	// a twentieth of it. With less this node's leaders take no commands, until there is a quarter more.
	diskReserve = 256 << 20
)

// diskWatch acts when the disk hangs (hashicorp/raft #503: the library does nothing).
type diskWatch struct {
	pending  func() time.Duration // how long the oldest write under way has taken
	handOver func()               // must not block
	fatal    func(error)
	log      *slog.Logger
}

func (w diskWatch) run(ctx context.Context) {
	ticks := time.NewTicker(diskEvery)
	defer ticks.Stop()
	stalled := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticks.C:
		}
		pending := w.pending()
		switch {
		case pending > diskGone:
			w.fatal(fmt.Errorf("%w for %v", ErrDiskHangs, pending))
			return
		case pending > diskStall && !stalled:
			w.log.Error("the disk hangs: this node leads nothing until it answers", "pending", pending)
			w.handOver()
		case pending <= diskStall && stalled:
			w.log.Info("the disk answers again")
		}
		stalled = pending > diskStall
	}
}

// spaceWatch acts before the disk is full. It is not a part of diskWatch because asking for the space may hang with the
// disk.
type spaceWatch struct {
	usage    func() (vfs.DiskUsage, error) // an error if the file system does not tell
	full     *atomic.Bool
	handOver func() // must not block
	log      *slog.Logger
}

func (w spaceWatch) run(ctx context.Context) {
	ticks := time.NewTicker(diskEvery)
	defer ticks.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticks.C:
		}
		u, err := w.usage()
		if err != nil {
			continue
		}
		reserve := min(diskReserve, u.TotalBytes/20)
		switch full := w.full.Load(); {
		case !full && u.AvailBytes < reserve:
			w.log.Error("the disk is nearly full: this node takes no commands", "free_bytes", u.AvailBytes, "needed_bytes", reserve)
			w.full.Store(true)
			w.handOver()
		case full && u.AvailBytes >= reserve+reserve/4:
			w.log.Info("the disk has room again", "free_bytes", u.AvailBytes)
			w.full.Store(false)
		}
	}
}

// diskPending is how long the oldest write to a Raft log has been under way.
func (n *Node) diskPending() time.Duration { return max(n.logs.SyncPending(), n.catLogs.SyncPending()) }

func (n *Node) watchDisk() {
	diskWatch{pending: n.diskPending, fatal: n.cfg.OnFatal, log: n.log, handOver: n.beginHandOver}.run(n.ctx)
}

func (n *Node) watchSpace() {
	spaceWatch{
		usage: func() (vfs.DiskUsage, error) { return n.filesystem().GetDiskUsage(n.cfg.Dir) },
		full:  &n.full, log: n.log, handOver: n.beginHandOver,
	}.run(n.ctx)
}

func (n *Node) beginHandOver() { n.work.Go(func() { n.HandOver(n.ctx) }) }
