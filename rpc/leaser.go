package rpc

import (
	"context"
	"strings"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/catalog"
	"github.com/holdfastdb/holdfast/fsm/counter"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
	"github.com/holdfastdb/holdfast/rpc/lease"
)

// leaser holds leases of this node, for checks with async set.
type leaser struct {
	limits *limits
	table  *lease.Table[leaseKey]
}

// leaseKey is what a check is about.
type leaseKey struct{ client, apiKey, resource, ip, region string }

func (k leaseKey) hash() uint64 {
	h := xxh3.HashString(k.client)
	h = h*31 + xxh3.HashString(k.apiKey)
	h = h*31 + xxh3.HashString(k.resource)
	h = h*31 + xxh3.HashString(k.ip)
	return h*31 + xxh3.HashString(k.region)
}

func newLeaser(l *limits) *leaser {
	x := &leaser{limits: l}
	x.table = lease.New(x.ask, leaseKey.hash)
	return x
}

func (x *leaser) close(ctx context.Context) { x.table.Close(ctx) }

// check answers from a lease, or nil if it cannot at once; then a lease is on its way for the next time.
func (x *leaser) check(q *pb.CheckRequest, p *plan) *pb.CheckResponse {
	if len(p.parts) != 1 || len(q.Policies) > 0 {
		return nil
	}
	key := leaseKey{ // of its own memory: the table keeps it, and what is in q is a part of the whole request
		strings.Clone(q.ClientId), strings.Clone(q.ApiKey), strings.Clone(q.Resource), strings.Clone(q.Ip), strings.Clone(q.Region),
	}
	d, ok := x.table.Now(key, p.weight)
	if !ok || d.Fallback {
		return nil
	}
	r := &pb.CheckResponse{Allowed: d.Allowed, RemainingQuota: d.Left, PolicyApplied: p.matches[0].Policy.ID()}
	if !d.Allowed {
		r.RetryAfter = d.Retry.Seconds()
	}
	return r
}

func (x *leaser) ask(ctx context.Context, key leaseKey, q lease.Request) (lease.Grant, error) {
	request := &pb.LeaseRequest{
		Check: &pb.CheckRequest{ClientId: key.client, ApiKey: key.apiKey, Resource: key.resource, Ip: key.ip, Region: key.region},
		Want:  q.Want, TtlMs: uint32(q.TTL.Milliseconds()),
	}
	for _, r := range q.Returns {
		request.Returns = append(request.Returns, &pb.LeaseReturn{LeaseId: r.ID, Unused: r.Unused})
	}
	p, call, err := x.limits.planLease(request)
	if err != nil {
		return lease.Grant{}, err
	}
	if call.Type == 0 {
		return lease.Grant{}, nil
	}
	out, err := x.limits.node.Do(ctx, p.parts[0].group, []fsm.Call{call})
	if err != nil {
		return lease.Grant{}, err
	}
	body, err := only(out)
	if err != nil {
		return lease.Grant{}, err
	}
	g, err := counter.DecodeLeaseResult(body)
	if err != nil {
		return lease.Grant{}, err
	}
	grant := lease.Grant{ID: g.ID, Granted: g.Granted, Valid: time.Duration(g.TTL) * time.Millisecond, Leasable: g.Leasable}
	for _, l := range g.State.Limits {
		if l.Denied && !l.Shadow {
			grant.Retry = max(grant.Retry, time.Duration(l.RetryIn)*time.Millisecond)
		}
	}
	return grant, nil
}

// planLease finds the limits of a lease. The call is empty if they cannot be leased: none applies, or they live in
// several groups.
func (l *limits) planLease(q *pb.LeaseRequest) (*plan, fsm.Call, error) {
	p, err := l.planCheck(q.Check)
	if err != nil {
		return nil, fsm.Call{}, err
	}
	if q.TtlMs < 1 || q.TtlMs > counter.MaxLease {
		return nil, fsm.Call{}, invalidf("ttl_ms must be 1 to %d", counter.MaxLease)
	}
	if len(q.Returns) > counter.MaxReturns {
		return nil, fsm.Call{}, invalidf("at most %d leases can be returned at once", counter.MaxReturns)
	}
	if len(p.parts) != 1 {
		return p, fsm.Call{}, nil
	}
	request := counter.LeaseRequest{Want: q.Want, TTL: fsm.Millis(q.TtlMs), Limits: p.parts[0].limits}
	for _, r := range q.Returns {
		request.Returns = append(request.Returns, counter.LeaseReturn{ID: r.LeaseId, Unused: r.Unused})
	}
	return p, fsm.Call{Type: counter.TypeID, Op: counter.OpLease, Body: request.Append(nil)}, nil
}

var onUnavailable = map[string]pb.OnUnavailable{
	"allow": pb.OnUnavailable_ON_UNAVAILABLE_ALLOW, "deny": pb.OnUnavailable_ON_UNAVAILABLE_DENY,
	"local": pb.OnUnavailable_ON_UNAVAILABLE_LOCAL,
}

// noLease tells of limits that cannot be leased. The rows tell the rates, for the time when the cluster cannot be reached.
func (l *limits) noLease(p *plan) *pb.LeaseResponse {
	rates := make([]counter.LimitResult, len(p.matches))
	for i := range rates {
		rates[i] = counter.LimitResult{Policy: p.matches[i].Limit.Policy, Shadow: p.matches[i].Limit.Shadow}
	}
	return &pb.LeaseResponse{State: l.answer(p, true, rates, 0), OnUnavailable: strictest(p)}
}

// leaseAnswer builds the response of a lease.
func (l *limits) leaseAnswer(p *plan, body []byte, now fsm.Time) (*pb.LeaseResponse, error) {
	g, err := counter.DecodeLeaseResult(body)
	if err != nil {
		return nil, err
	}
	r := &pb.LeaseResponse{
		Granted: g.Granted, ValidMs: uint32(g.TTL), Leasable: g.Leasable, LeaseId: g.ID,
		State: l.answer(p, g.State.Allowed, g.State.Limits, now), OnUnavailable: strictest(p),
	}
	return r, nil
}

// strictest is what to do without the cluster if several policies apply: deny before local before allow.
func strictest(p *plan) pb.OnUnavailable {
	mode := pb.OnUnavailable_ON_UNAVAILABLE_ALLOW
	for i := range p.matches {
		switch policyMode(p.matches[i].Policy) {
		case pb.OnUnavailable_ON_UNAVAILABLE_DENY:
			return pb.OnUnavailable_ON_UNAVAILABLE_DENY
		case pb.OnUnavailable_ON_UNAVAILABLE_LOCAL:
			mode = pb.OnUnavailable_ON_UNAVAILABLE_LOCAL
		}
	}
	return mode
}

func policyMode(p *catalog.Policy) pb.OnUnavailable { return onUnavailable[p.OnUnavailable] }
