package rpc

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfastdb/holdfast/fsm/session"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
	"github.com/holdfastdb/holdfast/rpc/sessiontoken"
)

// What only the holder of a token may know is in no error, no log, no figure, and not in what the shards keep.
func TestTokensAreToldToNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newSmall(t, nil)
		m := c.login("alice", func(q *pb.CreateSessionRequest) { q.RememberMe, q.Device = true, fields("id", "a") })
		next := refreshed(t, c, *m.RefreshToken)
		secrets := []string{m.Token, *m.RefreshToken, next.Token, *next.RefreshToken}
		for token := range badTokens(t, c) {
			if len(token) > 40 {
				secrets = append(secrets, token[:min(len(token), 200)])
			}
		}
		time.Sleep(time.Minute)
		var errors []string
		say := func(err error) {
			if err != nil {
				errors = append(errors, err.Error())
			}
		}
		for _, token := range secrets {
			_, err := c.Validate(t.Context(), &pb.ValidateSessionRequest{Token: token, Ip: "192.0.2.7", Device: fields("id", "b")})
			say(err)
			_, err = c.Rotate(t.Context(), &pb.RotateSessionRequest{Token: token})
			say(err)
			_, err = c.Refresh(t.Context(), &pb.RefreshSessionRequest{RefreshToken: token})
			say(err)
			_, err = c.Logout(t.Context(), &pb.LogoutRequest{Token: token})
			say(err)
			_, err = c.Get(t.Context(), &pb.GetSessionRequest{SessionId: token})
			say(err)
			_, err = c.RevokeUser(t.Context(), &pb.RevokeUserRequest{UserId: "alice", Except: token})
			say(err)
		}
		if len(errors) < 3*len(secrets) {
			t.Errorf("only %d errors", len(errors))
		}
		c.of("alice").silent.Store(true) // what is lost is logged
		c.uses.mark(session.MarkRequest{Session: keyOfText(t, m.SessionId), Sign: session.Burst, Act: session.Flag})
		time.Sleep(time.Minute)
		c.of("alice").silent.Store(false)
		w := httptest.NewRecorder()
		c.server.HTTP.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		figures := w.Body.String()
		c.close()
		if !strings.Contains(c.logs.String(), "uses of sessions were not noted") || !strings.Contains(figures, "holdfast_sessions_created_total") {
			t.Errorf("logs %q", c.logs.String())
		}
		said := strings.Join(errors, "\n") + c.logs.String() + figures
		for _, token := range secrets {
			if strings.Contains(said, token) || strings.Contains(said, token[8:40]) {
				t.Errorf("the token %s was told", token)
			}
		}
		for _, s := range c.shards {
			if err := s.machine.Flush(); err != nil {
				t.Fatal(err)
			}
			for _, text := range []string{m.Token, next.Token} {
				token, err := sessiontoken.Parse(text, sessiontoken.Access, c.cluster())
				if err != nil {
					t.Fatal(err)
				}
				it, err := s.store.View().Iter(nil, nil)
				if err != nil {
					t.Fatal(err)
				}
				for it.Next() {
					if strings.Contains(string(it.Value()), string(token.Secret[:])) {
						t.Error("a shard keeps the secret of a token")
					}
				}
			}
		}
	})
}

// The figures of a cluster are the sums of its shards, and a shard that does not answer is missing alone.
func TestSessionsAreCounted(t *testing.T) { synctest.Test(t, sessionsAreCounted) }

