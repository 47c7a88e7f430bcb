package rpc

import (
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// The life of a session over REST, as the interface promises it.
func TestSessionsOverREST(t *testing.T) {
	c := newSmall(t, nil)
	defer c.close()
	code, made := c.rest(http.MethodPost, "/api/v1/sessions", `{"user_id": "alice", "type": "web", "device": {"name": "phone"}, "ip": "192.0.2.7",
		"remember_me": true, "idle_timeout": 600, "absolute_timeout": 3600, "attributes": {"role": "admin"}}`)
	token, refresh, id := text(made["token"]), text(made["refresh_token"]), text(made["session_id"])
	if code != http.StatusOK || !strings.HasPrefix(token, "hfs_") || !strings.HasPrefix(refresh, "hfr_") || !strings.HasPrefix(id, "ses_") || made["expires_at"] == nil {
		t.Fatalf("%d %v", code, made)
	}
	code, valid := c.rest(http.MethodPost, "/api/v1/sessions/validate", `{"token": "`+token+`", "ip": "192.0.2.7", "device": {"name": "phone"}}`)
	about, _ := valid["session"].(map[string]any)
	if code != http.StatusOK || valid["valid"] != true || valid["reason"] != "" || about["user_id"] != "alice" || about["session_id"] != id ||
		about["idle_timeout"] != 600.0 || !maps.Equal(about["attributes"].(map[string]any), map[string]any{"role": "admin"}) {
		t.Errorf("%d %v", code, valid)
	}
	code, pair := c.rest(http.MethodPost, "/api/v1/sessions/refresh", `{"refresh_token": "`+refresh+`"}`)
	if code != http.StatusOK || pair["session_id"] != id || pair["token"] == token || pair["refresh_token"] == refresh {
		t.Errorf("%d %v", code, pair)
	}
	code, patched := c.rest(http.MethodPatch, "/api/v1/sessions/"+id+"/attributes", `{"set": {"theme": "dark"}, "remove": ["role"]}`)
	if code != http.StatusOK || patched["version"] != 2.0 {
		t.Errorf("%d %v", code, patched)
	}
	if code, one := c.rest(http.MethodGet, "/api/v1/sessions/"+id, ""); code != http.StatusOK || one["ended"] != "" || one["attributes_version"] != 2.0 {
		t.Errorf("%d %v", code, one)
	}
	if code, gone := c.rest(http.MethodDelete, "/api/v1/sessions/"+id, ""); code != http.StatusOK || gone["revoked"] != 1.0 {
		t.Errorf("%d %v", code, gone)
	}
	code, valid = c.rest(http.MethodPost, "/api/v1/sessions/validate", `{"token": "`+text(pair["token"])+`"}`)
	if about, _ := valid["session"].(map[string]any); code != http.StatusOK || valid["valid"] != false || valid["reason"] != "ended" || about["ended"] != "revoked" {
		t.Errorf("%d %v", code, valid)
	}
	code, refusal := c.rest(http.MethodPost, "/api/v1/sessions/refresh", `{"refresh_token": "`+text(pair["refresh_token"])+`"}`)
	if code != http.StatusUnauthorized || refusal["reason"] != "TOKEN_REFUSED" || refusal["retryable"] != false {
		t.Errorf("%d %v", code, refusal)
	}
	if code, again := c.rest(http.MethodDelete, "/api/v1/sessions/"+id, ""); code != http.StatusOK || again["revoked"] != 0.0 {
		t.Errorf("the second time: %d %v", code, again)
	}
}

func text(v any) string { s, _ := v.(string); return s }

// A / and other characters of a user's id are a part of it, in paths too.
func TestUsersOfRESTAreAnyText(t *testing.T) {
	c := newSmall(t, nil)
	defer c.close()
	for _, user := range []string{"alice", "tenant/alice", "a b", "Ü%2F?&#", "..", "sessions", "/"} {
		path := "/api/v1/users/" + strings.ReplaceAll(url.PathEscape(user), "..", "%2E%2E")
		keep := c.login(user)
		c.login(user)
		c.login(user, func(q *pb.CreateSessionRequest) { q.Login = "x" })
		if code, list := c.rest(http.MethodGet, path+"/sessions", ""); code != http.StatusOK || len(list["sessions"].([]any)) != 3 {
			t.Errorf("%q: %d %v", user, code, list)
		}
		for _, step := range []struct {
			query string
			ended float64
		}{{"?login=x", 1}, {"?except=" + keep.SessionId, 1}, {"", 1}, {"", 0}} {
			if code, m := c.rest(http.MethodDelete, path+"/sessions"+step.query, ""); code != http.StatusOK || m["revoked"] != step.ended {
				t.Errorf("%q%s: %d %v", user, step.query, code, m)
			}
		}
		if code, list := c.rest(http.MethodGet, path+"/sessions/history", ""); code != http.StatusOK || len(list["sessions"].([]any)) != 3 {
			t.Errorf("history of %q: %d %v", user, code, list)
		}
		c.login(user)
		if code, m := c.rest(http.MethodDelete, path, ""); code != http.StatusOK || m["revoked"] != 1.0 {
			t.Errorf("erase %q: %d %v", user, code, m)
		}
		if code, list := c.rest(http.MethodGet, path+"/sessions/history", ""); code != http.StatusOK || len(list["sessions"].([]any)) != 0 {
			t.Errorf("history of %q, erased: %d %v", user, code, list)
		}
	}
}

func TestEachTypeHasItsTimes(t *testing.T) {
	for kind, want := range map[string]struct{ idle, absolute, refresh time.Duration }{
		"":       {30 * time.Minute, 12 * time.Hour, 30 * day},
		"web":    {30 * time.Minute, 12 * time.Hour, 30 * day},
		"mobile": {day, 7 * day, 90 * day},
		"api":    {time.Hour, day, 30 * day},
	} {
		synctest.Test(t, func(t *testing.T) {
			c := newSmall(t, nil)
			defer c.close()
			m := c.login("alice", func(q *pb.CreateSessionRequest) { q.Type, q.RememberMe = kind, true })
			begin := time.Now()
			if got := m.ExpiresAt.AsTime().Sub(begin); got != want.absolute {
				t.Errorf("%s: the token ends after %v", kind, got)
			}
			if got := m.RefreshExpiresAt.AsTime().Sub(begin); got != want.refresh {
				t.Errorf("%s: the refresh token ends after %v", kind, got)
			}
			about := c.get(m.SessionId)
			if about.IdleTimeout != want.idle.Seconds() || about.ExpiresAt.AsTime().Sub(begin) != want.idle || kind != "" && about.Type != kind {
				t.Errorf("%s: %v", kind, about)
			}
			time.Sleep(want.idle - 2*time.Minute)
			if reason := c.reason(m.Token); reason != "" {
				t.Errorf("%s: in time: %s", kind, reason)
			}
			time.Sleep(4 * time.Minute)
			if reason := c.reason(m.Token); reason != "" {
				t.Errorf("%s: used in time: %s", kind, reason)
			}
			time.Sleep(want.idle)
			if reason := c.reason(m.Token); reason != "idle" {
				t.Errorf("%s: not used any more: %q", kind, reason)
			}
			if m.RefreshToken == nil || refreshed(t, c, *m.RefreshToken) == nil {
				t.Errorf("%s: the refresh token does not outlive the idle timeout", kind)
			}
		})
	}
}

func refreshed(t *testing.T, c *small, token string) *pb.SessionTokens {
	t.Helper()
	m, err := c.Refresh(t.Context(), &pb.RefreshSessionRequest{RefreshToken: token})
	if err != nil {
		t.Errorf("refresh: %v", err)
	}
	return m
}

// What a login says stands before what its type says.
func TestALoginMaySayOtherTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newSmall(t, nil)
		defer c.close()
		m := c.login("alice", func(q *pb.CreateSessionRequest) {
			q.IdleTimeout, q.AbsoluteTimeout, q.RefreshTimeout, q.RememberMe = proto.Float64(0), proto.Float64(90.5), proto.Float64(1000), true
		})
		begin := time.Now()
		if a, r := m.ExpiresAt.AsTime().Sub(begin), m.RefreshExpiresAt.AsTime().Sub(begin); a != 90500*time.Millisecond || r != 1000*time.Second {
			t.Errorf("%v, %v", a, r)
		}
		time.Sleep(90 * time.Second)
		if reason := c.reason(m.Token); reason != "" {
			t.Errorf("without idle timeout, not used for long: %s", reason)
		}
		time.Sleep(time.Second)
		if reason := c.reason(m.Token); reason != "expired" {
			t.Errorf("after its time: %q", reason)
		}
	})
}

