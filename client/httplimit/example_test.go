package httplimit_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/client/httplimit"
)

// Limit a handler by the API key of its callers.
func Example() {
	defer cluster.Quota("example", "client", "key-1", 1)()

	c, err := client.Dial(context.Background(), client.Config{Addrs: cluster.Addrs()})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	hello := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") })
	limited := httplimit.New(c.Limits(), httplimit.ByHeader("X-Api-Key")).Wrap(hello)

	server := httptest.NewServer(limited)
	defer server.Close()
	for range 2 {
		q, err := http.NewRequest(http.MethodGet, server.URL, nil)
		if err != nil {
			log.Fatal(err)
		}
		q.Header.Set("X-Api-Key", "key-1")
		a, err := http.DefaultClient.Do(q)
		if err != nil {
			log.Fatal(err)
		}
		_ = a.Body.Close()
		fmt.Println(a.Status, "- may come back later:", a.Header.Get("Retry-After") != "")
	}
	// Output:
	// 200 OK - may come back later: false
	// 429 Too Many Requests - may come back later: true
}

// Refuse requests for which no decision can be had, instead of letting them pass.
func ExampleLimiter() {
	c, err := client.Dial(context.Background(), client.Config{Addrs: cluster.Addrs()})
	if err != nil {
		log.Fatal(err)
	}
	l := httplimit.New(c.Limits(), func(r *http.Request) (client.Request, bool) {
		return client.Request{Client: r.Header.Get("X-Tenant"), Resource: r.URL.Path}, r.URL.Path != "/healthz"
	})
	l.OnError = func(w http.ResponseWriter, _ *http.Request, _ error, _ http.Handler) {
		http.Error(w, "try again later", http.StatusServiceUnavailable)
	}
	limited := l.Wrap(http.NotFoundHandler())

	_ = c.Close() // from now on there are no decisions
	for _, path := range []string{"/orders", "/healthz"} {
		w := httptest.NewRecorder()
		limited.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		fmt.Println(path, w.Code)
	}
	// Output:
	// /orders 503
	// /healthz 404
}
