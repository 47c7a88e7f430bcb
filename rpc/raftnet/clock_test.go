package raftnet

import (
	"testing"
	"testing/synctest"
	"time"
)

// What another clock says goes on by our monotonic clock, however long ago it was read: what becomes of our wall clock
// meanwhile has no part in it.
func TestAReadingOfAClockGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		said := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
		n := &Net{clocks: map[string]reading{"n2": {wall: said, at: time.Now()}}}
		time.Sleep(time.Hour)
		if at, ok := n.Clock("n2"); !ok || !at.Equal(said.Add(time.Hour)) {
			t.Errorf("an hour later: %v", at)
		}
		if _, ok := n.Clock("n3"); ok {
			t.Error("a clock that was never read is known")
		}
	})
}
