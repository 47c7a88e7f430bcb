package shard

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfastdb/holdfast/fsm"
)

// A burst, or a disk that halts for a moment, makes a queue that goes away again: everybody waits and is served. With more
// work than can be done it never goes, and if it grew all would wait until their callers had left.
func TestAQueueThatStandsIsKeptShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProposer(nil)
		frame := &fsm.Frame{Calls: make([]fsm.Call, fsm.MaxOps)}
		submit := func(what string, want error) {
			t.Helper()
			err := p.submit(frame, func(fsm.FrameOutcome, error) {})
			if p.mu.Lock(); p.busy(time.Now()) != (want != nil) {
				t.Errorf("%s: busy is not what a frame is told", what)
			}
			p.mu.Unlock()
			if !errors.Is(err, want) {
				t.Errorf("%s: %v, want %v", what, err, want)
			}
		}
		for range 10 {
			submit("a burst", nil)
		}
		time.Sleep(maxStanding)
		submit("nothing was done for a second", nil)
		time.Sleep(time.Millisecond)
		submit("nothing was done for longer", fsm.ErrOverloaded)
		for range 10 {
			p.next()
		}
		submit("of what stands, nothing has waited for long", nil)
		time.Sleep(maxWait + time.Millisecond)
		submit("of what stands, the first has", fsm.ErrOverloaded)
		for len(p.next()) > 0 {
		}
		submit("nothing waited", nil)
		time.Sleep(2 * maxWait)
		submit("nothing waited lately", nil)
	})
}
