package rpc

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/holdfastdb/holdfast/fsm"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

func TestAFilterMatchesWhatItSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newSmall(t, nil)
		defer c.close()
		c.login("web", func(q *pb.CreateSessionRequest) {
			q.Ip, q.Device = "192.0.2.7", fields("os", map[string]any{"name": "Android"})
		})
		time.Sleep(10 * time.Minute)
		middle := time.Now()
		c.login("api", func(q *pb.CreateSessionRequest) { q.Type, q.Ip = "api", "2001:db8::1" })
		c.login("list", func(q *pb.CreateSessionRequest) { q.Device = fields("names", []any{"x", "old ANDROID"}) })
		for name, tt := range map[string]struct {
			q    *pb.RevokeMatchingRequest
			want uint32
		}{
			"type":                  {&pb.RevokeMatchingRequest{Type: "api"}, 1},
			"device":                {&pb.RevokeMatchingRequest{Device: "android"}, 2},
			"no such device":        {&pb.RevokeMatchingRequest{Device: "ios"}, 0},
			"before":                {&pb.RevokeMatchingRequest{CreatedBefore: timestamppb.New(middle)}, 1},
			"before all":            {&pb.RevokeMatchingRequest{CreatedBefore: timestamppb.New(middle.Add(-2 * time.Hour))}, 0},
			"before 1970":           {&pb.RevokeMatchingRequest{CreatedBefore: &timestamppb.Timestamp{Seconds: -1}}, 0},
			"the beginning of time": {&pb.RevokeMatchingRequest{CreatedBefore: &timestamppb.Timestamp{}}, 0},
			"address":               {&pb.RevokeMatchingRequest{IpRange: "192.0.2.7"}, 1},
			"prefix":                {&pb.RevokeMatchingRequest{IpRange: "192.0.2.255/24"}, 1},
			"another prefix":        {&pb.RevokeMatchingRequest{IpRange: "192.0.3.0/24"}, 0},
			"an IPv6 prefix":        {&pb.RevokeMatchingRequest{IpRange: "2001:db8::/32"}, 1},
			"an IPv4 prefix in v6":  {&pb.RevokeMatchingRequest{IpRange: "::ffff:192.0.2.0/120"}, 1},
			"two conditions":        {&pb.RevokeMatchingRequest{Type: "web", Device: "android", IpRange: "192.0.2.0/24"}, 1},
			"that exclude":          {&pb.RevokeMatchingRequest{Type: "api", Device: "android"}, 0},
		} {
			tt.q.DryRun = true
			m, err := c.RevokeMatching(t.Context(), tt.q)
			if err != nil || m.Revoked != tt.want || m.Scanned != 3 || m.Next != "" || m.Percent != 100 {
				t.Errorf("%s: %v, %v; want %d", name, m, err, tt.want)
			}
		}
	})
}

// slow has the clock go on with each page, so that calls end before the walk does.
type slow struct {
	*small
	pause time.Duration
	fail  bool
}

func (s *slow) Query(ctx context.Context, group uint32, calls []fsm.Call) ([]fsm.Result, fsm.Applied, error) {
	time.Sleep(s.pause)
	if s.fail {
		return nil, fsm.Applied{}, fmt.Errorf("shard %d: %w", group, fsm.ErrNotLeader)
	}
	return s.small.Query(ctx, group, calls)
}

// A walk stops and goes on anywhere: in the middle of a shard, between two, and after a failure. A dry run changes nothing,
// and counts what the other one ends.
func TestAMassRevocationGoesOnWhereItStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newSmall(t, nil)
		defer c.close()
		const all = 3 * matchPage
		for i, user := range users(all) {
			c.login(user, func(q *pb.CreateSessionRequest) { q.Type = []string{"web", "api"}[i%2] })
		}
		node := &slow{small: c, pause: matchTime}
		c.sessions.node = node
		for _, dry := range []bool{true, false} {
			scanned, revoked, calls, percent, next := uint32(0), uint32(0), 0, 0.0, ""
			for {
				calls++
				node.fail = calls == 2
				m, err := c.RevokeMatching(t.Context(), &pb.RevokeMatchingRequest{Type: "api", Next: next, DryRun: dry})
				if node.fail {
					if !errors.Is(err, fsm.ErrNotLeader) || kindOf(err) != unavailable {
						t.Fatalf("%v", err)
					}
					continue
				}
				if err != nil || m.Percent <= percent {
					t.Fatalf("%v, %v", m, err)
				}
				scanned, revoked, percent, next = scanned+m.Scanned, revoked+m.Revoked, m.Percent, m.Next
				if next == "" {
					break
				}
			}
			if scanned != all || revoked != all/2 || calls < smallShards+2 || percent != 100 {
				t.Errorf("dry %v: %d of %d in %d calls, %v %%", dry, revoked, scanned, calls, percent)
			}
		}
		stats, err := c.Stats(t.Context(), &pb.SessionStatsRequest{})
		if err != nil || stats.Active["web"] != all/2 || stats.Active["api"] != 0 || stats.Created["api"] != all/2 || stats.Ended["revoked"] != all/2 || stats.Active["mobile"] != 0 {
			t.Errorf("%v, %v", stats, err)
		}
	})
}

