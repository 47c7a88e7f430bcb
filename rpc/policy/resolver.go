// Package policy finds the rate limits that apply to a request, from this node's copy of the catalog. Checks do that by
// the hundred thousand a second, so policies are compiled into an index that does not change, and a new one replaces it
// when the catalog changes; clients' assignments, of which there may be millions, are read when needed and remembered
// within bounds.
package policy

import (
	"strings"
	"sync"
	"sync/atomic"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/catalog"
	"github.com/holdfastdb/holdfast/fsm/counter"
	"github.com/holdfastdb/holdfast/storage/kv"
)

// Source is where the catalog is.
type Source interface {
	// CatalogView is a consistent view of the catalog, which the caller closes.
	CatalogView() kv.View
	// WatchCatalog has f called after changes, until stop is called.
	WatchCatalog(f func()) (stop func())
}

// Match is a limit that applies.
type Match struct {
	Policy *catalog.Policy
	// Limit is the counter with its rules; the rate may be the client's own.
	Limit counter.Limit
	// RoutingKey decides which shard has the counter.
	RoutingKey string
}

// Resolver answers which limits apply. Its methods are safe for concurrent use.
type Resolver struct {
	source Source
	stop   func()
	index  atomic.Pointer[index]

	refreshing sync.Mutex

	// assigned tells that there are clients with assignments of their own. As long as there are none nobody looks for them.
	assigned atomic.Bool

	mu       sync.RWMutex
	revision uint64
	clients  map[string][]catalog.Assignment

	hashers sync.Pool
}

// clientsKept bounds the clients whose assignments are remembered.
const clientsKept = 100_000

// New starts a resolver, which follows the catalog until Close.
func New(source Source) (*Resolver, error) {
	r := &Resolver{source: source, clients: make(map[string][]catalog.Assignment), hashers: sync.Pool{New: newHasher}}
	r.index.Store(&index{})
	r.stop = source.WatchCatalog(func() {
		// An unreadable catalog stops the node where it is applied; here the last good index stays.
		_ = r.refresh()
	})
	if err := r.refresh(); err != nil { // not before: nobody would be told of a change in between
		r.stop()
		return nil, err
	}
	return r, nil
}

// Close ends the following.
func (r *Resolver) Close() { r.stop() }

// refresh brings the index to the newest revision.
func (r *Resolver) refresh() error {
	r.refreshing.Lock()
	defer r.refreshing.Unlock()
	view := r.source.CatalogView()
	defer view.Close()
	reader := catalog.View(view)
	changes, revision, err := catalog.Changes(reader, r.revision)
	all := catalog.IsBehind(err)
	if err != nil && !all {
		return err
	}
	assigned, err := catalog.AnyAssigned(reader)
	if err != nil {
		return err
	}
	r.assigned.Store(assigned)
	rebuild := all
	r.mu.Lock()
	if all {
		clear(r.clients)
	}
	for _, c := range changes {
		rebuild = rebuild || c.Policy != 0 || c.Client == catalog.Everyone
		delete(r.clients, c.Client)
	}
	r.revision = revision
	r.mu.Unlock()
	if !rebuild {
		return nil
	}
	policies, err := catalog.AllPolicies(reader)
	if err != nil {
		return err
	}
	everyone, err := catalog.AssignmentsOf(reader, catalog.Everyone)
	if err != nil {
		return err
	}
	r.index.Store(compile(policies, everyone))
	return nil
}

// assignments are a client's, from memory or from the catalog.
func (r *Resolver) assignments(client string) ([]catalog.Assignment, error) {
	r.mu.RLock()
	list, ok := r.clients[client]
	revision := r.revision
	r.mu.RUnlock()
	if ok {
		return list, nil
	}
	view := r.source.CatalogView()
	defer view.Close()
	list, err := catalog.AssignmentsOf(catalog.View(view), client)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.revision == revision { // or what was read may be old by now
		if len(r.clients) >= clientsKept {
			clear(r.clients) // rare, and cheap to read again
		}
		r.clients[strings.Clone(client)] = list // or it would keep the whole request that it is a part of
	}
	return list, nil
}

// candidate is the best limit found so far for a scope.
type candidate struct {
	rule     *rule
	rate     uint32
	priority int32
}

