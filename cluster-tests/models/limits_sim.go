package models

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/cluster-tests/history"
	"github.com/holdfastdb/holdfast/fsm/counter"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// A resource has one policy, which counts what is asked of it by client.
const (
	resourceSum     = "sum"     // never denies and never ends, so that what was counted can be summed up
	resourceReserve = "reserve" // the same, for reservations
	resourceLease   = "lease"
	resourceSlots   = "slots"
	resourceChanged = "changed" // its policy changes
)

var (
	simPolicies = []*pb.CreatePolicyRequest{
		{Name: resourceSum, Algorithm: "fixed_window", RateLimit: 1_000_000, TimeWindow: neverEnds},
		{Name: resourceReserve, Algorithm: "fixed_window", RateLimit: 1_000_000, TimeWindow: neverEnds},
		{Name: "token_bucket", Algorithm: "token_bucket", RateLimit: 20, TimeWindow: 60, BurstCapacity: 10},
		{Name: "sliding_window", Algorithm: "sliding_window", RateLimit: 15, TimeWindow: 60},
		{Name: "sliding_log", Algorithm: "sliding_log", RateLimit: 10, TimeWindow: 45},
		{Name: "fixed_window", Algorithm: "fixed_window", RateLimit: 12, TimeWindow: 30},
		{Name: "leaky_bucket", Algorithm: "leaky_bucket", RateLimit: 10, TimeWindow: 60, BurstCapacity: 5},
		{Name: resourceLease, Algorithm: "token_bucket", RateLimit: 30, TimeWindow: 60, BurstCapacity: 20},
		{Name: resourceSlots, Algorithm: "concurrency", RateLimit: 3, TimeWindow: 20},
		{Name: resourceChanged, Algorithm: "fixed_window", RateLimit: 10, TimeWindow: 30},
	}
	// simChecked are the resources that are checked like any other.
	simChecked = []string{"token_bucket", "sliding_window", "sliding_log", "fixed_window", "leaky_bucket", resourceLease, resourceChanged}
	// simSequential are those whose counters porcupine can judge: nothing but checks, questions and resets touch them.
	simSequential = []string{resourceSum, "token_bucket", "sliding_window", "sliding_log", "fixed_window", "leaky_bucket"}
	// simSubjects are few, so that callers meet.
	simSubjects = []string{"ann", "bob", "cid", "dot"}
)

// reserveTTL is how long reservations last that nobody settles.
const reserveTTL = 20 * time.Second

// simLimits is the load of a simulation: every operation under every algorithm, and a policy that changes.
type simLimits struct {
	admin   *client.Client
	changed string        // the id of the policy that changes
	changes atomic.Uint32 // asked for
}

func newSimLimits() Load { return &simLimits{} }

// Begin implements Load. It uses each limit once, so that the model knows which limits the questions mean that are asked
// first.
func (l *simLimits) Begin(ctx context.Context, by *Process) error {
	l.admin = by.Client
	for _, q := range simPolicies {
		p, err := MakePolicy(ctx, l.admin, &pb.CreatePolicyRequest{
			Name: q.Name, Algorithm: q.Algorithm, RateLimit: q.RateLimit, TimeWindow: q.TimeWindow, BurstCapacity: q.BurstCapacity, OnUnavailable: "deny",
		})
		if err != nil {
			return err
		}
		if q.Name == resourceChanged {
			l.changed = p.PolicyId
		}
	}
	for _, resource := range append(slices.Clone(simChecked), resourceSum) {
		for _, subject := range simSubjects {
			_, _ = decide(by, KindCheck, client.Request{Client: subject, Resource: resource, Weight: 1}) // the history tells what came of it
		}
	}
	return nil
}

// Callers implements Load: two of eight only read.
func (l *simLimits) Callers() []Caller {
	reader, writer := Caller{Reads: true, Step: l.read}, Caller{Step: l.step}
	return append([]Caller{reader, reader}, slices.Repeat([]Caller{writer}, 6)...)
}

// request draws whose quota of what is asked for.
func (l *simLimits) request(by *Process) client.Request {
	return client.Request{
		Client: simSubjects[by.Rand.IntN(len(simSubjects))], Weight: uint32(1 + by.Rand.IntN(3)), Resource: simChecked[by.Rand.IntN(len(simChecked))],
	}
}

