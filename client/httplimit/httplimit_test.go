package httplimit_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/client/httplimit"
)

// The fields are lists of structured-field items: a quoted name with parameters (draft-ietf-httpapi-ratelimit-headers).
func TestSetHeadersWritesTheRateLimitFields(t *testing.T) {
	now := client.LimitState{PolicyName: "per-minute", Limit: 100, Remaining: 42, Window: time.Minute}
	change := func(f func(s *client.LimitState)) client.LimitState {
		s := now
		f(&s)
		return s
	}
	for name, tt := range map[string]struct {
		d                    client.Decision
		resetIn              time.Duration
		policy, limit, retry string
	}{
		"allowed": {
			d: client.Decision{Allowed: true, Limits: []client.LimitState{now}}, resetIn: 30 * time.Second,
			policy: `"per-minute";q=100;w=60`, limit: `"per-minute";r=42;t=30`,
		},
		"fractions of seconds are rounded up": {
			d: client.Decision{Allowed: true, Limits: []client.LimitState{
				change(func(s *client.LimitState) { s.Window = 1500 * time.Millisecond }),
			}},
			resetIn: 300 * time.Millisecond, policy: `"per-minute";q=100;w=2`, limit: `"per-minute";r=42;t=1`,
		},
		"a reset in the past is now": {
			d: client.Decision{Allowed: true, Limits: []client.LimitState{now}}, resetIn: -time.Hour,
			policy: `"per-minute";q=100;w=60`, limit: `"per-minute";r=42;t=0`,
		},
		"every limit in its order, but not those that only watch": {
			d: client.Decision{Allowed: true, Limits: []client.LimitState{
				now,
				change(func(s *client.LimitState) { s.PolicyName, s.Shadow = "watched", true }),
				change(func(s *client.LimitState) {
					s.PolicyName, s.Limit, s.Remaining, s.Window = "daily", 5000, 4900, 24*time.Hour
				}),
			}},
			resetIn: 30 * time.Second,
			policy:  `"per-minute";q=100;w=60, "daily";q=5000;w=86400`, limit: `"per-minute";r=42;t=30, "daily";r=4900;t=30`,
		},
		"a limit that denied tells when to come back": {
			d: client.Decision{RetryAfter: 7200 * time.Millisecond, Limits: []client.LimitState{
				change(func(s *client.LimitState) { s.Denied, s.Remaining, s.RetryAfter = true, 0, 7200*time.Millisecond }), now,
			}},
			resetIn: 30 * time.Second,
			policy:  `"per-minute";q=100;w=60, "per-minute";q=100;w=60`, limit: `"per-minute";r=0;t=8, "per-minute";r=42;t=30`, retry: "8",
		},
		"a wait is at least a second": {
			d: client.Decision{RetryAfter: 0}, retry: "1",
		},
		"no wait helps": {
			d: client.Decision{RetryAfter: -1, Limits: []client.LimitState{
				change(func(s *client.LimitState) { s.Denied, s.RetryAfter = true, -1 }),
			}},
			resetIn: 30 * time.Second, policy: `"per-minute";q=100;w=60`, limit: `"per-minute";r=42;t=30`,
		},
		"nothing applied":       {d: client.Decision{Allowed: true, Remaining: client.Unlimited}},
		"allowed from a lease":  {d: client.Decision{Allowed: true, Remaining: 12}},
		"denied while leased":   {d: client.Decision{RetryAfter: 1900 * time.Millisecond}, retry: "2"},
		"allowed, all watching": {d: client.Decision{Allowed: true, Limits: []client.LimitState{change(func(s *client.LimitState) { s.Shadow = true })}}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // time stands still: what is left of a window is exact
				for i := range tt.d.Limits {
					tt.d.Limits[i].ResetAt = time.Now().Add(tt.resetIn)
				}
				h := make(http.Header)
				httplimit.SetHeaders(h, &tt.d)
				if h.Get("RateLimit-Policy") != tt.policy || h.Get("RateLimit") != tt.limit || h.Get("Retry-After") != tt.retry {
					t.Errorf("got %v", h)
				}
				if tt.policy == "" && h.Values("RateLimit-Policy") != nil || tt.retry == "" && h.Values("Retry-After") != nil {
					t.Errorf("empty fields: %v", h)
				}
			})
		})
	}
}

// served counts the requests that came through.
type served struct{ n int }

func (s *served) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	s.n++
	_, _ = io.WriteString(w, "hello")
}

// get asks a handler, as a client with this key.
func get(h http.Handler, key string) *httptest.ResponseRecorder {
	q := httptest.NewRequest(http.MethodGet, "/orders", nil)
	if key != "" {
		q.Header.Set("X-Api-Key", key)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, q)
	return w
}

// fields takes the numbers of both fields of an answer.
var fields = regexp.MustCompile(`^"(\S+)";[qr]=(\d+);[wt]=(\d+)$`)

