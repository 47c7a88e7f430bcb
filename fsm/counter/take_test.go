package counter

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/holdfastdb/holdfast/fsm"
)

func TestTakeFromAllOrNone(t *testing.T) {
	eachAlgorithm(t, everyAlgorithm, func(t *testing.T, a Algorithm) {
		s := newShard(t)
		wide, narrow := limit(1, params(a, 5, 3600_000)), limit(2, params(a, 2, 3600_000))
		if r := s.take(2, wide, narrow); !r.Allowed || r.Limits[0].Remaining != 3 || r.Limits[1].Remaining != 0 {
			t.Fatalf("%+v", r)
		}
		r := s.take(1, wide, narrow)
		if r.Allowed || r.Limits[0].Denied || !r.Limits[1].Denied {
			t.Fatalf("%+v", r)
		}
		if r.Limits[0].RetryIn != 0 || r.Limits[1].RetryIn <= 0 {
			t.Fatalf("who makes the request wait: %+v", r.Limits)
		}
		if got := s.peek(0, wide).Limits[0]; got.Remaining != 3 || got.Used != 2 {
			t.Fatalf("a denied request took something: %+v", got)
		}
		if r.Limits[0].Policy != 1 || r.Limits[1].Policy != 2 {
			t.Fatalf("policies %+v", r.Limits)
		}
	})
}

func TestDeniedRequestOnNewCountersLeavesNothing(t *testing.T) {
	eachAlgorithm(t, everyAlgorithm, func(t *testing.T, a Algorithm) {
		s := newShard(t)
		if s.take(3, limit(1, params(a, 5, 1000)), limit(2, params(a, 2, 1000))).Allowed {
			t.Fatal("allowed")
		}
		if s.rows() != 0 {
			t.Fatalf("left %x", s.kept.Keys)
		}
	})
}

func TestShadowCountsAndNeverDenies(t *testing.T) {
	eachAlgorithm(t, everyAlgorithm, func(t *testing.T, a Algorithm) {
		s := newShard(t)
		shadow, real := limit(1, params(a, 2, 3600_000)), limit(2, params(a, 5, 3600_000))
		shadow.Shadow = true
		s.take(2, shadow, real)
		r := s.take(2, shadow, real)
		if !r.Allowed || !r.Limits[0].Denied || !r.Limits[0].Shadow || r.Limits[1].Denied {
			t.Fatalf("%+v", r)
		}
		if r.Limits[0].Used != 2 || r.Limits[1].Used != 4 {
			t.Fatalf("a shadow limit takes what it would have admitted and no more: %+v", r.Limits)
		}
		if r := s.take(2, shadow, real); r.Allowed {
			t.Fatalf("the real limit denies: %+v", r)
		}
		s.check()
		s.drain()
	})
}

func TestWeights(t *testing.T) {
	eachAlgorithm(t, everyAlgorithm, func(t *testing.T, a Algorithm) {
		s := newShard(t)
		l := limit(1, params(a, 4, 3600_000))
		r := s.take(0, l)
		if !r.Allowed || r.Hold != 0 || r.Limits[0].Remaining != 4 || r.Limits[0].Used != 0 || r.Limits[0].ResetIn != 0 {
			t.Fatalf("no weight: %+v", r)
		}
		if r := s.take(5, l); r.Allowed || r.Limits[0].RetryIn != -1 {
			t.Fatalf("more than there ever is: %+v", r)
		}
		if r := s.take(4, l); !r.Allowed || r.Limits[0].Remaining != 0 {
			t.Fatalf("all: %+v", r)
		}
		if r := s.take(0, l); !r.Allowed {
			t.Fatalf("no weight on a spent counter: %+v", r)
		}
		if r := s.take(1<<32-1, l); r.Allowed || r.Limits[0].RetryIn != -1 {
			t.Fatalf("the largest weight: %+v", r)
		}
	})
}

