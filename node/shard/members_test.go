package shard

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"
)

// The leader is lost when it and the new voter are the only ones to know of the new voter: with what the log of the new
// voter has, only that one can be elected, by a replica that does not know it for a voter yet.
func TestAVoterThatAnotherDoesNotKnowYetIsElected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, make([]Timing, 2)...)
		defer c.stop()
		leader, behind := c.replicas[0], c.replicas[1]
		added := &replica{t: t, c: c, id: "r3", fs: vfs.NewCrashableMem()}
		c.replicas = append(c.replicas, added)
		added.start()
		if err := leader.AddLearner(t.Context(), "r3"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		late := make(chan struct{})
		defer close(late)
		leader.link.mu.Lock()
		leader.link.late = map[raft.ServerID]chan struct{}{behind.id: late}
		leader.link.mu.Unlock()
		if err := leader.Promote(t.Context(), "r3"); err != nil {
			t.Fatal(err)
		}
		if _, _, err := leader.add(frame(1, 1, 1)); err != nil {
			t.Fatal(err)
		}
		leader.link.setCut(true)
		successor := c.leader(behind, added)
		if n, _, err := successor.add(frame(1, 2, 1)); err != nil || n != 2 {
			t.Errorf("the next leader's sum is %d, %v", n, err)
		}
		leader.link.setCut(false)
	})
}
