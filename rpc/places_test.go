package rpc

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/session"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

func TestTwoPlacesAtOnce(t *testing.T) {
	type use struct {
		from string
		at   fsm.Time
		want bool
	}
	const home, cafe, train, six, other6 = "192.0.1.0/24", "192.0.2.0/24", "192.0.3.0/24", "2001:db8:1::/48", "2001:db8:2::/48"
	for name, uses := range map[string][]use{
		"at home":            {{home, 0, false}, {home, 1, false}, {home, 2, false}},
		"moved":              {{home, 0, false}, {cafe, 5, false}, {cafe, 6, false}},
		"there and back":     {{cafe, 1000, false}, {home, 11_000, true}},
		"later":              {{cafe, 1000, false}, {home, 11_001, false}},
		"each time":          {{cafe, 1000, false}, {home, 2000, true}, {cafe, 3000, true}, {home, 4000, true}},
		"three networks":     {{cafe, 1, false}, {train, 2, false}, {home, 3, false}, {train, 4, true}},
		"staying counts":     {{cafe, 1, false}, {cafe, 20_000, false}, {home, 20_001, false}},
		"staying for long":   {{cafe, 1, false}, {cafe, 50_000, false}, {cafe, 100_000, false}, {cafe, 150_000, false}, {home, 150_001, false}, {cafe, 150_002, true}},
		"forgotten":          {{cafe, 1, false}, {home, 70_000, false}, {cafe, 70_001, false}, {home, 70_002, true}},
		"out of order":       {{cafe, 1000, false}, {home, 998, false}, {home, 1000, false}, {cafe, 1001, false}, {home, 1002, true}},
		"both families":      {{six, 1, false}, {home, 2, false}, {six, 3, false}, {home, 4, false}},
		"a family not away":  {{cafe, 1, false}, {six, 2, false}, {cafe, 3, false}, {six, 4, false}, {home, 5, true}},
		"one family at home": {{six, 1, false}, {other6, 2, false}, {six, 3, false}},
	} {
		p := places{away: make(map[session.Key]place)}
		for n, u := range uses {
			got := p.seen(session.Key{Number: 1}, netip.MustParsePrefix(home), netip.MustParsePrefix(u.from), 1_000_000+u.at)
			if got != u.want {
				t.Errorf("%s: use %d, from %s: %v, want %v", name, n, u.from, got, u.want)
			}
		}
	}
}

// What is stored as a session's own network may become one of the other family while it is followed.
func TestPlacesStayInOneFamily(t *testing.T) {
	p := places{away: make(map[session.Key]place)}
	k, six := session.Key{Number: 1}, netip.MustParsePrefix("2001:db8::/48")
	for n, u := range []struct{ stored, from netip.Prefix }{{net24(1), net24(2)}, {six, six}, {six, net24(2)}, {net24(2), six}, {net24(2), net24(2)}} {
		if p.seen(k, u.stored, u.from, fsm.Time(1_000_000+n)) {
			t.Errorf("use %d is one too many", n)
		}
	}
	if !p.seen(k, six, net24(1), 1_000_010) {
		t.Error("what is stored hides where it was used")
	}
}

func TestPlacesAreToldOfSparingly(t *testing.T) {
	p := places{away: make(map[session.Key]place)}
	k := session.Key{Number: 1}
	p.seen(k, net24(1), net24(2), 1000)
	for n, u := range []struct {
		sparingly bool
		at        fsm.Time
		want      bool
	}{{true, 1000, true}, {true, 2000, false}, {false, 3000, true}, {true, 3000 + movesAgain - 1, false}, {true, 3000 + movesAgain, true}} {
		p.seen(k, net24(1), net24(1+n%2), u.at)
		if got := p.tell(k, u.sparingly, u.at); got != u.want {
			t.Errorf("%d: %v, want %v", n, got, u.want)
		}
	}
	if !p.tell(session.Key{Number: 2}, true, 1000) || len(p.away) != 1 {
		t.Error("one that is not followed is told of, and not followed for it")
	}
}

func net24(n int) netip.Prefix { return netip.MustParsePrefix(fmt.Sprintf("192.0.%d.0/24", n)) }

