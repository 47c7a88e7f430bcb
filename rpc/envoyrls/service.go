package envoyrls

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	ratelimit "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	rls "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/holdfastdb/holdfast/fsm/catalog"
	"github.com/holdfastdb/holdfast/fsm/counter"
	"github.com/holdfastdb/holdfast/rpc/policy"
)

// Decide takes from each limit its weight, or from none, and tells what each said, in their order.
type Decide func(ctx context.Context, weights []uint32, limits []policy.Match) ([]counter.LimitResult, error)

// Service implements envoy.service.ratelimit.v3.RateLimitService.
type Service struct {
	rls.UnimplementedRateLimitServiceServer
	decide Decide
	source policy.Source
	now    func() time.Time
	stop   func()

	domains atomic.Pointer[map[string]*Domain]
	mu      sync.Mutex // one refresh at a time
	seen    uint64     // revision of the catalog
}

// New starts a service, which follows the domains in the catalog until Close.
func New(source policy.Source, decide Decide) (*Service, error) {
	s := &Service{decide: decide, source: source, now: time.Now}
	s.domains.Store(&map[string]*Domain{})
	s.stop = source.WatchCatalog(func() { _ = s.refresh() }) // what cannot be read stops the node elsewhere
	if err := s.refresh(); err != nil {                      // not before: nobody would be told of a change in between
		s.stop()
		return nil, err
	}
	return s, nil
}

// Close ends the following.
func (s *Service) Close() { s.stop() }

func (s *Service) refresh() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	view := s.source.CatalogView()
	defer view.Close()
	reader := catalog.View(view)
	changes, revision, err := catalog.Changes(reader, s.seen)
	if err != nil && !catalog.IsBehind(err) {
		return err
	}
	if err == nil && !slices.ContainsFunc(changes, func(c catalog.Change) bool { return c.Domain != "" }) {
		s.seen = revision
		return nil
	}
	list, err := catalog.AllDomains(reader)
	if err != nil {
		return err
	}
	domains := make(map[string]*Domain, len(list))
	for _, d := range list {
		if parsed, err := Parse(d.YAML); err == nil { // it was checked when it came
			domains[d.Name] = parsed
		}
	}
	s.domains.Store(&domains)
	s.seen = revision
	return nil
}

// found is one descriptor's rule.
type found struct {
	rule   *rule
	match  policy.Match
	weight uint32
}

const maxDescriptors = counter.MaxLimits

// ShouldRateLimit implements the service.
func (s *Service) ShouldRateLimit(ctx context.Context, q *rls.RateLimitRequest) (*rls.RateLimitResponse, error) {
	switch {
	case q.Domain == "":
		return nil, status.Error(codes.InvalidArgument, "rate limit domain must not be empty")
	case len(q.Descriptors) == 0:
		return nil, status.Error(codes.InvalidArgument, "rate limit descriptor list must not be empty")
	case len(q.Descriptors) > maxDescriptors:
		return nil, status.Errorf(codes.InvalidArgument, "%d descriptors, at most %d are allowed", len(q.Descriptors), maxDescriptors)
	}
	rules := s.match(q)
	results, err := s.take(ctx, rules)
	if err != nil {
		return nil, err
	}
	return s.answer(rules, results), nil
}

// match finds the rules of all descriptors. Rules that another one replaces are dropped.
func (s *Service) match(q *rls.RateLimitRequest) []found {
	rules := make([]found, len(q.Descriptors))
	domain := (*s.domains.Load())[q.Domain]
	if domain == nil {
		return rules
	}
	var replaced []string
	for i, d := range q.Descriptors {
		f := &rules[i]
		f.weight = min(max(q.HitsAddend, 1), counter.MaxRate)
		if d.HitsAddend != nil {
			f.weight = uint32(min(d.HitsAddend.Value, counter.MaxRate))
		}
		entries := make([]entry, len(d.Entries))
		for j, e := range d.Entries {
			entries[j] = entry{e.Key, e.Value}
		}
		var name []string
		if d.Limit != nil {
			f.rule, name = override(d.Limit, entries)
		} else {
			f.rule, name = domain.find(entries)
		}
		if f.rule == nil {
			continue
		}
		replaced = append(replaced, f.rule.replaces...)
		f.match = limitOf(q.Domain, f.rule, name)
	}
	for i := range rules {
		if r := rules[i].rule; r != nil && r.name != "" && slices.Contains(replaced, r.name) {
			rules[i].rule = nil
		}
	}
	return rules
}

// override is a limit that the request itself brings; nil if no counter can hold it.
func override(l *ratelimit.RateLimitDescriptor_RateLimitOverride, entries []entry) (*rule, []string) {
	r := &rule{perUnit: l.RequestsPerUnit, unit: strings.ToLower(l.Unit.String())}
	if params := r.params(); params.Validate() != nil {
		return nil, nil
	}
	var name []string
	for _, e := range entries {
		name = append(name, e.key, e.value)
	}
	return r, name
}

