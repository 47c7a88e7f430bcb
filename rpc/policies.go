package rpc

import (
	"context"
	"math"
	"strings"

	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/catalog"
	"github.com/holdfastdb/holdfast/fsm/counter"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
	"github.com/holdfastdb/holdfast/rpc/policy"
	"github.com/holdfastdb/holdfast/storage/plant"
)

// policies implements holdfast.v1.Policies.
type policies struct {
	pb.UnimplementedPoliciesServer
	node Node
}

// catalogGroup is the group of the catalog.
const catalogGroup = 0

// actor is who asks, for the audit trail: what the caller says of itself and where it calls from.
func actor(ctx context.Context) string {
	md, _ := metadata.FromIncomingContext(ctx)
	var parts []string
	if v := md.Get("holdfast-actor"); len(v) > 0 && v[0] != "" {
		parts = append(parts, v[0][:min(len(v[0]), 128)])
	}
	if v := md.Get("x-forwarded-for"); len(v) > 0 {
		parts = append(parts, v[0][:min(len(v[0]), 128)])
	} else if p, ok := peer.FromContext(ctx); ok {
		parts = append(parts, p.Addr.String())
	}
	return strings.Join(parts, " ")
}

// change executes a catalog command.
func change[R any](ctx context.Context, n Node, call fsm.Call) (R, error) {
	body, err := n.Catalog(ctx, call)
	if err != nil {
		var none R
		return none, err
	}
	return catalog.Decode[R](body)
}

// ask runs a catalog query.
func ask[R any](ctx context.Context, n Node, call fsm.Call) (R, error) {
	var none R
	results, _, err := n.Query(ctx, catalogGroup, []fsm.Call{call})
	if err != nil {
		return none, err
	}
	if err := results[0].Err(); err != nil {
		return none, err
	}
	return catalog.Decode[R](results[0].Body)
}

const (
	maxName        = 128
	maxDescription = 1024
)

// checkPolicy completes a policy with defaults and refuses one that makes no sense.
func checkPolicy(p *catalog.Policy) error {
	if p.Name == "" || len(p.Name) > maxName {
		return invalidf("name must have 1 to %d characters", maxName)
	}
	for _, c := range p.Name {
		if !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-:/", c) {
			return invalidf("name %q: use letters, digits and . _ - : /", p.Name)
		}
	}
	if _, isID := catalog.ParsePolicyID(p.Name); isID {
		return invalidf("name %q looks like a policy id", p.Name)
	}
	if err := checkLongText("description", p.Description, maxDescription); err != nil {
		return err
	}
	if p.Scope == "" {
		p.Scope = "client"
	}
	scope, err := policy.ParseScope(p.Scope)
	if err != nil {
		return invalidf("%v", err)
	}
	p.Scope = scope
	if err := checkText("resource", p.Resource); err != nil {
		return err
	}
	if strings.Contains(strings.TrimSuffix(p.Resource, "*"), "*") {
		return invalidf("resource %q: * is allowed at the end only", p.Resource)
	}
	if p.Rollout > 100 {
		return invalidf("rollout_percent must be 0 to 100")
	}
	if p.OnUnavailable == "" {
		p.OnUnavailable = "local"
	}
	if _, ok := onUnavailable[p.OnUnavailable]; !ok {
		return invalidf("on_unavailable %q: use allow, deny or local", p.OnUnavailable)
	}
	return checkRules(p)
}

// checkRules completes and checks what counters are told.
func checkRules(p *catalog.Policy) error {
	algorithm, _ := counter.ParseAlgorithm(p.Algorithm)
	switch {
	case p.Burst != 0 && algorithm != 0 && !algorithm.Bursts():
		return invalidf("burst_capacity is for token_bucket and leaky_bucket: %s has none", algorithm)
	case p.Burst != 0:
	case algorithm == counter.TokenBucket:
		p.Burst = p.Rate
	case algorithm == counter.LeakyBucket:
		p.Burst = 1
	}
	if c, ok := counter.ParseCalendar(p.Calendar); ok && c != counter.None {
		p.WindowMS = c.Window()
	}
	if _, err := policy.Params(p); err != nil {
		return invalidf("%v", err)
	}
	return nil
}

