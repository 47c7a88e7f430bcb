package counter

import (
	"math/big"
	"testing"

	"pgregory.net/rapid"

	"github.com/holdfastdb/holdfast/fsm"
)

var windows = []fsm.Millis{1, 3, 7, 100, 1000, 60_000, 3_600_000}

func drawParams(t *rapid.T, a Algorithm, calendars bool) Params {
	p := Params{
		Algorithm: a,
		Rate:      uint32(rapid.IntRange(1, 12).Draw(t, "rate")),
		Window:    rapid.SampledFrom(windows).Draw(t, "window"),
	}
	switch {
	case a == TokenBucket || a == LeakyBucket:
		p.Burst = uint32(rapid.IntRange(1, 20).Draw(t, "burst"))
	case a == FixedWindow && calendars:
		p.Calendar = rapid.SampledFrom(everyCalendar).Draw(t, "calendar")
	}
	return p
}

// drawStep prefers spans at which something changes: nothing, a millisecond, a token, a window, and the edges of these.
func drawStep(t *rapid.T, p Params) fsm.Time {
	token := max(p.Window/int64(p.Rate), 1)
	choices := []fsm.Millis{0, 0, 0, 1, token, token - 1, token + 1, p.Window - 1, p.Window, p.Window / 2, 3 * p.Window}
	if p.Calendar != None {
		choices = append(choices, p.Calendar.Window(), p.Calendar.Window()/3)
	}
	choices = append(choices, rapid.Int64Range(0, 2*p.Window).Draw(t, "some"))
	return fsm.Time(rapid.SampledFrom(choices).Draw(t, "step"))
}

func fits(weight int64, free *big.Rat) bool { return new(big.Rat).SetInt64(weight).Cmp(free) <= 0 }

// at asks what a take would answer at a moment without moving the machine there.
func (s *shard) at(now fsm.Time, weight uint32, l Limit) LimitResult {
	s.t.Helper()
	r, err := peek(fsm.ViewOf(s.kept.View(), TypeID, now), &TakeRequest{weight, []Limit{l}})
	if err != nil {
		s.t.Fatalf("peek: %v", err)
	}
	return r.Limits[0]
}

// checkHints verifies the times in a result: a request succeeds after RetryIn and not a millisecond before it, and the
// counter is whole after ResetIn and not before.
func (s *shard) checkHints(r LimitResult, weight uint32, l Limit) {
	s.t.Helper()
	capacity := l.Rate
	if l.Burst != 0 {
		capacity = l.Burst
	}
	if r.Denied && r.RetryIn < 0 {
		if weight <= capacity {
			s.t.Fatalf("never, for %d of %d", weight, capacity)
		}
	} else if r.Denied {
		at := s.now + fsm.Time(r.RetryIn)
		if s.at(at, weight, l).Denied {
			s.t.Fatalf("denied again after RetryIn %d", r.RetryIn)
		}
		if !s.at(at-1, weight, l).Denied {
			s.t.Fatalf("allowed a millisecond before RetryIn %d", r.RetryIn)
		}
	}
	at := s.now + fsm.Time(r.ResetIn)
	if got := s.at(at, 0, l).Remaining; got != capacity {
		s.t.Fatalf("%d free after ResetIn %d, not %d", got, r.ResetIn, capacity)
	}
	if got := s.at(at-1, 0, l).Remaining; r.ResetIn > 0 && got == capacity {
		s.t.Fatalf("whole a millisecond before ResetIn %d", r.ResetIn)
	}
}

// Every decision is the reference's, and what it tells about the future comes true.
func TestTakeIsTheReferences(t *testing.T) {
	eachAlgorithm(t, everyAlgorithm, func(t *testing.T, a Algorithm) {
		rapid.Check(t, func(t *rapid.T) {
			s := newShard(t)
			l := limit(1, drawParams(t, a, true))
			ref := newReference(l.Params)
			var past []*event
			for range rapid.IntRange(1, 40).Draw(t, "steps") {
				s.now += drawStep(t, l.Params)
				if rapid.IntRange(0, 9).Draw(t, "sweep") == 0 {
					s.sweep()
				}
				weight := uint32(rapid.IntRange(0, int(max(l.Rate, l.Burst))+1).Draw(t, "weight"))
				want := fits(int64(weight), ref.free(s.now, past))
				got := s.take(weight, l)
				if got.Allowed != want {
					t.Fatalf("%d tokens at %d: %v, the reference says %v", weight, s.now, got.Allowed, want)
				}
				s.checkHints(got.Limits[0], weight, l)
				if want {
					past = append(past, &event{at: s.now, until: s.now + fsm.Time(l.Window), n: int64(weight)})
				}
			}
			s.check()
			s.drain()
		})
	})
}

