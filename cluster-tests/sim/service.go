package sim

import (
	"slices"
	"time"

	"github.com/holdfastdb/holdfast/cluster-tests/check"
	"github.com/holdfastdb/holdfast/cluster-tests/history"
)

// mostCalm is how long an operation may wait while all but one server can work: that is time for those that were down
// before to come back, for an election or two, and for clients to hear of it.
const mostCalm = 20 * time.Second

// judgeService finds operations that waited longer than that, and those that came to nothing, though none of what may be
// refused, with so much calm before them. It returns the longest wait of all.
func judgeService(ops []history.Op, begin time.Time, spans []span, mayFail func(*history.Op) bool) (longest time.Duration, violations []check.Violation) {
	var storms [][2]time.Duration // when more than one server may be in trouble
	for i, a := range spans {
		if !a.few {
			storms = append(storms, [2]time.Duration{a.begin.Sub(begin), a.end.Sub(begin)})
		}
		for _, b := range spans[:i] {
			from, to := later(a.begin, b.begin), earlier(a.end, b.end)
			if from.Before(to) {
				storms = append(storms, [2]time.Duration{from.Sub(begin), to.Sub(begin)})
			}
		}
	}
	slices.SortFunc(storms, func(a, b [2]time.Duration) int { return int(a[0] - b[0]) })
	for i := range ops {
		op := &ops[i]
		end := op.Ended
		if end == 0 {
			end = op.Return
		}
		calm, at, peace := time.Duration(0), op.Call, true
		for _, s := range storms {
			if s[0] < end {
				calm = max(calm, s[0]-at)
				at = max(at, s[1])
				peace = peace && s[1]+mostCalm < op.Call
			}
		}
		if peace && op.Outcome != history.Definite && end-op.Call > mostHaste && !mayFail(op) {
			violations = append(violations, check.Violation{
				Kind: check.KindService, Op: op, Detail: "it came to nothing while at most one server was in trouble: " + op.Error,
			})
		}
		calm = max(calm, end-at)
		longest = max(longest, calm)
		if calm > mostCalm {
			violations = append(violations, check.Violation{
				Kind: check.KindService, Op: op, Detail: "it waited for " + calm.String() + " while at most one server was in trouble",
			})
		}
	}
	return longest, violations
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
