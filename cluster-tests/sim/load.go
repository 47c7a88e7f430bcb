package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/cluster-tests/history"
	"github.com/holdfastdb/holdfast/cluster-tests/models"
	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/counter"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// clientIPs are the machines of the SDKs. The last one is for those who only read: an SDK that also writes hears of a new
// leader soon.
var clientIPs = []string{"10.0.1.1", "10.0.1.2", "10.0.1.3", "10.0.1.4"}

// kindPolicy is the operation that package models has no model of: policies are the catalog's.
const kindPolicy = "policy"

// A resource has one policy, which counts what is asked of it by client.
const (
	resourceSum     = "sum"     // never denies and never ends, so that what was counted can be summed up
	resourceReserve = "reserve" // the same, for reservations
	resourceLease   = "lease"
	resourceSlots   = "slots"
	resourceChanged = "changed" // its policy changes
)

// year is so long that no window ends.
const year = 360 * 24 * 3600

var policies = []*pb.CreatePolicyRequest{
	{Name: resourceSum, Algorithm: "fixed_window", RateLimit: 1_000_000, TimeWindow: year},
	{Name: resourceReserve, Algorithm: "fixed_window", RateLimit: 1_000_000, TimeWindow: year},
	{Name: "token_bucket", Algorithm: "token_bucket", RateLimit: 20, TimeWindow: 60, BurstCapacity: 10},
	{Name: "sliding_window", Algorithm: "sliding_window", RateLimit: 15, TimeWindow: 60},
	{Name: "sliding_log", Algorithm: "sliding_log", RateLimit: 10, TimeWindow: 45},
	{Name: "fixed_window", Algorithm: "fixed_window", RateLimit: 12, TimeWindow: 30},
	{Name: "leaky_bucket", Algorithm: "leaky_bucket", RateLimit: 10, TimeWindow: 60, BurstCapacity: 5},
	{Name: resourceLease, Algorithm: "token_bucket", RateLimit: 30, TimeWindow: 60, BurstCapacity: 20},
	{Name: resourceSlots, Algorithm: "concurrency", RateLimit: 3, TimeWindow: 20},
	{Name: resourceChanged, Algorithm: "fixed_window", RateLimit: 10, TimeWindow: 30},
}

// rules are those of the policies that do not change.
func rules() map[string]counter.Params {
	all := make(map[string]counter.Params)
	for _, q := range policies {
		a, _ := counter.ParseAlgorithm(q.Algorithm)
		all[q.Name] = counter.Params{Algorithm: a, Rate: q.RateLimit, Window: fsm.Millis(q.TimeWindow * 1000), Burst: q.BurstCapacity}
	}
	delete(all, resourceChanged)
	return all
}

// checked are the resources that are checked like any other.
var checked = []string{"token_bucket", "sliding_window", "sliding_log", "fixed_window", "leaky_bucket", resourceLease, resourceChanged}

// subjects are few, so that callers meet.
var subjects = []string{"ann", "bob", "cid", "dot"}

// reserveTTL is how long reservations last that nobody settles.
const reserveTTL = 20 * time.Second

// load is the callers and what they were told.
type load struct {
	c       *Cluster
	history *history.History // of operations that have a model
	others  *history.History // of those that have none
	clients []*client.Client
	changed string        // the id of the policy that changes
	changes atomic.Uint32 // asked for
}

// startLoad makes the policies, connects the SDKs, and uses each limit once. Also with an error it is to be closed.
func startLoad(ctx context.Context, c *Cluster) (*load, error) {
	l := &load{c: c, history: history.New(), others: history.New()}
	for _, ip := range clientIPs {
		cl, err := c.Dial(ctx, ip)
		if err != nil {
			return l, err
		}
		l.clients = append(l.clients, cl)
	}
	api := pb.NewPoliciesClient(l.clients[0].Conn())
	for _, q := range policies {
		q = &pb.CreatePolicyRequest{
			Name: q.Name, Algorithm: q.Algorithm, RateLimit: q.RateLimit, TimeWindow: q.TimeWindow, BurstCapacity: q.BurstCapacity,
			Resource: q.Name, OnUnavailable: "deny",
		}
		p, err := api.CreatePolicy(ctx, q)
		if err != nil {
			return l, fmt.Errorf("make policy %s: %w", q.Name, err)
		}
		if q.Name == resourceChanged {
			l.changed = p.PolicyId
		}
		if _, err := api.AssignClients(ctx, &pb.AssignClientsRequest{PolicyId: p.PolicyId, ClientIds: []string{"*"}}); err != nil {
			return l, fmt.Errorf("assign policy %s: %w", q.Name, err)
		}
	}
	// So that the model knows which limits the questions mean that are asked first.
	w := &worker{load: l, name: "w0", limits: l.clients[0].Limits(), rng: c.random()}
	for _, resource := range append(slices.Clone(checked), resourceSum) {
		for _, subject := range subjects {
			w.check(client.Request{Client: subject, Resource: resource, Weight: 1})
		}
	}
	return l, nil
}

// workers is how many callers there are; so many of them only read.
const (
	workers = 8
	readers = 2
)

