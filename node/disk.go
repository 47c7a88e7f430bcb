package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
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

// diskPending is how long the oldest write to a Raft log has been under way.
func (n *Node) diskPending() time.Duration { return max(n.logs.SyncPending(), n.catLogs.SyncPending()) }

func (n *Node) watchDisk() {
	diskWatch{
		pending: n.diskPending, fatal: n.cfg.OnFatal, log: n.log,
		handOver: func() { n.work.Go(func() { n.HandOver(n.ctx) }) },
	}.run(n.ctx)
}