func TestPlacesAreBounded(t *testing.T) {
	p := places{away: make(map[session.Key]place)}
	for n := range uint64(maxAway + 10) {
		p.seen(session.Key{Number: n}, net24(1), net24(2), 1_000_000)
	}
	if len(p.away) != maxAway {
		t.Errorf("%d sessions are followed, want %d", len(p.away), maxAway)
	}
	for _, u := range []struct {
		at   fsm.Time
		want int
	}{{1_000_000 + movesAgain - 1, maxAway}, {1_000_000 + movesAgain, 0}} {
		p.seen(session.Key{Number: 1 << 40}, net24(1), net24(1), u.at)
		if len(p.away) != u.want || p.followed.Load() != int64(u.want) {
			t.Errorf("after %d: %d sessions are followed, want %d", u.at-1_000_000, len(p.away), u.want)
		}
	}
	p.looked = 5_000_000
	p.seen(session.Key{}, net24(1), net24(2), 1_000_000)
	if p.looked != 5_000_000 {
		t.Error("a shard whose clock is behind has all looked through")
	}
}

func TestPlacesOfManyAtOnce(t *testing.T) {
	p := places{away: make(map[session.Key]place)}
	var work sync.WaitGroup
	var found atomic.Int64
	for w := range uint64(4) {
		work.Go(func() {
			for n := range 1000 {
				if k := (session.Key{Number: w}); p.seen(k, net24(1), net24(1+n%2), fsm.Time(1_000_000+n)) && p.tell(k, n%3 == 0, fsm.Time(1_000_000+n)) {
					found.Add(1)
				}
			}
		})
	}
	work.Wait()
	if found.Load() == 0 || len(p.away) != 4 {
		t.Errorf("%d signs of %d sessions", found.Load(), len(p.away))
	}
}

// A session that is used from two networks in turns comes to what its policy says, and is not written with every use.
func TestTwoNetworksComeToWhatThePolicySays(t *testing.T) {
	ips := []string{"192.0.2.9", "203.0.113.8"}
	for act, want := range map[string]struct {
		reason string
		marks  int
		events []string // of the first sign
	}{
		"ignore": {},
		"flag":   {"", 1, []string{"suspicious two_networks", "changed "}}, "step_up": {"step_up_required", 1, []string{"suspicious two_networks", "changed "}},
		"revoke": {"ended", 1, []string{"suspicious two_networks", "ended suspicious"}},
	} {
		synctest.Test(t, func(t *testing.T) {
			c := newSmall(t, nil)
			defer c.close()
			c.policy(&pb.PutSessionPolicyRequest{Type: "web", OnNetworkChange: "ignore", OnTwoNetworks: act})
			m := c.login("alice", func(q *pb.CreateSessionRequest) { q.Ip = "192.0.2.7" })
			ctx, cancel := context.WithCancel(t.Context())
			w := c.follow(ctx, c.of("alice").id)
			w.until(1)
			for n, ip := range []string{"192.0.2.8", "203.0.113.9", "2001:db8::1", "203.0.113.9"} {
				if got := c.reason(m.Token, from(ip, nil)); got != "" {
					t.Errorf("%s: use %d: %q", act, n, got)
				}
				time.Sleep(time.Second)
			}
			for n := range 4 { // before the shard has heard of it
				if got := c.reason(m.Token, from(ips[n%2], nil)); got != want.reason {
					t.Errorf("%s: at once, use %d: %q, want %q", act, n, got, want.reason)
				}
				time.Sleep(10 * time.Millisecond)
			}
			time.Sleep(time.Second)
			for n := range 40 {
				if got := c.reason(m.Token, from(ips[n%2], nil)); got != want.reason {
					t.Errorf("%s: in turns, use %d: %q, want %q", act, n, got, want.reason)
				}
				time.Sleep(time.Second)
			}
			if marks := c.of("alice").done(session.OpMark); marks != want.marks {
				t.Errorf("%s: %d marks of 44 uses, want %d", act, marks, want.marks)
			}
			if about := c.get(m.SessionId); about.Flagged != (act == "flag" || act == "step_up") || about.StepUpRequired != (act == "step_up") || act == "revoke" && about.Ended != "suspicious" {
				t.Errorf("%s: %v", act, about)
			}
			go func() { w.pings <- &pb.FollowRequest{Ping: 2} }()
			if events, _ := w.until(2); !slices.Equal(events, want.events) {
				t.Errorf("%s: events %q, want %q", act, events, want.events)
			}
			cancel()
			w.end(t)
			if counted := strings.Contains(c.figures(), `holdfast_sessions_suspicious_total{sign="two_networks"}`); counted != (want.marks > 0) {
				t.Errorf("%s: counted: %v", act, counted)
			}
		})
	}
}

// figures is what the metrics say.
func (c *small) figures() string {
	w := httptest.NewRecorder()
	c.server.HTTP.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	return w.Body.String()
}

