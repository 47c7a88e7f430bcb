package sim

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// hashicorp/raft #503: a leader whose disk hangs goes on with its heartbeats, so nobody takes over. Here a disk that hangs
// under a leader for 5 s has a new leader within 10 s, and the old one comes back as a follower.
func TestRaft503ADiskThatHangsUnderALeaderHasANewLeaderWithinTenSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New(Options{Seed: 1, Nodes: 3, Shards: 1, Think: 100 * time.Millisecond, TrailingEntries: 4096, Logger: slog.New(slog.DiscardHandler)})
		ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
		defer cancel()
		if err := c.Start(ctx); err != nil {
			t.Fatal(err)
		}
		l, err := startLoad(ctx, c)
		if err != nil {
			t.Fatal(err)
		}
		loaded, end := context.WithCancel(ctx)
		var working sync.WaitGroup
		working.Go(func() { l.run(loaded) })
		for _, group := range []uint32{0, 1} {
			old := c.leader(group)
			if old == nil {
				t.Fatalf("group %d has no leader", group)
			}
			release := old.currentDisk().Stall()
			begin := time.Now()
			var next *server
			for time.Since(begin) < 10*time.Second && (next == nil || next == old) {
				time.Sleep(100 * time.Millisecond)
				if time.Since(begin) > 5*time.Second {
					release()
				}
				next = c.leader(group)
			}
			release()
			if next == nil || next == old {
				t.Errorf("group %d has no new leader after 10 s", group)
			} else {
				t.Logf("group %d: a new leader after %v", group, time.Since(begin))
			}
			if err := c.WaitHealthy(ctx); err != nil {
				t.Error(err)
			}
		}
		end()
		working.Wait()
		if err := l.close(); err != nil {
			t.Error(err)
		}
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
}

// leader is the server that serves as a group's leader, nil if there is none or more than one says so.
func (c *Cluster) leader(group uint32) (found *server) {
	for _, s := range c.list() {
		if p := s.running(); p != nil {
			if g, ok := p.Node.Group(group); ok && g.IsLeader() {
				if found != nil {
					return nil
				}
				found = s
			}
		}
	}
	return found
}