// limitOf builds the counter of a rule. One in quota mode only counts: whether the request passes depends on the others.
func limitOf(domain string, r *rule, name []string) policy.Match {
	b := []byte("envoy")
	for _, part := range append([]string{domain, r.unit}, name...) {
		b = append(binary.AppendUvarint(b, uint64(len(part))), part...)
	}
	sum := sha256.Sum256(b)
	m := policy.Match{
		RoutingKey: string(b),
		Limit:      counter.Limit{Shadow: r.shadow || r.quota, Params: r.params()},
	}
	copy(m.Limit.Key[:], sum[:])
	return m
}

// counted tells whether a rule needs a counter: none for rules that always or never let pass.
func (f *found) counted() bool { return f.rule != nil && !f.rule.unlimited && f.rule.perUnit > 0 }

// take asks the counters, all in one step. A request that a rule without a counter denies takes nothing.
func (s *Service) take(ctx context.Context, rules []found) ([]counter.LimitResult, error) {
	barred := slices.ContainsFunc(rules, func(f found) bool {
		return f.rule != nil && !f.rule.unlimited && f.rule.perUnit == 0 && !f.rule.shadow && !f.rule.quota
	})
	var limits []policy.Match
	var weights []uint32
	places := make([]int, len(rules))
	for i := range rules {
		f := &rules[i]
		if !f.counted() {
			continue
		}
		weight := f.weight
		if barred {
			weight = 0
		}
		places[i] = slices.IndexFunc(limits, func(m policy.Match) bool { return m.Limit.Key == f.match.Limit.Key })
		if places[i] < 0 {
			places[i] = len(limits)
			limits, weights = append(limits, f.match), append(weights, weight)
		} else { // named twice: counted once
			weights[places[i]] = max(weights[places[i]], weight)
		}
	}
	results := make([]counter.LimitResult, len(rules))
	if len(limits) == 0 {
		return results, nil
	}
	got, err := s.decide(ctx, weights, limits)
	if err != nil {
		return nil, err
	}
	for i := range rules {
		if rules[i].counted() {
			results[i] = got[places[i]]
		}
	}
	return results, nil
}

var units = map[string]rls.RateLimitResponse_RateLimit_Unit{
	"second": rls.RateLimitResponse_RateLimit_SECOND, "minute": rls.RateLimitResponse_RateLimit_MINUTE,
	"hour": rls.RateLimitResponse_RateLimit_HOUR, "day": rls.RateLimitResponse_RateLimit_DAY,
	"week": rls.RateLimitResponse_RateLimit_WEEK, "month": rls.RateLimitResponse_RateLimit_MONTH,
	"year": rls.RateLimitResponse_RateLimit_YEAR,
}

const unlimited = 1<<32 - 1

// answer builds the response: over the limit if any rule is, or if all rules in quota mode are.
func (s *Service) answer(rules []found, results []counter.LimitResult) *rls.RateLimitResponse {
	r := &rls.RateLimitResponse{OverallCode: rls.RateLimitResponse_OK}
	quotas, quotasOver := 0, 0
	for i := range rules {
		st := s.status(&rules[i], &results[i])
		r.Statuses = append(r.Statuses, st)
		over := st.Code == rls.RateLimitResponse_OVER_LIMIT
		if rules[i].rule != nil && rules[i].rule.quota {
			quotas++
			if over {
				quotasOver++
			}
		} else if over {
			r.OverallCode = rls.RateLimitResponse_OVER_LIMIT
		}
	}
	if quotas > 0 && quotas == quotasOver {
		r.OverallCode = rls.RateLimitResponse_OVER_LIMIT
	}
	return r
}

func (s *Service) status(f *found, r *counter.LimitResult) *rls.RateLimitResponse_DescriptorStatus {
	st := &rls.RateLimitResponse_DescriptorStatus{Code: rls.RateLimitResponse_OK}
	switch {
	case f.rule == nil:
		return st
	case f.rule.unlimited:
		st.LimitRemaining = unlimited
		return st
	}
	st.CurrentLimit = &rls.RateLimitResponse_RateLimit{RequestsPerUnit: f.rule.perUnit, Unit: units[f.rule.unit], Name: f.rule.name}
	window := windows[f.rule.unit]
	until := window - s.now().UnixMilli()%window
	over := f.rule.perUnit == 0
	if f.counted() {
		over = r.Denied
		st.LimitRemaining = r.Remaining
		if over {
			st.LimitRemaining = 0
		}
	}
	st.DurationUntilReset = durationpb.New(time.Duration(until) * time.Millisecond)
	if over && !f.rule.shadow {
		st.Code = rls.RateLimitResponse_OVER_LIMIT
	}
	return st
}