// run calls until ctx ends, and returns when all calls have.
func (l *load) run(ctx context.Context) {
	var working sync.WaitGroup
	for i := range workers {
		w := &worker{
			load: l, name: fmt.Sprintf("w%d", i+1), limits: l.clients[i%(len(l.clients)-1)].Limits(), rng: rand.New(rand.NewPCG(l.c.opts.Seed, uint64(100+i))),
		}
		step := w.step
		if i < readers {
			w.limits, step = l.clients[len(l.clients)-1].Limits(), w.read
		}
		working.Go(func() {
			for ctx.Err() == nil {
				step()
				hold(ctx, time.Duration(w.rng.ExpFloat64()*float64(l.c.opts.Think)))
			}
		})
	}
	working.Wait()
}

func (l *load) close() error {
	var first error
	for _, c := range l.clients {
		if err := c.Close(); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// worker calls one operation after the other.
type worker struct {
	*load
	name   string
	limits *client.Limits
	rng    *rand.Rand
}

// do calls and records one operation. Some callers have little patience.
func (w *worker) do(kind string, q client.Request, actual uint32, f func(context.Context) (any, error)) {
	patience := 30 * time.Second
	if w.rng.IntN(20) == 0 {
		patience = time.Duration(w.rng.IntN(500)) * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	h := w.history
	if kind == kindPolicy {
		h = w.others
	}
	var trace client.Trace
	p := h.Begin(w.name, models.LimitOp{Kind: kind, Request: q, Actual: actual, Limited: true})
	out, err := f(client.WithTrace(ctx, &trace))
	p.End(out, trace, err)
}

// request draws whose quota of what is asked for.
func (w *worker) request() client.Request {
	return client.Request{Client: subjects[w.rng.IntN(len(subjects))], Weight: uint32(1 + w.rng.IntN(3)), Resource: checked[w.rng.IntN(len(checked))]}
}

func (w *worker) peek(q client.Request) {
	w.do(models.KindPeek, q, 0, func(ctx context.Context) (any, error) { return w.limits.Peek(ctx, q) })
}

func (w *worker) status(q client.Request) {
	w.do(models.KindStatus, q, 0, func(ctx context.Context) (any, error) { return w.limits.Status(ctx, q) })
}

// read is the step of those who only read.
func (w *worker) read() {
	if q := w.request(); w.rng.IntN(3) > 0 {
		w.peek(q)
	} else {
		w.status(q)
	}
}

func (w *worker) step() {
	q := w.request()
	switch n := w.rng.IntN(100); {
	case n < 30:
		q.Resource = resourceSum
		w.check(q)
	case n < 60:
		w.check(q)
	case n < 70:
		q.Resource, q.Weight = resourceReserve, uint32(1+w.rng.IntN(9))
		w.reserve(q)
	case n < 80:
		q.Resource = resourceLease
		for range 1 + w.rng.IntN(8) { // leases pay off for those who ask often
			q.Weight = uint32(1 + w.rng.IntN(2))
			w.do(models.KindLease, q, 0, func(ctx context.Context) (any, error) { return w.limits.Async(ctx, q) })
			time.Sleep(time.Duration(w.rng.IntN(200)) * time.Millisecond)
		}
	case n < 88:
		q.Resource, q.Weight = resourceSlots, 1
		w.slot(q)
	case n < 94:
		w.peek(q)
	case n < 97:
		q.Resource = resourceSum
		w.status(q)
	case n < 98:
		w.do(models.KindReset, q, 0, func(ctx context.Context) (any, error) { return w.limits.Reset(ctx, q) })
	default:
		rate := 5 + w.changes.Add(1)%10 // another one than before: what changes nothing is no change
		w.do(kindPolicy, client.Request{Resource: resourceChanged}, rate, func(ctx context.Context) (any, error) {
			return pb.NewPoliciesClient(w.clients[0].Conn()).UpdatePolicy(ctx, &pb.UpdatePolicyRequest{PolicyId: w.changed, RateLimit: &rate})
		})
	}
}

func (w *worker) check(q client.Request) (token string) {
	w.do(models.KindCheck, q, 0, func(ctx context.Context) (any, error) {
		d, err := w.limits.Check(ctx, q)
		token = d.ReleaseToken
		return d, err
	})
	return token
}

func (w *worker) reserve(q client.Request) {
	var r *client.Reservation
	w.do(models.KindReserve, q, 0, func(ctx context.Context) (any, error) {
		var err error
		if r, err = w.limits.Reserve(ctx, q, reserveTTL); err != nil {
			return nil, err
		}
		return r.Decision, nil
	})
	if r == nil || r.ID == "" {
		return
	}
	time.Sleep(time.Duration(w.rng.IntN(2000)) * time.Millisecond)
	switch w.rng.IntN(4) {
	case 0: // nobody settles it
	case 1:
		w.do(models.KindRefund, q, 0, func(ctx context.Context) (any, error) { return nil, r.Refund(ctx) })
	default:
		actual := uint32(w.rng.IntN(12))
		w.do(models.KindCommit, q, actual, func(ctx context.Context) (any, error) { return nil, r.Commit(ctx, actual) })
	}
}

func (w *worker) slot(q client.Request) {
	token := w.check(q)
	if token == "" {
		return
	}
	time.Sleep(time.Duration(w.rng.IntN(3000)) * time.Millisecond)
	w.do(models.KindRelease, q, 0, func(ctx context.Context) (any, error) { return nil, w.limits.Release(ctx, q, token) })
}