func (l *simLimits) read(by *Process) error {
	if q := l.request(by); by.Rand.IntN(3) > 0 {
		_, err := decide(by, KindPeek, q)
		return err
	} else {
		return l.status(by, q)
	}
}

func (l *simLimits) status(by *Process, q client.Request) error {
	return by.Do(LimitOp{Kind: KindStatus, Request: q, Limited: true}, func(ctx context.Context) (any, error) { return by.Client.Limits().Status(ctx, q) })
}

func (l *simLimits) step(by *Process) (err error) {
	q := l.request(by)
	switch n := by.Rand.IntN(100); {
	case n < 30:
		q.Resource = resourceSum
		_, err = decide(by, KindCheck, q)
	case n < 60:
		_, err = decide(by, KindCheck, q)
	case n < 70:
		q.Resource, q.Weight = resourceReserve, uint32(1+by.Rand.IntN(9))
		err = l.reserve(by, q)
	case n < 80:
		q.Resource = resourceLease
		for range 1 + by.Rand.IntN(8) { // leases pay off for those who ask often
			q.Weight = uint32(1 + by.Rand.IntN(2))
			_, err = decide(by, KindLease, q)
			time.Sleep(time.Duration(by.Rand.IntN(200)) * time.Millisecond)
		}
	case n < 88:
		q.Resource, q.Weight = resourceSlots, 1
		err = l.slot(by, q)
	case n < 94:
		_, err = decide(by, KindPeek, q)
	case n < 97:
		q.Resource = resourceSum
		err = l.status(by, q)
	case n < 98:
		err = by.Do(LimitOp{Kind: KindReset, Request: q, Limited: true}, func(ctx context.Context) (any, error) { return by.Client.Limits().Reset(ctx, q) })
	default:
		n := l.changes.Add(1)
		rate, text := 5+n%10, fmt.Sprint("change ", n) // what changes nothing is no change, and the rate may be what it was
		err = by.Do(PolicyOp{l.changed, rate}, func(ctx context.Context) (any, error) {
			return pb.NewPoliciesClient(l.admin.Conn()).UpdatePolicy(ctx, &pb.UpdatePolicyRequest{PolicyId: l.changed, RateLimit: &rate, Description: &text})
		})
	}
	return err
}

func (l *simLimits) reserve(by *Process, q client.Request) error {
	var r *client.Reservation
	err := by.Do(LimitOp{Kind: KindReserve, Request: q, Limited: true}, func(ctx context.Context) (any, error) {
		var err error
		if r, err = by.Client.Limits().Reserve(ctx, q, reserveTTL); err != nil {
			return nil, err
		}
		return r.Decision, nil
	})
	if r == nil || r.ID == "" {
		return err
	}
	time.Sleep(time.Duration(by.Rand.IntN(2000)) * time.Millisecond)
	switch by.Rand.IntN(4) {
	case 0:
		return nil // nobody settles it
	case 1:
		return by.Do(LimitOp{Kind: KindRefund, Request: q, Limited: true}, func(ctx context.Context) (any, error) { return nil, r.Refund(ctx) })
	default:
		actual := uint32(by.Rand.IntN(12))
		return by.Do(LimitOp{Kind: KindCommit, Request: q, Actual: actual, Limited: true}, func(ctx context.Context) (any, error) { return nil, r.Commit(ctx, actual) })
	}
}

func (l *simLimits) slot(by *Process, q client.Request) error {
	d, err := decide(by, KindCheck, q)
	if d.ReleaseToken == "" {
		return err
	}
	time.Sleep(time.Duration(by.Rand.IntN(3000)) * time.Millisecond)
	return release(by, q, d.ReleaseToken)
}

// Press implements Load.
func (l *simLimits) Press(ctx context.Context, cl *client.Client, _ uint32) {
	_, _ = cl.Limits().Check(ctx, client.Request{Client: "all", Resource: resourceSum})
}

// MayFail implements Load: a lease is asked for two seconds only, and who had none before has no fallback. A change of a policy
// is a plain call to one node: if that is cut off or dies, the caller has to ask another one.
func (l *simLimits) MayFail(op *history.Op) bool {
	switch in := op.Input.(type) {
	case LimitOp:
		return in.Kind == KindLease
	case PolicyOp:
		return true
	}
	return false
}

