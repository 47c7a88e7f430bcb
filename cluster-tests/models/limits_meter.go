package models

import (
	"math/big"
	"slices"
	"time"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/counter"
)

// meter is one counter as the definitions of the algorithms have it.
type meter struct {
	rules counter.Params // of the last command; no algorithm when it was reset

	// Buckets: tokens left (token bucket) or tokens ahead of the schedule (leaky bucket), each times the window.
	level  int64
	filled fsm.Time
	// Windows: the current one, and what was used in it and in the one before.
	start, end   fsm.Time
	before, used int64
	// The sliding log.
	uses []use

	holds  []hold   // in the order of their ends
	stored bool     // the shard remembers it
	gone   fsm.Time // from then on it is as good as new
}

type use struct {
	at fsm.Time
	n  int64
}

type holdKind int

const (
	reservation holdKind = iota // comes back when it ends
	loan                        // is used up when it ends
	slot                        // is in use until it ends
)

type hold struct {
	kind  holdKind
	id    uint64
	n     int64
	at    fsm.Time // when its tokens count as used
	until fsm.Time
}

func (m *meter) clone() *meter {
	c := *m
	c.uses, c.holds = slices.Clone(m.uses), slices.Clone(m.holds)
	return &c
}

func (m *meter) find(id uint64, lent bool) int {
	return slices.IndexFunc(m.holds, func(h hold) bool { return h.id == id && (h.kind == loan) == lent })
}

func (m *meter) hold(h hold) {
	m.holds = append(m.holds, h)
	slices.SortStableFunc(m.holds, func(a, b hold) int { return int(a.until - b.until) })
}

func (m *meter) drop(i int) { m.holds = slices.Delete(m.holds, i, i+1) }

// out is how many tokens are with somebody who may still use them, or give them back.
func (m *meter) out() (n int64) {
	for _, h := range m.holds {
		if h.kind != slot {
			n += h.n
		}
	}
	return n
}

// bring makes it now, under these rules. What ends before now ends in its order.
func (m *meter) bring(rules counter.Params, now fsm.Time) {
	if m.rules.Algorithm != rules.Algorithm {
		m.restart(rules.Algorithm)
		m.takeLoansOver(rules, now)
	}
	for len(m.holds) > 0 && m.holds[0].until <= now {
		h := m.holds[0]
		m.fill(rules, h.until, m.out())
		m.drop(0)
		if h.kind != loan {
			m.back(h.at, h.n)
		}
	}
	m.fill(rules, now, m.out())
}

// restart forgets all but what is lent. Without a window in its rules, a meter has counted nothing yet.
func (m *meter) restart(a counter.Algorithm) {
	lent := slices.DeleteFunc(m.holds, func(h hold) bool { return h.kind != loan })
	*m = meter{rules: counter.Params{Algorithm: a}, stored: m.stored, gone: m.gone, holds: lent}
}

// takeLoansOver counts what is lent in a meter that was restarted, as it was before the first of them ended.
func (m *meter) takeLoansOver(rules counter.Params, now fsm.Time) {
	if rules.Algorithm == counter.Concurrency {
		m.holds = nil // slots are not lent
	}
	if len(m.holds) == 0 {
		return
	}
	now = min(now, m.holds[0].until)
	m.fill(rules, now, 0)
	for i := range m.holds {
		h := &m.holds[i]
		_, h.at = m.lend(now, h.until)
		m.use(h.at, h.n)
	}
}

// endReservations gives back what ended, without the rules that a command for it would bring.
func (m *meter) endReservations(now fsm.Time) {
	for i := 0; i < len(m.holds); {
		h := m.holds[i]
		if h.kind == loan || h.until > now {
			i++
			continue
		}
		m.drop(i)
		m.back(h.at, h.n)
	}
}

