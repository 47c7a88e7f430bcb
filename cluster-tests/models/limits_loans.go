package models

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/cluster-tests/history"
	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/counter"
)

// loaned is what a shard lent to a holder, who uses it without asking: on the clock of the history, because that is how a
// holder reckons. A holder has it no earlier than it was decided, and reckons from when it asked, which was before.
type loaned struct {
	holder   [16]byte
	from, to time.Duration
	left     map[counter.Key]int64 // what was not given back
}

func newLoaned(m *Moment, ttl fsm.Time) *loaned {
	return &loaned{m.Client, m.Told, m.Told + time.Duration(ttl)*time.Millisecond, make(map[counter.Key]int64)}
}

func (l *loaned) back(key counter.Key, unused int64) {
	if l != nil {
		l.left[key] -= unused
	}
}

// Local implements Model: what holders let pass, they had been lent, were still lent at the time, and never gave back.
func (l *limits) Local(_ uint32, ops []*history.Op, holder func(op *history.Op) (client [16]byte, ok bool)) (judged int, broken []Violation) {
	type account struct {
		key    counter.Key
		holder [16]byte
	}
	spent := make(map[account][]step)
	for _, op := range ops {
		in := op.Input.(LimitOp)
		d, decided := op.Output.(client.Decision)
		if in.Kind != KindLease || op.Outcome != history.Definite || !decided || d.Fallback {
			continue
		}
		client, known := holder(op)
		if !known {
			continue
		}
		asked := l.learned[subject(in.Request)]
		if len(asked) > 0 {
			judged++
		}
		for _, limit := range asked {
			if n := int64(max(in.Request.Weight, 1)); d.Allowed && !limit.Shadow {
				a := account{limit.Key, client}
				spent[a] = append(spent[a], step{op.Return, op.Call, n})
			}
		}
	}
	for a, steps := range spent {
		for _, loan := range l.loans {
			if n := loan.left[a.key]; n > 0 && loan.holder == a.holder {
				steps = append(steps, step{loan.from, loan.to, -n})
			}
		}
		if err := covered(steps); err != nil {
			broken = append(broken, violation(BrokenLease, "counter %x, holder %x: %v", a.key, a.holder, err))
		}
	}
	slices.SortFunc(broken, func(a, b Violation) int { return cmp.Compare(a.Detail, b.Detail) })
	return judged, broken
}

// step is tokens that are spent, or lent if negative. They count in an interval that ends at or after last, unless it
// begins after first: so spending counts if it all was in the interval, and a loan if any part of it was.
type step struct {
	last, first time.Duration
	n           int64
}

// covered tells of an interval in which more was spent than was lent. It is that of the largest F(y) - G(x), x ≤ y, where
// F sums up what is there by y and G what has gone before x.
func covered(steps []step) error {
	byLast := slices.SortedFunc(slices.Values(steps), func(a, b step) int { return cmp.Compare(a.last, b.last) })
	byFirst := slices.SortedFunc(slices.Values(steps), func(a, b step) int { return cmp.Compare(a.first, b.first) })
	var times []time.Duration
	for _, s := range steps {
		times = append(times, s.first, s.last)
	}
	slices.Sort(times)
	var here, gone, least int64
	var begin time.Duration
	i, j := 0, 0
	for _, t := range slices.Compact(times) {
		for ; j < len(byFirst) && byFirst[j].first < t; j++ {
			gone += byFirst[j].n
		}
		if gone < least || t == times[0] {
			least, begin = gone, t
		}
		for ; i < len(byLast) && byLast[i].last <= t; i++ {
			here += byLast[i].n
		}
		if over := here - least; over > 0 {
			return fmt.Errorf("between %s and %s holders let %d more pass than they had been lent", begin, t, over)
		}
	}
	return nil
}