func TestPeekTakesNothing(t *testing.T) {
	eachAlgorithm(t, everyAlgorithm, func(t *testing.T, a Algorithm) {
		s := newShard(t)
		l := limit(1, params(a, 4, 3600_000))
		for range 3 {
			if r := s.peek(4, l); !r.Allowed || r.Limits[0].Remaining != 4 {
				t.Fatalf("unused: %+v", r)
			}
		}
		s.take(3, l)
		for range 3 {
			if r := s.peek(2, l); r.Allowed || r.Limits[0].Remaining != 1 || r.Limits[0].RetryIn <= 0 {
				t.Fatalf("used: %+v", r)
			}
		}
	})
}

// Time in the log never goes back, whatever the leaders' clocks do.
func TestClockGoesBack(t *testing.T) {
	eachAlgorithm(t, everyAlgorithm, func(t *testing.T, a Algorithm) {
		s := newShard(t)
		l := limit(1, params(a, 2, 1000))
		s.take(2, l)
		s.now -= 500_000
		if s.take(1, l).Allowed {
			t.Fatal("allowed")
		}
	})
}

func TestChangedRules(t *testing.T) {
	hour := fsm.Millis(3600_000)
	tests := map[string]struct {
		before, after   Params
		taken           uint32
		remaining, used uint32
	}{
		"higher rate":             {params(FixedWindow, 10, hour), params(FixedWindow, 15, hour), 8, 7, 8},
		"lower rate":              {params(FixedWindow, 10, hour), params(FixedWindow, 5, hour), 8, 0, 8},
		"lower rate of a log":     {params(SlidingLog, 10, hour), params(SlidingLog, 5, hour), 8, 0, 8},
		"longer log":              {params(SlidingLog, 10, hour), params(SlidingLog, 10, 2*hour), 8, 2, 8},
		"other sliding window":    {params(SlidingWindow, 10, hour), params(SlidingWindow, 10, hour/7), 8, 2, 8},
		"fewer slots":             {params(Concurrency, 10, hour), params(Concurrency, 5, hour), 8, 0, 8},
		"smaller bucket":          {bucket(10, 10, hour), bucket(10, 5, hour), 3, 5, 0},
		"smaller bucket, spent":   {bucket(10, 10, hour), bucket(10, 5, hour), 8, 2, 3},
		"larger bucket":           {bucket(10, 10, hour), bucket(10, 20, hour), 8, 2, 18},
		"bucket, other window":    {bucket(10, 10, hour), bucket(10, 10, hour/3), 7, 3, 7},
		"leaky, other window":     {params(LeakyBucket, 10, hour), params(LeakyBucket, 10, 3*hour), 7, 3, 7},
		"leaky, smaller burst":    {params(LeakyBucket, 10, hour), Params{LeakyBucket, 10, hour, 5, None}, 7, 0, 7},
		"other algorithm":         {params(FixedWindow, 10, hour), params(SlidingLog, 10, hour), 8, 10, 0},
		"fixed window of the day": {params(FixedWindow, 10, hour), Params{FixedWindow, 10, 1, 0, Day}, 8, 2, 8},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s := newShard(t)
			before, after := limit(1, test.before), limit(1, test.after)
			s.take(test.taken, before)
			got := s.take(0, after).Limits[0]
			if got.Remaining != test.remaining || got.Used != test.used {
				t.Fatalf("%d remaining and %d used, want %d and %d", got.Remaining, got.Used, test.remaining, test.used)
			}
			s.check()
			s.drain()
		})
	}
}

// The sweep takes the rows that are as good as new, and only these.
func TestSweepTakesUnusedRowsOnly(t *testing.T) {
	eachAlgorithm(t, everyAlgorithm, func(t *testing.T, a Algorithm) {
		s := newShard(t)
		brief, long := limit(1, params(a, 2, 1000)), limit(2, params(a, 2, 3600_000))
		s.take(2, brief)
		s.take(2, long)
		s.now += minLife
		s.sweep()
		if _, ok := s.kept.Keys["\x01"+string(brief.Key[:])]; ok {
			t.Error("the unused row is still there")
		}
		if s.take(2, long).Allowed {
			t.Error("the row in use is gone")
		}
		s.drain()
	})
}