func (c *candidate) offer(r *rule, rate uint32, priority int32) {
	if c.rule == nil || priority > c.priority || priority == c.priority && r.policy.Number < c.rule.policy.Number {
		*c = candidate{r, rate, priority}
	}
}

// moment is when a request is resolved: all of it at one time, which is asked for only if there are assignments that are
// effective for a time. As often as requests are resolved, the clock is dear.
type moment struct {
	ask   func() fsm.Time
	asked bool
	time  fsm.Time
}

func (m *moment) now() fsm.Time {
	if !m.asked {
		m.asked, m.time = true, m.ask()
	}
	return m.time
}

// Resolve appends the limits that apply to a request now, at most one for each scope.
func (r *Resolver) Resolve(matches []Match, q *Request, now func() fsm.Time) ([]Match, error) {
	x := r.index.Load()
	at := &moment{ask: now}
	var own []catalog.Assignment
	if q.Client != "" && r.assigned.Load() {
		var err error
		if own, err = r.assignments(q.Client); err != nil {
			return nil, err
		}
	}
	given := q.dims()
	h := r.hashers.Get().(*hasher)
	defer r.hashers.Put(h)
	if len(q.Policies) > 0 {
		return x.named(matches, q, h, own, given, at)
	}
	if len(own) == 0 && len(x.all) == 0 && len(x.exact) == 0 && len(x.prefixes) == 0 {
		return matches, nil
	}
	var best [scopes]candidate
	for i := range own {
		a := &own[i]
		rule := x.byNumber[a.Policy]
		if rule != nil && rule.applies(q, given) && effective(a, at) {
			best[rule.scope].offer(rule, a.Rate, a.EffectivePriority(rule.policy))
		}
	}
	offerFirst(&best, x.all, q, given, at)
	if q.Resource != "" {
		offerFirst(&best, x.exact[q.Resource], q, given, at)
		for _, n := range x.lengths {
			if n <= len(q.Resource) {
				offerFirst(&best, x.prefixes[q.Resource[:n]], q, given, at)
			}
		}
	}
	subject := q.subject()
	for scope := range best {
		if c := &best[scope]; c.rule != nil {
			matches = append(matches, c.rule.match(q, h, subject, c.rate))
		}
	}
	return matches, nil
}

// offerFirst offers the first entry of each scope that qualifies.
func offerFirst(best *[scopes]candidate, list []entry, q *Request, given int, at *moment) {
	done := -1
	for i := range list {
		e := &list[i]
		if e.scope == done || !e.applies(q, given) || !effective(&e.assignment, at) {
			continue
		}
		best[e.scope].offer(e.rule, e.assignment.Rate, e.priority)
		done = e.scope
	}
}

// named applies the policies that the request names.
func (x *index) named(matches []Match, q *Request, h *hasher, own []catalog.Assignment, given int, at *moment) ([]Match, error) {
	if len(q.Policies) > counter.MaxLimits {
		return nil, fsm.Errorf(fsm.Invalid, "at most %d policies in one request", counter.MaxLimits)
	}
	seen := make(map[uint32]bool)
	for _, name := range q.Policies {
		rule := x.byName[name]
		if n, ok := catalog.ParsePolicyID(name); ok && x.byNumber[n] != nil {
			rule = x.byNumber[n]
		}
		if rule == nil {
			return nil, fsm.Errorf(fsm.NotFound, "no policy %q", name)
		}
		if rule.scope&^given != 0 {
			return nil, fsm.Errorf(fsm.Invalid, "policy %s limits by %s, which the request does not give", name, rule.policy.Scope)
		}
		if seen[rule.policy.Number] || !rule.policy.Active {
			continue
		}
		seen[rule.policy.Number] = true
		var rate uint32
		for i := range own {
			if own[i].Policy == rule.policy.Number && effective(&own[i], at) {
				rate = own[i].Rate
			}
		}
		matches = append(matches, rule.match(q, h, q.subject(), rate))
	}
	return matches, nil
}

func effective(a *catalog.Assignment, at *moment) bool {
	if a.From == 0 && a.To == 0 {
		return true
	}
	return at.now() >= a.From && (a.To == 0 || at.now() < a.To)
}

// Policy finds a policy in the index, by number; nil if there is none.
func (r *Resolver) Policy(number uint32) *catalog.Policy {
	if rule := r.index.Load().byNumber[number]; rule != nil {
		return rule.policy
	}
	return nil
}
