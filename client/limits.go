package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/zeebo/xxh3"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
	"github.com/holdfastdb/holdfast/rpc/lease"
)

// Limits makes rate-limit decisions. Its methods are safe for any number of goroutines.
type Limits struct {
	c      *Client
	leases *lease.Table[leaseKey]
}

func newLimits(c *Client) *Limits {
	l := &Limits{c: c}
	l.leases = lease.New(l.askLease, leaseKey.hash)
	return l
}

func (l *Limits) close(ctx context.Context) { l.leases.Close(ctx) }

// Request describes what is to be limited. Which limits apply follows from the policies; at least one of the first five
// fields is needed.
type Request struct {
	Client, APIKey, Resource, IP, Region string
	// Weight is how many tokens to take; 0 means 1. To take none, use Peek.
	Weight uint32
	// Policies names, by id or name, the policies to apply instead of those that match.
	Policies []string
}

// Decision is the answer to a check.
type Decision struct {
	Allowed bool
	// Remaining is the smallest quota left of the limits that applied; Unlimited if none did.
	Remaining uint32
	// ResetAt is when the quota of Policy is whole again.
	ResetAt time.Time
	// RetryAfter is how long to wait, if denied; negative if no waiting helps.
	RetryAfter time.Duration
	// Policy is the id of the policy that decided, empty if none applied.
	Policy string
	// Limits has a row for each limit that applied. A decision from a lease has none.
	Limits []LimitState
	// ReleaseToken frees the slots of concurrency limits; see Release. Empty without such limits.
	ReleaseToken string
	// Fallback tells that the cluster could not be reached and the policy's on_unavailable decided.
	Fallback bool
}

// Unlimited is Decision.Remaining when no policy applies.
const Unlimited = 1<<32 - 1

// LimitState is what one limit said.
type LimitState struct {
	PolicyID, PolicyName, Scope string
	Limit, Remaining, Used      uint32
	Window                      time.Duration
	ResetAt                     time.Time
	RetryAfter                  time.Duration
	Denied, Shadow              bool
}

// The type and the methods of limits in data frames, see holdfast.v1.Op.
const (
	typeLimits    = 1
	methodCheck   = 1
	methodReset   = 2
	methodReserve = 3
	methodCommit  = 4
	methodRefund  = 5
	methodRelease = 6
	methodLease   = 7
	methodPeek    = 64
	methodStatus  = 65
)

func (q *Request) message() *pb.CheckRequest {
	m := &pb.CheckRequest{ClientId: q.Client, ApiKey: q.APIKey, Resource: q.Resource, Ip: q.IP, Region: q.Region, Policies: q.Policies}
	if q.Weight > 1 {
		m.Weight = &q.Weight
	}
	return m
}

// key is the routing key: all limits of the subject live on its shard.
func (q *Request) key() string {
	switch {
	case q.Client != "":
		return "client:" + q.Client
	case q.APIKey != "":
		return "api_key:" + q.APIKey
	case q.IP != "":
		return "ip:" + q.IP
	case q.Region != "":
		return "region:" + q.Region
	}
	return "resource:" + q.Resource
}

// Check takes tokens from every limit that applies, or from none. The decision is durable on a majority of the shard's
// nodes and made exactly once.
func (l *Limits) Check(ctx context.Context, q Request) (Decision, error) {
	return l.decide(ctx, &q, methodCheck, false)
}

// Peek tells what Check would answer, without taking anything.
func (l *Limits) Peek(ctx context.Context, q Request) (Decision, error) {
	return l.decide(ctx, &q, methodPeek, true)
}

func (l *Limits) decide(ctx context.Context, q *Request, method uint32, query bool) (Decision, error) {
	r := pb.CheckResponseFromVTPool() // decision keeps nothing of it but texts, which are the frame's
	defer r.ReturnToVTPool()
	if err := l.c.call(ctx, q.key(), typeLimits, method, query, q.message(), r); err != nil {
		return Decision{}, err
	}
	return decision(r), nil
}

