package scsstore_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alexedwards/scs/v2"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/client/scsstore"
)

func commit(t *testing.T, s *scsstore.Store, token, data string, life time.Duration) {
	t.Helper()
	if err := s.Commit(token, []byte(data), time.Now().Add(life)); err != nil {
		t.Fatal(err)
	}
}

// find is the data under a token, "-" if there is none.
func find(t *testing.T, s *scsstore.Store, token string) string {
	t.Helper()
	b, found, err := s.Find(token)
	switch {
	case err != nil:
		t.Fatal(err)
	case !found:
		return "-"
	}
	return string(b)
}

func TestWhatIsCommittedIsFound(t *testing.T) {
	s := scsstore.New(newMemory())
	commit(t, s, "token", "data", time.Minute)
	if got := find(t, s, "token"); got != "data" {
		t.Errorf("got %q", got)
	}
}

func TestWhatIsMissingIsNotFoundAndNoError(t *testing.T) {
	s := scsstore.New(newMemory())
	for _, token := range []string{"missing", "", "sha256:", "sha256:zz", strings.Repeat("x", 10_000)} {
		if got := find(t, s, token); got != "-" {
			t.Errorf("%.20q: got %q", token, got)
		}
	}
}

func TestACommitReplacesDataAndExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scsstore.New(newMemory())
		commit(t, s, "token", "first", time.Minute)
		commit(t, s, "token", "second", time.Hour)
		time.Sleep(2 * time.Minute)
		if got := find(t, s, "token"); got != "second" {
			t.Errorf("got %q", got)
		}
	})
}

func TestASessionExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scsstore.New(newMemory())
		commit(t, s, "token", "data", 100*time.Millisecond)
		time.Sleep(99 * time.Millisecond)
		if got := find(t, s, "token"); got != "data" {
			t.Errorf("before: %q", got)
		}
		time.Sleep(time.Millisecond)
		if got := find(t, s, "token"); got != "-" {
			t.Errorf("after: %q", got)
		}
	})
}

func TestWhatIsDeletedIsGone(t *testing.T) {
	s := scsstore.New(newMemory())
	commit(t, s, "token", "data", time.Minute)
	for range 2 { // the second time there is nothing, which is no error
		if err := s.Delete("token"); err != nil {
			t.Fatal(err)
		}
		if got := find(t, s, "token"); got != "-" {
			t.Errorf("got %q", got)
		}
	}
}

func TestACommitAfterADeleteIsAConflictOrNothing(t *testing.T) {
	s := newMemory()
	store := scsstore.New(s)
	commit(t, store, "token", "data", time.Minute)
	if err := store.Delete("token"); err != nil {
		t.Fatal(err)
	}
	err := store.Commit("token", []byte("late"), time.Now().Add(time.Minute))
	if !errors.Is(err, client.ErrConflict) {
		t.Errorf("got %v, want a conflict", err)
	}
	ignoring := scsstore.New(s, scsstore.IgnoreLateCommits())
	commit(t, ignoring, "token", "late", time.Minute)
	if got := find(t, store, "token"); got != "-" {
		t.Errorf("the session is back: %q", got)
	}
}

func TestAllHasKeysThatEndAndChangeSessionsAndFindNone(t *testing.T) {
	s := scsstore.New(newMemory())
	all, err := s.All()
	if err != nil || all == nil || len(all) != 0 {
		t.Fatalf("without sessions: %v, %v; want an empty map", all, err)
	}
	commit(t, s, "one", "1", time.Minute)
	commit(t, s, "two", "2", time.Minute)
	commit(t, s, "past", "3", -time.Minute)
	if all, err = s.All(); err != nil || len(all) != 2 {
		t.Fatalf("%v, %v", all, err)
	}
	for key, data := range all {
		if got := find(t, s, key); got != "-" {
			t.Errorf("the key %s finds %q: who reads a list of sessions could log in", key, got)
		}
		if string(data) == "1" {
			err = s.Delete(key)
		} else {
			err = s.Commit(key, []byte("changed"), time.Now().Add(time.Minute))
		}
		if err != nil {
			t.Error(err)
		}
	}
	if one, two := find(t, s, "one"), find(t, s, "two"); one != "-" || two != "changed" {
		t.Errorf("got %q and %q", one, two)
	}
}

func TestAContextThatIsOverIsAnError(t *testing.T) {
	s := scsstore.New(newMemory())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err := s.FindCtx(ctx, "token")
	_, errAll := s.AllCtx(ctx)
	for _, err := range []error{
		err, errAll, s.CommitCtx(ctx, "token", nil, time.Now()), s.DeleteCtx(ctx, "token"),
	} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	}
}