func numbers(t *testing.T, value, name string) (a, b int) {
	t.Helper()
	m := fields.FindStringSubmatch(value)
	if m == nil || m[1] != name {
		t.Fatalf("%q is not a field of policy %q", value, name)
	}
	a, _ = strconv.Atoi(m[2])
	b, _ = strconv.Atoi(m[3])
	return a, b
}

func TestRequestsPassUntilTheLimitAndAreThenAnsweredWith429(t *testing.T) {
	defer cluster.Quota("http", "client", "key-of-http", 2)()
	next := &served{}
	h := httplimit.New(sdk.Limits(), httplimit.ByHeader("X-Api-Key")).Wrap(next)
	const year = 366 * 24 * 3600
	for left := 1; left >= 0; left-- {
		w := get(h, "key-of-http")
		if w.Code != http.StatusOK || w.Body.String() != "hello" || w.Header().Values("Retry-After") != nil {
			t.Fatalf("with %d left: %d %v", left, w.Code, w.Header())
		}
		if q, window := numbers(t, w.Header().Get("RateLimit-Policy"), "http"); q != 2 || window < year-24*3600 || window > year {
			t.Errorf("policy %v", w.Header())
		}
		if r, reset := numbers(t, w.Header().Get("RateLimit"), "http"); r != left || reset < 0 || reset > year {
			t.Errorf("with %d left: %v", left, w.Header())
		}
	}
	w := get(h, "key-of-http")
	if w.Code != http.StatusTooManyRequests || w.Header().Get("Content-Type") != "application/problem+json" || next.n != 2 {
		t.Fatalf("beyond the limit: %d %v, the handler served %d", w.Code, w.Header(), next.n)
	}
	retry, err := strconv.Atoi(w.Header().Get("Retry-After"))
	if err != nil || retry < 1 || retry > year {
		t.Errorf("Retry-After %q", w.Header().Get("Retry-After"))
	}
	if q, _ := numbers(t, w.Header().Get("RateLimit-Policy"), "http"); q != 2 {
		t.Errorf("policy %v", w.Header())
	}
	if r, wait := numbers(t, w.Header().Get("RateLimit"), "http"); r != 0 || wait != retry {
		t.Errorf("denied: %v", w.Header())
	}
	var problem struct {
		Type, Title string
		Status      int
		Violated    []string `json:"violated-policies"`
	}
	if err := json.Unmarshal(w.Body.Bytes(), &problem); err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(problem.Type, "#quota-exceeded") || problem.Status != 429 || problem.Title == "" || !slices.Equal(problem.Violated, []string{"http"}) {
		t.Errorf("problem %s", w.Body)
	}
	if w := get(h, "key-of-somebody-else"); w.Code != http.StatusOK || w.Header().Values("RateLimit") != nil {
		t.Errorf("a client without a policy: %d %v", w.Code, w.Header())
	}
}

func TestRequestsWithoutAKeyPassUnlimited(t *testing.T) {
	next := &served{}
	h := httplimit.New(sdk.Limits(), httplimit.ByHeader("X-Api-Key")).Wrap(next)
	w := get(h, "")
	if w.Code != http.StatusOK || next.n != 1 || w.Header().Values("RateLimit") != nil || w.Header().Values("RateLimit-Policy") != nil {
		t.Errorf("%d %v", w.Code, w.Header())
	}
}

func TestKeys(t *testing.T) {
	header := func(value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set("X-Api-Key", value) }
	}
	from := func(addr string) func(*http.Request) { return func(r *http.Request) { r.RemoteAddr = addr } }
	for name, tt := range map[string]struct {
		key     httplimit.Key
		prepare func(*http.Request)
		want    client.Request
		limited bool
	}{
		"IPv4":                   {httplimit.ByIP, from("192.0.2.7:1234"), client.Request{IP: "192.0.2.7", Resource: "/orders"}, true},
		"IPv6":                   {httplimit.ByIP, from("[2001:db8::7]:1234"), client.Request{IP: "2001:db8::7", Resource: "/orders"}, true},
		"address without port":   {httplimit.ByIP, from("192.0.2.7"), client.Request{IP: "192.0.2.7", Resource: "/orders"}, true},
		"no address":             {key: httplimit.ByIP, prepare: from("")},
		"header":                 {httplimit.ByHeader("X-Api-Key"), header("k"), client.Request{Client: "k", Resource: "/orders"}, true},
		"header in another case": {httplimit.ByHeader("x-api-key"), header("k"), client.Request{Client: "k", Resource: "/orders"}, true},
		"empty header":           {key: httplimit.ByHeader("X-Api-Key"), prepare: header("")},
		"another header":         {key: httplimit.ByHeader("Authorization"), prepare: header("k")},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodGet, "/orders?page=2", nil)
			tt.prepare(r)
			q, limited := tt.key(r)
			if limited != tt.limited || limited && (q.Client != tt.want.Client || q.IP != tt.want.IP || q.Resource != tt.want.Resource) {
				t.Errorf("got %+v, %v", q, limited)
			}
		})
	}
}

