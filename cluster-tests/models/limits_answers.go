package models

import (
	"errors"
	"fmt"
	"time"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/cluster-tests/history"
	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/catalog"
	"github.com/holdfastdb/holdfast/fsm/counter"
)

// Alone implements Model.
func (l *limits) Alone(op *history.Op) error {
	in := op.Input.(LimitOp)
	if !in.Limited || op.Outcome != history.Definite {
		return nil
	}
	switch in.Kind {
	case KindCheck, KindPeek, KindStatus, KindReserve:
	case KindLease:
		if op.Trace.Shard == 0 {
			return nil // see Local
		}
	default:
		return nil
	}
	if len(rowsOf(op.Output)) == 0 {
		return errors.New("a limit applies to it, and the answer knows of none")
	}
	return nil
}

// Unasked implements Model: holders of leases decide by themselves, as does who falls back to what the policy says, and where
// no limit applies there is nothing to ask for.
func (l *limits) Unasked(op *history.Op) bool {
	in := op.Input.(LimitOp)
	d, _ := op.Output.(client.Decision)
	return in.Kind == KindLease || d.Fallback || !in.Limited
}

// Compare implements Model.
func (l *limits) Compare(op *history.Op, done []Execution) error {
	in := op.Input.(LimitOp)
	if len(done) == 0 && (in.Kind == KindCommit || in.Kind == KindRefund || in.Kind == KindRelease || len(rowsOf(op.Output)) > 0) {
		return fmt.Errorf("it was acknowledged, and no log has a command of it")
	}
	switch o := op.Output.(type) {
	case client.Decision:
		return compareDecision(&o, done)
	case []client.LimitState:
		t, err := counter.DecodeTakeResult(done[0].Result.Body)
		if err != nil {
			return err
		}
		return compareRows(o, t.Limits, done[0].Time)
	case int:
		n := 0
		for _, x := range done {
			r, err := counter.DecodeResetResult(x.Result.Body)
			if err != nil {
				return err
			}
			n += int(r.Reset)
		}
		if o != n {
			return fmt.Errorf("%d counters were reset, the model says %d", o, n)
		}
	}
	return nil
}

func compareDecision(o *client.Decision, done []Execution) error {
	allowed, decided := true, 0
	var last counter.TakeResult
	for _, x := range done {
		if x.Call.Op == counter.OpSettle {
			continue
		}
		if x.Result.Code != fsm.OK {
			return fmt.Errorf("an answer to a command that the model refuses: %s", x.Result.Code)
		}
		var err error
		if last, err = counter.DecodeTakeResult(x.Result.Body); err != nil {
			return err
		}
		decided++
		allowed = allowed && last.Allowed
	}
	if o.Allowed != allowed {
		return fmt.Errorf("allowed is %v, the model says %v", o.Allowed, allowed)
	}
	if decided != 1 { // over several shards: their rows are merged
		return nil
	}
	return compareRows(o.Limits, last.Limits, done[0].Time)
}

func compareRows(rows []client.LimitState, results []counter.LimitResult, now fsm.Time) error {
	if len(rows) != len(results) {
		return fmt.Errorf("%d limits in the answer, the model has %d", len(rows), len(results))
	}
	for i, r := range results {
		want := client.LimitState{
			PolicyID: catalog.PolicyID(r.Policy), Remaining: r.Remaining, Used: r.Used, Denied: r.Denied, Shadow: r.Shadow,
			ResetAt: time.UnixMilli(int64(now) + r.ResetIn),
		}
		switch {
		case r.Denied && r.RetryIn < 0:
			want.RetryAfter = -time.Second
		case r.Denied:
			want.RetryAfter = time.Duration(r.RetryIn) * time.Millisecond
		}
		got := rows[i]
		if got.PolicyID != want.PolicyID || got.Remaining != want.Remaining || got.Used != want.Used || got.Denied != want.Denied ||
			got.Shadow != want.Shadow || !got.ResetAt.Equal(want.ResetAt) || (got.RetryAfter-want.RetryAfter).Abs() > time.Microsecond {
			return fmt.Errorf("limit %s: the answer is %+v, the model says %+v", want.PolicyID, got, want)
		}
	}
	return nil
}