// End implements Load: it compares the counters that never forget, and the policy that changes, with what callers were
// told. Reservations that were not settled must have ended before.
func (l *simLimits) End(ctx context.Context, by *Process) (j Judged) {
	ops := by.History.Ops()
	want := simSums(ops)
	for _, resource := range []string{resourceSum, resourceReserve} {
		for _, subject := range simSubjects {
			d, err := by.Client.Limits().Peek(ctx, client.Request{Client: subject, Resource: resource})
			if err != nil || len(d.Limits) != 1 {
				j.Violations = append(j.Violations, violation(BrokenSum, "read %s of %s: %d limits, %v", resource, subject, len(d.Limits), err))
				continue
			}
			if b, used := want[resource+"/"+subject], uint64(d.Limits[0].Used); !b.allow(used) {
				j.Violations = append(j.Violations, violation(BrokenSum, "%s of %s counts %d, but callers were told of %d, and of %d more nothing; not done: %s",
					resource, subject, used, b.least, b.most-b.least, notDone(ops, resource, subject)))
			}
		}
	}
	j.Violations = append(j.Violations, rememberedPolicies(ctx, l.admin, l.changed, ops)...)
	return j
}

// simSums computes what the counters that never forget may hold, by resource and subject.
func simSums(ops []history.Op) map[string]bounds {
	all := make(map[string]bounds)
	for _, op := range ops {
		in, ok := op.Input.(LimitOp)
		if !ok {
			continue
		}
		key := in.Request.Resource + "/" + in.Request.Client
		switch {
		case in.Kind == KindCheck && in.Request.Resource == resourceSum:
			all[key] = all[key].with(uint64(in.Request.Weight), op.Outcome)
		case in.Kind == KindCommit:
			all[key] = all[key].with(uint64(in.Actual), op.Outcome)
		}
	}
	return all
}

// notDone lists the operations on a counter that were refused or whose outcome is unknown.
func notDone(ops []history.Op, resource, subject string) string {
	var b strings.Builder
	for _, op := range ops {
		if in, ok := op.Input.(LimitOp); ok && op.Outcome != history.Definite && in.Request.Resource == resource && in.Request.Client == subject {
			fmt.Fprintf(&b, "\n%v %v to %v: %s %d, %d: %s (%+v)", op.Outcome, op.Call, op.Return, in.Kind, in.Request.Weight, in.Actual, op.Error, op.Trace)
		}
	}
	return b.String()
}

// simRules are those of the policies that do not change.
func simRules() map[string]counter.Params {
	all := rulesOf(simPolicies...)
	delete(all, resourceChanged)
	return all
}

// Judge implements Load.
func (l *simLimits) Judge(ops []history.Op, at ShardTimes) Judged {
	return judgePromises(ops, simRules(), at)
}

// Unclear implements Load: which rules a question met whose policy changes, only its answer tells.
func (l *simLimits) Unclear(_ []history.Op, unclear []*history.Op) (n int) {
	for _, op := range unclear {
		if in, ok := op.Input.(LimitOp); ok && in.Request.Resource != resourceChanged {
			n++
		}
	}
	return n
}

// Sequences implements Load. When an operation of unknown outcome took effect, the state of a window or bucket after it
// depends on: only what came before the first one is looked at, but for the window that never ends.
func (l *simLimits) Sequences() Sequences {
	rules := simRules()
	resource := func(op *history.Op) string { return op.Input.(LimitOp).Request.Resource }
	return Sequences{
		Key: func(op *history.Op) (string, bool) {
			in, ok := op.Input.(LimitOp)
			return in.Request.Resource + "/" + in.Request.Client, ok && slices.Contains(simSequential, in.Request.Resource)
		},
		Model: func(_ string, ops []*history.Op) (porcupine.Model, bool) {
			p := rules[resource(ops[0])]
			return LimitSequence(p), CanJudge(p, ops)
		},
		Until: func(op *history.Op) bool { return op.Outcome == history.Unknown && resource(op) != resourceSum },
	}
}