// Reservations that are settled for less, kept, given back or forgotten about decide as if only what was used in the end
// had ever been taken, for the algorithms that remember windows or slots. Buckets forget on purpose: see tokenBucket.
func TestRefundsAreTheReferences(t *testing.T) {
	eachAlgorithm(t, []Algorithm{SlidingLog, FixedWindow, SlidingWindow, Concurrency}, func(t *testing.T, a Algorithm) {
		rapid.Check(t, func(t *rapid.T) {
			s := newShard(t)
			l := limit(1, drawParams(t, a, true))
			ref := newReference(l.Params)
			var past []*event
			open := make(map[uint64]*event)
			for range rapid.IntRange(1, 40).Draw(t, "steps") {
				s.now += drawStep(t, l.Params)
				for id, e := range open {
					if e.until <= s.now {
						e.n = 0
						delete(open, id)
					}
				}
				if id := anyKey(t, open); id != 0 && rapid.Bool().Draw(t, "settle") {
					e := open[id]
					actual := uint32(rapid.Int64Range(0, e.n).Draw(t, "actual"))
					s.settle(SettleRequest{ID: id, Mode: Charge, Actual: actual, Keys: []Key{l.Key}})
					if e.n = int64(actual); a == Concurrency {
						e.n = 0
					}
					delete(open, id)
					continue
				}
				weight := int64(rapid.IntRange(0, int(l.Rate)).Draw(t, "weight"))
				ttl := rapid.SampledFrom([]fsm.Millis{1, 5, min(l.Window, MaxReserve), MaxReserve}).Draw(t, "ttl")
				want := fits(weight, ref.free(s.now, past))
				got := s.reserve(0, ttl, uint32(weight), l)
				if got.Allowed != want {
					t.Fatalf("%d tokens at %d: %v, the reference says %v", weight, s.now, got.Allowed, want)
				}
				if want {
					e := &event{at: s.now, until: s.now + fsm.Time(ttl), n: weight}
					if a == Concurrency {
						e.until = s.now + fsm.Time(l.Window)
					}
					past = append(past, e)
					open[got.Hold] = e
				}
			}
			s.check()
			s.drain()
		})
	})
}

// anyKey draws a key of the map, 0 if there is none, in a way that rapid can repeat.
func anyKey[V any](t *rapid.T, m map[uint64]V) uint64 {
	if len(m) == 0 {
		return 0
	}
	nth := rapid.IntRange(0, len(m)-1).Draw(t, "which")
	for id := uint64(1); ; id++ {
		if _, ok := m[id]; !ok {
			continue
		}
		if nth == 0 {
			return id
		}
		nth--
	}
}

// use is tokens that were used at one unknown moment in [from, to].
type use struct {
	from, to fsm.Time
	n        int64
}

// admits is the promise: at most how many tokens in an interval whose ends are t milliseconds apart, times the window.
func admits(p Params, t fsm.Time) int64 {
	rate, span := int64(p.Rate), int64(t)
	switch p.Algorithm {
	case TokenBucket, LeakyBucket:
		return int64(p.Burst)*p.Window + rate*span
	case SlidingWindow:
		return rate*p.Window + rate*span
	case SlidingLog:
		return rate * p.Window * (span/p.Window + 1)
	default: // FixedWindow: as many windows as can meet the interval
		return rate * p.Window * ((span+p.Window-1)/p.Window + 1)
	}
}

// checkBound tries all intervals that could matter. Tokens whose moment is unknown count in every interval that they might
// be in, which is worse than anything a holder can do.
func checkBound(t failer, p Params, uses []use) {
	t.Helper()
	for _, a := range uses {
		for _, b := range uses {
			from, to := a.to, b.from // intervals that begin with the last moment of one and end with the first of another
			if from > to {
				continue
			}
			var n int64
			for _, u := range uses {
				if u.to >= from && u.from <= to {
					n += u.n
				}
			}
			if most := admits(p, to-from); n*p.Window > most {
				t.Fatalf("%d tokens in [%d, %d], the most is %d/%d of %+v\n%+v", n, from, to, most, p.Window, p, uses)
			}
		}
	}
}