// Async decides from tokens that were taken in bulk: at once while there are some, behind which more are fetched. The
// first call for a client, and one for which nothing is left, waits for the cluster. All holders together never let more
// pass than the limit. Limits that cannot be leased are checked like Check does it.
//
// If the cluster cannot be reached, the policy's on_unavailable decides and Fallback is set.
func (l *Limits) Async(ctx context.Context, q Request) (Decision, error) {
	if len(q.Policies) > 0 {
		return l.Check(ctx, q)
	}
	key := leaseKey{q.Client, q.APIKey, q.Resource, q.IP, q.Region}
	d, err := l.leases.Take(ctx, key, max(q.Weight, 1))
	if err == lease.ErrNotLeasable { //nolint:errorlint // returned as it is, and this path is hot
		decision, err := l.Check(ctx, q)
		known := false
		if ctx.Err() == nil && (errors.Is(err, ErrUnavailable) || errors.Is(err, ErrOutcomeUnknown)) {
			d, known = l.leases.Unreachable(key, max(q.Weight, 1))
		}
		if !known {
			return decision, err
		}
	} else if err != nil {
		return Decision{}, leaseError(ctx, err)
	}
	return Decision{Allowed: d.Allowed, Remaining: d.Left, RetryAfter: d.Retry, Fallback: d.Fallback}, nil
}

// leaseError names what ended the wait for a lease. Nothing was taken for who waited.
func leaseError(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	case errors.Is(err, context.Canceled): // it is not the caller's, so it is the table's
		return ErrClosed
	}
	return err
}

// policy is the one that the request names, if any.
func (q *Request) policy() (string, error) {
	switch len(q.Policies) {
	case 0:
		return "", nil
	case 1:
		return q.Policies[0], nil
	}
	return "", fmt.Errorf("%w: name one policy or none", ErrInvalid)
}

// Status tells the quota left of the policies that apply to a client, or of the one that the request names.
func (l *Limits) Status(ctx context.Context, q Request) ([]LimitState, error) {
	policy, err := q.policy()
	if err != nil {
		return nil, err
	}
	m := &pb.LimitStatusRequest{ClientId: q.Client, ApiKey: q.APIKey, Resource: q.Resource, Ip: q.IP, Region: q.Region, PolicyId: policy}
	var r pb.LimitStatusResponse
	if err := l.c.call(ctx, q.key(), typeLimits, methodStatus, true, m, &r); err != nil {
		return nil, err
	}
	return states(r.Policies), nil
}

// Reset forgets what was used of the limits that apply, or of the named policy, and tells how many were reset.
func (l *Limits) Reset(ctx context.Context, q Request) (int, error) {
	policy, err := q.policy()
	if err != nil {
		return 0, err
	}
	m := &pb.LimitResetRequest{ClientId: q.Client, ApiKey: q.APIKey, Resource: q.Resource, Ip: q.IP, Region: q.Region, PolicyId: policy}
	var r pb.LimitResetResponse
	if err := l.c.call(ctx, q.key(), typeLimits, methodReset, false, m, &r); err != nil {
		return 0, err
	}
	return int(r.Reset_), nil
}

// Reservation is an estimate that was taken for work whose cost is known afterwards.
type Reservation struct {
	Decision
	// ID names the reservation, also for other processes; empty if it was denied, or if nothing limits the request.
	ID        string
	ExpiresAt time.Time
	l         *Limits
	key       string
}

// Reserve takes an estimate, Weight, that is settled later. After ttl it refunds itself; 0 means a minute, the most is
// an hour.
func (l *Limits) Reserve(ctx context.Context, q Request, ttl time.Duration) (*Reservation, error) {
	m := &pb.ReserveRequest{Check: q.message(), TtlSeconds: uint32((ttl + time.Second - 1) / time.Second)}
	var r pb.ReserveResponse
	if err := l.c.call(ctx, q.key(), typeLimits, methodReserve, false, m, &r); err != nil {
		return nil, err
	}
	return &Reservation{Decision: decision(r.Check), ID: r.ReservationId, ExpiresAt: moment(r.ExpiresAt), l: l, key: q.key()}, nil
}

// Commit settles the reservation at what the work did cost: less gives the rest back, more is charged as debt.
func (r *Reservation) Commit(ctx context.Context, actual uint32) error {
	if r.holdsNothing() {
		return nil
	}
	var answer pb.CommitResponse
	return r.l.c.call(ctx, r.key, typeLimits, methodCommit, false, &pb.CommitRequest{ReservationId: r.ID, Actual: &actual}, &answer)
}