// milliseconds converts a window.
func milliseconds(window float64) (fsm.Millis, error) {
	ms := math.Round(window * 1000)
	if math.IsNaN(ms) || ms < 0 || ms > counter.MaxWindow {
		return 0, invalidf("time_window must be 0.001 to %d seconds", counter.MaxWindow/1000)
	}
	return fsm.Millis(ms), nil
}

// CreatePolicy implements the service.
func (s *policies) CreatePolicy(ctx context.Context, q *pb.CreatePolicyRequest) (*pb.Policy, error) {
	p := catalog.Policy{
		Name: q.Name, Algorithm: q.Algorithm, Rate: q.RateLimit, Burst: q.BurstCapacity, Active: true, Shadow: q.Shadow,
		Rollout: 100, Priority: q.Priority, Scope: q.Scope, Resource: q.Resource, Calendar: q.Calendar,
		OnUnavailable: q.OnUnavailable, Description: q.Description,
	}
	if p.Algorithm == "" {
		p.Algorithm = counter.TokenBucket.String()
	}
	if q.Active != nil {
		p.Active = *q.Active
	}
	if q.RolloutPercent != nil {
		p.Rollout = *q.RolloutPercent
	}
	var err error
	if p.WindowMS, err = milliseconds(q.TimeWindow); err != nil {
		return nil, statusOf(err)
	}
	if err := checkPolicy(&p); err != nil {
		return nil, statusOf(err)
	}
	p, err = change[catalog.Policy](ctx, s.node, catalog.Call(catalog.OpCreatePolicy, catalog.PolicyEdit{Policy: p, Actor: actor(ctx)}))
	if err != nil {
		return nil, statusOf(err)
	}
	return policyMessage(&p), nil
}

func policyMessage(p *catalog.Policy) *pb.Policy {
	return &pb.Policy{
		PolicyId: p.ID(), Name: p.Name, Algorithm: p.Algorithm, RateLimit: p.Rate, TimeWindow: seconds(p.WindowMS),
		BurstCapacity: p.Burst, Active: p.Active, Shadow: p.Shadow, RolloutPercent: p.Rollout, Priority: p.Priority,
		Scope: p.Scope, Resource: p.Resource, Calendar: p.Calendar, OnUnavailable: p.OnUnavailable,
		CreatedAt: timestamp(p.Created), UpdatedAt: timestamp(p.Updated), Revision: p.Revision, Description: p.Description,
	}
}

func (s *policies) get(ctx context.Context, idOrName string) (catalog.Policy, error) {
	if idOrName == "" {
		return catalog.Policy{}, invalidf("policy_id is missing")
	}
	return ask[catalog.Policy](ctx, s.node, catalog.Call(catalog.OpGetPolicy, catalog.PolicyRef{Policy: idOrName}))
}

// GetPolicy implements the service.
func (s *policies) GetPolicy(ctx context.Context, q *pb.GetPolicyRequest) (*pb.Policy, error) {
	p, err := s.get(ctx, q.PolicyId)
	if err != nil {
		return nil, statusOf(err)
	}
	return policyMessage(&p), nil
}

const defaultPage = 100

func pageSize(n uint32) int {
	if n == 0 {
		return defaultPage
	}
	return int(min(n, catalog.MaxPage))
}

// ListPolicies implements the service.
func (s *policies) ListPolicies(ctx context.Context, q *pb.ListPoliciesRequest) (*pb.ListPoliciesResponse, error) {
	if _, ok := catalog.ParsePolicyID(q.PageToken); q.PageToken != "" && !ok {
		return nil, statusOf(invalidf("page_token is not one that a page gave"))
	}
	page, err := ask[catalog.Policies](ctx, s.node, catalog.Call(catalog.OpListPolicies, catalog.Page{After: q.PageToken, Size: pageSize(q.PageSize)}))
	if err != nil {
		return nil, statusOf(err)
	}
	r := &pb.ListPoliciesResponse{}
	for i := range page.List {
		r.Policies = append(r.Policies, policyMessage(&page.List[i]))
	}
	if page.More {
		r.NextPageToken = page.List[len(page.List)-1].ID()
	}
	return r, nil
}

