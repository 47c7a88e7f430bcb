package counter

import (
	"testing"

	"github.com/holdfastdb/holdfast/fsm"
)

// Each test here is a way in which a counter once lost count.

// An entry without tokens in the log could be written but not read again, which stops the replica.
func TestZeroWeightLeavesNoEntryInTheLog(t *testing.T) {
	s := newShard(t)
	l := limit(1, params(SlidingLog, 5, 1000))
	for range 2 {
		if !s.take(0, l).Allowed {
			t.Fatal("a request of no weight was denied")
		}
	}
}

// The bucket must not fill up behind a reservation and then get its tokens back on top.
func TestRefundNeverMakesMoreThanABurst(t *testing.T) {
	eachAlgorithm(t, []Algorithm{TokenBucket, LeakyBucket}, func(t *testing.T, a Algorithm) {
		s := newShard(t)
		l := limit(1, params(a, 10, 1000))
		hold := s.reserve(0, 60_000, 5, l).Hold
		s.now += 5000
		admitted := 0
		for range 10 {
			if s.take(1, l).Allowed {
				admitted++
			}
		}
		s.settle(SettleRequest{ID: hold, Mode: Charge, Keys: []Key{l.Key}})
		for range 10 {
			if s.take(1, l).Allowed {
				admitted++
			}
		}
		if admitted != 10 {
			t.Fatalf("admitted %d at one moment, the burst is 10", admitted)
		}
	})
}

// A lease may be used up to its last moment, so the row must outlive it until the bucket has filled again.
func TestSweepAtTheEndOfALeaseDoesNotRefill(t *testing.T) {
	eachAlgorithm(t, []Algorithm{TokenBucket, LeakyBucket}, func(t *testing.T, a Algorithm) {
		s := newShard(t)
		l := limit(1, params(a, 100, 1000))
		if g := s.lease(50, MaxLease, nil, l); g.Granted != 50 {
			t.Fatalf("granted %d", g.Granted)
		}
		s.now += MaxLease
		s.sweep()
		if s.take(51, l).Allowed {
			t.Fatal("more than a burst within a millisecond of the lease's last use")
		}
		if !s.take(50, l).Allowed {
			t.Fatal("what was not leased is not free")
		}
		s.drain()
	})
}

// A charge beyond what was reserved has to be remembered until it is paid.
func TestSweepKeepsDebt(t *testing.T) {
	eachAlgorithm(t, []Algorithm{TokenBucket, LeakyBucket, FixedWindow, SlidingLog, SlidingWindow}, func(t *testing.T, a Algorithm) {
		for _, weight := range []uint32{0, 1} {
			s := newShard(t)
			l := limit(1, params(a, 10, 3600_000))
			hold := s.reserve(0, 1000, weight, l).Hold
			s.now += 500
			s.settle(SettleRequest{ID: hold, Mode: Charge, Actual: 10, Keys: []Key{l.Key}})
			s.now += 400_000
			s.sweep()
			if s.take(9, l).Allowed {
				t.Fatalf("a debt was forgotten (%d reserved)", weight)
			}
			s.drain()
		}
	})
}

// What is due to the past window must not depend on whether somebody asked in between.
func TestChargeBelongsToTheWindowOfTheReservation(t *testing.T) {
	eachAlgorithm(t, []Algorithm{FixedWindow, SlidingWindow}, func(t *testing.T, a Algorithm) {
		var remaining [2]uint32
		for between := range remaining {
			s := newShard(t)
			l := limit(1, params(a, 10, 1000))
			hold := s.reserve(0, 60_000, 1, l).Hold
			s.now += 1000
			if between == 1 {
				s.take(0, l)
			}
			s.settle(SettleRequest{ID: hold, Mode: Charge, Actual: 4, Keys: []Key{l.Key}})
			remaining[between] = s.take(0, l).Limits[0].Remaining
		}
		if remaining[0] != remaining[1] {
			t.Fatalf("%d free if nobody asked, %d if somebody did", remaining[0], remaining[1])
		}
	})
}

