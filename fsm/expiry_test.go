package fsm

import (
	"fmt"
	"testing"
)

func TestSweepRemovesWhatIsDueAndNothingElse(t *testing.T) {
	r := newRig(t)
	for i, life := range []uint64{10, 20, 30} {
		r.frame(Frame{Calls: []Call{expiring(fmt.Sprint(i), 1, life)}})
	}
	for _, step := range []struct {
		at   Time
		want string
		next Time
	}{
		{9, "[1][1][1]", 10}, {10, "-[1][1]", 20}, {19, "-[1][1]", 20}, {30, "---", 0},
	} {
		r.now = epoch + step.at
		r.apply(Entry{Kind: Sweep})
		if got := r.list("0") + r.list("1") + r.list("2"); got != step.want {
			t.Errorf("after %d ms: %s, want %s", step.at, got, step.want)
		}
		next := r.m.NextExpiry()
		if next != 0 {
			next -= epoch
		}
		if next != step.next {
			t.Errorf("after %d ms the next expiry is at %d, want %d", step.at, next, step.next)
		}
	}
}

func TestASweepIsBounded(t *testing.T) {
	r := newRig(t)
	const n = 2*MaxSweep + 5
	for i := range n {
		r.frame(Frame{Calls: []Call{expiring(fmt.Sprint(i), 1, 1)}})
	}
	r.now += 10
	for sweeps, left := range []int{n - MaxSweep, n - 2*MaxSweep, 0} {
		r.apply(Entry{Kind: Sweep})
		r.flush()
		have := 0
		for key := range r.store.Keys {
			if key[0] == listType {
				have++
			}
		}
		if have != left {
			t.Errorf("%d lists after %d sweeps, want %d", have, sweeps+1, left)
		}
		if due := r.m.NextExpiry() != 0; due != (left > 0) {
			t.Errorf("after %d sweeps something is due: %v", sweeps+1, due)
		}
	}
}

// I6, also for a time that has passed already and after the machine was opened again.
func TestExpiryIsKnownAfterRestart(t *testing.T) {
	r := newRig(t)
	r.now = epoch + 100
	r.apply(Entry{Kind: Nudge})
	r.frame(Frame{Calls: []Call{expiring("a", 1, 50)}})
	r.flush()
	r.reopen()
	if next := r.m.NextExpiry(); next != epoch+150 {
		t.Errorf("next expiry %d, want %d", next-epoch, 150)
	}
}
