package client_test

import (
	"testing"
	"time"

	"github.com/holdfastdb/holdfast/client"
)

// beginSession logs a user of the test's name in.
func beginSession(t *testing.T, c *client.Client) client.Tokens {
	t.Helper()
	login, err := c.Sessions().Create(t.Context(), client.Login{UserID: t.Name(), RememberMe: true})
	if err != nil {
		t.Fatal(err)
	}
	return login
}

func TestARealClusterKeepsAnswersFreshAndTellsOfRevocations(t *testing.T) {
	c, _ := dialCluster(t, 0)
	other, _ := dialCluster(t, 0)
	login := beginSession(t, other)
	const bound = 200 * time.Millisecond
	asked := 0
	for begun := time.Now(); time.Since(begun) < 2*time.Second; time.Sleep(time.Millisecond) {
		var trace client.Trace
		v, err := c.Sessions().Validate(client.WithTrace(t.Context(), &trace), login.Token, client.MaxStale(bound))
		if err != nil || !v.Valid || v.Age > bound {
			t.Fatalf("%+v, %v", v, err)
		}
		if trace.Shard != 0 {
			asked++
		}
	}
	if asked > 8 { // ten would do without a stream; a machine that is busy pings late
		t.Errorf("%d validations reached the cluster in two seconds", asked)
	}
	if _, err := other.Sessions().Revoke(t.Context(), login.SessionID); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the revocation is seen, though an hour would be allowed", func() bool {
		return !validate(t, c, login.Token, client.MaxStale(time.Hour)).Valid
	})
}

func TestWhatAClientEndsOnARealClusterItForgetsAtOnce(t *testing.T) {
	for name, end := range map[string]func(s *client.Sessions, login client.Tokens, user string) error{
		"logout": func(s *client.Sessions, login client.Tokens, _ string) error {
			_, err := s.Logout(t.Context(), login.Token, client.Everywhere)
			return err
		},
		"revoke user": func(s *client.Sessions, _ client.Tokens, user string) error {
			_, err := s.RevokeUser(t.Context(), user)
			return err
		},
		"erase user": func(s *client.Sessions, _ client.Tokens, user string) error {
			_, err := s.EraseUser(t.Context(), user)
			return err
		},
		"rotate": func(s *client.Sessions, login client.Tokens, _ string) error {
			_, err := s.Rotate(t.Context(), login.Token)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, _ := dialCluster(t, 0)
			login := beginSession(t, c)
			if v := validate(t, c, login.Token, client.MaxStale(time.Hour)); !v.Valid {
				t.Fatalf("%+v", v)
			}
			if err := end(c.Sessions(), login, t.Name()); err != nil {
				t.Fatal(err)
			}
			if v := validate(t, c, login.Token, client.MaxStale(time.Hour)); v.Valid {
				t.Errorf("it counts on: %+v", v)
			}
		})
	}
}

func TestATokenInGraceIsNotRememberedForLonger(t *testing.T) {
	c, _ := dialCluster(t, 0)
	login := beginSession(t, c)
	if _, err := c.Sessions().Refresh(t.Context(), login.RefreshToken); err != nil {
		t.Fatal(err)
	}
	v := validate(t, c, login.Token, client.MaxStale(time.Hour))
	if left := time.Until(v.Session.ExpiresAt); !v.Valid || left > 11*time.Second {
		t.Errorf("the token before the refresh counts for another %v", left)
	}
}

func TestSavedSessionsOfARealCluster(t *testing.T) {
	c, _ := dialCluster(t, 0)
	s := c.Sessions().Saved()
	ctx := t.Context()
	want := make(map[client.SavedKey]string)
	for _, name := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} { // in all shards
		token := t.Name() + name
		want[client.KeyOf(token)] = name
		if err := s.Save(ctx, client.KeyOf(token), []byte(name), time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if b, found, err := s.Find(ctx, token); err != nil || !found || string(b) != name {
			t.Fatalf("%q, %v, %v", b, found, err)
		}
	}
	found := 0
	var last client.SavedKey
	for one, err := range s.Scan(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		if name, mine := want[one.Key]; mine {
			found++
			if string(one.Data) != name || time.Until(one.ExpiresAt) > time.Minute {
				t.Errorf("%q until %v under the key of %q", one.Data, one.ExpiresAt, name)
			}
		}
		if string(last[:]) >= string(one.Key[:]) {
			t.Error("the keys do not ascend")
		}
		last = one.Key
	}
	if found != len(want) {
		t.Errorf("%d of %d were scanned", found, len(want))
	}
	for key := range want {
		if there, err := s.Drop(ctx, key); err != nil || !there {
			t.Errorf("%v, %v", there, err)
		}
		if there, err := s.Drop(ctx, key); err != nil || there {
			t.Errorf("again: %v, %v", there, err)
		}
	}
}