func TestPoliciesOfTypes(t *testing.T) {
	c := newSmall(t, nil)
	defer c.close()
	list, err := c.ListPolicies(t.Context(), &pb.ListSessionPoliciesRequest{})
	if err != nil || len(list.Policies) != 3 || list.Policies[0].Type != "web" || list.Policies[0].Revision != 0 || list.Policies[0].OnDeviceChange != "step_up" {
		t.Fatalf("%v, %v", list, err)
	}
	seconds, sessions := 60.0, uint32(1)
	first := c.policy(&pb.PutSessionPolicyRequest{Type: "web", IdleTimeout: &seconds, MaxSessions: &sessions, IpBinding: "subnet", OnLimit: "evict_oldest"})
	second := c.policy(&pb.PutSessionPolicyRequest{Type: "web", AbsoluteTimeout: &seconds, ExpectedRevision: first.Revision})
	if second.Revision != 2 || second.IdleTimeout != 60 || second.AbsoluteTimeout != 60 || second.OnDeviceChange != "step_up" || second.UpdatedAt == nil {
		t.Errorf("what is absent does not stay: %v", second)
	}
	if _, err := c.PutPolicy(t.Context(), &pb.PutSessionPolicyRequest{Type: "web", AbsoluteTimeout: &seconds, ExpectedRevision: first.Revision}); kindOf(err) != conflict {
		t.Errorf("of an old revision: %v", err)
	}
	web := func(q *pb.CreateSessionRequest) { q.Ip = "192.0.2.7" }
	a := c.login("alice", web)
	b := c.login("alice", web)
	if b.Evicted != 1 || c.reason(a.Token) != "ended" || c.reason(b.Token, from("203.0.113.9", nil)) != "ip_mismatch" || c.get(b.SessionId).IdleTimeout != 60 {
		t.Errorf("a login is not as the policy says: %v", c.get(b.SessionId))
	}
	bad := -1.0
	for name, q := range map[string]*pb.PutSessionPolicyRequest{
		"no type": {}, "another type": {Type: "x"}, "idle": {Type: "web", IdleTimeout: &bad}, "absolute": {Type: "web", AbsoluteTimeout: new(float64)},
		"refresh": {Type: "web", RefreshTimeout: &bad}, "binding": {Type: "web", IpBinding: "x"}, "act": {Type: "web", OnBurst: "x"}, "limit": {Type: "web", OnLimit: "x"},
	} {
		if _, err := c.PutPolicy(t.Context(), q); kindOf(err) != invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if list, err = c.ListPolicies(t.Context(), &pb.ListSessionPoliciesRequest{}); err != nil || list.Policies[0].Revision != 2 || list.Policies[1].Revision != 0 {
		t.Errorf("%v, %v", list, err)
	}
}

// Of two who change different fields neither undoes the other's work, though one has not heard of the other's yet.
func TestAPolicyIsChangedFromWhatItIs(t *testing.T) {
	c := newSmall(t, nil)
	defer c.close()
	c.policy(&pb.PutSessionPolicyRequest{Type: "web", OnBurst: "ignore"})
	old := c.policies.table.Load()
	c.policy(&pb.PutSessionPolicyRequest{Type: "web", OnBurst: "revoke"})
	c.policies.table.Store(old)
	if m := c.policy(&pb.PutSessionPolicyRequest{Type: "web", OnNetworkChange: "revoke"}); m.OnBurst != "revoke" || m.OnNetworkChange != "revoke" || m.Revision != 3 {
		t.Errorf("%v", m)
	}
	c.policies.table.Store(old)
	if _, err := c.PutPolicy(t.Context(), &pb.PutSessionPolicyRequest{Type: "web", OnDeviceChange: "flag", ExpectedRevision: 3}); kindOf(err) != conflict {
		t.Errorf("from a revision that this node does not know: %v", err)
	}
}