// The bounds hold in every interval, whatever takes, reservations, leases, sweeps and resets of nothing come together.
func TestBounds(t *testing.T) {
	eachAlgorithm(t, []Algorithm{TokenBucket, LeakyBucket, SlidingLog, FixedWindow, SlidingWindow}, func(t *testing.T, a Algorithm) {
		rapid.Check(t, func(t *rapid.T) {
			s := newShard(t)
			l := limit(1, drawParams(t, a, false))
			b := &bounded{shard: s, t: t, l: l, reserved: make(map[uint64]*use), leased: make(map[uint64]*use), until: make(map[uint64]fsm.Time)}
			actions := []func(){b.take, b.take, b.reserve, b.settle, b.lease, b.giveBack, s.sweep}
			for range rapid.IntRange(1, 60).Draw(t, "steps") {
				s.now += drawStep(t, l.Params)
				if rapid.IntRange(0, 9).Draw(t, "long") == 0 {
					s.now += MaxLease
				}
				b.end()
				actions[rapid.IntRange(0, len(actions)-1).Draw(t, "action")]()
				s.check()
			}
			var uses []use
			for _, u := range b.uses {
				if u.n > 0 {
					uses = append(uses, *u)
				}
			}
			checkBound(t, l.Params, uses)
			s.drain()
		})
	})
}

type bounded struct {
	*shard
	t                *rapid.T
	l                Limit
	uses             []*use
	reserved, leased map[uint64]*use     // what is out
	until            map[uint64]fsm.Time // when reservations end
}

func (b *bounded) weight() uint32 {
	return uint32(rapid.IntRange(0, int(max(b.l.Rate, b.l.Burst))).Draw(b.t, "weight"))
}

func (b *bounded) ttl() fsm.Millis {
	return rapid.SampledFrom([]fsm.Millis{1, 2, min(b.l.Window, MaxLease), 500, MaxLease}).Draw(b.t, "ttl")
}

func (b *bounded) add(to fsm.Time, n uint32) *use {
	u := &use{b.now, to, int64(n)}
	b.uses = append(b.uses, u)
	return u
}

// end forgets what ended by itself: reservations come to nothing, leases may have been used to the last moment.
func (b *bounded) end() {
	for id, u := range b.reserved {
		if b.until[id] <= b.now {
			u.n = 0
			delete(b.reserved, id)
		}
	}
	for id, u := range b.leased {
		if u.to < b.now {
			delete(b.leased, id)
		}
	}
}

func (b *bounded) take() {
	if w := b.weight(); b.shard.take(w, b.l).Allowed {
		b.add(b.now, w)
	}
}

func (b *bounded) reserve() {
	w, ttl := b.weight(), b.ttl()
	if r := b.shard.reserve(0, ttl, w, b.l); r.Allowed {
		b.reserved[r.Hold], b.until[r.Hold] = b.add(b.now, w), b.now+fsm.Time(ttl)
	}
}

func (b *bounded) settle() {
	id := anyKey(b.t, b.reserved)
	if id == 0 {
		return
	}
	u := b.reserved[id]
	q := SettleRequest{ID: id, Mode: Confirm, Keys: []Key{b.l.Key}}
	if rapid.Bool().Draw(b.t, "charge") {
		q.Mode, q.Actual = Charge, uint32(rapid.Int64Range(0, u.n).Draw(b.t, "actual"))
		u.n = int64(q.Actual)
	}
	b.shard.settle(q)
	delete(b.reserved, id)
}

func (b *bounded) lease() {
	want := b.weight()
	g := b.shard.lease(want, b.ttl(), nil, b.l)
	if g.Granted > want || !g.Leasable {
		b.t.Fatalf("%+v of %d", g, want)
	}
	if g.Granted > 0 {
		b.leased[g.ID] = b.add(b.now+fsm.Time(g.TTL)-1, g.Granted)
	}
}

func (b *bounded) giveBack() {
	id := anyKey(b.t, b.leased)
	if id == 0 {
		return
	}
	u := b.leased[id]
	unused := rapid.Int64Range(0, u.n).Draw(b.t, "unused")
	b.shard.lease(0, 1, []LeaseReturn{{ID: id, Unused: uint32(unused)}}, b.l)
	u.n -= unused
	u.to = b.now
	delete(b.leased, id)
}
