package counter

import (
	"math/bits"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage/wire"
)

// Never is a time that does not come: what is asked for is more than the limit can ever give.
const Never fsm.Time = 1<<63 - 1

// state is what one algorithm keeps for one counter. A new algorithm is a file with a type of this interface, a number
// in limit.go and a row in the table below.
//
// advance is called before every other method of the same command and brings the state to the moment of the command.
// It must give the same state whether it is called once or in steps.
type state interface {
	// advance moves the state to now. out is how many of the tokens taken are leased or reserved at the moment: those
	// may still be used, or given back.
	advance(p *Params, now fsm.Time, out int64)
	// free is how many tokens could be taken; negative after a charge beyond the limit.
	free(p *Params) int64
	// take removes n tokens, more than are free if need be. at is when they count as used: now, for leases of some
	// algorithms the end of the lease, and for a charge beyond a reservation the time of the reservation.
	take(at fsm.Time, n int64)
	// give takes back what take(at, n) did, as far as it still matters.
	give(at fsm.Time, n int64)
	// used is how much of the limit is in use.
	used(p *Params) int64
	// ready is when n tokens are free if nobody takes any before, or Never. holds are those of the counter.
	ready(p *Params, now fsm.Time, n int64, holds []hold) fsm.Time
	// full is when the state is as good as a new one.
	full(p *Params, now fsm.Time) fsm.Time
	// charged is when a counter that was to be full by expires will be, now that n tokens more were taken from it.
	// It does not know the rules, other than those of the last advance.
	charged(expires fsm.Time, n int64) fsm.Time
	// lease tells until when, not after until, tokens may be leased and at what time they count as used; ok is
	// false if this algorithm cannot be leased.
	lease(p *Params, now, until fsm.Time) (end, at fsm.Time, ok bool)
	// append encodes the state. base is a moment near those in the state, to keep it small.
	append(dst []byte, base fsm.Time) []byte
	// decode is the inverse of append.
	decode(d *wire.Decoder, base fsm.Time)
}

// newState returns the state of an unused counter, nil for an unknown algorithm.
func newState(a Algorithm) state {
	switch a {
	case TokenBucket:
		return &tokenBucket{}
	case SlidingWindow:
		return &slidingWindow{}
	case SlidingLog:
		return &slidingLog{}
	case FixedWindow:
		return &fixedWindow{}
	case LeakyBucket:
		return &leakyBucket{}
	case Concurrency:
		return &concurrency{}
	}
	return nil
}

// mulDiv returns a·b/c rounded down, without overflow of the product. a, b and c are not negative.
func mulDiv(a, b, c int64) int64 {
	hi, lo := bits.Mul64(uint64(a), uint64(b))
	if hi >= uint64(c) {
		return 1<<63 - 1
	}
	q, _ := bits.Div64(hi, lo, uint64(c))
	return int64(min(q, 1<<63-1))
}

// mulDivUp is mulDiv rounded up.
func mulDivUp(a, b, c int64) int64 {
	hi, lo := bits.Mul64(uint64(a), uint64(b))
	if hi >= uint64(c) {
		return 1<<63 - 1
	}
	q, r := bits.Div64(hi, lo, uint64(c))
	if r != 0 {
		q++
	}
	return int64(min(q, 1<<63-1))
}

// divUp returns a/b rounded up; both are positive or a is zero.
func divUp(a, b int64) int64 { return (a + b - 1) / b }

// tokenTime returns n tokens in token·milliseconds of the window, at most maxTokenTime. A charge or a change of the rules can
// make a product that no rules would allow.
func tokenTime(n int64, window fsm.Millis) int64 { return min(mulDiv(n, window, 1), maxTokenTime) }

// rescale converts a quantity in tokens times the old window to tokens times the new one.
func rescale(v, window, old int64) int64 {
	if v < 0 {
		return -min(mulDivUp(-v, window, old), maxTokenTime)
	}
	return min(mulDiv(v, window, old), maxTokenTime)
}