// Reset forgets what was used; what is leased out is going to be used.
func TestResetCountsLeases(t *testing.T) {
	eachAlgorithm(t, []Algorithm{TokenBucket, LeakyBucket, FixedWindow, SlidingLog, SlidingWindow}, func(t *testing.T, a Algorithm) {
		s := newShard(t)
		l := limit(1, params(a, 10, 3600_000))
		g := s.lease(5, MaxLease, nil, l)
		s.reset(l.Key)
		if got := s.take(0, l).Limits[0].Remaining; got != 5 {
			t.Fatalf("%d free beside a lease of 5", got)
		}
		if !s.take(5, l).Allowed || s.take(1, l).Allowed {
			t.Fatal("5 must be free")
		}
		s.lease(0, 1, []LeaseReturn{{ID: g.ID, Unused: 5}}, l)
		if !s.take(5, l).Allowed || s.take(1, l).Allowed {
			t.Fatal("the 5 returned must be free")
		}
	})
}

// Concurrency counts no tokens: leases of the rules before have nothing to do with its slots.
func TestChangeToConcurrencyDropsLeases(t *testing.T) {
	s := newShard(t)
	l := limit(1, params(TokenBucket, 10, 1000))
	g := s.lease(5, MaxLease, nil, l)
	l.Params = params(Concurrency, 3, 60_000)
	if !s.take(3, l).Allowed {
		t.Fatal("denied")
	}
	s.check()
	s.lease(1, 1000, []LeaseReturn{{ID: g.ID, Unused: 5}}, l)
	s.check()
	if s.take(1, l).Allowed {
		t.Fatal("the return of a lease freed a slot")
	}
}

// A charge is any 32-bit number and a window up to a year: the product needs more than 64 bits.
func TestHugeChargeSaturates(t *testing.T) {
	eachAlgorithm(t, []Algorithm{TokenBucket, LeakyBucket, FixedWindow, SlidingLog, SlidingWindow}, func(t *testing.T, a Algorithm) {
		s := newShard(t)
		l := limit(1, params(a, 10, MaxWindow))
		for id := range uint64(3) {
			s.reserve(id+1, 60_000, 0, l)
		}
		for id := range uint64(3) {
			s.settle(SettleRequest{ID: id + 1, Mode: Charge, Actual: 1<<32 - 1, Keys: []Key{l.Key}})
			if r := s.take(1, l); r.Allowed || r.Limits[0].Remaining != 0 || r.Limits[0].RetryIn <= 0 {
				t.Fatalf("%+v", r)
			}
			l.Window-- // new rules rescale the debt
		}
		s.check()
	})
}

// The largest rate and the longest window go together where they are not multiplied, also when what is leased moves to
// another algorithm.
func TestTheLargestRateInTheLongestWindow(t *testing.T) {
	eachAlgorithm(t, []Algorithm{FixedWindow, SlidingWindow}, func(t *testing.T, a Algorithm) {
		s := newShard(t)
		l := limit(1, params(a, MaxRate, MaxWindow))
		r := s.take(MaxRate-1, l)
		if !r.Allowed || r.Limits[0].Remaining != 1 {
			t.Fatalf("nearly all: %+v", r)
		}
		if r := s.take(2, l); r.Allowed || r.Limits[0].RetryIn <= 0 || r.Limits[0].RetryIn > 2*MaxWindow {
			t.Fatalf("one too many: %+v", r)
		}
		s.now += fsm.Time(r.Limits[0].ResetIn)
		s.lease(MaxRate, MaxLease, nil, l)
		for _, p := range []Params{bucket(1, 1, MaxWindow), params(SlidingWindow, MaxRate, 1), params(FixedWindow, MaxRate, MaxWindow)} {
			l.Params = p
			if s.take(MaxRate, l).Allowed {
				t.Fatalf("half of the tokens are leased, %+v has all", p)
			}
		}
		s.check()
	})
}