// A user may have so many sessions, or devices: one more is refused, or the oldest ends for it.
func TestLimitsOfAUser(t *testing.T) {
	c := newSmall(t, nil)
	defer c.close()
	two := func(q *pb.CreateSessionRequest) { q.MaxSessions = proto.Uint32(2) }
	evict := func(q *pb.CreateSessionRequest) { q.OnLimit = "evict_oldest" }
	first, second := c.login("alice", two), c.login("alice", two)
	if _, err := c.Create(t.Context(), &pb.CreateSessionRequest{UserId: "alice", MaxSessions: proto.Uint32(2)}); kindOf(err) != exhausted {
		t.Errorf("a third one: %v", err)
	}
	third := c.login("alice", two, evict)
	if third.Evicted != 1 || c.reason(first.Token) != "ended" || c.reason(second.Token) != "" || c.get(first.SessionId).Ended != "evicted" {
		t.Errorf("%d ended, the first one %v", third.Evicted, c.get(first.SessionId))
	}
	one := func(name string) func(*pb.CreateSessionRequest) {
		return func(q *pb.CreateSessionRequest) {
			q.MaxDevices, q.Device = proto.Uint32(1), fields("id", name)
		}
	}
	a := c.login("bob", one("a"))
	c.login("bob", one("a"))
	if b := c.login("bob", one("b"), evict); b.Evicted != 2 || c.reason(a.Token) != "ended" {
		t.Errorf("another device: %d ended", b.Evicted)
	}
	list, err := c.List(t.Context(), &pb.ListSessionsRequest{UserId: "alice"})
	if ids := idsOf(list); err != nil || !slices.Equal(ids, []string{second.SessionId, third.SessionId}) {
		t.Errorf("%v, %v", ids, err)
	}
}