// app is a web application with logins. A request to /slow is in its handler until the application is told.
type app struct {
	*httptest.Server
	manager  *scs.SessionManager
	inside   chan struct{}
	goOn     chan struct{}
	problems chan error
}

func newApp(t *testing.T, store scs.Store) *app {
	a := &app{manager: scs.New(), inside: make(chan struct{}), goOn: make(chan struct{}), problems: make(chan error, 10)}
	a.manager.Store, a.manager.IdleTimeout = store, time.Hour // so that every request saves
	a.manager.ErrorFunc = func(w http.ResponseWriter, _ *http.Request, err error) {
		a.problems <- err
		http.Error(w, "cannot keep the session", http.StatusInternalServerError)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/login", func(_ http.ResponseWriter, r *http.Request) {
		if err := a.manager.RenewToken(r.Context()); err != nil {
			t.Error(err)
		}
		a.manager.Put(r.Context(), "user", r.FormValue("user"))
	})
	mux.HandleFunc("/logout", func(_ http.ResponseWriter, r *http.Request) {
		if err := a.manager.Destroy(r.Context()); err != nil {
			t.Error(err)
		}
	})
	mux.HandleFunc("/whoami", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, a.manager.GetString(r.Context(), "user"))
	})
	mux.HandleFunc("/count", func(w http.ResponseWriter, r *http.Request) {
		n := a.manager.GetInt(r.Context(), "n") + 1
		a.manager.Put(r.Context(), "n", n)
		_, _ = io.WriteString(w, strconv.Itoa(n))
	})
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		a.inside <- struct{}{}
		<-a.goOn
		a.manager.Put(r.Context(), "page", "slow")
	})
	a.Server = httptest.NewServer(a.manager.LoadAndSave(mux))
	t.Cleanup(a.Close)
	return a
}

// browser has cookies.
func browser(t *testing.T) *http.Client {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &http.Client{Jar: jar}
}

func mustURL(t *testing.T, text string) *url.URL {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// get returns an answer's status and body.
func get(t *testing.T, c *http.Client, url string) (int, string) {
	t.Helper()
	a, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	b, err := io.ReadAll(a.Body)
	if err != nil {
		t.Fatal(err)
	}
	return a.StatusCode, string(b)
}

// The fault that stores without tombstones have: request 1 loads the session, request 2 logs out, request 1 saves.
func TestALogoutIsNotUndoneByARequestThatBeganBefore(t *testing.T) {
	for name, tc := range map[string]struct {
		options []scsstore.Option
		status  int
	}{
		"by default": {nil, http.StatusInternalServerError},
		"ignored":    {[]scsstore.Option{scsstore.IgnoreLateCommits()}, http.StatusOK},
	} {
		t.Run(name, func(t *testing.T) {
			a := newApp(t, scsstore.New(newMemory(), tc.options...))
			b := browser(t)
			get(t, b, a.URL+"/login?user=alice")
			_, user := get(t, b, a.URL+"/whoami")
			if user != "alice" {
				t.Fatalf("logged in as %q", user)
			}
			stolen := &http.Client{Jar: b.Jar} // who keeps the cookie
			slow := make(chan int)
			go func() {
				status, _ := get(t, stolen, a.URL+"/slow")
				slow <- status
			}()
			<-a.inside
			cookies := b.Jar.Cookies(mustURL(t, a.URL))
			get(t, b, a.URL+"/logout")
			a.goOn <- struct{}{}
			if status := <-slow; status != tc.status {
				t.Errorf("the late request is answered with %d, want %d", status, tc.status)
			}
			if tc.status != http.StatusOK {
				if err := <-a.problems; !errors.Is(err, client.ErrConflict) {
					t.Errorf("the application is told %v", err)
				}
			}
			again := browser(t)
			again.Jar.SetCookies(mustURL(t, a.URL), cookies)
			if _, user := get(t, again, a.URL+"/whoami"); user != "" {
				t.Errorf("%q is logged in again", user)
			}
		})
	}
}

func TestTheKeyOfASessionIsNoCookie(t *testing.T) {
	m := newMemory()
	a := newApp(t, scsstore.New(m))
	get(t, browser(t), a.URL+"/login?user=alice")
	for key := range m.rows {
		thief := browser(t)
		thief.Jar.SetCookies(mustURL(t, a.URL), []*http.Cookie{{Name: a.manager.Cookie.Name, Value: key.String()}})
		if _, user := get(t, thief, a.URL+"/whoami"); user != "" {
			t.Errorf("logged in as %q with a key", user)
		}
	}
}