// Tokens of short windows become many token milliseconds when the rules change to long ones.
func TestHoldsSurviveALongerWindow(t *testing.T) {
	eachAlgorithm(t, []Algorithm{TokenBucket, LeakyBucket}, func(t *testing.T, a Algorithm) {
		s := newShard(t)
		l := limit(1, params(a, MaxRate, 1000))
		s.lease(MaxRate, MaxLease, nil, l)
		s.reserve(7, 60_000, MaxRate/2, l)
		l.Params = params(a, 1, MaxWindow)
		if s.take(1, l).Allowed {
			t.Fatal("the tokens are out")
		}
		s.settle(SettleRequest{ID: 7, Mode: Charge, Keys: []Key{l.Key}})
		if s.take(1, l).Allowed {
			t.Fatal("the lease is out")
		}
		s.check()
	})
}

// The expiry index has 48 bits of time; what is later comes round to the beginning.
func TestExpiryFarAway(t *testing.T) {
	s := newShard(t)
	l := limit(1, bucket(1, 100_000_000, MaxWindow))
	s.take(100_000_000, l)
	if at := s.open(s.kept).NextExpiry(); at != maxExpiry {
		t.Fatalf("to be swept at %d, it is %d", at, s.now)
	}
}

// A reservation whose time is over was refunded: the same number again is a new one.
func TestReserveAgainAfterItsTime(t *testing.T) {
	s := newShard(t)
	l := limit(1, params(FixedWindow, 10, 3600_000))
	s.reserve(7, 1000, 6, l)
	s.now += 1000
	if got := s.reserve(7, 1000, 6, l).Limits[0].Used; got != 6 {
		t.Fatalf("%d used", got)
	}
	s.settle(SettleRequest{ID: 7, Mode: Confirm, Keys: []Key{l.Key}})
}

// The same with other rules: the old hold goes with the old state.
func TestReserveAgainUnderAnotherAlgorithm(t *testing.T) {
	s := newShard(t)
	l := limit(1, params(FixedWindow, 10, 3600_000))
	s.reserve(7, 1000, 6, l)
	l.Params = params(TokenBucket, 10, 3600_000)
	s.reserve(7, 1000, 6, l)
	s.settle(SettleRequest{ID: 7, Mode: Confirm, Keys: []Key{l.Key}})
}

// Holds whose time is over take no room, even before a command with the rules removes them.
func TestRoomIsForLivingHolds(t *testing.T) {
	s := newShard(t)
	l := limit(1, params(FixedWindow, 10, MaxWindow))
	s.reserve(0, 1000, 0, l)
	// The others are written into the stores: to make ten thousand by commands takes seconds.
	stored := "\x01" + string(l.Key[:])
	decoded, err := decodeRow(s.kept.Keys[stored])
	if err != nil {
		t.Fatal(err)
	}
	r := decoded.(*row)
	for id := range uint64(MaxListed - 1) {
		r.holds = append(r.holds, hold{kind: reserved, id: 1<<40 + id, at: s.now, until: s.now + 1000})
	}
	s.kept.Keys[stored] = r.Append(nil)
	s.stored.Keys[stored] = r.Append(nil)
	s.machine = s.open(s.kept)

	q := &ReserveRequest{TTL: 1000, TakeRequest: TakeRequest{Weight: 0, Limits: []Limit{l}}}
	if r := s.do(OpReserve, q); r.Code != fsm.Exhausted {
		t.Fatalf("%v %s", r.Code, r.Body)
	}
	if r := s.do(OpLease, &LeaseRequest{Want: 1, TTL: 1, Limits: []Limit{l}}); r.Code != fsm.Exhausted {
		t.Fatalf("%v %s", r.Code, r.Body)
	}
	s.now += 1000
	if r := s.do(OpReserve, q); r.Code != fsm.OK {
		t.Fatalf("%v %s", r.Code, r.Body)
	}
}
