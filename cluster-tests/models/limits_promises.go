package models

import (
	"cmp"
	"slices"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/cluster-tests/history"
	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/counter"
)

// judgePromises judges what callers were allowed by the rules of the limits alone, without log and model: in no interval more
// than that. Each resource has one limit, which counts by client and does not change.
//
// Checks took their tokens at the shard time of their answers, so of them it misses none. Of a lease's tokens only what was
// surely spent within an interval counts; at gives the earliest and the latest shard time at a moment of the history. It is
// nil if nobody knows, and then leases are left out.
func judgePromises(ops []history.Op, rules map[string]counter.Params, at ShardTimes) Judged {
	judged := 0
	var broken []Violation
	byCounter := make(map[[2]string][]*history.Op)
	for i := range ops {
		if in, ok := ops[i].Input.(LimitOp); ok && rules[in.Request.Resource].Algorithm != 0 && ops[i].Outcome != history.Failed {
			key := [2]string{in.Request.Resource, in.Request.Client}
			byCounter[key] = append(byCounter[key], &ops[i])
		}
	}
	for key, ops := range byCounter {
		for _, since := range betweenResets(ops) {
			a := newAdmissions(rules[key[0]])
			judged += a.observe(since, at)
			err := a.check()
			if err == nil { // an interval in which one of unknown moment lies partly has less than nothing of it
				err = a.known().check()
			}
			if err != nil {
				broken = append(broken, violation(BrokenPromise, "%s of %s: callers were told of an %v", key[0], key[1], err))
			}
		}
	}
	slices.SortFunc(broken, func(a, b Violation) int { return cmp.Compare(a.Detail, b.Detail) })
	return Judged{Violations: broken, Looked: map[string]int{"admissions compared with the rules alone": judged}}
}

// betweenResets cuts the operations on a counter, in the order of their calls, at the resets. What went on at the same time
// as a reset belongs to neither side.
func betweenResets(ops []*history.Op) (parts [][]*history.Op) {
	var resets []*history.Op
	for _, op := range ops {
		if op.Input.(LimitOp).Kind == KindReset {
			resets = append(resets, op)
		}
	}
	parts = make([][]*history.Op, len(resets)+1)
	for _, op := range ops {
		part, clear := 0, op.Input.(LimitOp).Kind != KindReset
		for _, r := range resets {
			switch {
			case op.Call > r.Return:
				part++
			case op.Return >= r.Call:
				clear = false
			}
		}
		if clear {
			parts[part] = append(parts[part], op)
		}
	}
	return parts
}

// observe notes what callers were allowed.
func (a *admissions) observe(ops []*history.Op, at ShardTimes) (judged int) {
	for i, op := range ops {
		in := op.Input.(LimitOp)
		d, ok := op.Output.(client.Decision)
		if !ok || op.Outcome != history.Definite || !d.Allowed || d.Fallback {
			continue
		}
		n := int64(max(in.Request.Weight, 1))
		now := fsm.Time(op.Trace.Time.UnixMilli())
		switch {
		case in.Kind == KindLease && op.Trace.Shard == 0:
			if at == nil {
				continue
			}
			// The other way round: it counts only in an interval that has all of it.
			begin, _ := at(op.Call)
			_, end := at(op.Return)
			a.all = append(a.all, admission{from: end, to: begin, n: n})
		case in.Kind != KindCheck && in.Kind != KindLease:
			continue
		case a.rules.Algorithm == counter.Concurrency:
			a.all = append(a.all, admission{now, a.freed(ops[i+1:], op, now), n})
		default:
			a.all = append(a.all, admission{now, now, n})
		}
		judged++
	}
	return judged
}

// freed is until when a slot was surely in use: until its caller released it, or by the rules. Who is not told of its
// release may have ended it at once.
func (a *admissions) freed(later []*history.Op, op *history.Op, now fsm.Time) fsm.Time {
	end := now + fsm.Time(a.rules.Window) - 1
	for _, r := range later {
		switch {
		case r.Process != op.Process || r.Input.(LimitOp).Kind != KindRelease:
		case r.Outcome != history.Definite:
			return now
		default:
			return min(max(fsm.Time(r.Trace.Time.UnixMilli())-1, now), end)
		}
	}
	return end
}
