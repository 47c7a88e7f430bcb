package client

import (
	"context"
	"fmt"
	"iter"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// SessionFilter tells which sessions of the cluster a sweep is about: those that meet all its conditions, of which there
// must be one at least.
type SessionFilter struct {
	Type SessionType
	// Device is a text in any value of the device.
	Device        string
	CreatedBefore time.Time
	// IPRange is an address, or a prefix such as 192.0.2.0/24.
	IPRange string
	// From is where to go on: the Next of a sweep with the same conditions that was left. The beginning if empty.
	From string
	// DryRun ends no session and only counts.
	DryRun bool
}

// Sweep is how far a sweep is. The numbers are of all that it has done since From.
type Sweep struct {
	Scanned int
	// Matched is how many sessions met the conditions; they have ended, unless it is a dry run. If an answer was lost on its
	// way, it may be too small: a session that has ended does not match any more.
	Matched int
	// Unreadable is how many sessions could not be looked at, as the node had no key for them; they do not match.
	Unreadable int
	Percent    float64
	// Next is where to go on; empty at the end.
	Next string
}

// RevokeMatching ends all sessions that meet conditions, by walking over the cluster a part at a time. Each part yields how
// far the walk is, so that the caller can stop, keep Next, and go on another day; the loop must run for the walk to go on.
// What has ended stays ended. Sessions that begin while it runs may be missed.
//
//	for sweep, err := range c.Sessions().RevokeMatching(ctx, client.SessionFilter{IPRange: "192.0.2.0/24"}) { … }
//
// A part that fails is tried again until Config.Timeout. An error is the last that the walk yields, with how far it was; its
// Next is From if that was nowhere. Going on from there is right also after an ErrOutcomeUnknown.
func (s *Sessions) RevokeMatching(ctx context.Context, filter SessionFilter) iter.Seq2[Sweep, error] {
	return func(yield func(Sweep, error) bool) {
		q := &pb.RevokeMatchingRequest{
			Type: string(filter.Type), Device: filter.Device, IpRange: filter.IPRange, Next: filter.From, DryRun: filter.DryRun,
		}
		if !filter.CreatedBefore.IsZero() {
			q.CreatedBefore = timestamppb.New(filter.CreatedBefore)
		}
		for at := (Sweep{Next: filter.From}); ; {
			r, err := s.sweep(ctx, q)
			if err != nil {
				yield(at, fmt.Errorf("sweep over sessions: %w", err))
				return
			}
			at.Scanned += int(r.Scanned)
			at.Matched += int(r.Revoked)
			at.Unreadable += int(r.Unreadable)
			at.Percent, at.Next = r.Percent, r.Next
			if !yield(at, nil) || at.Next == "" {
				return
			}
			q.Next = at.Next
		}
	}
}

// sweep looks at one part.
func (s *Sessions) sweep(ctx context.Context, q *pb.RevokeMatchingRequest) (r *pb.RevokeMatchingResponse, err error) {
	again := repeatRead
	if !q.DryRun {
		again = repeatHarmless
		defer s.cache.forgetUsers()
	}
	err = s.c.plainly(ctx, again, func(ctx context.Context) error {
		r, err = s.admin().RevokeMatching(ctx, q)
		return err
	})
	return r, err
}

func (s *Sessions) admin() pb.SessionsClient { return pb.NewSessionsClient(s.c.Conn()) }

// SessionStats are numbers of the cluster.
type SessionStats struct {
	// Active is how many sessions there are now, Created how many ever began.
	Active, Created map[SessionType]int
	Ended           map[EndReason]int
}

// Stats counts the sessions of the cluster. The shards are asked one after the other: it is not a picture of one moment.
func (s *Sessions) Stats(ctx context.Context) (SessionStats, error) {
	var r *pb.SessionStats
	err := s.c.plainly(ctx, repeatRead, func(ctx context.Context) (err error) {
		r, err = s.admin().Stats(ctx, &pb.SessionStatsRequest{})
		return err
	})
	if err != nil {
		return SessionStats{}, err
	}
	return SessionStats{counted[SessionType](r.Active), counted[SessionType](r.Created), counted[EndReason](r.Ended)}, nil
}

func counted[K ~string](m map[string]float64) map[K]int {
	counts := make(map[K]int, len(m))
	for name, n := range m {
		counts[K(name)] = int(n)
	}
	return counts
}

// SignAct is what a suspicious sign leads to.
type SignAct string

// The acts.
const (
	SignIgnore SignAct = "ignore"
	SignFlag   SignAct = "flag"    // Session.Flagged
	SignStepUp SignAct = "step_up" // the token does not count until a rotation says that the user has proved who they are
	SignRevoke SignAct = "revoke"
)

// SessionPolicy is what sessions of a type are like unless their login says otherwise.
type SessionPolicy struct {
	Type SessionType
	// IdleTimeout may be NoIdleTimeout.
	IdleTimeout, AbsoluteTimeout, RefreshTimeout time.Duration
	// MaxSessions and MaxDevices may be NoLimit.
	MaxSessions, MaxDevices int
	OnLimit                 OnLimit
	IPBinding               IPBinding
	// OnNetworkChange, OnTwoNetworks, OnDeviceChange and OnBurst are what it leads to when a token is presented from another
	// network, from two in turns within ten seconds, on another device, or more than Burst times in ten seconds. Burst may be
	// NoLimit.
	OnNetworkChange, OnTwoNetworks, OnDeviceChange, OnBurst SignAct
	Burst                                                   int
	// Revision counts the changes; 0 while the policy is as Holdfast comes.
	Revision  uint32
	UpdatedAt time.Time
}

// Policies are those of all types.
func (s *Sessions) Policies(ctx context.Context) ([]SessionPolicy, error) {
	var r *pb.ListSessionPoliciesResponse
	err := s.c.plainly(ctx, repeatRead, func(ctx context.Context) (err error) {
		r, err = s.admin().ListPolicies(ctx, &pb.ListSessionPoliciesRequest{})
		return err
	})
	if err != nil {
		return nil, err
	}
	list := make([]SessionPolicy, len(r.Policies))
	for i, m := range r.Policies {
		list[i] = sessionPolicy(m)
	}
	return list, nil
}

// Policy is the policy of a type.
func (s *Sessions) Policy(ctx context.Context, of SessionType) (SessionPolicy, error) {
	list, err := s.Policies(ctx)
	if err != nil {
		return SessionPolicy{}, err
	}
	for _, p := range list {
		if p.Type == of {
			return p, nil
		}
	}
	return SessionPolicy{}, fmt.Errorf("%w: no sessions have the type %q", ErrNotFound, of)
}

// PutPolicy changes the policy of p.Type, and returns what it is then: for sessions that begin from now on, and as to what
// is suspicious, for all. A field of p that is zero stays as it is. If p has a Revision, and the policy has another one by
// now, nothing changes and the error is an ErrConflict: so a policy that was read, changed and put undoes nobody's work.
// Without a Revision, as long as nobody has changed the policy, put only what changes.
//
// After an ErrOutcomeUnknown, Policy tells whether it was changed.
func (s *Sessions) PutPolicy(ctx context.Context, p SessionPolicy) (SessionPolicy, error) {
	q := &pb.PutSessionPolicyRequest{
		Type: string(p.Type), IdleTimeout: seconds(p.IdleTimeout), AbsoluteTimeout: seconds(p.AbsoluteTimeout),
		RefreshTimeout: seconds(p.RefreshTimeout), MaxSessions: limitOf(p.MaxSessions), MaxDevices: limitOf(p.MaxDevices),
		OnLimit: string(p.OnLimit), IpBinding: string(p.IPBinding), OnNetworkChange: string(p.OnNetworkChange),
		OnTwoNetworks: string(p.OnTwoNetworks), OnDeviceChange: string(p.OnDeviceChange), OnBurst: string(p.OnBurst), Burst: limitOf(p.Burst), ExpectedRevision: p.Revision,
	}
	var r *pb.SessionPolicy
	err := s.c.plainly(ctx, repeatNever, func(ctx context.Context) (err error) {
		r, err = s.admin().PutPolicy(ctx, q)
		return err
	})
	if err != nil {
		return SessionPolicy{}, err
	}
	return sessionPolicy(r), nil
}

func sessionPolicy(m *pb.SessionPolicy) SessionPolicy {
	bound := func(n uint32) int {
		if n == 0 {
			return NoLimit
		}
		return int(n)
	}
	p := SessionPolicy{
		Type: SessionType(m.Type), IdleTimeout: duration(m.IdleTimeout), AbsoluteTimeout: duration(m.AbsoluteTimeout),
		RefreshTimeout: duration(m.RefreshTimeout), MaxSessions: bound(m.MaxSessions), MaxDevices: bound(m.MaxDevices),
		OnLimit: OnLimit(m.OnLimit), IPBinding: IPBinding(m.IpBinding), OnNetworkChange: SignAct(m.OnNetworkChange),
		OnTwoNetworks: SignAct(m.OnTwoNetworks), OnDeviceChange: SignAct(m.OnDeviceChange), OnBurst: SignAct(m.OnBurst), Burst: bound(m.Burst), Revision: m.Revision,
		UpdatedAt: moment(m.UpdatedAt),
	}
	if p.IdleTimeout == 0 {
		p.IdleTimeout = NoIdleTimeout
	}
	return p
}
