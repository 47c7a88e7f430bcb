package rpc

import (
	"cmp"
	"context"
	"sync/atomic"
	"time"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/catalog"
	"github.com/holdfastdb/holdfast/fsm/session"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// sessionKind is a type of sessions, and its policy as Holdfast comes. The times are within those of NIST SP 800-63B-4: at
// level 2 (web, api) a session is not idle for more than an hour, nor longer than a day; mobile is at level 1.
type sessionKind struct {
	name     string
	defaults catalog.SessionPolicy
}

var sessionKinds = [...]sessionKind{
	session.Web: {"web", catalog.SessionPolicy{
		Idle: millis(30 * time.Minute), Absolute: millis(12 * time.Hour), Refresh: millis(30 * day),
		OnNetwork: "flag", OnTwoNetworks: "flag", OnDevice: "step_up", OnBurst: "flag", Burst: 3000,
	}},
	session.Mobile: {"mobile", catalog.SessionPolicy{
		Idle: millis(day), Absolute: millis(7 * day), Refresh: millis(90 * day),
		OnNetwork: "ignore", OnTwoNetworks: "ignore", OnDevice: "step_up", OnBurst: "flag", Burst: 3000,
	}},
	session.API: {"api", catalog.SessionPolicy{
		Idle: millis(time.Hour), Absolute: millis(day), Refresh: millis(30 * day),
		OnNetwork: "flag", OnTwoNetworks: "flag", OnDevice: "flag", OnBurst: "flag", Burst: 100_000,
	}},
}

const day = 24 * time.Hour

func millis(d time.Duration) fsm.Millis { return d.Milliseconds() }

// kindNamed finds a kind, 0 if there is none.
func kindNamed(name string) session.Kind {
	for k := session.Web; int(k) < len(sessionKinds); k++ {
		if sessionKinds[k].name == name {
			return k
		}
	}
	return 0
}

// The ways in which a session is bound to an address.
const (
	bindingOff    = "off"
	bindingSubnet = "subnet"
	bindingExact  = "exact"
)

// The bits of an address that make its network: what one household or office has.
const (
	networkBits4 = 24
	networkBits6 = 48
)

// acts are what suspicious signs lead to, by their names; 0 is nothing.
var acts = map[string]session.Act{"ignore": 0, "flag": session.Flag, "step_up": session.AskAgain, "revoke": session.EndSession}

// policyTable is the policies of all kinds, by kind.
type policyTable [len(sessionKinds)]sessionPolicy

type sessionPolicy struct {
	catalog.SessionPolicy
	onNetwork, onTwoNetworks, onDevice, onBurst session.Act
}

// sessionPolicies follow the catalog.
type sessionPolicies struct {
	node  Node
	table atomic.Pointer[policyTable]
	stop  func()
}

func newSessionPolicies(n Node) (*sessionPolicies, error) {
	p := &sessionPolicies{node: n}
	// An unreadable catalog stops the node where it is applied; here what was known stays.
	p.stop = n.WatchCatalog(func() { _ = p.refresh() })
	if err := p.refresh(); err != nil {
		p.stop()
		return nil, err
	}
	return p, nil
}

func (p *sessionPolicies) refresh() error {
	view := p.node.CatalogView()
	defer view.Close()
	list, err := catalog.SessionPolicies(catalog.View(view))
	if err != nil {
		return err
	}
	t := new(policyTable)
	for k := session.Web; int(k) < len(sessionKinds); k++ {
		own := sessionKinds[k].defaults
		own.Type, own.OnLimit, own.IPBinding = sessionKinds[k].name, onLimitRefuse, bindingOff
		for i := range list {
			if list[i].Type == own.Type {
				two := own.OnTwoNetworks // which older records do not have
				own = list[i]
				own.OnTwoNetworks = cmp.Or(own.OnTwoNetworks, two)
			}
		}
		t[k] = sessionPolicy{own, acts[own.OnNetwork], acts[own.OnTwoNetworks], acts[own.OnDevice], acts[own.OnBurst]}
	}
	p.table.Store(t)
	return nil
}

// of is the policy of a kind.
func (p *sessionPolicies) of(k session.Kind) *sessionPolicy { return &p.table.Load()[k] }

const (
	onLimitRefuse = "refuse"
	onLimitEvict  = "evict_oldest"
)

// ListPolicies implements the service.
func (s *sessions) ListPolicies(context.Context, *pb.ListSessionPoliciesRequest) (*pb.ListSessionPoliciesResponse, error) {
	m := &pb.ListSessionPoliciesResponse{}
	for k := session.Web; int(k) < len(sessionKinds); k++ {
		m.Policies = append(m.Policies, sessionPolicyMessage(&s.policies.of(k).SessionPolicy))
	}
	return m, nil
}

// PutPolicy implements the service.
func (s *sessions) PutPolicy(ctx context.Context, q *pb.PutSessionPolicyRequest) (*pb.SessionPolicy, error) {
	for {
		m, from, err := s.putPolicy(ctx, q)
		if codeOf(err) != fsm.Conflict || q.ExpectedRevision != 0 {
			return m, statusOf(err)
		}
		if refreshErr := s.policies.refresh(); refreshErr != nil || s.policies.of(kindNamed(q.Type)).Revision == from {
			return nil, statusOf(err) // this node has not heard of the change yet
		}
	}
}

// putPolicy changes a policy from what this node knows of it, and tells from which revision.
func (s *sessions) putPolicy(ctx context.Context, q *pb.PutSessionPolicyRequest) (m *pb.SessionPolicy, from uint32, err error) {
	p, err := s.changedPolicy(q)
	if err == nil && q.ExpectedRevision != 0 && q.ExpectedRevision != p.Revision {
		err = fsm.Errorf(fsm.Conflict, "the policy of %s sessions has revision %d here, not %d", q.Type, p.Revision, q.ExpectedRevision)
	}
	if err != nil {
		return nil, 0, err
	}
	p.Actor = actor(ctx) // its revision is the one that it was made from: nobody's work is undone
	made, err := change[catalog.SessionPolicy](ctx, s.node, catalog.Call(catalog.OpPutSessionPolicy, p))
	if err != nil {
		return nil, p.Revision, err
	}
	return sessionPolicyMessage(&made), p.Revision, nil
}

// changedPolicy is the policy of a type with what a request changes in it.
func (s *sessions) changedPolicy(q *pb.PutSessionPolicyRequest) (p catalog.SessionPolicy, err error) {
	k := kindNamed(q.Type)
	if k == 0 {
		return p, errKindName(q.Type)
	}
	p = s.policies.of(k).SessionPolicy
	for _, f := range [...]struct {
		name  string
		value *float64
		to    *fsm.Millis
		never bool
	}{
		{"idle_timeout", q.IdleTimeout, &p.Idle, true}, {"absolute_timeout", q.AbsoluteTimeout, &p.Absolute, false},
		{"refresh_timeout", q.RefreshTimeout, &p.Refresh, false},
	} {
		if *f.to, err = span(f.name, f.value, *f.to, f.never); err != nil {
			return p, err
		}
	}
	if q.MaxSessions != nil {
		p.Sessions = *q.MaxSessions
	}
	if p.Sessions > session.MaxSessions {
		return p, errMaxSessions
	}
	if q.MaxDevices != nil {
		p.Devices = *q.MaxDevices
	}
	if q.Burst != nil {
		p.Burst = *q.Burst
	}
	for _, f := range [...]struct {
		name, value string
		to          *string
		check       func(string) error
	}{
		{"on_limit", q.OnLimit, &p.OnLimit, checkOnLimit}, {"ip_binding", q.IpBinding, &p.IPBinding, checkBinding},
		{"on_network_change", q.OnNetworkChange, &p.OnNetwork, checkAct}, {"on_device_change", q.OnDeviceChange, &p.OnDevice, checkAct},
		{"on_two_networks", q.OnTwoNetworks, &p.OnTwoNetworks, checkAct}, {"on_burst", q.OnBurst, &p.OnBurst, checkAct},
	} {
		if f.value == "" {
			continue
		}
		if err := f.check(f.value); err != nil {
			return p, invalidf("%s %v", f.name, err)
		}
		*f.to = f.value
	}
	return p, nil
}

func errKindName(name string) error { return invalidf("type %.64q: use web, mobile or api", name) }

var errMaxSessions = invalidf("max_sessions must be at most %d", session.MaxSessions)

func checkOnLimit(value string) error {
	if value != onLimitRefuse && value != onLimitEvict {
		return invalidf("%.64q: use refuse or evict_oldest", value)
	}
	return nil
}

func checkBinding(value string) error {
	if value != bindingOff && value != bindingSubnet && value != bindingExact {
		return invalidf("%.64q: use off, subnet or exact", value)
	}
	return nil
}

func checkAct(value string) error {
	if _, known := acts[value]; !known {
		return invalidf("%.64q: use ignore, flag, step_up or revoke", value)
	}
	return nil
}

func sessionPolicyMessage(p *catalog.SessionPolicy) *pb.SessionPolicy {
	m := &pb.SessionPolicy{
		Type: p.Type, IdleTimeout: seconds(p.Idle), AbsoluteTimeout: seconds(p.Absolute), RefreshTimeout: seconds(p.Refresh),
		MaxSessions: p.Sessions, MaxDevices: p.Devices, OnLimit: p.OnLimit, IpBinding: p.IPBinding,
		OnNetworkChange: p.OnNetwork, OnTwoNetworks: p.OnTwoNetworks, OnDeviceChange: p.OnDevice, OnBurst: p.OnBurst, Burst: p.Burst,
		Revision: p.Revision,
	}
	if p.Revision > 0 {
		m.UpdatedAt = timestamp(p.Updated)
	}
	return m
}
