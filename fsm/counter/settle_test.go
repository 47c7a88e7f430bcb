package counter

import (
	"testing"

	"github.com/holdfastdb/holdfast/fsm"
)

var leasable = []Algorithm{TokenBucket, SlidingWindow, SlidingLog, FixedWindow, LeakyBucket}

const long fsm.Millis = 3600_000

// remaining is what one limit has free.
func (s *shard) remaining(l Limit) uint32 {
	s.t.Helper()
	return s.peek(0, l).Limits[0].Remaining
}

func (s *shard) wantRemaining(l Limit, want uint32) {
	s.t.Helper()
	if got := s.remaining(l); got != want {
		s.t.Fatalf("%d remaining, want %d", got, want)
	}
}

func TestSettle(t *testing.T) {
	tests := []struct {
		name      string
		mode      SettleMode
		actual    uint32
		want      SettleResult
		remaining uint32
	}{
		{"confirm", Confirm, 0, SettleResult{}, 6},
		{"confirm has no use for actual", Confirm, 9, SettleResult{}, 6},
		{"the same", Charge, 4, SettleResult{}, 6},
		{"less", Charge, 1, SettleResult{Refunded: 3}, 9},
		{"refund", Charge, 0, SettleResult{Refunded: 4}, 10},
		{"more", Charge, 7, SettleResult{Charged: 3}, 3},
		{"more than there is", Charge, 15, SettleResult{Charged: 11}, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			eachAlgorithm(t, leasable, func(t *testing.T, a Algorithm) {
				s := newShard(t)
				l := limit(1, params(a, 10, long))
				r := s.reserve(0, 60_000, 4, l)
				if !r.Allowed || r.Hold == 0 || r.Limits[0].Remaining != 6 {
					t.Fatalf("reserve: %+v", r)
				}
				q := SettleRequest{ID: r.Hold, Mode: test.mode, Actual: test.actual, Keys: []Key{l.Key}}
				if got := s.settle(q); got != test.want {
					t.Fatalf("settle: %+v, want %+v", got, test.want)
				}
				s.wantRemaining(l, test.remaining)
				if r := s.do(OpSettle, &q); r.Code != fsm.NotFound {
					t.Fatalf("settled twice: %v", r.Code)
				}
				s.now += 60_000
				s.wantRemaining(l, test.remaining) // nothing is left to refund
				s.check()
				s.drain()
			})
		})
	}
}

// Below zero, nothing is free until the debt is paid.
func TestDebt(t *testing.T) {
	s := newShard(t)
	l := limit(1, bucket(10, 10, 10_000))
	hold := s.reserve(0, 60_000, 10, l).Hold
	s.settle(SettleRequest{ID: hold, Mode: Charge, Actual: 15, Keys: []Key{l.Key}})
	if r := s.take(1, l).Limits[0]; !r.Denied || r.RetryIn != 6000 || r.ResetIn != 15_000 || r.Used != 15 {
		t.Fatalf("%+v", r)
	}
	s.now += 6000
	if !s.take(1, l).Allowed {
		t.Fatal("the debt is paid")
	}
}

func TestReservationEndsByItself(t *testing.T) {
	eachAlgorithm(t, leasable, func(t *testing.T, a Algorithm) {
		s := newShard(t)
		l := limit(1, params(a, 10, long))
		hold := s.reserve(0, 5000, 4, l).Hold
		q := &SettleRequest{ID: hold, Mode: Charge, Actual: 2, Keys: []Key{l.Key}}
		s.now += 4999
		s.wantRemaining(l, 6)
		s.now++
		s.wantRemaining(l, 10)
		if r := s.do(OpSettle, q); r.Code != fsm.NotFound {
			t.Fatalf("settled too late: %v", r.Code)
		}
		s.drain()
	})
}

// A settle of one reservation finds others whose time is over: they are given back then.
func TestSettleGivesBackWhatIsDue(t *testing.T) {
	eachAlgorithm(t, leasable, func(t *testing.T, a Algorithm) {
		s := newShard(t)
		l := limit(1, params(a, 10, long))
		s.reserve(1, 1000, 3, l)
		s.reserve(2, 2000, 3, l)
		s.now += 1500
		s.settle(SettleRequest{ID: 2, Mode: Confirm, Keys: []Key{l.Key}})
		s.wantRemaining(l, 7)
		s.check()
	})
}

// An answer that was lost is given again and nothing is taken twice.
func TestReserveTwice(t *testing.T) {
	eachAlgorithm(t, everyAlgorithm, func(t *testing.T, a Algorithm) {
		s := newShard(t)
		one, two := limit(1, params(a, 10, long)), limit(2, params(a, 10, long))
		for range 3 {
			r := s.reserve(77, 60_000, 4, one, two)
			if !r.Allowed || r.Hold != 77 || r.Limits[0].Used != 4 || r.Limits[1].Used != 4 {
				t.Fatalf("%+v", r)
			}
		}
		if r := s.reserve(78, 60_000, 4, one, two); r.Hold != 78 || r.Limits[0].Used != 8 {
			t.Fatalf("another: %+v", r)
		}
		if r := s.reserve(77, 60_000, 4, one, two); !r.Allowed || r.Limits[0].Used != 8 {
			t.Fatalf("the first again: %+v", r)
		}
		s.check()
		s.drain()
	})
}