// With the policy as it comes, the flag for the change of network does not hide what says more, and both are written seldom.
func TestAFlagDoesNotHideTwoNetworks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newSmall(t, nil)
		defer c.close()
		m := c.login("alice", func(q *pb.CreateSessionRequest) { q.Ip = "192.0.2.7" })
		ctx, cancel := context.WithCancel(t.Context())
		w := c.follow(ctx, c.of("alice").id)
		w.until(1)
		use := func(n int) {
			if got := c.reason(m.Token, from([]string{"203.0.113.9", "192.0.2.7"}[n%2], nil)); got != "" {
				t.Fatalf("use %d: %q", n, got)
			}
			time.Sleep(time.Second)
		}
		use(0)
		use(1)
		go func() { w.pings <- &pb.FollowRequest{Ping: 2} }()
		if events, _ := w.until(2); !slices.Equal(events, []string{"suspicious network_changed", "changed ", "suspicious two_networks", "changed "}) {
			t.Errorf("%q", events)
		}
		cancel()
		w.end(t)
		for n := range 300 {
			use(n)
		}
		if n := c.of("alice").done(session.OpMark); n < 4 || n > 12 {
			t.Errorf("%d marks in five minutes", n)
		}
	})
}

// What a user is asked to prove is asked again if the session goes on in two places, once for each proof.
func TestTwoNetworksAfterAStepUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newSmall(t, nil)
		defer c.close()
		c.policy(&pb.PutSessionPolicyRequest{Type: "web", OnNetworkChange: "ignore", OnTwoNetworks: "step_up"})
		m := c.login("alice", func(q *pb.CreateSessionRequest) { q.Ip = "192.0.2.7" })
		token, refused := m.Token, 0
		for n := range 100 {
			if c.reason(token, from([]string{"203.0.113.9", "192.0.2.7"}[n%2], nil)) != "" {
				refused++
			}
			time.Sleep(time.Second)
			if n%20 == 19 {
				next, err := c.Rotate(t.Context(), &pb.RotateSessionRequest{Token: token, StepUpDone: true})
				if err != nil {
					t.Fatal(err)
				}
				token = next.Token
			}
		}
		if n := c.of("alice").done(session.OpMark); n != 5 || refused < 90 {
			t.Errorf("%d marks after 4 proofs, %d refused", n, refused)
		}
	})
}

// Who tries a stolen token where its session is not bound to does not end it for its user.
func TestARefusedUseIsInNoPlace(t *testing.T) {
	for want, edit := range map[string]func(*pb.CreateSessionRequest){
		"ip_mismatch": func(q *pb.CreateSessionRequest) { q.Ip, q.IpBinding = "192.0.2.7", "subnet" },
		"device_mismatch": func(q *pb.CreateSessionRequest) {
			q.Ip, q.Device, q.DeviceBinding = "192.0.2.7", fields("id", "a"), true
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			c := newSmall(t, nil)
			defer c.close()
			c.policy(&pb.PutSessionPolicyRequest{Type: "web", OnTwoNetworks: "revoke"})
			m := c.login("alice", edit)
			for range 5 {
				if got := c.reason(m.Token, from("203.0.113.9", fields("id", "b"))); got != want {
					t.Errorf("away: %q, want %q", got, want)
				}
				time.Sleep(10 * time.Millisecond) // of two uses at one time nobody knows which was first
				if got := c.reason(m.Token, from("192.0.2.7", fields("id", "a"))); got != "" {
					t.Errorf("at home: %q", got)
				}
				time.Sleep(10 * time.Millisecond)
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
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(time.Second)
		if about := c.get(m.SessionId); about.Flagged {
			t.Errorf("%v", about)
		}
	})
}

// Of two signs that a use shows, what leads to more counts.
func TestAWeakerSignHidesNoStrongerOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newSmall(t, nil)
		defer c.close()
		c.policy(&pb.PutSessionPolicyRequest{Type: "web", OnNetworkChange: "revoke", OnTwoNetworks: "flag"})
		m := c.login("alice", func(q *pb.CreateSessionRequest) { q.Ip = "192.0.2.7" })
		for n, want := range []string{"", "ended", "", "ended"} { // before the shard has heard of it
			if got := c.reason(m.Token, from([]string{"192.0.2.9", "203.0.113.8"}[n%2], nil)); got != want {
				t.Errorf("use %d: %q, want %q", n, got, want)
			}
			time.Sleep(50 * time.Millisecond)
		}
	})
}
