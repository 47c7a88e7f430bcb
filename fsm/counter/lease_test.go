package counter

import (
	"testing"

	"github.com/holdfastdb/holdfast/fsm"
)

func TestLeaseIsHalfOfWhatIsFree(t *testing.T) {
	eachAlgorithm(t, leasable, func(t *testing.T, a Algorithm) {
		s := newShard(t)
		l := limit(1, params(a, 10, long))
		for i, want := range []uint32{5, 3, 1, 1, 0} { // half, rounded up
			g := s.lease(100, 30_000, nil, l)
			if g.Granted != want || !g.Leasable || (g.ID != 0) != (want > 0) || g.State.Allowed != (want > 0) {
				t.Fatalf("lease %d: %+v, want %d", i, g, want)
			}
			if want > 0 && g.TTL != 30_000 {
				t.Fatalf("lease %d lasts %d", i, g.TTL)
			}
		}
		if r := s.take(1, l); r.Allowed {
			t.Fatalf("%+v", r)
		}
		s.check()
		s.drain()
	})
}

func TestLeaseOfNoMoreThanWanted(t *testing.T) {
	eachAlgorithm(t, leasable, func(t *testing.T, a Algorithm) {
		s := newShard(t)
		l := limit(1, params(a, 10, long))
		if g := s.lease(2, 1, nil, l); g.Granted != 2 || g.State.Limits[0].Remaining != 8 {
			t.Fatalf("%+v", g)
		}
		if g := s.lease(0, 1, nil, l); g.Granted != 0 || g.ID != 0 {
			t.Fatalf("none wanted: %+v", g)
		}
	})
}

// The narrowest limit decides, and if it has nothing the others keep theirs.
func TestLeaseOfSeveralLimits(t *testing.T) {
	eachAlgorithm(t, leasable, func(t *testing.T, a Algorithm) {
		s := newShard(t)
		wide, narrow := limit(1, params(a, 100, long)), limit(2, params(a, 2, long))
		if g := s.lease(50, 1000, nil, wide, narrow); g.Granted != 1 {
			t.Fatalf("%+v", g)
		}
		s.take(1, narrow)
		if g := s.lease(50, 1000, nil, wide, narrow); g.Granted != 0 || g.State.Limits[0].Denied || !g.State.Limits[1].Denied {
			t.Fatalf("%+v", g)
		}
		s.wantRemaining(wide, 99)
		narrow.Shadow = true
		if g := s.lease(50, 1000, nil, wide, narrow); g.Granted != 50 || !g.State.Limits[1].Denied {
			t.Fatalf("a shadow limit holds nobody up: %+v", g)
		}
		s.check()
		s.drain()
	})
}

// Tokens of a window are good for this window only.
func TestLeaseEndsWithTheWindow(t *testing.T) {
	eachAlgorithm(t, []Algorithm{FixedWindow, SlidingWindow}, func(t *testing.T, a Algorithm) {
		s := newShard(t)
		l := limit(1, params(a, 10, 1000))
		s.now = 1_700_000_000_900
		if g := s.lease(4, 30_000, nil, l); g.TTL != 100 || g.Granted != 4 {
			t.Fatalf("%+v", g)
		}
		s.now += 99
		if g := s.lease(1, 30_000, nil, l, limit(2, params(TokenBucket, 10, 1000))); g.TTL != 1 {
			t.Fatalf("the first end counts for all limits: %+v", g)
		}
		s.drain()
	})
	s := newShard(t)
	if g := s.lease(4, 30_000, nil, limit(1, params(SlidingLog, 10, 1000))); g.TTL != 30_000 {
		t.Fatalf("a log has no windows that end: %+v", g)
	}
}

func TestConcurrencyIsNotLeased(t *testing.T) {
	s := newShard(t)
	tokens, slots := limit(1, params(TokenBucket, 10, long)), limit(2, params(Concurrency, 10, long))
	if g := s.lease(4, 1000, nil, tokens, slots); g.Leasable || g.Granted != 0 || g.ID != 0 {
		t.Fatalf("%+v", g)
	}
	if s.rows() != 0 {
		t.Fatalf("left %x", s.kept.Keys)
	}
}

