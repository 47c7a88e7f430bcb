package rpc

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/holdfastdb/holdfast/fsm/session"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
	"github.com/holdfastdb/holdfast/rpc/sessiontoken"
)

func familyIn(t *testing.T, c *small, token string) sessiontoken.Secret {
	t.Helper()
	p, err := sessiontoken.Parse(token, sessiontoken.Refresh, c.cluster())
	if err != nil {
		t.Fatal(err)
	}
	return p.Family
}

// A frame whose answer was lost is sent again, and answered with tokens that count, of the same session: those of the first
// answer count on, for they may have arrived.
func TestALoginWhoseAnswerWasLostIsAnsweredAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newSmall(t, nil)
		defer c.close()
		s := c.of("alice")
		login := &pb.CreateSessionRequest{UserId: "alice", RememberMe: true}
		var made [3]pb.SessionTokens
		for i := range made {
			if r := c.frame(s.id, 1, methodCreateSession, login, &made[i]); r.Code != 0 {
				t.Fatal(r)
			}
			if made[i].SessionId != made[0].SessionId || c.reason(made[i].Token) != "" || familyIn(t, c, *made[i].RefreshToken) != familyIn(t, c, *made[0].RefreshToken) {
				t.Errorf("answer %d: %q", i, c.reason(made[i].Token))
			}
			if !proto.Equal(made[i].ExpiresAt, made[0].ExpiresAt) || !proto.Equal(made[i].RefreshExpiresAt, made[0].RefreshExpiresAt) {
				t.Errorf("answer %d ends at %v, %v", i, made[i].ExpiresAt, made[i].RefreshExpiresAt)
			}
		}
		if made[0].Token == made[1].Token || c.reason(made[0].Token) != "" {
			t.Error("a repeated answer has the secret of the first one")
		}
		if list, err := c.List(t.Context(), &pb.ListSessionsRequest{UserId: "alice"}); err != nil || len(list.Sessions) != 1 {
			t.Errorf("%d sessions, %v", len(list.GetSessions()), err)
		}
		var other pb.SessionTokens
		if r := c.frame(s.id, 2, methodCreateSession, login, &other); r.Code != 0 || familyIn(t, c, *other.RefreshToken) == familyIn(t, c, *made[0].RefreshToken) {
			t.Errorf("another login has the same family: %v", r)
		}
		time.Sleep(time.Millisecond)
		refreshed(t, c, *made[2].RefreshToken)
		if r := c.frame(s.id, 1, methodCreateSession, login, &other); codes.Code(r.Code) != outcomeUnknown.code {
			t.Errorf("tokens are given out again after an exchange: %v", r)
		}
	})
}

// A login that the rules of now refuse may have been carried out under those of then: a frame that is sent again must not
// be told that it had no effect.
func TestALoginThatIsRefusedTodayMayHaveBeenCarriedOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newSmall(t, nil)
		defer c.close()
		s := c.of("alice")
		login, one := &pb.CreateSessionRequest{UserId: "alice"}, uint32(1)
		if r := c.frame(s.id, 1, methodCreateSession, login, &pb.SessionTokens{}); r.Code != 0 {
			t.Fatal(r)
		}
		if _, err := c.PutPolicy(t.Context(), &pb.PutSessionPolicyRequest{Type: "web", MaxDevices: &one}); err != nil {
			t.Fatal(err)
		}
		if r := c.frame(s.id, 1, methodCreateSession, login, &pb.SessionTokens{}); codes.Code(r.Code) != outcomeUnknown.code {
			t.Errorf("sent again: %v", r)
		}
		if r := c.frame(s.id, 2, methodCreateSession, login, &pb.SessionTokens{}); codes.Code(r.Code) != codes.InvalidArgument {
			t.Errorf("a new one: %v", r)
		}
	})
}

// The same for the exchanges of tokens.
func TestAnExchangeWhoseAnswerWasLostIsAnsweredAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newSmall(t, nil)
		defer c.close()
		s := c.of("alice")
		login := c.login("alice", func(q *pb.CreateSessionRequest) { q.RememberMe = true })
		var first, again, last pb.SessionTokens
		for _, m := range []*pb.SessionTokens{&first, &again} {
			if r := c.frame(s.id, 1, methodRefreshSession, &pb.RefreshSessionRequest{RefreshToken: *login.RefreshToken}, m); r.Code != 0 {
				t.Fatal(r)
			}
		}
		time.Sleep(time.Minute) // the grace of requests that raced is over
		if c.reason(first.Token) != "" || c.reason(again.Token) != "" || familyIn(t, c, *again.RefreshToken) != familyIn(t, c, *login.RefreshToken) {
			t.Errorf("%q, %q", c.reason(first.Token), c.reason(again.Token))
		}
		refreshed(t, c, *again.RefreshToken)
		token := refreshed(t, c, *first.RefreshToken).GetToken() // within the grace again
		if token == "" {
			return
		}
		for _, m := range []*pb.SessionTokens{&first, &last} {
			if r := c.frame(s.id, 2, methodRotateSession, &pb.RotateSessionRequest{Token: token}, m); r.Code != 0 {
				t.Fatal(r)
			}
		}
		if c.reason(first.Token) != "" || c.reason(last.Token) != "" || c.reason(token) != "unknown" {
			t.Errorf("%q, %q, the old one %q", c.reason(first.Token), c.reason(last.Token), c.reason(token))
		}
		if r := c.frame(s.id, 1, methodRefreshSession, &pb.RefreshSessionRequest{RefreshToken: *login.RefreshToken}, &last); codes.Code(r.Code) != outcomeUnknown.code {
			t.Errorf("tokens are given out again after an exchange: %v", r)
		}
	})
}

