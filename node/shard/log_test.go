package shard

import (
	"errors"
	"testing"
	"testing/synctest"

	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage/raftlog"
)

// A replica that was cut off has entries that nobody committed, and gets a state that ends after them. They must not stay:
// with a gap between them and the next entries they would be sent to others when it leads one day.
func TestALogThatEndsBeforeAReceivedStateGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, three()...)
		defer c.stop()
		old := c.leader(c.replicas...)
		if _, _, err := old.add(frame(4, 1, 1)); err != nil {
			t.Fatal(err)
		}
		old.link.setCut(true)
		for range 50 {
			e := fsm.Entry{Kind: fsm.Nudge}
			old.Group.raft().Apply(e.Append(nil), 0)
		}
		successor := c.leader(c.others(old)...)
		phantom, err := old.log.LastIndex()
		if err != nil || phantom < 40 {
			t.Fatalf("the log of the old leader ends at %d, %v", phantom, err)
		}
		var last raft.ApplyFuture
		for range 9000 {
			e := fsm.Entry{Kind: fsm.Nudge}
			last = successor.Group.raft().Apply(e.Append(nil), 0)
		}
		if err := last.Error(); err != nil {
			t.Fatal(err)
		}
		if err := successor.Group.raft().Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
		old.link.setCut(false)
		c.eventually("the old leader has the state", func() bool { return old.Applied().Index >= successor.Applied().Index })
		var entry raft.Log
		if err := old.log.GetLog(phantom, &entry); !errors.Is(err, raft.ErrLogNotFound) {
			t.Errorf("the old leader still has an entry at %d, of term %d, %v", phantom, entry.Term, err)
		}
		if old.attached.Load() != 1 {
			t.Error("the Raft instance was replaced without need")
		}
		if n, _, err := successor.add(frame(4, 2, 1)); err != nil || n != 2 {
			t.Errorf("then the sum is %d, %v", n, err)
		}
	})
}

// Between the install of a state and the restart that it asks for entries can be stored, acknowledged and applied. They
// belong to the state again, so the restart must not take them away, nor lose what is only in memory.
func TestARestartKeepsALogThatBelongsToTheState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, make([]Timing, 1)...)
		defer func() { c.stop() }()
		r := c.leader(c.replicas...)
		for seq := range uint64(10) {
			if _, _, err := r.add(frame(1, seq+1, 1)); err != nil {
				t.Fatal(err)
			}
		}
		r.askRestart("for the test")
		c.eventually("a restart", func() bool { return r.attached.Load() == 2 })
		c.powerCut(1)
		if n, err := c.leader(c.replicas...).read(); err != nil || n != 10 {
			t.Errorf("after the restart and a power cut the sum is %d, %v; 10 was acknowledged", n, err)
		}
	})
}

// The process ended right after the install: the next start finds a log that ends before the state.
func TestAStartRemovesALogThatEndsBeforeTheState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, make([]Timing, 1)...)
		defer func() { c.stop() }()
		r := c.leader(c.replicas...)
		for seq := range uint64(10) {
			if _, _, err := r.add(frame(1, seq+1, 1)); err != nil {
				t.Fatal(err)
			}
		}
		c.stop()
		logs, err := raftlog.Open(raftlog.Options{FS: r.fs, Dir: "raft", OnFatal: func(err error) { t.Error(err) }})
		if err != nil {
			t.Fatal(err)
		}
		l, err := logs.Open(1)
		if err != nil {
			t.Fatal(err)
		}
		last, err := l.LastIndex()
		if err := errors.Join(err, l.DeleteRange(last-5, last), l.Close(), logs.Close()); err != nil {
			t.Fatal(err)
		}
		r.start()
		if n, _, err := c.leader(r).add(frame(1, 11, 1)); err != nil || n != 11 {
			t.Errorf("after the start a write gives %d, %v", n, err)
		}
	})
}