func idsOf(list *pb.ListSessionsResponse) (ids []string) {
	for _, s := range list.GetSessions() {
		ids = append(ids, s.SessionId)
	}
	return ids
}

// Refresh tokens are used once: one that is used again, after the time of requests that raced, ends the session.
func TestAReusedRefreshTokenEndsItsSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newSmall(t, nil)
		defer c.close()
		first := c.login("alice", func(q *pb.CreateSessionRequest) { q.RememberMe = true })
		second, raced := refreshed(t, c, *first.RefreshToken), refreshed(t, c, *first.RefreshToken)
		if c.reason(second.Token) != "" || c.reason(raced.Token) != "" {
			t.Error("requests that raced did not both get tokens that count")
		}
		time.Sleep(11 * time.Second)
		if c.reason(first.Token) != "rotated" {
			t.Errorf("the old access token: %q", c.reason(first.Token))
		}
		_, err := c.Refresh(t.Context(), &pb.RefreshSessionRequest{RefreshToken: *first.RefreshToken})
		if kindOf(err) != tokenInvalid || !strings.Contains(err.Error(), "refresh_reuse") {
			t.Errorf("used again: %v", err)
		}
		if c.reason(second.Token) == "" || c.reason(raced.Token) == "" || c.get(first.SessionId).Ended != "refresh_reuse" {
			t.Errorf("%q, %v", c.reason(second.Token), c.get(first.SessionId))
		}
	})
}

// Who holds a token may end its session, those of its login, or all of its user.
func TestLogout(t *testing.T) {
	c := newSmall(t, nil)
	defer c.close()
	sso := func(q *pb.CreateSessionRequest) { q.Login = "sso" }
	a, b, other := c.login("alice", sso), c.login("alice", sso), c.login("alice")
	last := c.login("alice", sso)
	for i, step := range []struct {
		q       *pb.LogoutRequest
		revoked uint32
	}{
		{&pb.LogoutRequest{Token: a.Token}, 1}, {&pb.LogoutRequest{Token: a.Token}, 0}, {&pb.LogoutRequest{Token: b.Token, WholeLogin: true}, 2},
		{&pb.LogoutRequest{Token: last.Token, Everywhere: true}, 0}, {&pb.LogoutRequest{Token: other.Token, Everywhere: true}, 1},
	} {
		if m, err := c.Logout(t.Context(), step.q); err != nil || m.Revoked != step.revoked {
			t.Errorf("step %d: %v, %v", i, m, err)
		}
	}
	if e := c.get(a.SessionId).Ended; e != "logged_out" {
		t.Error(e)
	}
}

func fields(pairs ...any) *structpb.Struct {
	m := make(map[string]any)
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i].(string)] = pairs[i+1]
	}
	s, err := structpb.NewStruct(m)
	if err != nil {
		panic(err)
	}
	return s
}
