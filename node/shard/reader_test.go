package shard

import (
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfastdb/holdfast/fsm"
)

// Reads on an idle shard need an entry that moves time, each one that was proposed after it began: all that come while one
// is under way share the next.
func TestReadsOnAnIdleShardShareTheEntryThatMovesTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, make([]Timing, 1)...)
		defer c.stop()
		r := c.leader(c.replicas...)
		if _, _, err := r.add(frame(1, 1, 1)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		r.delay.Store(int64(10 * time.Millisecond))
		before := r.Group.raft().LastIndex()
		var reads sync.WaitGroup
		for range 100 {
			reads.Go(func() {
				if n, err := r.read(); err != nil || n != 1 {
					t.Errorf("read %d, %v", n, err)
				}
			})
		}
		reads.Wait()
		if entries := r.Group.raft().LastIndex() - before; entries > 2 {
			t.Errorf("%d entries for reads that came together", entries)
		}
	})
}

// The queue is bounded by bytes, too: a frame can be much larger than a rate-limit check.
func TestTheQueueIsBoundedByBytes(t *testing.T) {
	p := newProposer(nil)
	body := make([]byte, fsm.MaxFrameBytes/2)
	for n := 0; ; n++ {
		f := &fsm.Frame{Calls: []fsm.Call{{Body: body}}}
		if err := p.submit(f, nil); err != nil {
			break
		}
		if n*len(body) > maxWaitingBytes {
			t.Fatalf("%d frames of %d bytes were taken", n, len(body))
		}
	}
	for len(p.next()) > 0 {
	}
	if p.bytes != 0 || p.ops != 0 {
		t.Errorf("the empty queue has %d bytes, %d operations", p.bytes, p.ops)
	}
}

// A leader whose disk has hardly room for more takes no frames, and says that they had no effect. It can still be asked.
func TestALeaderWithAFullDiskTakesNoFrames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, Timing{})
		defer c.stop()
		l := c.leader(c.replicas...)
		if _, _, err := l.add(frame(1, 1, 5)); err != nil {
			t.Fatal(err)
		}
		l.full.Store(true)
		if _, _, err := l.add(frame(1, 2, 5)); !errors.Is(err, fsm.ErrDiskFull) || !fsm.Safe(err) {
			t.Errorf("with a full disk: %v", err)
		}
		time.Sleep(time.Minute)
		if n, err := l.read(); err != nil || n != 5 {
			t.Errorf("it says %d, %v", n, err)
		}
		l.full.Store(false)
		if n, _, err := l.add(frame(1, 2, 5)); err != nil || n != 10 {
			t.Errorf("with room again: %d, %v", n, err)
		}
	})
}