// fill lets time pass. A bucket never fills beyond what those who hold tokens leave of it.
func (m *meter) fill(rules counter.Params, now fsm.Time, out int64) {
	old := m.rules.Window
	m.rules = rules
	window, rate := rules.Window, int64(rules.Rate)
	passed := max(int64(now-m.filled), 0)
	switch rules.Algorithm {
	case counter.TokenBucket:
		full := (int64(rules.Burst) - out) * window
		switch old {
		case 0:
			m.level = full
		case window:
		default:
			m.level = scale(m.level, window, old, false)
		}
		if m.level >= full || passed > (full-m.level)/rate {
			m.level = full
		} else {
			m.level += passed * rate
		}
		m.filled = now
	case counter.LeakyBucket:
		least := out * window
		switch old {
		case 0:
			m.level = least
		case window:
		default:
			m.level = scale(m.level, window, old, true)
		}
		if m.level <= least || passed > (m.level-least)/rate {
			m.level = least
		} else {
			m.level -= passed * rate
		}
		m.filled = now
	case counter.FixedWindow:
		start, end := calendarWindow(rules.Calendar, now, window)
		if m.start < start {
			m.used = 0
		}
		m.start, m.end = start, end
	case counter.SlidingWindow:
		start, _ := calendarWindow(counter.None, now, window)
		switch {
		case old != window:
			m.before, m.used = 0, m.before+m.used
		case start == m.start+fsm.Time(window):
			m.before, m.used = m.used, 0
		case start > m.start:
			m.before, m.used = 0, 0
		}
		m.start = start
	case counter.SlidingLog:
		m.uses = slices.DeleteFunc(m.uses, func(u use) bool { return u.at+fsm.Time(window) <= now })
	}
}

// scale expresses what was counted by one window by another.
func scale(n int64, window, old fsm.Millis, up bool) int64 {
	if n >= 0 && n < 1<<31 && window < 1<<31 { // nearly always
		if up {
			return (n*window + old - 1) / old
		}
		return n * window / old
	}
	x := new(big.Int).Mul(big.NewInt(n), big.NewInt(window))
	if up {
		x.Add(x, big.NewInt(old-1))
	}
	return floor(x, big.NewInt(old))
}

// flowed is how many whole tokens a level is after some time at a rate.
func flowed(level int64, passed fsm.Time, rate int64, window fsm.Millis) int64 {
	if passed < 1<<31 && level >= 0 && level < 1<<61 { // nearly always; rates are below 2^30
		return (level + int64(passed)*rate) / window
	}
	x := new(big.Int).Mul(big.NewInt(int64(passed)), big.NewInt(rate))
	return floor(x.Add(x, big.NewInt(level)), big.NewInt(window))
}

func floor(a, b *big.Int) int64 {
	q, r := new(big.Int).QuoRem(a, b, new(big.Int))
	if r.Sign() < 0 {
		q.Sub(q, big.NewInt(1))
	}
	return q.Int64()
}

// use counts n tokens at a moment, which for a loan may be in the future and for a charge in the past.
func (m *meter) use(at fsm.Time, n int64) {
	switch m.rules.Algorithm {
	case counter.TokenBucket:
		m.level -= n * m.rules.Window
	case counter.LeakyBucket:
		m.level += n * m.rules.Window
	case counter.FixedWindow:
		if at >= m.start {
			m.used += n
		}
	case counter.SlidingWindow:
		if at >= m.start {
			m.used += n
		} else if at >= m.start-fsm.Time(m.rules.Window) {
			m.before += n
		}
	case counter.SlidingLog:
		if n > 0 {
			m.uses = append(m.uses, use{at, n})
		}
	}
}

// back takes back what use counted.
func (m *meter) back(at fsm.Time, n int64) {
	switch m.rules.Algorithm {
	case counter.TokenBucket:
		m.level += n * m.rules.Window
	case counter.LeakyBucket:
		m.level = max(m.level-n*m.rules.Window, 0)
	case counter.FixedWindow:
		if at >= m.start {
			m.used = max(m.used-n, 0)
		}
	case counter.SlidingWindow:
		if at >= m.start {
			m.used = max(m.used-n, 0)
		} else if at >= m.start-fsm.Time(m.rules.Window) {
			m.before = max(m.before-n, 0)
		}
	case counter.SlidingLog:
		for i := range m.uses {
			if u := &m.uses[i]; u.at == at && n > 0 {
				part := min(n, u.n)
				u.n -= part
				n -= part
			}
		}
	}
}

func (m *meter) capacity() int64 {
	if a := m.rules.Algorithm; a == counter.TokenBucket || a == counter.LeakyBucket {
		return int64(m.rules.Burst)
	}
	return int64(m.rules.Rate)
}

