package shard

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/fsm"
)

func realTime() fsm.Time { return fsm.Time(time.Now().UnixMilli()) }

// Shard time is the leader's clock at its election. A replica whose node has a wrong clock must not get that far.
func TestAReplicaWithAWrongClockHandsLeadershipOnBeforeItStampsAnything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, three()...)
		defer c.stop()
		seq := uint64(0)
		write := func() {
			t.Helper()
			seq++
			c.eventually("a write", func() bool {
				_, _, err := c.leader(c.replicas...).add(frame(1, seq, 1))
				return err == nil
			})
		}
		write()
		for _, skew := range []time.Duration{time.Hour, -time.Hour} {
			wrong := c.others(c.leader(c.replicas...))[0]
			wrong.skew.Store(int64(skew))
			for range 3 { // an election can always choose it
				l := c.leader(c.replicas...)
				if l != wrong && !l.Tried(string(wrong.id)) {
					_ = l.TransferLeadership(t.Context(), string(wrong.id))
				}
				time.Sleep(5 * time.Second)
				write()
			}
			for _, r := range c.replicas {
				if late := realTime() - r.Applied().Time; late < 0 || late > 60_000 {
					t.Errorf("clock %v off: the time of %s is %d ms behind", skew, r.id, late)
				}
			}
			if wrong.IsLeader() {
				t.Errorf("clock %v off: it leads", skew)
			}
			wrong.skew.Store(0)
		}
	})
}

// A leader whose clock is set wrong goes on stamping by the monotonic clock, and hands leadership over.
func TestALeaderWhoseClockIsSetWrongHandsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, three()...)
		defer c.stop()
		old := c.leader(c.replicas...)
		old.skew.Store(int64(time.Hour))
		if ahead := old.Now() - realTime(); ahead > 1 {
			t.Errorf("setting the clock moved the leader's time by %d ms", ahead)
		}
		c.leader(c.others(old)...)
	})
}

func TestAWrongClockIsBetterThanNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, make([]Timing, 1)...)
		defer c.stop()
		r := c.replicas[0]
		r.skew.Store(int64(time.Hour))
		// A new term: as after a restart.
		r.restart("for the test")
		if r.Group.raft().State() == raft.Leader && r.IsLeader() {
			t.Fatal("it leads at once")
		}
		c.eventually("the only replica leads", func() bool { return r.IsLeader() })
	})
}

// The state on disk is behind the log, also in its time: that of the entries which a new leader finds in its log counts.
func TestALeaderIsNotBehindTheTimeOfItsLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, Timing{})
		defer func() { c.stop() }()
		l := c.leader(c.replicas...)
		l.skew.Store(int64(time.Hour))
		l.askRestart("for a new term, with this clock")
		c.eventually("a term at the wrong time", func() bool { return l.IsLeader() && l.Applied().Time > realTime()+30*60_000 })
		l.skew.Store(0)
		c.powerCut(1)
		l = c.leader(c.replicas...)
		if now, reached := l.Now(), l.Applied().Time; now < reached || reached < realTime() {
			t.Errorf("the leader's clock is %d ms behind shard time: every deadline is over", reached-now)
		}
	})
}