// What asks first what there is does its work once all the same.
func TestARepeatedFrameChangesNothingMore(t *testing.T) {
	c := newSmall(t, nil)
	defer c.close()
	s := c.of("alice")
	m := c.login("alice")
	set := func(name string) *pb.SetAttributesRequest {
		return &pb.SetAttributesRequest{SessionId: m.SessionId, Set: fields("by", name)}
	}
	var first, other, again pb.SetAttributesResponse
	for _, step := range []struct {
		seq  uint64
		name string
		to   *pb.SetAttributesResponse
	}{{1, "first", &first}, {2, "other", &other}, {1, "first", &again}} {
		if r := c.frame(s.id, step.seq, methodSetAttributes, set(step.name), step.to); r.Code != 0 {
			t.Fatal(r)
		}
	}
	if by := c.get(m.SessionId).Attributes.Fields["by"].GetStringValue(); by != "other" || first.Version != 1 || other.Version != 2 || again.Version != 1 {
		t.Errorf("by %s, versions %d, %d, %d", by, first.Version, other.Version, again.Version)
	}
	logout := &pb.LogoutRequest{Token: m.Token, Everywhere: true}
	var gone pb.RevokedSessions
	if r := c.frame(s.id, 3, methodLogout, logout, &gone); r.Code != 0 || gone.Revoked != 1 {
		t.Errorf("%v, %v", r, &gone)
	}
	next := c.login("alice")
	if r := c.frame(s.id, 3, methodLogout, logout, &gone); r.Code != 0 || c.reason(next.Token) != "" {
		t.Errorf("a repeated logout ended a later session: %v, %q", r, c.reason(next.Token))
	}
}

// A plain call with an idempotency key is carried out once, and answered each time.
func TestACallWithAKeyIsCarriedOutOnce(t *testing.T) {
	c := newSmall(t, nil)
	defer c.close()
	s := c.of("alice")
	key := func(name string) context.Context {
		return metadata.NewIncomingContext(t.Context(), metadata.Pairs(headerIdempotency, name))
	}
	login := &pb.CreateSessionRequest{UserId: "alice", RememberMe: true}
	s.fault = fine
	first, err := c.Create(key("one"), login)
	if err != nil {
		t.Fatal(err)
	}
	again, err := c.Create(key("one"), login)
	if err != nil || again.SessionId != first.SessionId || c.reason(again.Token) != "" || c.reason(first.Token) != "" ||
		familyIn(t, c, *first.RefreshToken) != familyIn(t, c, *again.RefreshToken) {
		t.Errorf("%v", err)
	}
	if other, err := c.Create(key("two"), login); err != nil || other.SessionId == first.SessionId {
		t.Errorf("another key: %v", err)
	}
	if _, err := c.Create(key("one"), &pb.CreateSessionRequest{UserId: "bob"}); kindOf(err) != conflict {
		t.Errorf("the key of another request: %v", err)
	}
	pair := &pb.RefreshSessionRequest{RefreshToken: *again.RefreshToken}
	for range 2 {
		if m, err := c.Refresh(key("three"), pair); err != nil || c.reason(m.Token) != "" {
			t.Errorf("refresh: %v", err)
		}
	}
	for i, want := range []uint32{2, 2} {
		if m, err := c.RevokeUser(key("four"), &pb.RevokeUserRequest{UserId: "alice"}); err != nil || m.Revoked != want {
			t.Errorf("time %d: %v, %v", i, m, err)
		}
	}
	if n := s.done(session.OpRefresh); n != 2 { // proposed twice, and executed once: both pairs count
		t.Errorf("%d", n)
	}
	if m, err := c.Create(key("one"), login); err != nil || c.reason(m.Token) == "" {
		t.Errorf("tokens of a session that has ended count: %v", err)
	}
}

// A lost answer of a plain call is an unknown outcome.
func TestALostAnswerIsAnUnknownOutcome(t *testing.T) {
	c := newSmall(t, nil)
	defer c.close()
	for what, want := range map[fault]kind{refused: overloaded, lost: outcomeUnknown, answered: outcomeUnknown} {
		c.of("alice").fault = what
		if _, err := c.Create(t.Context(), &pb.CreateSessionRequest{UserId: "alice"}); kindOf(err) != want {
			t.Errorf("fault %d: %v", what, err)
		}
	}
}