// free is how many tokens there are at a moment not before the last fill, if nobody does anything until then.
func (m *meter) free(at fsm.Time) int64 {
	window, rate, free := m.rules.Window, int64(m.rules.Rate), m.capacity()
	switch m.rules.Algorithm {
	case counter.TokenBucket:
		return min(flowed(m.level, at-m.filled, rate, window), free)
	case counter.LeakyBucket:
		return min(flowed(free*window-m.level, at-m.filled, rate, window), free)
	case counter.FixedWindow:
		if at < m.end {
			free -= m.used
		}
	case counter.SlidingWindow:
		before, used, start := m.before, m.used, m.start
		if at >= start+fsm.Time(window) {
			before, used, start = used, 0, start+fsm.Time(window)
		}
		if left := window - int64(at-start); left > 0 {
			free -= used + scale(before, left, window, true)
		}
	case counter.SlidingLog:
		for _, u := range m.uses {
			if u.at+fsm.Time(window) > at {
				free -= u.n
			}
		}
	case counter.Concurrency:
		for _, h := range m.holds {
			if h.until > at {
				free -= h.n
			}
		}
	}
	return free
}

// untouched is when all tokens are free again.
func (m *meter) untouched(now fsm.Time) fsm.Time {
	return earliest(now, func(at fsm.Time) bool { return m.free(at) == m.capacity() })
}

// whole is when the meter is as good as a new one, whatever becomes of what is held.
func (m *meter) whole(now fsm.Time) fsm.Time {
	end := m.untouched(now)
	if len(m.holds) == 0 {
		return end
	}
	end = max(end, m.holds[len(m.holds)-1].until)
	if m.rules.Algorithm == counter.FixedWindow {
		return max(end, m.end)
	}
	var lent int64
	var last fsm.Time
	for _, h := range m.holds {
		if h.kind == loan {
			lent, last = lent+h.n, h.until
		}
	}
	if lent > 0 {
		end = max(end, m.later(last, lent))
	}
	return end
}

// later is when a meter that was to be whole at a time will be, now that n tokens more were used.
func (m *meter) later(at fsm.Time, n int64) fsm.Time {
	window := fsm.Time(m.rules.Window)
	switch m.rules.Algorithm {
	case counter.TokenBucket, counter.LeakyBucket:
		return at + fsm.Time(scale(n, m.rules.Window, fsm.Millis(m.rules.Rate), true))
	case counter.SlidingWindow:
		switch {
		case m.used > 0:
			return max(at, m.start+2*window)
		case m.before > 0:
			return max(at, m.start+window)
		}
	case counter.SlidingLog:
		for _, u := range m.uses {
			if u.n > 0 {
				at = max(at, u.at+window)
			}
		}
	}
	return at
}

// lend tells until when tokens may be lent, and when they count as used.
func (m *meter) lend(now, until fsm.Time) (end, at fsm.Time) {
	switch m.rules.Algorithm {
	case counter.FixedWindow:
		return min(until, m.end), now
	case counter.SlidingWindow:
		return min(until, m.start+fsm.Time(m.rules.Window)), now
	}
	return until, until
}

// calendarWindow is the window that holds now, by package time if it is a calendar's.
func calendarWindow(c counter.Calendar, now fsm.Time, length fsm.Millis) (start, end fsm.Time) {
	t := time.UnixMilli(int64(now)).UTC()
	midnight := time.Date(t.Year(), t.Month(), t.Day(), 0, 0, 0, 0, time.UTC)
	var from, to time.Time
	switch c {
	case counter.Minute:
		from = t.Truncate(time.Minute)
		to = from.Add(time.Minute)
	case counter.Hour:
		from = t.Truncate(time.Hour)
		to = from.Add(time.Hour)
	case counter.Day:
		from, to = midnight, midnight.AddDate(0, 0, 1)
	case counter.Week:
		from = midnight.AddDate(0, 0, -(int(midnight.Weekday())+6)%7)
		to = from.AddDate(0, 0, 7)
	case counter.Month:
		from = midnight.AddDate(0, 0, 1-midnight.Day())
		to = from.AddDate(0, 1, 0)
	case counter.Year:
		from = time.Date(t.Year(), time.January, 1, 0, 0, 0, 0, time.UTC)
		to = from.AddDate(1, 0, 0)
	default:
		n := int64(now) / length
		return fsm.Time(n * length), fsm.Time((n + 1) * length)
	}
	return fsm.Time(from.UnixMilli()), fsm.Time(to.UnixMilli())
}
