package counter

import (
	"math/big"
	"time"

	"github.com/holdfastdb/holdfast/fsm"
)

// The references decide as the definitions of the algorithms say, from everything that ever happened, with exact
// fractions and without a thought for speed.

// event is tokens used at a moment. Refunds change n afterwards.
type event struct {
	at, until fsm.Time
	n         int64
}

// reference is a limit's definition: free tells how many tokens may be used at now, given all that was used before.
type reference interface {
	free(now fsm.Time, past []*event) *big.Rat
}

func newReference(p Params) reference {
	switch p.Algorithm {
	case TokenBucket:
		return tokenReference{p}
	case LeakyBucket:
		return leakyReference{p}
	case SlidingLog:
		return logReference{p}
	case FixedWindow:
		return fixedReference{p}
	case SlidingWindow:
		return weightedReference{p}
	}
	return slotReference{p}
}

func whole(n int64) *big.Rat { return new(big.Rat).SetInt64(n) }

func sum(a, b *big.Rat) *big.Rat { return new(big.Rat).Add(a, b) }

func product(a, b *big.Rat) *big.Rat { return new(big.Rat).Mul(a, b) }

// tokenReference pours rate tokens a window into a bucket that holds burst.
type tokenReference struct{ p Params }

func (r tokenReference) free(now fsm.Time, past []*event) *big.Rat {
	burst := whole(int64(r.p.Burst))
	level, at := burst, fsm.Time(0)
	fill := func(until fsm.Time) {
		level = sum(level, product(big.NewRat(int64(r.p.Rate), r.p.Window), whole(int64(until-at))))
		if level.Cmp(burst) > 0 {
			level = burst
		}
		at = until
	}
	for _, e := range past {
		fill(e.at)
		level = sum(level, whole(-e.n))
	}
	fill(now)
	return level
}

// leakyReference is the virtual scheduling algorithm of I.371: one cell is due an emission interval after the one before,
// and may come earlier than its theoretical arrival time by burst intervals, its own included.
type leakyReference struct{ p Params }

func (r leakyReference) free(now fsm.Time, past []*event) *big.Rat {
	interval := big.NewRat(r.p.Window, int64(r.p.Rate))
	due := new(big.Rat)
	for _, e := range past {
		if arrival := whole(int64(e.at)); due.Cmp(arrival) < 0 {
			due = arrival
		}
		due = sum(due, product(interval, whole(e.n)))
	}
	ahead := sum(due, whole(-int64(now)))
	if ahead.Sign() < 0 {
		ahead = new(big.Rat)
	}
	return sum(whole(int64(r.p.Burst)), new(big.Rat).Neg(new(big.Rat).Quo(ahead, interval)))
}

// logReference adds up the last window.
type logReference struct{ p Params }

func (r logReference) free(now fsm.Time, past []*event) *big.Rat {
	free := int64(r.p.Rate)
	for _, e := range past {
		if e.at > now-fsm.Time(r.p.Window) {
			free -= e.n
		}
	}
	return whole(free)
}

// fixedReference counts by the start of the window, which it takes from package time if it is a calendar's.
type fixedReference struct{ p Params }

func (r fixedReference) free(now fsm.Time, past []*event) *big.Rat {
	counts := make(map[fsm.Time]int64)
	for _, e := range past {
		counts[r.start(e.at)] += e.n
	}
	return whole(int64(r.p.Rate) - counts[r.start(now)])
}

func (r fixedReference) start(now fsm.Time) fsm.Time {
	start, _ := calendarReference(r.p.Calendar, now, r.p.Window)
	return start
}

// calendarReference returns the window that holds now, by package time.
func calendarReference(c Calendar, now fsm.Time, window fsm.Millis) (start, end fsm.Time) {
	t := time.UnixMilli(int64(now)).UTC()
	midnight := time.Date(t.Year(), t.Month(), t.Day(), 0, 0, 0, 0, time.UTC)
	var from, to time.Time
	switch c {
	case Minute:
		from = time.Date(t.Year(), t.Month(), t.Day(), t.Hour(), t.Minute(), 0, 0, time.UTC)
		to = from.Add(time.Minute)
	case Hour:
		from = time.Date(t.Year(), t.Month(), t.Day(), t.Hour(), 0, 0, 0, time.UTC)
		to = from.Add(time.Hour)
	case Day:
		from, to = midnight, midnight.AddDate(0, 0, 1)
	case Week:
		from = midnight
		for from.Weekday() != time.Monday {
			from = from.AddDate(0, 0, -1)
		}
		to = from.AddDate(0, 0, 7)
	case Month:
		from = time.Date(t.Year(), t.Month(), 1, 0, 0, 0, 0, time.UTC)
		to = from.AddDate(0, 1, 0)
	case Year:
		from = time.Date(t.Year(), time.January, 1, 0, 0, 0, 0, time.UTC)
		to = from.AddDate(1, 0, 0)
	default:
		n := int64(now) / window
		return fsm.Time(n * window), fsm.Time((n + 1) * window)
	}
	return fsm.Time(from.UnixMilli()), fsm.Time(to.UnixMilli())
}

// weightedReference estimates the last window: all of the current one and the share of the one before that is still in it.
type weightedReference struct{ p Params }

func (r weightedReference) free(now fsm.Time, past []*event) *big.Rat {
	counts := make(map[int64]int64)
	for _, e := range past {
		counts[int64(e.at)/r.p.Window] += e.n
	}
	n := int64(now) / r.p.Window
	left := big.NewRat((n+1)*r.p.Window-int64(now), r.p.Window)
	used := sum(whole(counts[n]), product(whole(counts[n-1]), left))
	return sum(whole(int64(r.p.Rate)), used.Neg(used))
}

// slotReference counts the holds that have not ended.
type slotReference struct{ p Params }

func (r slotReference) free(now fsm.Time, past []*event) *big.Rat {
	free := int64(r.p.Rate)
	for _, e := range past {
		if e.until > now {
			free -= e.n
		}
	}
	return whole(free)
}
