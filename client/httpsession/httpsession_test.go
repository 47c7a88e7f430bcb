package httpsession_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/client/httpsession"
)

// answers is what the cluster says of each token.
type answers map[string]client.Validation

func (a answers) Validate(_ context.Context, token string, _ ...client.ValidateOption) (client.Validation, error) {
	v, known := a[token]
	if !known {
		return client.Validation{}, client.ErrUnavailable
	}
	return v, nil
}

var known = answers{
	"good":  {Valid: true, Session: &client.Session{UserID: "alice"}},
	"ended": {Reason: client.ReasonEnded},
}

// whoami says whose request it is.
var whoami = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	if s, ok := httpsession.FromContext(r.Context()); ok {
		_, _ = io.WriteString(w, s.UserID)
	} else {
		_, _ = io.WriteString(w, "nobody")
	}
})

func TestARequestIsLetInByItsSession(t *testing.T) {
	for name, tc := range map[string]struct {
		bearer, cookie string
		optional       bool
		code           int
		body, reason   string
	}{
		"a cookie":                          {cookie: "good", code: 200, body: "alice"},
		"a bearer token":                    {bearer: "Bearer good", code: 200, body: "alice"},
		"the scheme in small letters":       {bearer: "bearer good", code: 200, body: "alice"},
		"the header counts, not the cookie": {bearer: "Bearer ended", cookie: "good", code: 401, reason: "ended"},
		"another scheme, and a cookie":      {bearer: "Basic good", cookie: "good", code: 200, body: "alice"},
		"nothing":                           {code: 401},
		"an ended session":                  {cookie: "ended", code: 401, reason: "ended"},
		"nothing, where none is needed":     {optional: true, code: 200, body: "nobody"},
		"ended, where none is needed":       {cookie: "ended", optional: true, code: 200, body: "nobody"},
		"nobody can tell":                   {cookie: "?", code: 503},
		"nobody can tell, none is needed":   {cookie: "?", optional: true, code: 503},
	} {
		t.Run(name, func(t *testing.T) {
			guard := httpsession.New(known)
			guard.Optional = tc.optional
			r := httptest.NewRequest(http.MethodGet, "/", nil)
			if tc.bearer != "" {
				r.Header.Set("Authorization", tc.bearer)
			}
			if tc.cookie != "" {
				r.AddCookie(&http.Cookie{Name: "session", Value: tc.cookie})
			}
			w := httptest.NewRecorder()
			guard.Wrap(whoami).ServeHTTP(w, r)
			if w.Code != tc.code {
				t.Fatalf("status %d, want %d", w.Code, tc.code)
			}
			if tc.code == http.StatusOK {
				if w.Body.String() != tc.body {
					t.Errorf("let in as %q, want %q", w.Body, tc.body)
				}
				return
			}
			var problem struct {
				Status int
				Reason string
			}
			if err := json.Unmarshal(w.Body.Bytes(), &problem); err != nil || w.Header().Get("Content-Type") != "application/problem+json" {
				t.Fatalf("%v, %s", err, w.Header().Get("Content-Type"))
			}
			if problem.Status != tc.code || problem.Reason != tc.reason {
				t.Errorf("the problem is %+v", problem)
			}
			if challenge := w.Header().Get("WWW-Authenticate"); (challenge != "") != (tc.code == http.StatusUnauthorized) {
				t.Errorf("WWW-Authenticate is %q", challenge)
			}
		})
	}
}

// asked notes how it was asked.
type asked struct{ options []client.ValidateOption }

func (a *asked) Validate(_ context.Context, _ string, options ...client.ValidateOption) (client.Validation, error) {
	a.options = options
	return known["good"], nil
}

func TestTheGuardTellsFromWhereTheRequestComes(t *testing.T) {
	var a asked
	guard := httpsession.New(&a)
	guard.MaxStale = time.Second
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.RemoteAddr = "10.0.0.1:1234"
	r.AddCookie(&http.Cookie{Name: "session", Value: "good"})
	guard.Wrap(whoami).ServeHTTP(httptest.NewRecorder(), r)
	if len(a.options) != 2 || !equal(a.options[0], client.MaxStale(time.Second)) || !equal(a.options[1], client.FromIP("10.0.0.1")) {
		t.Errorf("asked with %+v", a.options)
	}
}

func equal(a, b client.ValidateOption) bool {
	return fmt.Sprint(a) == fmt.Sprint(b)
}

func TestTheCookieIsForTheServerAlone(t *testing.T) {
	guard := httpsession.New(known)
	w := httptest.NewRecorder()
	guard.SetCookie(w, client.Tokens{Token: "good", ExpiresAt: time.Now().Add(time.Hour)})
	c := w.Result().Cookies()[0]
	if c.Value != "good" || !c.Secure || !c.HttpOnly || c.SameSite != http.SameSiteLaxMode {
		t.Errorf("%v", c)
	}
	w = httptest.NewRecorder()
	guard.ClearCookie(w)
	if c := w.Result().Cookies()[0]; c.MaxAge >= 0 || c.Value != "" {
		t.Errorf("%v", c)
	}
}