func TestEachAddressHasItsOwnQuota(t *testing.T) {
	defer cluster.Quota("by-ip", "ip", "*", 1)()
	h := httplimit.New(sdk.Limits(), httplimit.ByIP).Wrap(&served{})
	ask := func(addr string) int {
		q := httptest.NewRequest(http.MethodGet, "/", nil)
		q.RemoteAddr = addr
		w := httptest.NewRecorder()
		h.ServeHTTP(w, q)
		return w.Code
	}
	codes := []int{ask("192.0.2.1:10"), ask("192.0.2.1:11"), ask("192.0.2.2:10")}
	if !slices.Equal(codes, []int{200, 429, 200}) {
		t.Errorf("two requests from one address and one from another: %v", codes)
	}
}

func TestAKeyMayAskForMoreThanOneToken(t *testing.T) {
	defer cluster.Quota("weighed", "client", "weigher", 10)()
	h := httplimit.New(sdk.Limits(), func(*http.Request) (client.Request, bool) {
		return client.Request{Client: "weigher", Weight: 6}, true
	}).Wrap(&served{})
	first, second := get(h, ""), get(h, "")
	if left, _ := numbers(t, first.Header().Get("RateLimit"), "weighed"); first.Code != 200 || left != 4 || second.Code != 429 {
		t.Errorf("%d %v, then %d", first.Code, first.Header(), second.Code)
	}
}

func TestLeasedDecisionsHaveNoRateLimitFields(t *testing.T) {
	defer cluster.Quota("leased", "client", "leaser", 3)()
	next := &served{}
	l := httplimit.New(cluster.ClientFor(t).Limits(), httplimit.ByHeader("X-Api-Key")) // no leases, and no denials, of an earlier round
	l.Leased = true
	h := l.Wrap(next)
	if w := get(h, "leaser"); w.Code != http.StatusOK || w.Header().Values("RateLimit") != nil {
		t.Errorf("%d %v", w.Code, w.Header())
	}
	// However leases are cut, four requests do not all pass, and a denial says when to come back.
	var last *httptest.ResponseRecorder
	for range 4 {
		last = get(h, "leaser")
	}
	if retry, err := strconv.Atoi(last.Header().Get("Retry-After")); last.Code != 429 || err != nil || retry < 1 || next.n > 3 {
		t.Errorf("%d %v, served %d", last.Code, last.Header(), next.n)
	}
}

// broken are the limits of a client that was closed: no decision can be had.
func broken(t *testing.T) *client.Limits {
	t.Helper()
	c := cluster.ClientFor(t)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	return c.Limits()
}

func TestWithoutADecisionRequestsPassAndTheLogTellsWhy(t *testing.T) {
	for _, leased := range []bool{false, true} {
		next := &served{}
		var log bytes.Buffer
		l := httplimit.New(broken(t), httplimit.ByHeader("X-Api-Key"))
		l.Leased = leased
		l.Logger = slog.New(slog.NewTextHandler(&log, nil))
		w := get(l.Wrap(next), "anyone")
		if w.Code != http.StatusOK || next.n != 1 || w.Header().Values("RateLimit") != nil {
			t.Errorf("leased %v: %d %v", leased, w.Code, w.Header())
		}
		if !strings.Contains(log.String(), "level=WARN") || !strings.Contains(log.String(), "client closed") {
			t.Errorf("leased %v: log %q", leased, log.String())
		}
	}
}

func TestOnErrorDecidesWithoutADecision(t *testing.T) {
	next := &served{}
	l := httplimit.New(broken(t), httplimit.ByHeader("X-Api-Key"))
	l.OnError = func(w http.ResponseWriter, r *http.Request, err error, next http.Handler) {
		if !errors.Is(err, client.ErrClosed) {
			t.Errorf("the error is %v", err)
		}
		if r.Header.Get("X-Api-Key") == "trusted" {
			next.ServeHTTP(w, r)
			return
		}
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	h := l.Wrap(next)
	if w := get(h, "stranger"); w.Code != http.StatusServiceUnavailable || next.n != 0 {
		t.Errorf("refused by the hook: %d, served %d", w.Code, next.n)
	}
	if w := get(h, "trusted"); w.Code != http.StatusOK || next.n != 1 {
		t.Errorf("passed on by the hook: %d, served %d", w.Code, next.n)
	}
	if w := get(h, ""); w.Code != http.StatusOK || next.n != 2 {
		t.Errorf("a request that is not limited needs no decision: %d", w.Code)
	}
}
