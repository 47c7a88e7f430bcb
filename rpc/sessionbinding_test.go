package rpc

import (
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/holdfastdb/holdfast/fsm/session"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// from is where, and on what, a token is presented.
func from(ip string, device *structpb.Struct) func(*pb.ValidateSessionRequest) {
	return func(q *pb.ValidateSessionRequest) { q.Ip, q.Device = ip, device }
}

// policy changes the policy of a type.
func (c *small) policy(q *pb.PutSessionPolicyRequest) *pb.SessionPolicy {
	c.t.Helper()
	m, err := c.PutPolicy(c.t.Context(), q)
	if err != nil {
		c.t.Fatal(err)
	}
	return m
}

func TestASessionCountsWhereItIsBoundTo(t *testing.T) {
	c := newSmall(t, nil)
	defer c.close()
	c.policy(&pb.PutSessionPolicyRequest{Type: "web", OnNetworkChange: "ignore", OnDeviceChange: "ignore"})
	const no = "ip_mismatch"
	for _, tt := range []struct{ binding, login, now, want string }{
		{"off", "192.0.2.7", "203.0.113.9", ""}, {"off", "192.0.2.7", "", ""}, {"off", "", "192.0.2.7", ""},
		{"exact", "192.0.2.7", "192.0.2.7", ""}, {"exact", "192.0.2.7", "192.0.2.8", no}, {"exact", "192.0.2.7", "", no},
		{"exact", "192.0.2.7", "::ffff:192.0.2.7", ""}, {"exact", "::ffff:192.0.2.7", "192.0.2.7", ""},
		{"exact", "2001:db8::1", "2001:DB8:0::1", ""}, {"exact", "2001:db8::1", "2001:db8::2", no}, {"exact", "2001:db8::1", "192.0.2.7", no},
		{"subnet", "192.0.2.7", "192.0.2.200", ""}, {"subnet", "192.0.2.7", "192.0.3.7", no}, {"subnet", "192.0.2.7", "", no},
		{"subnet", "192.0.2.7", "::ffff:192.0.2.9", ""}, {"subnet", "::ffff:192.0.2.7", "192.0.3.7", no},
		{"subnet", "2001:db8:1:2::1", "2001:db8:1:ffff::9", ""}, {"subnet", "2001:db8:1::1", "2001:db8:2::1", no}, {"subnet", "2001:db8::1", "192.0.2.7", no},
	} {
		m := c.login("alice", func(q *pb.CreateSessionRequest) { q.Ip, q.IpBinding = tt.login, tt.binding })
		if got := c.reason(m.Token, from(tt.now, nil)); got != tt.want {
			t.Errorf("%s to %s, from %s: %q, want %q", tt.binding, tt.login, tt.now, got, tt.want)
		}
	}
}

// Devices are told apart by their fingerprint, or else their id, or else all that is said of them.
func TestASessionCountsOnItsDevice(t *testing.T) {
	c := newSmall(t, nil)
	defer c.close()
	c.policy(&pb.PutSessionPolicyRequest{Type: "web", OnDeviceChange: "ignore"})
	const no = "device_mismatch"
	for name, tt := range map[string]struct {
		login, now *structpb.Struct
		want       string
	}{
		"the same":                {fields("os", "x", "name", "y"), fields("name", "y", "os", "x"), ""},
		"another":                 {fields("os", "x"), fields("os", "y"), no},
		"none":                    {fields("os", "x"), nil, no},
		"the id alone counts":     {fields("id", "1", "os", "x"), fields("id", "1", "os", "y"), ""},
		"another id":              {fields("id", "1"), fields("id", "2"), no},
		"a fingerprint before it": {fields("fingerprint", "f", "id", "1"), fields("fingerprint", "f", "id", "2"), ""},
		"another fingerprint":     {fields("fingerprint", "f", "id", "1"), fields("fingerprint", "g", "id", "1"), no},
	} {
		m := c.login("alice", func(q *pb.CreateSessionRequest) { q.Device, q.DeviceBinding = tt.login, true })
		if got := c.reason(m.Token, from("", tt.now)); got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}

// What is suspicious comes to what the policy of the type says, once the shard has heard of it.
func TestSuspicionsComeToWhatThePolicySays(t *testing.T) {
	home, away := from("192.0.2.7", fields("id", "a")), from("203.0.113.9", fields("id", "a"))
	other := from("192.0.2.7", fields("id", "b"))
	for _, there := range []func(*pb.ValidateSessionRequest){away, other} {
		for act, want := range map[string]struct {
			first, then string
			flagged     bool
		}{"ignore": {"", "", false}, "flag": {"", "", true}, "step_up": {"step_up_required", "step_up_required", true}, "revoke": {"ended", "ended", false}} {
			synctest.Test(t, func(t *testing.T) {
				c := newSmall(t, nil)
				defer c.close()
				c.policy(&pb.PutSessionPolicyRequest{Type: "web", OnNetworkChange: act, OnDeviceChange: act})
				m := c.login("alice", func(q *pb.CreateSessionRequest) { q.Ip, q.Device = "192.0.2.7", fields("id", "a") })
				if got := c.reason(m.Token, home); got != "" {
					t.Errorf("%s: at home %q", act, got)
				}
				if got := c.reason(m.Token, there); got != want.first {
					t.Errorf("%s: %q, want %q", act, got, want.first)
				}
				time.Sleep(time.Second)
				if got := c.reason(m.Token, home); got != want.then {
					t.Errorf("%s: then %q, want %q", act, got, want.then)
				}
				about := c.get(m.SessionId)
				if about.Flagged != want.flagged || about.StepUpRequired != (act == "step_up") || act == "revoke" && about.Ended != "suspicious" {
					t.Errorf("%s: %v", act, about)
				}
			})
		}
	}
}

// A user who has proved again who they are goes on where they are now: a rotation alone is no proof.
func TestAStepUpIsDoneByProof(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newSmall(t, nil)
		defer c.close()
		there := from("", fields("id", "b"))
		m := c.login("alice", func(q *pb.CreateSessionRequest) { q.Device = fields("id", "a") })
		if got := c.reason(m.Token, there); got != "step_up_required" {
			t.Fatalf("on another device: %q", got)
		}
		time.Sleep(time.Second)
		token := m.Token
		for _, proved := range []bool{false, true} {
			next, err := c.Rotate(t.Context(), &pb.RotateSessionRequest{Token: token, StepUpDone: proved})
			if err != nil {
				t.Fatal(err)
			}
			if got := c.reason(token); got != "unknown" {
				t.Errorf("the old token: %q", got)
			}
			token = next.Token
			for range 3 {
				if got := c.reason(token, there); got != map[bool]string{false: "step_up_required"}[proved] {
					t.Errorf("proved %v: %q", proved, got)
				}
				time.Sleep(time.Second)
			}
		}
		if about := c.get(m.SessionId); about.StepUpRequired || !about.Flagged || !proto.Equal(about.Device, fields("id", "b")) {
			t.Errorf("%v", about)
		}
	})
}

// A session that is used in two places is written now and then, not with each use.
func TestAFlaggedSessionIsNotFlaggedWithEachUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newSmall(t, nil)
		defer c.close()
		m := c.login("alice", func(q *pb.CreateSessionRequest) { q.Ip = "192.0.2.7" })
		for i := range 1000 {
			if got := c.reason(m.Token, from([]string{"192.0.2.7", "203.0.113.9"}[i%2], nil)); got != "" {
				t.Fatal(got)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if n := c.of("alice").done(session.OpMark); n < 1 || n > 5 {
			t.Errorf("%d marks in 100 s", n)
		}
	})
}
