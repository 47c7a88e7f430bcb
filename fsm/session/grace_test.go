package session

import (
	"testing"

	"github.com/holdfastdb/holdfast/fsm"
)

// A cache that serves a token until its end must not serve one that was rotated away longer than its grace.
func TestAValidationTellsWhenATokenInGraceEnds(t *testing.T) {
	old, next := Hash{1}, Hash{2}
	r := &row{idle: 60_000, seen: 5_000, until: 1_000_000, access: ring{now: []Hash{old}}}
	if end := r.tokenEnd(&old); end != 65_000 {
		t.Errorf("before the rotation it ends at %d", end)
	}
	r.access.rotate(next, 20_000)
	r.seen = 20_000
	if end := r.tokenEnd(&old); end != 20_000+fsm.Time(Grace) {
		t.Errorf("after the rotation at 20 s the old one ends at %d", end)
	}
	if end := r.tokenEnd(&next); end != 80_000 {
		t.Errorf("the new one ends at %d", end)
	}
	r.until = 22_000
	if end := r.tokenEnd(&old); end != 22_000 {
		t.Errorf("the old one outlives its session: %d", end)
	}
}
