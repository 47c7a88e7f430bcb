// Package httpsession lets requests of a net/http server in by their sessions.
//
//	guard := httpsession.New(c.Sessions())
//	guard.MaxStale = 500 * time.Millisecond
//	mux.Handle("/account", guard.Wrap(account))
//
// A handler behind it asks FromContext whose request it is. One without a session that counts is answered with 401 and a
// problem document (RFC 9457).
package httpsession

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/holdfastdb/holdfast/client"
)

// Sessions tells whether tokens count: *client.Sessions.
type Sessions interface {
	Validate(ctx context.Context, token string, options ...client.ValidateOption) (client.Validation, error)
}

// Guard is a middleware. Change its fields before the first request.
type Guard struct {
	Sessions Sessions
	// Cookie has the access token of who has no Authorization header with a Bearer token.
	Cookie string
	// MaxStale allows answers from memory; see client.MaxStale. 0 asks the cluster about every request.
	MaxStale time.Duration
	// Optional also lets in who has no session that counts: then FromContext has none.
	Optional bool
	// IP and Device tell from where a request comes, for sessions that are bound to that. Without IP it is the address of
	// the connection, which behind a proxy is the proxy's: then write one that reads the header which that proxy sets.
	IP     func(*http.Request) string
	Device func(*http.Request) map[string]any
	Logger *slog.Logger
}

// DefaultCookie is the name of the cookie.
const DefaultCookie = "session"

// New makes a middleware with the defaults.
func New(sessions Sessions) *Guard {
	return &Guard{Sessions: sessions, Cookie: DefaultCookie, IP: remoteIP, Logger: slog.New(slog.DiscardHandler)}
}

func remoteIP(r *http.Request) string {
	a, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return ""
	}
	return a.Addr().Unmap().WithZone("").String()
}

type sessionKey struct{}

// FromContext is the session of a request; false if it has none. It is shared and must not be changed.
func FromContext(ctx context.Context) (*client.Session, bool) {
	s, ok := ctx.Value(sessionKey{}).(*client.Session)
	return s, ok
}

// Wrap guards a handler.
func (g *Guard) Wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Add("Vary", "Cookie, Authorization")
		token := g.Token(r)
		if token == "" {
			g.refuse(w, r, "", next)
			return
		}
		v, err := g.Sessions.Validate(r.Context(), token, g.options(r)...)
		switch {
		case err != nil: // whoever it is may have been logged out: nobody is let in on a guess
			g.Logger.Warn("a session cannot be validated, the request is refused", "error", err)
			w.Header().Set("Retry-After", "1")
			problem(w, http.StatusServiceUnavailable, "the session cannot be checked now", "")
		case !v.Valid:
			g.refuse(w, r, v.Reason, next)
		default:
			next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), sessionKey{}, v.Session)))
		}
	})
}

func (g *Guard) options(r *http.Request) []client.ValidateOption {
	options := []client.ValidateOption{client.MaxStale(g.MaxStale)}
	if g.IP != nil {
		options = append(options, client.FromIP(g.IP(r)))
	}
	if g.Device != nil {
		options = append(options, client.OnDevice(g.Device(r)))
	}
	return options
}

// Token is the access token that a request carries, empty if none.
func (g *Guard) Token(r *http.Request) string {
	if scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " "); ok && strings.EqualFold(scheme, "Bearer") {
		return strings.TrimSpace(token)
	}
	if c, err := r.Cookie(g.Cookie); err == nil {
		return c.Value
	}
	return ""
}

// SetCookie gives the browser the access token of a login, a refresh or a rotation. Scripts cannot read it, and it travels
// over TLS only.
func (g *Guard) SetCookie(w http.ResponseWriter, t client.Tokens) {
	http.SetCookie(w, g.cookie(t.Token, t.ExpiresAt, 0))
}

// ClearCookie takes it away.
func (g *Guard) ClearCookie(w http.ResponseWriter) { http.SetCookie(w, g.cookie("", time.Time{}, -1)) }

func (g *Guard) cookie(value string, expires time.Time, maxAge int) *http.Cookie {
	return &http.Cookie{
		Name: g.Cookie, Value: value, Path: "/", Expires: expires, MaxAge: maxAge, Secure: true, HttpOnly: true,
		SameSite: http.SameSiteLaxMode,
	}
}

// refuse answers who has no session that counts.
func (g *Guard) refuse(w http.ResponseWriter, r *http.Request, reason client.Reason, next http.Handler) {
	switch {
	case g.Optional:
		next.ServeHTTP(w, r)
	case reason == "":
		w.Header().Set("WWW-Authenticate", "Bearer")
		problem(w, http.StatusUnauthorized, "log in first", "")
	default:
		w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
		problem(w, http.StatusUnauthorized, "the session does not count", reason)
	}
}

func problem(w http.ResponseWriter, code int, detail string, reason client.Reason) {
	body := map[string]any{"title": http.StatusText(code), "status": code, "detail": detail}
	if reason != "" {
		body["reason"] = reason
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body)
}
