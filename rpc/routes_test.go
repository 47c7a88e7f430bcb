package rpc

import (
	"net/http"
	"slices"
	"testing"
)

// The table is made from the services' descriptions, and finds a route as the gateway names it.
func TestRoutesKnowTheirParameters(t *testing.T) {
	table := routes()
	for route, query := range map[string][]string{
		"GET /api/v1/policies/{policy_id=*}/clients": {"page_size", "pageSize", "page_token", "pageToken"},
		"GET /api/v1/cluster":                        nil,
		"DELETE /api/v1/envoy/domains/{domain=*}":    nil,
		"POST /api/v1/policies:importEnvoy":          nil,
		"PATCH /api/v1/policies/{policy_id=*}":       nil,
	} {
		if r, ok := table[route]; !ok || !slices.Equal(r.query, query) || r.status {
			t.Errorf("%s: %v, known %t", route, r, ok)
		}
	}
	check := table[http.MethodPost+" /api/v1/ratelimit/check"]
	for query, want := range map[string]struct{ denied, valid bool }{
		"": {false, true}, "http_status=true": {true, true}, "http_status=0": {false, true}, "http_status": {false, false},
		"client_id=a": {false, false}, "http_status=true&x=1": {true, false},
	} {
		denied, err := check.check(query)
		if (err == nil) != want.valid || want.valid && denied != want.denied {
			t.Errorf("%q: %t, %v", query, denied, err)
		}
	}
}