// UpdatePolicy implements the service. The state checks the revision that the change was made from, so of two callers
// who change different fields at once neither undoes the other's work: the later one merges again, unless it named the
// revision itself.
func (s *policies) UpdatePolicy(ctx context.Context, q *pb.UpdatePolicyRequest) (*pb.Policy, error) {
	p, err := s.get(ctx, q.PolicyId)
	for err == nil {
		var updated catalog.Policy
		if updated, err = s.update(ctx, p, q); err == nil {
			return policyMessage(&updated), nil
		}
		if codeOf(err) != fsm.Conflict || q.ExpectedRevision != 0 {
			break
		}
		newer, getErr := s.get(ctx, p.ID())
		if getErr != nil || newer.Revision == p.Revision {
			break // the conflict is another one
		}
		p, err = newer, nil
	}
	return nil, statusOf(err)
}

func (s *policies) update(ctx context.Context, p catalog.Policy, q *pb.UpdatePolicyRequest) (catalog.Policy, error) {
	old, from := p, p.Revision
	if q.ExpectedRevision != 0 {
		from = q.ExpectedRevision
	}
	if err := merge(&p, q); err != nil {
		return p, err
	}
	if err := checkPolicy(&p); err != nil {
		return p, err
	}
	if p == old && from == old.Revision {
		return p, nil // who asks for what is there has changed nothing, and wakes nobody
	}
	if plant.On(plant.ForgetPolicy) {
		return p, nil
	}
	return change[catalog.Policy](ctx, s.node, catalog.Call(catalog.OpUpdatePolicy, catalog.PolicyEdit{Policy: p, Expected: from, Actor: actor(ctx)}))
}

// merge applies the fields that are present.
func merge(p *catalog.Policy, q *pb.UpdatePolicyRequest) (err error) {
	burstFollows := p.Algorithm == counter.TokenBucket.String() && p.Burst == p.Rate // as by default
	changes := q.Algorithm != nil && *q.Algorithm != p.Algorithm
	set(&p.Name, q.Name)
	set(&p.Algorithm, q.Algorithm)
	set(&p.Rate, q.RateLimit)
	set(&p.Active, q.Active)
	set(&p.Shadow, q.Shadow)
	set(&p.Rollout, q.RolloutPercent)
	set(&p.Priority, q.Priority)
	set(&p.Scope, q.Scope)
	set(&p.Resource, q.Resource)
	set(&p.Calendar, q.Calendar)
	set(&p.OnUnavailable, q.OnUnavailable)
	set(&p.Description, q.Description)
	switch {
	case q.BurstCapacity != nil:
		p.Burst = *q.BurstCapacity
	case burstFollows || changes:
		p.Burst = 0
	default: // a policy of before a burst was refused may have one without a use
		if a, _ := counter.ParseAlgorithm(p.Algorithm); !a.Bursts() {
			p.Burst = 0
		}
	}
	if q.TimeWindow != nil {
		p.WindowMS, err = milliseconds(*q.TimeWindow)
	}
	return err
}

func set[T any](to *T, from *T) {
	if from != nil {
		*to = *from
	}
}

// DeletePolicy implements the service.
func (s *policies) DeletePolicy(ctx context.Context, q *pb.DeletePolicyRequest) (*pb.DeletePolicyResponse, error) {
	if q.PolicyId == "" {
		return nil, statusOf(invalidf("policy_id is missing"))
	}
	_, err := change[catalog.Nothing](ctx, s.node, catalog.Call(catalog.OpDeletePolicy, catalog.PolicyRef{Policy: q.PolicyId, Actor: actor(ctx)}))
	if err != nil {
		return nil, statusOf(err)
	}
	return &pb.DeletePolicyResponse{}, nil
}

func checkClients(policyID string, clients []string) error {
	if policyID == "" {
		return invalidf("policy_id is missing")
	}
	if len(clients) < 1 || len(clients) > catalog.MaxAssign {
		return invalidf("client_ids must have 1 to %d entries", catalog.MaxAssign)
	}
	for _, c := range clients {
		if c == "" {
			return invalidf("client_ids contains an empty id")
		}
		if err := checkText("client_ids", c); err != nil {
			return err
		}
	}
	return nil
}

