package sim

import (
	"context"
	"testing"
	"time"
)

// hashicorp/raft #503: a leader whose disk hangs goes on with its heartbeats, so nobody takes over. Here a leader
// whose disk hangs is followed by another within 10 s, and becomes a replica like the others when the disk answers again. (It
// hangs until then: a leader whose disk answers before anybody else was elected may well be elected itself.)
func TestRaft503ADiskThatHangsUnderALeaderHasANewLeaderWithinTenSeconds(t *testing.T) {
	underLoad(t, func(ctx context.Context, c *Cluster) {
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
	})
}
