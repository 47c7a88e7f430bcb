// Package httplimit limits the requests of a net/http server.
//
//	limited := httplimit.New(c.Limits(), httplimit.ByIP).Wrap(handler)
//
// Answers carry the RateLimit and RateLimit-Policy fields of draft-ietf-httpapi-ratelimit-headers; a denied request is
// answered with 429, Retry-After and a problem document (RFC 9457).
package httplimit

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/holdfastdb/holdfast/client"
)

// Key tells what is limited about a request; false lets it pass unlimited.
type Key func(r *http.Request) (client.Request, bool)

// ByIP limits by the address of the connection. Behind a proxy that is the proxy's: then write a Key that reads the
// header which that proxy sets.
func ByIP(r *http.Request) (client.Request, bool) {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	return client.Request{IP: host, Resource: r.URL.Path}, host != ""
}

// ByHeader limits by the value of a header, such as an API key; requests without it pass.
func ByHeader(name string) Key {
	return func(r *http.Request) (client.Request, bool) {
		v := r.Header.Get(name)
		return client.Request{Client: v, Resource: r.URL.Path}, v != ""
	}
}

// Limiter is a middleware. Change its fields before the first request.
type Limiter struct {
	Limits *client.Limits
	Key    Key
	// Leased decides from leases, without a round trip for each request; see client.Limits.Async.
	Leased bool
	// OnError decides what happens to a request while no decision can be had; nil lets it pass, for a limiter that
	// fails should not take the service with it. Policies with leases have their own say in on_unavailable.
	OnError func(w http.ResponseWriter, r *http.Request, err error, next http.Handler)
	Logger  *slog.Logger
}

// New makes a middleware with the defaults.
func New(limits *client.Limits, key Key) *Limiter {
	return &Limiter{Limits: limits, Key: key, Logger: slog.New(slog.DiscardHandler)}
}

// Wrap limits a handler.
func (l *Limiter) Wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q, limited := l.Key(r)
		if !limited {
			next.ServeHTTP(w, r)
			return
		}
		decide := l.Limits.Check
		if l.Leased {
			decide = l.Limits.Async
		}
		d, err := decide(r.Context(), q)
		switch {
		case err != nil && l.OnError != nil:
			l.OnError(w, r, err, next)
			return
		case err != nil:
			l.Logger.Warn("no rate-limit decision, the request passes", "error", err)
			next.ServeHTTP(w, r)
			return
		}
		SetHeaders(w.Header(), &d)
		if !d.Allowed {
			deny(w, &d)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// SetHeaders writes the RateLimit fields of a decision.
func SetHeaders(h http.Header, d *client.Decision) {
	var policies, limits []string
	for _, s := range d.Limits {
		if s.Shadow {
			continue
		}
		name := strconv.Quote(s.PolicyName)
		policies = append(policies, fmt.Sprintf("%s;q=%d;w=%d", name, s.Limit, ceil(s.Window)))
		wait := time.Until(s.ResetAt)
		if s.Denied && s.RetryAfter >= 0 {
			wait = s.RetryAfter
		}
		limits = append(limits, fmt.Sprintf("%s;r=%d;t=%d", name, s.Remaining, ceil(wait)))
	}
	if len(policies) > 0 {
		h.Set("RateLimit-Policy", strings.Join(policies, ", "))
		h.Set("RateLimit", strings.Join(limits, ", "))
	}
	if !d.Allowed && d.RetryAfter >= 0 {
		h.Set("Retry-After", strconv.Itoa(max(ceil(d.RetryAfter), 1)))
	}
}

func ceil(d time.Duration) int { return int(math.Ceil(max(d, 0).Seconds())) }

// deny answers 429 with the problem type that IANA registers for it.
func deny(w http.ResponseWriter, d *client.Decision) {
	var violated []string
	for _, s := range d.Limits {
		if s.Denied && !s.Shadow {
			violated = append(violated, s.PolicyName)
		}
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(http.StatusTooManyRequests)
	_ = json.NewEncoder(w).Encode(map[string]any{
		"type": "https://iana.org/assignments/http-problem-types#quota-exceeded", "title": "Too Many Requests",
		"status": http.StatusTooManyRequests, "detail": "the rate limit is reached", "violated-policies": violated,
	})
}