func TestReserveAllOrNone(t *testing.T) {
	eachAlgorithm(t, everyAlgorithm, func(t *testing.T, a Algorithm) {
		s := newShard(t)
		wide, narrow := limit(1, params(a, 10, long)), limit(2, params(a, 3, long))
		r := s.reserve(7, 60_000, 4, wide, narrow)
		if r.Allowed || r.Hold != 0 || !r.Limits[1].Denied || r.Limits[1].RetryIn != -1 {
			t.Fatalf("%+v", r)
		}
		if s.rows() != 0 {
			t.Fatalf("left %x", s.kept.Keys)
		}
		narrow.Shadow = true
		if r := s.reserve(7, 60_000, 4, wide, narrow); !r.Allowed || r.Limits[0].Used != 4 || r.Limits[1].Used != 0 {
			t.Fatalf("shadow: %+v", r)
		}
		s.settle(SettleRequest{ID: 7, Mode: Charge, Keys: []Key{wide.Key, narrow.Key}})
		s.wantRemaining(wide, 10)
		s.wantRemaining(narrow, 3)
		s.check()
		s.drain()
	})
}

func TestHoldsMadeInOneEntryDiffer(t *testing.T) {
	s := newShard(t)
	l := limit(1, params(TokenBucket, 10, long))
	q := &ReserveRequest{TTL: 1000, TakeRequest: TakeRequest{1, []Limit{l}}}
	out := s.entry(fsm.Entry{Frames: []fsm.Frame{{Calls: []fsm.Call{call(OpReserve, q), call(OpReserve, q)}}}})
	first := decoded(s, out.Frames[0].Results[0], DecodeTakeResult)
	second := decoded(s, out.Frames[0].Results[1], DecodeTakeResult)
	if first.Hold == second.Hold || second.Limits[0].Used != 2 {
		t.Fatalf("%+v %+v", first, second)
	}
}

func TestSettleOfWhatIsUnknown(t *testing.T) {
	s := newShard(t)
	l := limit(1, params(TokenBucket, 10, long))
	q := &SettleRequest{ID: 5, Mode: Charge, Keys: []Key{l.Key}}
	if r := s.do(OpSettle, q); r.Code != fsm.NotFound {
		t.Fatalf("no such counter: %v", r.Code)
	}
	s.reserve(4, 1000, 1, l)
	if r := s.do(OpSettle, q); r.Code != fsm.NotFound {
		t.Fatalf("no such reservation: %v", r.Code)
	}
	g := s.lease(2, 1000, nil, l)
	q.ID = g.ID
	if r := s.do(OpSettle, q); r.Code != fsm.NotFound {
		t.Fatalf("a lease is not settled: %v", r.Code)
	}
	s.wantRemaining(l, 7)
}

func TestSlots(t *testing.T) {
	s := newShard(t)
	l := limit(1, params(Concurrency, 3, 10_000))
	first := s.take(2, l)
	if !first.Allowed || first.Hold == 0 || first.Limits[0].ResetIn != 10_000 {
		t.Fatalf("%+v", first)
	}
	s.now += 4000
	second := s.take(1, l)
	if r := s.take(2, l).Limits[0]; !r.Denied || r.RetryIn != 6000 || r.ResetIn != 10_000 {
		t.Fatalf("full: %+v", r)
	}
	// Confirming is no release: the caller goes on holding the slot.
	s.settle(SettleRequest{ID: second.Hold, Mode: Confirm, Keys: []Key{l.Key}})
	s.wantRemaining(l, 0)
	// What a slot was charged does not matter.
	if r := s.settle(SettleRequest{ID: second.Hold, Mode: Charge, Actual: 9, Keys: []Key{l.Key}}); r != (SettleResult{Refunded: 1}) {
		t.Fatalf("release: %+v", r)
	}
	s.wantRemaining(l, 1)
	s.check()
	s.now += 5999
	s.wantRemaining(l, 1)
	s.now++ // the caller of the first has crashed, it seems
	s.wantRemaining(l, 3)
	r := s.do(OpSettle, &SettleRequest{ID: first.Hold, Mode: Charge, Keys: []Key{l.Key}})
	if r.Code != fsm.NotFound {
		t.Fatalf("released after it freed itself: %v", r.Code)
	}
	s.check()
	s.drain()
}

// A reservation of a slot is the slot: it lives as long as the limit says, not as the reservation does.
func TestReservedSlots(t *testing.T) {
	s := newShard(t)
	slots, tokens := limit(1, params(Concurrency, 3, 10_000)), limit(2, params(TokenBucket, 100, long))
	r := s.reserve(0, 1000, 2, slots, tokens)
	s.settle(SettleRequest{ID: r.Hold, Mode: Confirm, Keys: []Key{slots.Key, tokens.Key}})
	s.now += 9999
	s.wantRemaining(slots, 1)
	s.wantRemaining(tokens, 98)
	s.settle(SettleRequest{ID: r.Hold, Mode: Charge, Keys: []Key{slots.Key, tokens.Key}})
	s.wantRemaining(slots, 3)
	s.wantRemaining(tokens, 98) // what is confirmed stays
	s.check()
}