// fromTimestamp converts a time of a request, 0 if there is none.
func fromTimestamp(name string, t *timestamppb.Timestamp) (fsm.Time, error) {
	if t == nil {
		return 0, nil
	}
	if err := t.CheckValid(); err != nil {
		return 0, invalidf("%s: %v", name, err)
	}
	return fsm.Time(t.AsTime().UnixMilli()), nil
}

// AssignClients implements the service.
func (s *policies) AssignClients(ctx context.Context, q *pb.AssignClientsRequest) (*pb.AssignClientsResponse, error) {
	if err := checkClients(q.PolicyId, q.ClientIds); err != nil {
		return nil, statusOf(err)
	}
	a := catalog.Assign{Policy: q.PolicyId, Clients: q.ClientIds, Priority: q.Priority, Actor: actor(ctx)}
	if q.OverrideRateLimit != nil {
		p, err := s.get(ctx, q.PolicyId)
		if err != nil {
			return nil, statusOf(err)
		}
		a.Rate, p.Rate = *q.OverrideRateLimit, *q.OverrideRateLimit
		if err := checkRules(&p); err != nil {
			return nil, statusOf(invalidf("override_rate_limit: %v", err))
		}
	}
	var err error
	if a.From, err = fromTimestamp("effective_from", q.EffectiveFrom); err != nil {
		return nil, statusOf(err)
	}
	if a.To, err = fromTimestamp("effective_to", q.EffectiveTo); err != nil {
		return nil, statusOf(err)
	}
	if q.EffectiveTo != nil && a.To <= a.From {
		return nil, statusOf(invalidf("effective_to must be after effective_from"))
	}
	n, err := change[uint32](ctx, s.node, catalog.Call(catalog.OpAssign, a))
	if err != nil {
		return nil, statusOf(err)
	}
	return &pb.AssignClientsResponse{Assigned: n}, nil
}

// UnassignClients implements the service.
func (s *policies) UnassignClients(ctx context.Context, q *pb.UnassignClientsRequest) (*pb.UnassignClientsResponse, error) {
	if err := checkClients(q.PolicyId, q.ClientIds); err != nil {
		return nil, statusOf(err)
	}
	n, err := change[uint32](ctx, s.node, catalog.Call(catalog.OpUnassign, catalog.Assign{Policy: q.PolicyId, Clients: q.ClientIds, Actor: actor(ctx)}))
	if err != nil {
		return nil, statusOf(err)
	}
	return &pb.UnassignClientsResponse{Unassigned: n}, nil
}

// ListClients implements the service.
func (s *policies) ListClients(ctx context.Context, q *pb.ListClientsRequest) (*pb.ListClientsResponse, error) {
	page, err := ask[catalog.Clients](ctx, s.node, catalog.Call(catalog.OpListClients, catalog.Page{Policy: q.PolicyId, After: q.PageToken, Size: pageSize(q.PageSize)}))
	if err != nil {
		return nil, statusOf(err)
	}
	r := &pb.ListClientsResponse{}
	for _, a := range page.List {
		m := &pb.Assignment{ClientId: a.Client, Priority: a.Priority, EffectiveFrom: timestamp(a.From), EffectiveTo: timestamp(a.To)}
		if a.Rate != 0 {
			m.OverrideRateLimit = &a.Rate
		}
		r.Clients = append(r.Clients, m)
	}
	if page.More {
		r.NextPageToken = page.List[len(page.List)-1].Client
	}
	return r, nil
}

// PolicyHistory implements the service.
func (s *policies) PolicyHistory(ctx context.Context, q *pb.PolicyHistoryRequest) (*pb.PolicyHistoryResponse, error) {
	list, err := ask[[]catalog.Audit](ctx, s.node, catalog.Call(catalog.OpHistory, catalog.PolicyRef{Policy: q.PolicyId}))
	if err != nil {
		return nil, statusOf(err)
	}
	r := &pb.PolicyHistoryResponse{}
	for _, a := range list {
		c := &pb.PolicyChange{At: timestamp(a.At), Actor: a.Actor, Action: a.Action, Revision: a.Revision, Detail: a.Detail}
		if a.Policy != nil {
			c.Policy = policyMessage(a.Policy)
		}
		r.Changes = append(r.Changes, c)
	}
	return r, nil
}