// Refund gives the reservation back whole.
func (r *Reservation) Refund(ctx context.Context) error {
	if r.holdsNothing() {
		return nil
	}
	var answer pb.RefundResponse
	return r.l.c.call(ctx, r.key, typeLimits, methodRefund, false, &pb.RefundRequest{ReservationId: r.ID}, &answer)
}

// holdsNothing tells of a request that was allowed because nothing limits it.
func (r *Reservation) holdsNothing() bool { return r.Allowed && r.ID == "" }

// Release frees the slots of concurrency limits that a check took.
func (l *Limits) Release(ctx context.Context, q Request, token string) error {
	var answer pb.ReleaseResponse
	return l.c.call(ctx, q.key(), typeLimits, methodRelease, false, &pb.ReleaseRequest{ReleaseToken: token}, &answer)
}

func decision(r *pb.CheckResponse) Decision {
	return Decision{
		Allowed: r.Allowed, Remaining: r.RemainingQuota, ResetAt: moment(r.ResetTime), RetryAfter: duration(r.RetryAfter),
		Policy: r.PolicyApplied, Limits: states(r.Limits), ReleaseToken: r.ReleaseToken,
	}
}

// moment is a time, the zero one if there is none.
func moment(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}

func duration(seconds float64) time.Duration { return time.Duration(seconds * float64(time.Second)) }

func states(rows []*pb.LimitState) []LimitState {
	if len(rows) == 0 {
		return nil
	}
	list := make([]LimitState, len(rows))
	for i, r := range rows {
		list[i] = LimitState{
			PolicyID: r.PolicyId, PolicyName: r.PolicyName, Scope: r.Scope, Limit: r.Limit, Remaining: r.RemainingQuota,
			Used: r.CurrentUsage, Window: duration(r.Window), ResetAt: moment(r.ResetTime),
			RetryAfter: duration(r.RetryAfter), Denied: r.Denied, Shadow: r.Shadow,
		}
	}
	return list
}

// leaseKey is what a lease is for.
type leaseKey struct{ client, apiKey, resource, ip, region string }

func (k leaseKey) hash() uint64 {
	h := xxh3.HashString(k.client)
	for _, s := range [...]string{k.apiKey, k.resource, k.ip, k.region} {
		if s != "" {
			h = h*31 + xxh3.HashString(s)
		}
	}
	return h
}

var fallbackModes = map[pb.OnUnavailable]lease.Mode{
	pb.OnUnavailable_ON_UNAVAILABLE_ALLOW: lease.Allow, pb.OnUnavailable_ON_UNAVAILABLE_DENY: lease.Deny,
	pb.OnUnavailable_ON_UNAVAILABLE_LOCAL: lease.Local,
}

// askLease fetches and returns leases.
func (l *Limits) askLease(ctx context.Context, k leaseKey, q lease.Request) (lease.Grant, error) {
	request := Request{Client: k.client, APIKey: k.apiKey, Resource: k.resource, IP: k.ip, Region: k.region}
	m := &pb.LeaseRequest{Check: request.message(), Want: q.Want, TtlMs: uint32(q.TTL.Milliseconds())}
	for _, r := range q.Returns {
		m.Returns = append(m.Returns, &pb.LeaseReturn{LeaseId: r.ID, Unused: r.Unused})
	}
	var r pb.LeaseResponse
	if err := l.c.call(ctx, request.key(), typeLimits, methodLease, false, m, &r); err != nil {
		return lease.Grant{}, err
	}
	g := lease.Grant{
		ID: r.LeaseId, Granted: r.Granted, Valid: time.Duration(r.ValidMs) * time.Millisecond, Leasable: r.Leasable,
		Fallback: lease.Fallback{Mode: fallbackModes[r.OnUnavailable]},
	}
	for _, s := range r.State.GetLimits() {
		if s.Shadow {
			continue
		}
		if s.Denied {
			g.Retry = max(g.Retry, duration(s.RetryAfter))
		}
		// The strictest limit is the one to go on with alone.
		if g.Fallback.Rate == 0 || float64(s.Limit)/s.Window < float64(g.Fallback.Rate)/g.Fallback.Window.Seconds() {
			g.Fallback.Rate, g.Fallback.Window, g.Fallback.Burst = s.Limit, duration(s.Window), s.Limit
		}
	}
	return g, nil
}