func TestLeaseReturned(t *testing.T) {
	eachAlgorithm(t, leasable, func(t *testing.T, a Algorithm) {
		s := newShard(t)
		l := limit(1, params(a, 20, long))
		first := s.lease(8, MaxLease, nil, l)
		second := s.lease(4, MaxLease, nil, l)
		s.wantRemaining(l, 8)
		g := s.lease(0, 1, []LeaseReturn{{first.ID, 5}}, l)
		if g.State.Limits[0].Remaining != 13 {
			t.Fatalf("5 of 8 came back: %+v", g)
		}
		if s.lease(0, 1, []LeaseReturn{{first.ID, 5}}, l); s.remaining(l) != 13 {
			t.Fatal("the same lease came back twice")
		}
		if s.lease(0, 1, []LeaseReturn{{second.ID, 999}, {12345, 999}}, l); s.remaining(l) != 17 {
			t.Fatalf("no more comes back than was leased: %d", s.remaining(l))
		}
		// What comes back can be leased at once.
		third := s.lease(17, MaxLease, nil, l)
		if g := s.lease(20, MaxLease, []LeaseReturn{{third.ID, third.Granted}}, l); g.Granted != 9 {
			t.Fatalf("%+v", g)
		}
		s.check()
		s.drain()
	})
}

// When a lease ends, nobody knows what was used of it: all of it was.
func TestLeaseNotReturnedWasUsed(t *testing.T) {
	eachAlgorithm(t, leasable, func(t *testing.T, a Algorithm) {
		s := newShard(t)
		l := limit(1, params(a, 10, 24*long))
		g := s.lease(5, MaxLease, nil, l)
		s.now += MaxLease
		s.wantRemaining(l, 5)
		if s.lease(0, 1, []LeaseReturn{{g.ID, 5}}, l); s.remaining(l) != 5 {
			t.Fatal("a lease came back that was over")
		}
		s.drain()
	})
}

// The bucket does not fill up behind a lease, and begins to when it ends.
func TestBucketFillsBesideLease(t *testing.T) {
	eachAlgorithm(t, []Algorithm{TokenBucket, LeakyBucket}, func(t *testing.T, a Algorithm) {
		s := newShard(t)
		l := limit(1, params(a, 10, 10_000))
		s.lease(4, 20_000, nil, l)
		for _, step := range []struct {
			after fsm.Time
			want  uint32
		}{{0, 6}, {10_000, 6}, {9999, 6}, {1, 6}, {999, 6}, {1, 7}, {3000, 10}} {
			s.now += step.after
			s.wantRemaining(l, step.want)
		}
		s.drain()
	})
}

func TestResetKeepsLeases(t *testing.T) {
	eachAlgorithm(t, leasable, func(t *testing.T, a Algorithm) {
		s := newShard(t)
		l := limit(1, params(a, 10, long))
		s.take(4, l)
		g := s.lease(3, 30_000, nil, l)
		s.reset(l.Key)
		s.check()
		s.wantRemaining(l, 7)
		s.lease(0, 1, []LeaseReturn{{g.ID, 2}}, l)
		s.wantRemaining(l, 9)
		s.drain()
	})
}

// New rules do not take back what was leased under the old ones.
func TestChangedAlgorithmKeepsLeases(t *testing.T) {
	for _, before := range leasable {
		eachAlgorithm(t, leasable, func(t *testing.T, after Algorithm) {
			if before == after {
				return
			}
			s := newShard(t)
			l := limit(1, params(before, 10, long))
			s.take(4, l)
			g := s.lease(3, 30_000, nil, l)
			l.Params = params(after, 10, long)
			s.wantRemaining(l, 7)
			s.take(0, l)
			s.check()
			s.lease(0, 1, []LeaseReturn{{g.ID, 2}}, l)
			s.wantRemaining(l, 9)
			s.drain()
		})
	}
}
