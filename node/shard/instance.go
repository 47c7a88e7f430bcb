package shard

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/fsm"
)

// instance is one life of a Raft instance. When the library shuts down it forgets who waits for an entry that is in one of
// its queues: they would wait for ever. So who waits is counted, and the instance is stopped when nobody does any more.
type instance struct {
	raft     *raft.Raft
	observer *raft.Observer
	// stuck is since when entries have been refused for a leadership transfer under way; nil while they are not.
	stuck atomic.Pointer[time.Time]

	mu      sync.Mutex
	waiting int
	closing bool
	idle    chan struct{} // closed when closing and nobody waits
}

func newInstance(r *raft.Raft) *instance { return &instance{raft: r, idle: make(chan struct{})} }

// enter says that the caller is about to ask something that has a future, and will leave. It reports false when the
// instance is being stopped.
func (in *instance) enter() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closing {
		return false
	}
	in.waiting++
	return true
}

func (in *instance) leave() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.waiting--
	if in.closing && in.waiting == 0 {
		close(in.idle)
	}
}

// close lets nobody in any more.
func (in *instance) close() {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closing {
		return
	}
	in.closing = true
	if in.waiting == 0 {
		close(in.idle)
	}
}

// stopTimeout bounds the wait for answers. A leader that cannot commit steps down after a heartbeat, and then it answers;
// longer takes only a disk that hangs.
const stopTimeout = 10 * time.Second

var errAbandoned = errors.New("some that wait for entries will not get an answer")

// stop ends the instance when all that wait have their answers.
func (in *instance) stop() error {
	in.close()
	within(stopTimeout, in.idle)
	if in.observer != nil {
		in.raft.DeregisterObserver(in.observer)
	}
	if err := in.raft.Shutdown().Error(); err != nil {
		return err
	}
	if !within(time.Second, in.idle) { // the end answers most of those who still waited
		return errAbandoned
	}
	return nil
}

// within waits for a channel to be closed and reports whether that happened in time.
func within(d time.Duration, done <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		return false
	}
}

// wait waits for the answer or for ctx; the instance counts as waited for until the answer comes. The caller has entered.
func (in *instance) wait(ctx context.Context, future raft.Future) error {
	answer := make(chan error, 1)
	go func() { // ends before the instance
		defer in.leave()
		answer <- future.Error()
	}()
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// proposed is an entry under way. Its Error must be called, once: Raft is not stopped before.
type proposed struct {
	raft.ApplyFuture
	in *instance // nil if it was not proposed
}

// append stamps an entry and hands it to Raft.
func (g *Group) append(e *fsm.Entry, size int) proposed {
	in := g.current.Load()
	if !in.enter() {
		return proposed{}
	}
	e.Time = g.clock.now()
	return proposed{in.raft.Apply(e.Append(make([]byte, 0, size)), enqueueTimeout), in}
}

func (p proposed) Error() error {
	if p.in == nil {
		return raft.ErrNotLeader
	}
	defer p.in.leave()
	err := p.ApplyFuture.Error()
	p.in.note(err)
	return err
}

// note watches for a transfer that never ends.
func (in *instance) note(err error) {
	switch {
	case err != nil && errors.Is(err, raft.ErrLeadershipTransferInProgress):
		in.suspect()
	case in.stuck.Load() != nil:
		in.stuck.Store(nil)
	}
}

func (in *instance) suspect() {
	if now := time.Now(); in.stuck.Load() == nil {
		in.stuck.Store(&now)
	}
}

// electorate are the voters that the newest instance knows; none before there is one.
func (g *Group) electorate() []string {
	in := g.current.Load()
	if in == nil {
		return nil
	}
	return g.voters(in.raft)
}

func (g *Group) startRaft() error {
	r, err := raft.NewRaft(g.raftConfig(), g.machine, g.cfg.Log, g.cfg.Log, g.snaps, votes{g.cfg.Transport, g.electorate})
	if err != nil {
		return fmt.Errorf("start Raft of group %d: %w", g.cfg.Group, err)
	}
	in := newInstance(r)
	// The channel is never used: the filter runs on Raft's goroutine and only wakes the watcher.
	in.observer = raft.NewObserver(nil, false, func(*raft.Observation) bool {
		g.wake()
		return false
	})
	r.RegisterObserver(in.observer)
	g.current.Store(in)
	g.cfg.Attach(r)
	g.wake()
	return nil
}

func (g *Group) raft() *raft.Raft { return g.current.Load().raft }

// restart replaces the Raft instance: what it has in memory has become useless.
func (g *Group) restart(reason string) {
	g.log.Warn("restarting the Raft instance", "reason", reason)
	if err := g.current.Load().stop(); err != nil {
		g.fatal(fmt.Errorf("stop Raft of group %d: %w", g.cfg.Group, err))
		return
	}
	if err := g.clearStaleLog(); err != nil {
		g.fatal(err)
		return
	}
	if err := g.startRaft(); err != nil {
		g.fatal(err)
	}
}
