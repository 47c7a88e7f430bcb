package sim

import (
	"context"
	"testing"
	"time"
)

// Raft's replication pauses after a failed append, twice as long each time and up to ten seconds (hashicorp/raft,
// replication.go). A follower that was away must not find its leader in such a pause: if the other follower dies then, the
// shard takes no write though a majority of its replicas lives.
func TestAFollowerThatComesBackCountsAtOnce(t *testing.T) {
	underLoad(t, func(ctx context.Context, c *Cluster) {
		time.Sleep(10 * time.Second) // until leadership is where the placement wants it
		leader := c.leader(1)
		if leader == nil {
			t.Fatal("no leader")
		}
		var followers []*server
		for _, s := range c.list() {
			if s != leader {
				followers = append(followers, s)
			}
		}
		applied := func() uint64 {
			g, _ := leader.running().Node.Group(1)
			return g.Applied().Index
		}
		away, other := followers[0], followers[1]
		for range 3 {
			away.kill()
			time.Sleep(7 * time.Second)
			away.start()
			for away.running() == nil || away.running().Node.Ready() != nil {
				time.Sleep(10 * time.Millisecond)
			}
			time.Sleep(time.Second)
			other.kill()
			time.Sleep(100 * time.Millisecond) // what was under way
			before, begin := applied(), time.Now()
			for applied() < before+5 && time.Since(begin) < 20*time.Second {
				time.Sleep(10 * time.Millisecond)
			}
			if took := time.Since(begin); took > time.Second {
				t.Errorf("no writes for %v, with two of three replicas alive", took)
			}
			other.start()
			if err := c.WaitHealthy(ctx); err != nil {
				t.Fatal(err)
			}
			if now := c.leader(1); now != leader {
				t.Fatalf("%s leads no more", leader.name)
			}
			away, other = other, away
		}
	})
}
