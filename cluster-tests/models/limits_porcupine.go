package models

import (
	"fmt"
	"reflect"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/cluster-tests/history"
	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/counter"
)

// LimitSequence is what one counter does under one limit that does not change, for checks that only know what clients
// saw: operations are *history.Op, and those of unknown outcome may take effect at any time.
//
// Decisions depend on time, which the answers tell. When an operation of unknown outcome took effect nobody can tell:
// with such operations, only windows that no test outlasts can be judged; see CanJudge.
func LimitSequence(rules counter.Params) porcupine.Model {
	return porcupine.Model{
		Init: func() any { return sequence{m: &meter{}} },
		Step: func(state, input, _ any) (bool, any) {
			return state.(sequence).step(rules, input.(*history.Op))
		},
		Equal: func(a, b any) bool { return reflect.DeepEqual(a, b) },
		Hash: func(state any) uint64 {
			s := state.(sequence)
			return uint64(s.now)*31 + uint64(s.m.level)*17 + uint64(s.m.used) + uint64(s.early)*13
		},
		DescribeOperation: func(input, _ any) string {
			op := input.(*history.Op)
			in, _ := op.Input.(LimitOp)
			answer := op.Outcome.String()
			if rows := rowsOf(op.Output); op.Outcome == history.Definite && len(rows) == 1 {
				answer = fmt.Sprintf("denied %v, %d left at %s", rows[0].Denied, rows[0].Remaining, op.Trace.Time.Format("15:04:05.000"))
			}
			return fmt.Sprintf("%s(%d) → %s", in.Kind, max(in.Request.Weight, 1), answer)
		},
		DescribeState: func(state any) string {
			s := state.(sequence)
			if s.m.rules.Algorithm == 0 {
				return "unused"
			}
			return fmt.Sprintf("%d left", s.m.free(s.now))
		},
	}
}

// CanJudge tells whether LimitSequence understands all operations of a key.
func CanJudge(rules counter.Params, ops []*history.Op) bool {
	for _, op := range ops {
		in, ok := op.Input.(LimitOp)
		switch {
		case !ok || rules.Algorithm == counter.Concurrency:
			return false
		case op.Outcome == history.Definite && in.Kind != KindReset && len(rowsOf(op.Output)) != 1 && !in.Limited:
			return false
		case in.Kind != KindCheck && in.Kind != KindPeek && in.Kind != KindStatus && in.Kind != KindReset:
			return false
		case op.Outcome == history.Unknown && rules.Algorithm != counter.FixedWindow:
			return false
		}
	}
	return true
}

// sequence is a counter after some operations.
type sequence struct {
	m   *meter
	now fsm.Time // 0 as long as no answer has told it
	// early is what was taken before that. It counts in the window in which the first answer is.
	early int64
}

func (s sequence) step(rules counter.Params, op *history.Op) (bool, sequence) {
	in := op.Input.(LimitOp)
	n := int64(max(in.Request.Weight, 1))
	if op.Outcome == history.Failed {
		return true, s
	}
	if s.now == 0 && op.Outcome == history.Unknown {
		switch in.Kind {
		case KindCheck:
			s.early += n
		case KindReset:
			s.early = 0
		}
		return true, s
	}
	m := s.m.clone()
	now := s.now
	if op.Outcome == history.Definite {
		now = fsm.Time(op.Trace.Time.UnixMilli())
		switch {
		case in.Kind == KindReset:
			now = max(now, s.now) // the answer tells when it was begun
		case now < s.now || len(rowsOf(op.Output)) != 1:
			return false, s
		}
	}
	switch in.Kind {
	case KindReset:
		m.restart(0)
		return true, sequence{m: m, now: now}
	case KindStatus:
		n = 0
	}
	m.bring(rules, now)
	unasked := s.m
	if s.early > 0 {
		m.use(now, min(s.early, m.free(now)))
		unasked = m.clone()
	}
	short := m.free(now) < n
	if in.Kind == KindCheck && !short {
		m.use(now, n)
	}
	after := sequence{m: m, now: now}
	if op.Outcome != history.Definite {
		return true, after
	}
	row := rowsOf(op.Output)[0]
	ok := row.Denied == short && row.Remaining == tokens(m.free(now)) && row.Used == tokens(m.capacity()-m.free(now)) &&
		!row.ResetAt.Before(time.UnixMilli(int64(now)))
	if d, isDecision := op.Output.(client.Decision); isDecision {
		ok = ok && d.Allowed == !short
	}
	if in.Kind != KindCheck {
		after.m = unasked // a question changes nothing but what time it is
	}
	return ok, after
}