// A busy counter with a short window is not looked at by each sweep.
func TestBusyRowIsSweptSeldom(t *testing.T) {
	s := newShard(t)
	l := limit(1, params(FixedWindow, 2, 10))
	s.take(1, l)
	first := s.machine.NextExpiry()
	if first != s.now+minLife {
		t.Fatalf("first look after %d", first-s.now)
	}
	s.now = first
	s.take(1, l)
	s.sweep()
	if next := s.machine.NextExpiry(); next != first+minLife {
		t.Fatalf("next look after %d", next-first)
	}
}

func TestReset(t *testing.T) {
	eachAlgorithm(t, everyAlgorithm, func(t *testing.T, a Algorithm) {
		s := newShard(t)
		l := limit(1, params(a, 3, 3600_000))
		hold := s.reserve(0, 60_000, 3, l).Hold
		if n := s.reset(l.Key, key(9)); n != 1 {
			t.Fatalf("%d counters had been used", n)
		}
		s.check()
		r := s.do(OpSettle, &SettleRequest{ID: hold, Mode: Charge, Keys: []Key{l.Key}})
		if r.Code != fsm.NotFound {
			t.Fatalf("the reservation outlived the reset: %v", r.Code)
		}
		if r := s.take(3, l); !r.Allowed || r.Limits[0].Remaining != 0 {
			t.Fatalf("%+v", r)
		}
		s.reset(l.Key)
		due := s.machine.NextExpiry() // as it was when the counter was new: a row is in the index once
		s.now = due
		s.sweep()
		if s.rows() != 0 {
			t.Fatalf("a counter that was reset outlives %d: %x", due, s.kept.Keys)
		}
	})
}

// Whatever comes, in whatever order and under whatever rules, a machine that was opened again before each entry does and
// stores the same as one that was not: the shard compares them.
func TestDeterminism(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newShard(t)
		var holds, leases []uint64
		drawID := func(from []uint64) uint64 {
			return rapid.SampledFrom(append([]uint64{1, 2}, from...)).Draw(t, "id")
		}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			var limits []Limit
			var keys []Key
			for n := range byte(3) {
				if rapid.IntRange(0, 3).Draw(t, "use") == 0 && n > 0 {
					continue
				}
				a := rapid.SampledFrom(everyAlgorithm).Draw(t, "algorithm")
				if rapid.IntRange(0, 3).Draw(t, "same") > 0 {
					a = everyAlgorithm[n+1]
				}
				l := limit(n, drawParams(t, a, true))
				l.Shadow = rapid.IntRange(0, 4).Draw(t, "shadow") == 0
				limits, keys = append(limits, l), append(keys, l.Key)
			}
			s.now += drawStep(t, limits[0].Params)
			weight := uint32(rapid.IntRange(0, 8).Draw(t, "weight"))
			ttl := rapid.Int64Range(1, MaxLease).Draw(t, "ttl")
			switch rapid.IntRange(0, 8).Draw(t, "op") {
			case 0, 1, 2:
				if r := s.take(weight, limits...); r.Hold != 0 {
					holds = append(holds, r.Hold)
				}
			case 3:
				q := &ReserveRequest{TTL: ttl, TakeRequest: TakeRequest{weight, limits}}
				if rapid.Bool().Draw(t, "named") {
					q.ID = drawID(nil)
				}
				if r, err := DecodeTakeResult(s.do(OpReserve, q).Body); err == nil && r.Hold != 0 {
					holds = append(holds, r.Hold)
				}
			case 4, 5:
				mode := rapid.SampledFrom([]SettleMode{Confirm, Charge}).Draw(t, "mode")
				s.do(OpSettle, &SettleRequest{ID: drawID(holds), Mode: mode, Actual: 2 * weight, Keys: keys})
			case 6:
				returns := []LeaseReturn{{ID: drawID(leases), Unused: weight}}
				leases = append(leases, s.lease(weight, ttl, returns, limits...).ID)
			case 7:
				s.reset(keys...)
			case 8:
				s.sweep()
			}
			s.check()
		}
		s.drain()
	})
}
