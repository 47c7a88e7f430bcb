package models

import (
	"context"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/cluster-tests/history"
	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/counter"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// neverEnds is a fixed window so long that none ends during a test, in seconds.
const neverEnds = 360 * 24 * 3600

// rulesOf are those of policies, by name.
func rulesOf(policies ...*pb.CreatePolicyRequest) map[string]counter.Params {
	all := make(map[string]counter.Params)
	for _, q := range policies {
		a, _ := counter.ParseAlgorithm(q.Algorithm)
		all[q.Name] = counter.Params{Algorithm: a, Rate: q.RateLimit, Window: fsm.Millis(q.TimeWindow * 1000), Burst: q.BurstCapacity}
	}
	return all
}

// decide has a process ask for one decision to which a limit applies.
func decide(by *Process, kind string, q client.Request) (d client.Decision, err error) {
	err = by.Do(LimitOp{Kind: kind, Request: q, Limited: true}, func(ctx context.Context) (any, error) {
		var err error
		switch l := by.Client.Limits(); kind {
		case KindPeek:
			d, err = l.Peek(ctx, q)
		case KindLease:
			d, err = l.Async(ctx, q)
		default:
			d, err = l.Check(ctx, q)
		}
		return d, err
	})
	return d, err
}

// release ends the use of a slot.
func release(by *Process, q client.Request, token string) error {
	return by.Do(LimitOp{Kind: KindRelease, Request: q, Limited: true}, func(ctx context.Context) (any, error) {
		return nil, by.Client.Limits().Release(ctx, q, token)
	})
}

// bounds are what a counter may hold: what was acknowledged, and of what nobody knows, nothing or all.
type bounds struct{ least, most uint64 }

func (b bounds) allow(n uint64) bool { return b.least <= n && n <= b.most }

// with are the bounds after one more operation that may have counted n, or nothing.
func (b bounds) with(n uint64, outcome history.Outcome) bounds {
	switch outcome {
	case history.Definite:
		return bounds{b.least + n, b.most + n}
	case history.Unknown:
		return bounds{b.least, b.most + n}
	}
	return b
}
