package shard

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfastdb/holdfast/fsm"
)

// offer gives a frame to a queue that is not busy.
func offer(p *proposer, f *fsm.Frame) error {
	p.mu.Lock()
	busy := p.busy(time.Now())
	p.mu.Unlock()
	if busy {
		return fsm.ErrOverloaded
	}
	return p.submit(f, func(fsm.FrameOutcome, error) {})
}

// A burst, or a disk that halts for a moment, makes a queue that goes away again: everybody waits and is served.
func TestAQueueThatWasEmptyLatelyTakesUpABurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, frame := newProposer(nil), &fsm.Frame{Calls: make([]fsm.Call, fsm.MaxOps)}
		submit := func() error { return offer(p, frame) }
		const each = maxWait / 4 // for an entry
		for round := range 3 {
			for range 12 {
				if err := submit(); err != nil {
					t.Fatalf("round %d: %v", round, err)
				}
			}
			for len(p.next()) > 0 {
				time.Sleep(each)
			}
		}
		for range 2 * maxStanding / each { // what is taken off comes again, and more
			_ = submit()
			_ = submit()
			time.Sleep(each)
			p.next()
		}
		_ = submit()
		if err := submit(); !errors.Is(err, fsm.ErrOverloaded) {
			t.Errorf("a queue that stands: %v", err)
		}
	})
}

// With more work than can be done the queue never goes away, and if it grew all would wait until their callers had left: it
// is as long as what is done in maxWait.
func TestAQueueThatStandsIsKeptShort(t *testing.T) {
	for _, each := range []time.Duration{5 * time.Millisecond, 100 * time.Millisecond} { // for an entry
		synctest.Test(t, func(t *testing.T) {
			p, frame := newProposer(nil), &fsm.Frame{Calls: make([]fsm.Call, fsm.MaxOps)}
			begin := time.Now()
			for time.Since(begin) < 10*time.Second {
				for range 8 {
					_ = offer(p, frame) // some are refused
				}
				time.Sleep(each)
				p.next()
				wait := time.Duration(p.ops/fsm.MaxOps) * each
				if time.Since(begin) > 8*time.Second && (wait > maxWait+each || wait < maxWait-2*each) {
					t.Fatalf("at %v an entry who comes last waits for %v", each, wait)
				}
			}
		})
	}
}
