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
