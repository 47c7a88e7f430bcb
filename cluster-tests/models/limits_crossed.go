package models

import (
	"context"
	"fmt"
	"time"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/cluster-tests/history"
)

// reservationsEnd is later than any reservation of a check over several shards, and pollEvery how often is asked until then.
const (
	reservationsEnd = 2 * time.Minute
	pollEvery       = 50 * time.Millisecond
)

// End implements Load: it ends the history with a look at every counter that was used, and compares the counters by address.
func (l *chaosLimits) End(ctx context.Context, by *Process) (j Judged) {
	used := make(map[string]bool)
	for _, op := range by.History.Ops() {
		if in, ok := op.Input.(LimitOp); ok && in.Request.Resource == counted {
			used[in.Request.Client] = true
		}
	}
	for key := range used {
		if _, err := decide(by, KindPeek, client.Request{Client: key, Resource: counted}); err != nil {
			j.Violations = append(j.Violations, violation(BrokenSum, "the last look at %s: %v", key, err))
		}
	}
	j.Add(l.countCrossed(ctx, by))
	return j
}

// countCrossed compares the counters by address with what clients were told. What a node that died had only reserved is
// given back when the reservation ends.
func (l *chaosLimits) countCrossed(ctx context.Context, by *Process) (j Judged) {
	want := crossedChecks(by.History.Ops())
	ctx, cancel := context.WithTimeout(ctx, reservationsEnd)
	defer cancel()
	for {
		err := l.compareCrossed(ctx, by.Client, want)
		if err == nil {
			break
		}
		select {
		case <-time.After(pollEvery):
			continue
		case <-ctx.Done():
		}
		j.Violations = append(j.Violations, violation(BrokenSum, "counters of two shards do not agree within %v: %v", reservationsEnd, err))
		break
	}
	checks := 0
	for _, b := range want {
		checks += int(b.least)
	}
	j.Looked = map[string]int{"checks that took from counters of two shards": checks}
	return j
}

func (l *chaosLimits) compareCrossed(ctx context.Context, cl *client.Client, want map[string]bounds) error {
	for _, address := range l.addresses {
		d, err := cl.Limits().Peek(ctx, client.Request{IP: address, Resource: crossed})
		if err != nil || len(d.Limits) != 1 {
			return fmt.Errorf("count of %s: %d limits, %w", address, len(d.Limits), err)
		}
		if b, n := want[address], uint64(d.Limits[0].Used); !b.allow(n) {
			return fmt.Errorf("%s is counted %d times, but from %d to %d checks were allowed", address, n, b.least, b.most)
		}
	}
	return nil
}

// crossedChecks counts, by address, the checks that took from counters of two shards: those that were allowed. One that was
// denied by the one shard must have taken nothing from the other.
func crossedChecks(ops []history.Op) map[string]bounds {
	all := make(map[string]bounds)
	for _, op := range ops {
		in, ok := op.Input.(LimitOp)
		if !ok || in.Kind != KindCheck || in.Request.Resource != crossed {
			continue
		}
		if d, _ := op.Output.(client.Decision); op.Outcome == history.Unknown || d.Allowed {
			all[in.Request.IP] = all[in.Request.IP].with(1, op.Outcome)
		}
	}
	return all
}
