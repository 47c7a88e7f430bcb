package client_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/holdfastdb/holdfast/client"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// left is the quota that Peek reports.
func left(t *testing.T, c *client.Client, q client.Request) uint32 {
	t.Helper()
	d, err := c.Limits().Peek(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	return d.Remaining
}

// is tells whether an error is of a kind and gives this reason.
func is(err, kind error, reason string) bool {
	return errors.Is(err, kind) && strings.Contains(err.Error(), reason)
}

func TestCheckTakesTokensUntilNoneAreLeft(t *testing.T) {
	c, _ := dialCluster(t, 0)
	q := limit(t, yearly(5))
	q.Resource = "/orders"
	d, err := c.Limits().Check(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	if !d.Allowed || d.Remaining != 4 || d.RetryAfter != 0 || d.Policy == "" || d.ReleaseToken != "" || d.Fallback {
		t.Errorf("the first check: %+v", d)
	}
	if until := time.Until(d.ResetAt); until <= 0 || until > 366*24*time.Hour {
		t.Errorf("whole again at %v", d.ResetAt)
	}
	if len(d.Limits) != 1 {
		t.Fatalf("limits %+v", d.Limits)
	}
	if s := d.Limits[0]; s.PolicyID != d.Policy || s.PolicyName != t.Name() || s.Scope != "client" || s.Limit != 5 ||
		s.Remaining != 4 || s.Used != 1 || s.Window < 365*24*time.Hour || s.Denied || s.Shadow || !s.ResetAt.Equal(d.ResetAt) {
		t.Errorf("the limit's row: %+v", s)
	}
	q.Weight = 3
	if d, err = c.Limits().Check(t.Context(), q); err != nil || !d.Allowed || d.Remaining != 1 {
		t.Errorf("three more: %+v, %v", d, err)
	}
	// There is one token: two cannot be had, and asking for them takes nothing.
	q.Weight = 2
	if d, err = c.Limits().Check(t.Context(), q); err != nil || d.Allowed || d.RetryAfter <= 0 || len(d.Limits) != 1 || !d.Limits[0].Denied {
		t.Errorf("too many: %+v, %v", d, err)
	}
	q.Weight = 0 // means 1
	if d, err = c.Limits().Check(t.Context(), q); err != nil || !d.Allowed || d.Remaining != 0 {
		t.Errorf("the last one: %+v, %v", d, err)
	}
}

func TestPeekAndStatusChangeNothing(t *testing.T) {
	c, _ := dialCluster(t, 0)
	q := limit(t, yearly(3))
	for range 5 {
		d, err := c.Limits().Peek(t.Context(), q)
		if err != nil || !d.Allowed || d.Remaining != 3 || len(d.Limits) != 1 || d.Limits[0].Used != 0 {
			t.Fatalf("peek: %+v, %v", d, err)
		}
		states, err := c.Limits().Status(t.Context(), q)
		if err != nil || len(states) != 1 || states[0].Remaining != 3 || states[0].Used != 0 || states[0].PolicyName != t.Name() {
			t.Fatalf("status: %+v, %v", states, err)
		}
	}
	if d, err := c.Limits().Check(t.Context(), q); err != nil || d.Remaining != 2 {
		t.Errorf("the first check after them: %+v, %v", d, err)
	}
	// They see what others took, and that a larger weight would be denied.
	q.Weight = 3
	if d, err := c.Limits().Peek(t.Context(), q); err != nil || d.Allowed || d.RetryAfter <= 0 {
		t.Errorf("peek for more than is left: %+v, %v", d, err)
	}
	if states, err := c.Limits().Status(t.Context(), q); err != nil || len(states) != 1 || states[0].Used != 1 {
		t.Errorf("status after a check: %+v, %v", states, err)
	}
}

func TestAClientWithoutAPolicyIsUnlimited(t *testing.T) {
	c, _ := dialCluster(t, 0)
	q := client.Request{Client: "nobody knows me"}
	d, err := c.Limits().Check(t.Context(), q)
	if err != nil || !d.Allowed || d.Remaining != client.Unlimited || d.Policy != "" || d.Limits != nil {
		t.Errorf("check: %+v, %v", d, err)
	}
	if states, err := c.Limits().Status(t.Context(), q); err != nil || len(states) != 0 {
		t.Errorf("status: %+v, %v", states, err)
	}
}

func TestEveryKindOfSubjectFindsItsOwnCounter(t *testing.T) {
	c, _ := dialCluster(t, 0)
	policies := pb.NewPoliciesClient(c.Conn())
	for scope, q := range map[string]client.Request{
		"api_key": {APIKey: "key-1"}, "ip": {IP: "192.0.2.1"}, "region": {Region: "eu"}, "resource": {Resource: "/only"},
	} {
		t.Run(scope, func(t *testing.T) {
			p := yearly(2)
			p.Scope = scope
			limit(t, p)
			// Scopes other than client apply to whoever is assigned: here, everyone.
			if _, err := policies.AssignClients(t.Context(), &pb.AssignClientsRequest{PolicyId: p.Name, ClientIds: []string{"*"}}); err != nil {
				t.Fatal(err)
			}
			for want := range 2 {
				d, err := c.Limits().Check(t.Context(), q)
				if err != nil || !d.Allowed || d.Remaining != uint32(1-want) || len(d.Limits) != 1 || d.Limits[0].Scope != scope {
					t.Errorf("%+v, %v", d, err)
				}
			}
			if d, err := c.Limits().Check(t.Context(), q); err != nil || d.Allowed {
				t.Errorf("beyond the limit: %+v, %v", d, err)
			}
		})
	}
}

func TestNamedPoliciesApplyInsteadOfThoseThatMatch(t *testing.T) {
	c, _ := dialCluster(t, 0)
	q := limit(t, yearly(5))
	other := yearly(100)
	other.Name = t.Name() + "-other"
	limit(t, other)
	q.Policies = []string{other.Name}
	d, err := c.Limits().Check(t.Context(), q)
	if err != nil || d.Remaining != 99 || len(d.Limits) != 1 || d.Limits[0].PolicyName != other.Name {
		t.Errorf("by name: %+v, %v", d, err)
	}
	q.Policies = []string{d.Policy}
	if d, err := c.Limits().Async(t.Context(), q); err != nil || d.Remaining != 98 || len(d.Limits) != 1 {
		t.Errorf("by id, and asked for a leased decision: %+v, %v", d, err)
	}
	if states, err := c.Limits().Status(t.Context(), q); err != nil || len(states) != 1 || states[0].Used != 2 {
		t.Errorf("status of the named policy: %+v, %v", states, err)
	}
	if n := left(t, c, client.Request{Client: q.Client}); n != 5 {
		t.Errorf("%d left of the policy that was not named", n)
	}
}

func TestRequestsThatMakeNoSenseAreInvalid(t *testing.T) {
	c, _ := dialCluster(t, 0)
	for name, tt := range map[string]struct {
		q    client.Request
		want error
		says string
	}{
		"nothing to limit": {client.Request{}, client.ErrInvalid, "at least one of client_id"},
		"absurd weight":    {client.Request{Client: "a", Weight: 4_000_000_000}, client.ErrInvalid, "weight must be"},
		"unknown policy":   {client.Request{Client: "a", Policies: []string{"no-such-policy"}}, client.ErrNotFound, "no-such-policy"},
	} {
		l := c.Limits()
		_, check := l.Check(t.Context(), tt.q)
		_, peek := l.Peek(t.Context(), tt.q)
		_, reserve := l.Reserve(t.Context(), tt.q, time.Minute)
		for method, err := range map[string]error{"check": check, "peek": peek, "reserve": reserve} {
			if !is(err, tt.want, tt.says) {
				t.Errorf("%s, %s: %v, want %v about %q", name, method, err, tt.want, tt.says)
			}
		}
		if tt.q.Weight > 0 { // the others take none
			continue
		}
		_, status := l.Status(t.Context(), tt.q)
		_, reset := l.Reset(t.Context(), tt.q)
		for method, err := range map[string]error{"status": status, "reset": reset} {
			if !is(err, tt.want, tt.says) {
				t.Errorf("%s, %s: %v, want %v about %q", name, method, err, tt.want, tt.says)
			}
		}
	}
}

func TestResetStartsFromAFullQuota(t *testing.T) {
	c, _ := dialCluster(t, 0)
	q := limit(t, yearly(2))
	for range 3 {
		if _, err := c.Limits().Check(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := c.Limits().Reset(t.Context(), q); err != nil || n != 1 {
		t.Errorf("reset %d limits, %v", n, err)
	}
	if n := left(t, c, q); n != 2 {
		t.Errorf("%d left", n)
	}
}

func TestAReservationIsSettledAtWhatTheWorkDidCost(t *testing.T) {
	c, _ := dialCluster(t, 0)
	l := c.Limits()
	q := limit(t, yearly(100))
	q.Weight = 40
	reserve := func() *client.Reservation {
		t.Helper()
		r, err := l.Reserve(t.Context(), q, time.Hour)
		if err != nil || !r.Allowed || r.ID == "" {
			t.Fatalf("%+v, %v", r, err)
		}
		return r
	}
	want := func(what string, n uint32) {
		t.Helper()
		if got := left(t, c, client.Request{Client: q.Client}); got != n {
			t.Errorf("%s: %d left, want %d", what, got, n)
		}
	}
	r := reserve()
	if until := time.Until(r.ExpiresAt); until < 59*time.Minute || until > 61*time.Minute {
		t.Errorf("it expires in %v", until)
	}
	want("reserved", 60)
	if err := r.Commit(t.Context(), 10); err != nil {
		t.Fatal(err)
	}
	want("it did cost less", 90)
	if err := r.Commit(t.Context(), 10); !is(err, client.ErrNotFound, "no such reservation") {
		t.Errorf("settled twice: %v", err)
	}
	r = reserve()
	if err := r.Refund(t.Context()); err != nil {
		t.Fatal(err)
	}
	want("refunded", 90)
	if err := r.Refund(t.Context()); !is(err, client.ErrNotFound, "no such reservation") {
		t.Errorf("refunded twice: %v", err)
	}
	r = reserve()
	if err := r.Commit(t.Context(), 70); err != nil {
		t.Fatal(err)
	}
	want("it did cost more", 20)
	denied, err := l.Reserve(t.Context(), q, 0)
	if err != nil || denied.Allowed || denied.ID != "" || denied.RetryAfter <= 0 {
		t.Errorf("more than there is: %+v, %v", denied, err)
	}
	want("denied", 20)
}

func TestAReservationThatNobodySettlesRefundsItself(t *testing.T) {
	c, _ := dialCluster(t, 0)
	q := limit(t, yearly(10))
	q.Weight = 6
	began := time.Now()
	r, err := c.Limits().Reserve(t.Context(), q, time.Millisecond) // rounded up: the unit is a second
	if err != nil || !r.Allowed {
		t.Fatalf("%+v, %v", r, err)
	}
	eventually(t, "the refund", func() bool { return left(t, c, q) == 10 })
	if took := time.Since(began); took < 900*time.Millisecond {
		t.Errorf("it was given back after %v, the shortest time is a second", took)
	}
}

func TestReleaseFreesASlot(t *testing.T) {
	c, _ := dialCluster(t, 0)
	l := c.Limits()
	q := limit(t, &pb.CreatePolicyRequest{Algorithm: "concurrency", RateLimit: 1, TimeWindow: 600})
	held, err := l.Check(t.Context(), q)
	if err != nil || !held.Allowed || held.ReleaseToken == "" {
		t.Fatalf("%+v, %v", held, err)
	}
	if d, err := l.Check(t.Context(), q); err != nil || d.Allowed || d.ReleaseToken != "" {
		t.Errorf("while the slot is held: %+v, %v", d, err)
	}
	if err := l.Release(t.Context(), q, held.ReleaseToken); err != nil {
		t.Fatal(err)
	}
	// Slots cannot be leased: a leased decision is a check then, whose slot can be freed too.
	d, err := l.Async(t.Context(), q)
	if err != nil || !d.Allowed || d.ReleaseToken == "" {
		t.Errorf("after the release: %+v, %v", d, err)
	}
	if err := l.Release(t.Context(), q, d.ReleaseToken); err != nil {
		t.Error(err)
	}
	if err := l.Release(t.Context(), q, "nonsense"); !is(err, client.ErrInvalid, "the token is not one") {
		t.Errorf("a token that nobody gave: %v", err)
	}
}

// everyone makes a policy of n tokens, counted by scope, for all clients.
func everyone(t *testing.T, scope string, n uint32, shadow bool) {
	t.Helper()
	p := yearly(n)
	p.Name, p.Scope, p.Shadow = strings.ReplaceAll(t.Name()+"/"+scope, "+", "-"), scope, shadow
	p.Resource = t.Name()
	limit(t, p)
	c, _ := dialCluster(t, 0)
	if _, err := pb.NewPoliciesClient(c.Conn()).AssignClients(t.Context(), &pb.AssignClientsRequest{PolicyId: p.Name, ClientIds: []string{"*"}}); err != nil {
		t.Fatal(err)
	}
}

// used tells what is in use of each scope.
func used(t *testing.T, c *client.Client, q client.Request) map[string]uint32 {
	t.Helper()
	states, err := c.Limits().Status(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]uint32)
	for _, s := range states {
		all[s.Scope] = s.Used
	}
	return all
}

// subjects are requests of many clients, so that their shards and those of the address and the region differ in all ways.
func subjects(t *testing.T) (list []client.Request) {
	for i := range 8 {
		list = append(list, client.Request{Client: fmt.Sprintf("%s-%d", t.Name(), i), IP: "192.0.2.7", Region: "eu", Resource: t.Name()})
	}
	return list
}

func TestLimitsOfSeveralShardsAreTakenTogetherOrNotAtAll(t *testing.T) {
	c, _ := dialCluster(t, 0)
	everyone(t, "client", 3, false)
	everyone(t, "ip", 6, false)
	everyone(t, "region", 100, false)
	allowed := make(map[string]int)
	for range 2 {
		for _, q := range subjects(t) {
			d, err := c.Limits().Check(t.Context(), q)
			if err != nil || len(d.Limits) != 3 {
				t.Fatalf("%+v, %v", d, err)
			}
			if d.Allowed {
				allowed[q.Client]++
			}
		}
	}
	for i, q := range subjects(t) {
		want := 1 // six of the eight, once
		if i >= 6 {
			want = 0
		}
		if got := used(t, c, q); allowed[q.Client] != want || got["client"] != uint32(want) || got["ip"] != 6 || got["region"] != 6 {
			t.Errorf("client %d was allowed %d times; in use %v", i, allowed[q.Client], got)
		}
	}
}

func TestAShadowLimitOfAnotherShardOnlyWatches(t *testing.T) {
	c, _ := dialCluster(t, 0)
	everyone(t, "client", 100, false)
	everyone(t, "ip", 2, true)
	for i, q := range subjects(t) {
		d, err := c.Limits().Check(t.Context(), q)
		if err != nil || !d.Allowed {
			t.Fatalf("client %d: %+v, %v", i, d, err)
		}
		q.Weight = 5
		r, err := c.Limits().Reserve(t.Context(), q, time.Minute)
		if err != nil || !r.Allowed {
			t.Fatalf("client %d, reserved: %+v, %v", i, r, err)
		}
		if err := r.Commit(t.Context(), 2); err != nil {
			t.Fatalf("client %d, commit: %v", i, err)
		}
		if got := used(t, c, q); got["client"] != 3 || got["ip"] != uint32(min(i+1, 2)) {
			t.Errorf("client %d: in use %v", i, got)
		}
	}
}

func TestAReservationOfSeveralShardsIsSettledInAll(t *testing.T) {
	c, _ := dialCluster(t, 0)
	everyone(t, "client", 100, false)
	everyone(t, "ip", 100, false)
	everyone(t, "region", 100, false)
	for i, q := range subjects(t) {
		q.Weight = 10
		r, err := c.Limits().Reserve(t.Context(), q, time.Minute)
		if err != nil || !r.Allowed {
			t.Fatalf("%+v, %v", r, err)
		}
		if err := r.Commit(t.Context(), 4); err != nil {
			t.Fatal(err)
		}
		if err := r.Commit(t.Context(), 4); !is(err, client.ErrNotFound, "no such reservation") {
			t.Errorf("settled twice: %v", err)
		}
		if got, all := used(t, c, q), uint32(4*(i+1)); got["client"] != 4 || got["ip"] != all || got["region"] != all {
			t.Errorf("client %d: in use %v", i, got)
		}
	}
}

// Nothing is held for who is not limited, so there is nothing to settle.
func TestAReservationWithoutAPolicyNeedsNoSettling(t *testing.T) {
	c, _ := dialCluster(t, 0)
	reserve := func() *client.Reservation {
		r, err := c.Limits().Reserve(t.Context(), client.Request{Client: "nobody limits me"}, time.Minute)
		if err != nil || !r.Allowed || r.ID != "" || !r.ExpiresAt.IsZero() {
			t.Fatalf("%+v, %v", r, err)
		}
		return r
	}
	if err := reserve().Commit(t.Context(), 4); err != nil {
		t.Errorf("commit: %v", err)
	}
	if err := reserve().Refund(t.Context()); err != nil {
		t.Errorf("refund: %v", err)
	}
}
