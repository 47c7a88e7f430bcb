package rpc

import (
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/session"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

func TestTwoPlacesAtOnce(t *testing.T) {
	type use struct {
		from int // the third part of an address
		at   fsm.Time
		want bool
	}
	for name, uses := range map[string][]use{
		"at home":               {{1, 0, false}, {1, 1, false}, {1, 2, false}},
		"moved":                 {{1, 0, false}, {2, 5, false}, {2, 6, false}},
		"there and back":        {{2, 1000, false}, {1, 11_000, true}},
		"later":                 {{2, 1000, false}, {1, 11_001, false}},
		"not told again":        {{2, 1000, false}, {1, 2000, true}, {2, 3000, false}, {1, 4000, false}},
		"told again in a while": {{2, 1000, false}, {1, 2000, true}, {2, 61_000, false}, {1, 61_999, false}, {2, 62_000, true}},
		"three networks":        {{2, 1, false}, {3, 2, false}, {1, 3, false}, {3, 4, true}},
		"staying counts":        {{2, 1, false}, {2, 20_000, false}, {1, 20_001, false}},
		"forgotten":             {{2, 1, false}, {1, 70_000, false}, {2, 70_001, false}, {1, 70_002, true}},
	} {
		p := places{away: make(map[session.Key]place)}
		for n, u := range uses {
			if got := p.seen(session.Key{Number: 1}, net24(1), net24(u.from), 1_000_000+u.at); got != u.want {
				t.Errorf("%s: use %d, from %d: %v, want %v", name, n, u.from, got, u.want)
			}
		}
	}
}

func net24(n int) netip.Prefix { return netip.MustParsePrefix(fmt.Sprintf("192.0.%d.0/24", n)) }

func TestPlacesAreBounded(t *testing.T) {
	p := places{away: make(map[session.Key]place)}
	for n := range uint64(maxAway + 10) {
		p.seen(session.Key{Number: n}, net24(1), net24(2), 1)
	}
	if len(p.away) != maxAway {
		t.Errorf("%d sessions are followed, want %d", len(p.away), maxAway)
	}
	p.seen(session.Key{}, net24(1), net24(1), 1+movesAgain)
	if len(p.away) != 0 {
		t.Errorf("%d sessions have stayed where they are, and are followed", len(p.away))
	}
}

// A session that is used from two networks in turns is told of once in a while, not with every use, and comes to what its
// policy says.
func TestTwoNetworksComeToWhatThePolicySays(t *testing.T) {
	for act, want := range map[string]string{"ignore": "", "flag": "", "step_up": "step_up_required", "revoke": "ended"} {
		synctest.Test(t, func(t *testing.T) {
			c := newSmall(t, nil)
			defer c.close()
			c.policy(&pb.PutSessionPolicyRequest{Type: "web", OnNetworkChange: "ignore", OnTwoNetworks: act})
			m := c.login("alice", func(q *pb.CreateSessionRequest) { q.Ip = "192.0.2.7" })
			for n, ip := range []string{"192.0.2.8", "203.0.113.9", "2001:db8::1", "203.0.113.9"} {
				if got := c.reason(m.Token, from(ip, nil)); got != "" {
					t.Errorf("%s: use %d: %q", act, n, got)
				}
				time.Sleep(time.Second)
			}
			marks := 0
			for n := range 20 {
				got := c.reason(m.Token, from([]string{"192.0.2.9", "203.0.113.8"}[n%2], nil))
				if first := n == 0; got != want && (first || act == "step_up" || act == "revoke") {
					t.Errorf("%s: in turns, use %d: %q, want %q", act, n, got, want)
				}
				time.Sleep(time.Second)
			}
			for _, s := range c.shards {
				s.mu.Lock()
				marks += s.did[session.OpMark]
				s.mu.Unlock()
			}
			if wantMarks := map[bool]int{true: 0, false: 1}[act == "ignore"]; marks != wantMarks {
				t.Errorf("%s: %d marks of 20 uses, want %d", act, marks, wantMarks)
			}
			if about := c.get(m.SessionId); about.Flagged != (act == "flag" || act == "step_up") || about.StepUpRequired != (act == "step_up") || act == "revoke" && about.Ended != "suspicious" {
				t.Errorf("%s: %v", act, about)
			}
		})
	}
}

// A phone at the edge of a Wi-Fi does that.
func TestMobileSessionsMayBeInTwoNetworks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newSmall(t, nil)
		defer c.close()
		m := c.login("alice", func(q *pb.CreateSessionRequest) { q.Type, q.Ip = "mobile", "192.0.2.7" })
		for n := range 6 {
			if got := c.reason(m.Token, from([]string{"192.0.2.9", "203.0.113.8"}[n%2], nil)); got != "" {
				t.Errorf("use %d: %q", n, got)
			}
		}
		time.Sleep(time.Second)
		if about := c.get(m.SessionId); about.Flagged {
			t.Errorf("%v", about)
		}
	})
}