func sessionsAreCounted(t *testing.T) {
	c := newSmall(t, nil)
	defer c.close()
	for _, user := range users(20) {
		m := c.login(user)
		c.login(user, func(q *pb.CreateSessionRequest) { q.Type = "api" })
		if _, err := c.Revoke(t.Context(), &pb.RevokeSessionRequest{SessionId: m.SessionId}); err != nil {
			t.Fatal(err)
		}
	}
	stats, err := c.Stats(t.Context(), &pb.SessionStatsRequest{})
	if err != nil || stats.Active["web"] != 0 || stats.Active["api"] != 20 || stats.Created["web"] != 20 || stats.Ended["revoked"] != 20 {
		t.Errorf("%v, %v", stats, err)
	}
	w := httptest.NewRecorder()
	c.server.HTTP.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for _, line := range []string{`holdfast_sessions_active{shard="1",type="mobile"} 0`, `holdfast_sessions_ended_total{reason="revoked",shard="3"}`} {
		if !strings.Contains(w.Body.String(), line) {
			t.Errorf("no %s", line)
		}
	}
	c.shards[1].silent.Store(true)
	w = httptest.NewRecorder()
	c.server.HTTP.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for _, shard := range []string{"1", "2", "3"} {
		if there := strings.Contains(w.Body.String(), `holdfast_sessions_active{shard="`+shard+`"`); there != (shard != "1") {
			t.Errorf("figures of shard %s when shard 1 does not answer: %v", shard, there)
		}
	}
}

// Saved sessions are found as they were saved until they are dropped, and never come back.
func TestSavedSessions(t *testing.T) {
	c := newSmall(t, padding{})
	defer c.close()
	hash := make([]byte, 32)
	hash[31] = 1
	until := int64(now()) + 60_000
	var m pb.SavedSession
	for i, step := range []struct {
		method uint32
		data   string
		code   bool
		found  bool
	}{
		{methodFindSaved, "", true, false}, {methodSave, "one", true, false}, {methodSave, "two", true, true}, {methodFindSaved, "two", true, true},
		{methodDrop, "", true, true}, {methodDrop, "", true, false}, {methodFindSaved, "", true, false}, {methodSave, "three", false, false},
	} {
		m = pb.SavedSession{}
		r := c.frame(1, uint64(i+1), step.method, &pb.SavedSession{TokenHash: hash, ExpiresAtMs: until, Data: []byte(step.data)}, &m)
		if (r.Code == 0) != step.code || m.Found != step.found || step.method == methodFindSaved && string(m.Data) != step.data {
			t.Errorf("step %d: %v, %v", i, r, &m)
		}
	}
	for name, q := range map[string]*pb.SavedSession{
		"no hash": {ExpiresAtMs: until}, "a short hash": {TokenHash: hash[:31], ExpiresAtMs: until}, "no end": {TokenHash: hash}, "an end before all": {TokenHash: hash, ExpiresAtMs: -1},
	} {
		if r := c.frame(1, 9, methodSave, q, &m); r.Code == 0 {
			t.Errorf("%s: saved", name)
		}
	}
	for i := range byte(5) {
		saved := &pb.SavedSession{TokenHash: append([]byte{1, i}, hash[2:]...), ExpiresAtMs: until, Data: []byte{i}}
		if r := c.frame(1, 10+uint64(i), methodSave, saved, &m); r.Code != 0 {
			t.Fatal(r)
		}
	}
	var page pb.ScanSavedResponse
	if r := c.frame(1, 0, methodScanSaved, &pb.ScanSavedRequest{Shard: 1}, &page); r.Code != 0 || len(page.Sessions) != 5 || len(page.Next) != 0 {
		t.Errorf("%v, %v", r, &page)
	}
}

// The times of validations of tokens that differ in why they do not count, beside those of one that does: whoever tries
// tokens must not learn from them how near they are.
func BenchmarkValidateTokens(b *testing.B) {
	c := newSmall(b, nil)
	defer c.close()
	m := c.login("alice")
	valid, err := sessiontoken.Parse(m.Token, sessiontoken.Access, c.cluster())
	if err != nil {
		b.Fatal(err)
	}
	forged, near, unknown, foreign := valid, valid, valid, valid
	forged.Secret[0]++
	near.Secret[31]++
	unknown.Session[20]++
	foreign.Cluster[0]++
	for _, what := range []struct{ name, token string }{
		{"valid", valid.String()}, {"forged", forged.String()}, {"forged in its last byte", near.String()},
		{"unknown session", unknown.String()}, {"foreign", foreign.String()}, {"malformed", m.Token[1:]},
	} {
		q := &pb.ValidateSessionRequest{Token: what.token}
		b.Run(what.name, func(b *testing.B) {
			for b.Loop() {
				if _, err := c.Validate(b.Context(), q); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
