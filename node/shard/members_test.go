package shard

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"
)

// The leader is lost when it and one new voter are the only ones to know of the new voters: with what the log of that one has,
// only it can be elected, by a replica that takes it for a learner. That replica may be an old voter, or new itself without
// knowing it.
func TestAVoterThatAnotherDoesNotKnowYetIsElected(t *testing.T) {
	for name, old := range map[string]bool{"by an old voter": true, "by one that takes itself for a learner": false} {
		synctest.Test(t, func(t *testing.T) {
			c := newCluster(t, make([]Timing, 1)...)
			defer c.stop()
			leader := c.leader(c.replicas[0])
			behind, added := c.learner("r2"), c.learner("r3")
			if old {
				c.promote(behind)
			}
			time.Sleep(time.Second)
			late := make(chan struct{})
			defer close(late)
			leader.link.mu.Lock()
			leader.link.late = map[raft.ServerID]chan struct{}{behind.id: late}
			leader.link.mu.Unlock()
			c.promote(added)
			if !old {
				c.promote(behind)
			}
			if _, _, err := leader.add(frame(1, 1, 1)); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			leader.link.setCut(true)
			successor := c.leader(behind, added)
			if n, _, err := successor.add(frame(1, 2, 1)); err != nil || n != 2 {
				t.Errorf("%s: the next leader's sum is %d, %v", name, n, err)
			}
			leader.link.setCut(false)
		})
	}
}

// learner starts one more replica, of the first one's group.
func (c *cluster) learner(id raft.ServerID) *replica {
	c.t.Helper()
	r := &replica{t: c.t, c: c, id: id, fs: vfs.NewCrashableMem()}
	c.replicas = append(c.replicas, r)
	r.start()
	if err := c.replicas[0].AddLearner(c.t.Context(), string(id)); err != nil {
		c.t.Fatal(err)
	}
	return r
}

func (c *cluster) promote(r *replica) {
	c.t.Helper()
	if err := c.replicas[0].Promote(c.t.Context(), string(r.id)); err != nil {
		c.t.Fatal(err)
	}
}
