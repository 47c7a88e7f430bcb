package models

import (
	"cmp"
	"slices"
	"time"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/cluster-tests/history"
)

// checkCounters checks every answer about a counter against what clients did, without trusting any number that the
// cluster gave: an answer includes all writes that were acknowledged before it was asked for and none that were begun
// after it was given; it never goes back; and no two writes have the same count.
func checkCounters(ops []history.Op) (j Judged) {
	byKey := make(map[string][]history.Op)
	for _, o := range ops {
		if in, ok := o.Input.(LimitOp); ok && in.Request.Resource == counted && o.Outcome != history.Failed {
			byKey[in.Request.Client] = append(byKey[in.Request.Client], o)
		}
	}
	for key, ops := range byKey {
		j.Violations = append(j.Violations, checkCounter(key, ops)...)
	}
	slices.SortFunc(j.Violations, func(a, b Violation) int { return cmp.Compare(a.Detail, b.Detail) })
	j.Looked = map[string]int{"counters compared with what callers did": len(byKey)}
	return j
}

// answer is a count that somebody was told.
type answer struct {
	asked, told time.Duration
	count       uint64
}

func checkCounter(key string, ops []history.Op) (violations []Violation) {
	var begun, acknowledged []time.Duration // of writes
	var answers []answer
	counts := make(map[uint64]bool) // of writes
	for _, o := range ops {
		writes := o.Input.(LimitOp).Kind == KindCheck
		if writes {
			begun = append(begun, o.Call)
		}
		if o.Outcome != history.Definite {
			continue
		}
		d := o.Output.(client.Decision)
		if len(d.Limits) != 1 {
			violations = append(violations, violation(BrokenSum, "%s: asked at %v: the answer has %d limits", key, o.Call, len(d.Limits)))
			continue
		}
		a := answer{o.Call, o.Return, uint64(d.Limits[0].Used)}
		answers = append(answers, a)
		if writes {
			acknowledged = append(acknowledged, o.Return)
			if counts[a.count] {
				violations = append(violations, violation(BrokenSum, "%s: two writes were told count %d", key, a.count))
			}
			counts[a.count] = true
		}
	}
	slices.Sort(begun)
	slices.Sort(acknowledged)
	before := func(times []time.Duration, t time.Duration) uint64 {
		n, _ := slices.BinarySearch(times, t)
		return uint64(n)
	}
	slices.SortFunc(answers, func(a, b answer) int { return cmp.Compare(a.asked, b.asked) })
	told := slices.Clone(answers)
	slices.SortFunc(told, func(a, b answer) int { return cmp.Compare(a.told, b.told) })
	var seen uint64 // the largest count that was told before the answer was asked for
	for _, a := range answers {
		for len(told) > 0 && told[0].told < a.asked {
			seen = max(seen, told[0].count)
			told = told[1:]
		}
		least, most := max(before(acknowledged, a.asked), seen), before(begun, a.told)
		if a.count < least || a.count > most {
			violations = append(violations, violation(BrokenSum, "%s: asked at %v and answered at %v: %d, but it was at least %d and at most %d",
				key, a.asked, a.told, a.count, least, most))
		}
	}
	return violations
}
