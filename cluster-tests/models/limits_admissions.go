package models

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/counter"
)

// admissions is all that one counter let through under one set of rules, to be judged by the promise that the rules make
// and by nothing else: it must hold in every interval, however the answers came about.
type admissions struct {
	rules counter.Params
	all   []admission
	at    map[uint64]int // by hold or take
}

// admission is n tokens, each used at some moment in [from, to]: an interval that has a part of it has them. If nobody knows
// exactly when they were used, from is the latest moment and to the earliest, and only an interval with both surely has them.
type admission struct {
	from, to fsm.Time
	n        int64
}

func newAdmissions(rules counter.Params) *admissions {
	return &admissions{rules: rules, at: make(map[uint64]int)}
}

// known are the admissions without those of which nobody knows exactly when they were used: check takes these off from an
// interval that lies between their moments, though it has nothing of them.
func (a *admissions) known() *admissions {
	some := newAdmissions(a.rules)
	for _, x := range a.all {
		if x.from <= x.to {
			some.all = append(some.all, x)
		}
	}
	return some
}

func (a *admissions) add(id uint64, n int64, from, to fsm.Time) {
	a.at[id] = len(a.all)
	if a.rules.Algorithm == counter.Concurrency {
		to = from + fsm.Time(a.rules.Window) - 1 // in use all that time
	}
	a.all = append(a.all, admission{from, to, n})
}

// reserve notes tokens that come back by themselves: none count as used until they are settled. Slots are in use at once.
func (a *admissions) reserve(id uint64, n int64, now fsm.Time) {
	if a.rules.Algorithm != counter.Concurrency {
		n = 0
	}
	a.add(id, n, now, now)
}

// settle says how many of the reserved tokens were used; slots are free from now on.
func (a *admissions) settle(id uint64, n int64, now fsm.Time) {
	if a == nil {
		return
	}
	i, ok := a.at[id]
	switch {
	case !ok: // under rules that have changed since
	case a.rules.Algorithm == counter.Concurrency:
		a.all[i].to = min(a.all[i].to, now-1)
	default:
		a.all[i].n = n
	}
}

// giveBack says that so many of a loan's tokens were not used and the others are.
func (a *admissions) giveBack(id uint64, unused int64, now fsm.Time) {
	if i, ok := a.at[id]; ok {
		one := &a.all[i]
		one.n = max(one.n-unused, 0)
		one.to = min(one.to, now)
	}
}

// check tells of an interval in which more was used than the rules promise.
func (a *admissions) check() error {
	switch a.rules.Algorithm {
	case counter.TokenBucket, counter.LeakyBucket:
		return a.checkRate(int64(a.rules.Burst))
	case counter.SlidingWindow:
		return a.checkRate(int64(a.rules.Rate))
	case counter.SlidingLog:
		return a.checkWindows()
	case counter.FixedWindow:
		return a.checkFixed()
	case counter.Concurrency:
		return a.checkSlots()
	}
	return nil
}

// used sums up, as a function of a moment, the tokens whose time is before it, or not after it.
type used struct {
	sorted []admission
	time   func(admission) fsm.Time
	next   int
	sum    int64
}

func (a *admissions) by(time func(admission) fsm.Time) *used {
	return &used{sorted: slices.SortedFunc(slices.Values(a.all), func(x, y admission) int { return cmp.Compare(time(x), time(y)) }), time: time}
}

func from(x admission) fsm.Time { return x.from }
func to(x admission) fsm.Time   { return x.to }

// before moves on to t and returns the sum of what comes before it.
func (u *used) before(t fsm.Time) int64 {
	for u.next < len(u.sorted) && u.time(u.sorted[u.next]) < t {
		u.sum += u.sorted[u.next].n
		u.next++
	}
	return u.sum
}

// Tokens that may have been used in [x, y] are those with from ≤ y, without those with to < x. So the promise
//
//	tokens in [x, y] ≤ burst + rate·(y-x)
//
// is that F(y) - rate·y exceeds no T(x) - rate·x, x ≤ y, by more than burst; F sums up by from and T by to. Only moments
// at which something is added to F, or right after which to T, can be the worst.
func (a *admissions) checkRate(burst int64) error {
	if len(a.all) == 0 {
		return nil
	}
	window, rate := a.rules.Window, int64(a.rules.Rate)
	starts, ended := a.by(from), a.by(to)
	ends := ended.sorted
	begin := min(starts.sorted[0].from, ends[0].to) // times are small from here on
	// The worst x so far; x may be any end: the tokens that end there still count.
	worst, at := int64(math.MaxInt64), begin
	consider := func(x fsm.Time) {
		if w := ended.before(x)*window - rate*int64(x-begin); w < worst {
			worst, at = w, x
		}
	}
	i := 0
	for _, last := range starts.sorted {
		y := last.from
		for ; i < len(ends) && ends[i].to <= y; i++ {
			consider(ends[i].to)
		}
		consider(y) // an interval of one moment
		if starts.before(y+1)*window-rate*int64(y-begin) > burst*window+worst {
			return fmt.Errorf("over-admission between %d and %d: more than %d and %d a window of %d ms", at, y, burst, rate, window)
		}
	}
	return nil
}

// checkWindows: no window of that length, wherever it begins, has more than rate.
func (a *admissions) checkWindows() error {
	starts, ended := a.by(from), a.by(to)
	for _, x := range starts.sorted {
		y := x.from
		begin := y - fsm.Time(a.rules.Window) + 1
		if n := starts.before(y+1) - ended.before(begin); n > int64(a.rules.Rate) {
			return fmt.Errorf("over-admission between %d and %d: %d, at most %d in %d ms", begin, y, n, a.rules.Rate, a.rules.Window)
		}
	}
	return nil
}

// checkFixed: each window has at most rate. What is lent ends with its window.
func (a *admissions) checkFixed() error {
	sums := make(map[fsm.Time]int64)
	for _, x := range a.all {
		start, end := calendarWindow(a.rules.Calendar, x.from, a.rules.Window)
		if x.to >= end {
			return fmt.Errorf("%d tokens of the window from %d to %d could be used at %d", x.n, start, end, x.to)
		}
		if x.to < start {
			continue // it may have been in the window before
		}
		if sums[start] += x.n; sums[start] > int64(a.rules.Rate) {
			return fmt.Errorf("over-admission in the window from %d: %d, at most %d", start, sums[start], a.rules.Rate)
		}
	}
	return nil
}

// checkSlots: never are more than rate in use.
func (a *admissions) checkSlots() error {
	starts, ended := a.by(from), a.by(to)
	for _, x := range starts.sorted {
		if n := starts.before(x.from+1) - ended.before(x.from); n > int64(a.rules.Rate) {
			return fmt.Errorf("%d slots are in use at %d, at most %d", n, x.from, a.rules.Rate)
		}
	}
	return nil
}
