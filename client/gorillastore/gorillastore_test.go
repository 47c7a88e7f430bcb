package gorillastore_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/sessions"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/client/gorillastore"
)

// memory keeps sessions as a cluster does.
type memory struct {
	mu      sync.Mutex
	rows    map[client.SavedKey][]byte
	expires map[client.SavedKey]time.Time
	dead    map[client.SavedKey]bool
}

func newMemory() *memory {
	return &memory{
		rows: make(map[client.SavedKey][]byte), expires: make(map[client.SavedKey]time.Time),
		dead: make(map[client.SavedKey]bool),
	}
}

func (m *memory) Save(_ context.Context, key client.SavedKey, data []byte, expires time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead[key] {
		return client.ErrConflict
	}
	m.rows[key], m.expires[key] = data, expires
	return nil
}

func (m *memory) Find(_ context.Context, token string) ([]byte, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := client.KeyOf(token)
	data, found := m.rows[k]
	return data, found && time.Now().Before(m.expires[k]), nil
}

func (m *memory) Drop(_ context.Context, key client.SavedKey) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, found := m.rows[key]
	delete(m.rows, key)
	m.dead[key] = m.dead[key] || found
	return found, nil
}

var key = []byte("a key of 32 bytes to sign cookies")

// request carries the cookies that an answer set.
func request(answer *httptest.ResponseRecorder) *http.Request {
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	if answer != nil {
		for _, c := range answer.Result().Cookies() {
			if c.MaxAge >= 0 {
				r.AddCookie(c)
			}
		}
	}
	return r
}

func open(t *testing.T, s sessions.Store, r *http.Request) *sessions.Session {
	t.Helper()
	session, err := s.Get(r, "session")
	if err != nil {
		t.Fatal(err)
	}
	return session
}

func save(t *testing.T, r *http.Request, session *sessions.Session) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	if err := session.Save(r, w); err != nil {
		t.Fatal(err)
	}
	return w
}

// login saves a session with a user and returns the answer with its cookie.
func login(t *testing.T, s sessions.Store, user string) *httptest.ResponseRecorder {
	t.Helper()
	r := request(nil)
	session := open(t, s, r)
	session.Values["user"] = user
	return save(t, r, session)
}

func TestWhatIsSavedComesBack(t *testing.T) {
	s := gorillastore.New(newMemory(), key)
	answer := login(t, s, "alice")
	session := open(t, s, request(answer))
	if session.IsNew || session.Values["user"] != "alice" {
		t.Errorf("new: %v, values %v", session.IsNew, session.Values)
	}
	c := answer.Result().Cookies()[0]
	if !c.Secure || !c.HttpOnly || c.SameSite != http.SameSiteLaxMode || c.Path != "/" {
		t.Errorf("the cookie is %v", c)
	}
	session.Values["user"] = "alice again"
	save(t, request(answer), session)
	if again := open(t, s, request(answer)); again.Values["user"] != "alice again" || again.ID != session.ID {
		t.Errorf("saved again: %v", again.Values)
	}
}

func TestWithoutACookieTheSessionIsNew(t *testing.T) {
	s := gorillastore.New(newMemory(), key)
	if session := open(t, s, request(nil)); !session.IsNew || session.ID != "" {
		t.Errorf("%+v", session)
	}
}

func TestACookieThatSomebodyMadeUpIsAnErrorAndANewSession(t *testing.T) {
	s := gorillastore.New(newMemory(), key)
	r := request(login(t, gorillastore.New(newMemory(), []byte("another key, which is not the right one")), "alice"))
	session, err := s.Get(r, "session")
	if err == nil || session == nil || !session.IsNew || session.ID != "" {
		t.Errorf("%+v, %v", session, err)
	}
}

// Whoever plants the cookie of a session that is over must not know the id of the next one.
func TestASessionThatIsOverIsFollowedByOneWithAnotherID(t *testing.T) {
	s := gorillastore.New(newMemory(), key)
	answer := login(t, s, "alice")
	before := open(t, s, request(answer)).ID
	logout(t, s, answer)
	r := request(answer)
	session := open(t, s, r)
	if !session.IsNew || len(session.Values) != 0 {
		t.Fatalf("after the logout: %v", session.Values)
	}
	if save(t, r, session); session.ID == before || session.ID == "" {
		t.Errorf("the id %q is used again", session.ID)
	}
}

func logout(t *testing.T, s sessions.Store, answer *httptest.ResponseRecorder) {
	t.Helper()
	r := request(answer)
	session := open(t, s, r)
	session.Options.MaxAge = -1
	w := save(t, r, session)
	if c := w.Result().Cookies()[0]; c.MaxAge >= 0 {
		t.Errorf("the cookie stays: %v", c)
	}
}

func TestASessionIsKeptForItsMaxAge(t *testing.T) {
	m := newMemory()
	s := gorillastore.New(m, key)
	s.Options.MaxAge = 60
	login(t, s, "alice")
	for _, until := range m.expires {
		if left := time.Until(until); left > time.Minute || left < 50*time.Second {
			t.Errorf("%v are left of a minute", left)
		}
	}
}

func TestSessionsOfDifferentNamesAreApart(t *testing.T) {
	s := gorillastore.New(newMemory(), key)
	answer := login(t, s, "alice")
	c := answer.Result().Cookies()[0]
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.AddCookie(&http.Cookie{Name: "other", Value: c.Value})
	if session, err := s.Get(r, "other"); err == nil || !session.IsNew {
		t.Error("the cookie of one session opens another")
	}
}

// The fault that stores without tombstones have: request 1 opens the session, request 2 logs out, request 1 saves.
func TestALogoutIsNotUndoneByARequestThatBeganBefore(t *testing.T) {
	for name, ignore := range map[string]bool{"by default": false, "ignored": true} {
		t.Run(name, func(t *testing.T) {
			s := gorillastore.New(newMemory(), key)
			s.IgnoreLateSaves = ignore
			answer := login(t, s, "alice")
			first := request(answer)
			session := open(t, s, first)
			logout(t, s, answer)
			session.Values["page"] = "late"
			w := httptest.NewRecorder()
			err := session.Save(first, w)
			switch {
			case !ignore && !errors.Is(err, client.ErrConflict):
				t.Errorf("got %v, want a conflict", err)
			case ignore && (err != nil || w.Result().Cookies()[0].MaxAge >= 0):
				t.Errorf("got %v and %v, want the cookie to be taken away", err, w.Result().Cookies())
			}
			if again := open(t, s, request(answer)); !again.IsNew {
				t.Errorf("the session is back: %v", again.Values)
			}
		})
	}
}
