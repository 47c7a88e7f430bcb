package rpc

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	rls "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/holdfastdb/holdfast/rpc/envoyrls"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

//go:embed openapi/holdfast.swagger.json
var openAPI []byte

// newREST builds the HTTP interface: REST generated from the protobuf services, health, metrics.
func newREST(s *services, envoy *envoyrls.Service, n Node, m *Metrics, mux *http.ServeMux) (http.Handler, error) {
	gateway := runtime.NewServeMux(
		runtime.WithUnescapingMode(runtime.UnescapingModeAllCharacters),
		runtime.WithMarshalerOption(runtime.MIMEWildcard, jsonBody{&runtime.JSONPb{
			MarshalOptions: protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true},
		}}),
		runtime.WithErrorHandler(writeProblem),
		runtime.WithMiddlewares(routes().exact),
		runtime.WithDisablePathLengthFallback(), // a form sent to a path for GET is a wrong method, as any other body
		runtime.WithForwardResponseOption(limitHeaders),
		runtime.WithIncomingHeaderMatcher(func(name string) (string, bool) {
			switch lower := strings.ToLower(name); lower {
			case headerIdempotency, "holdfast-actor":
				return lower, true
			}
			return runtime.DefaultHeaderMatcher(name)
		}),
	)
	ctx := context.Background() // the generated functions keep nothing of it
	for _, register := range []func() error{
		func() error { return pb.RegisterLimitsHandlerServer(ctx, gateway, s.limits) },
		func() error { return pb.RegisterPoliciesHandlerServer(ctx, gateway, s.policies) },
		func() error { return pb.RegisterClusterHandlerServer(ctx, gateway, s.cluster) },
		func() error { return pb.RegisterSessionsHandlerServer(ctx, gateway, s.sessions) },
	} {
		if err := register(); err != nil {
			return nil, fmt.Errorf("build the REST interface: %w", err)
		}
	}
	large := &bodies{}
	mux.Handle("/", boundedHTTP(large.bounded(slashes(gateway))))
	mux.Handle("POST /json", boundedHTTP(large.bounded(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { envoyJSON(envoy, w, r) }))))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := n.Ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ok\n"))
	})
	mux.Handle("GET /metrics", m.Handler())
	mux.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(openAPI)
	})
	return m.counted(http.MaxBytesHandler(mux, maxRequest)), nil
}

// problem is an RFC 9457 problem document.
type problem struct {
	Type      string `json:"type"`
	Title     string `json:"title"`
	Status    int    `json:"status"`
	Detail    string `json:"detail"`
	Retryable bool   `json:"retryable"`
	Reason    string `json:"reason"`
}

// writeProblem answers with an error.
func writeProblem(_ context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, r *http.Request, err error) {
	if b, ok := r.Body.(*body); ok && b.refused { // the gateway keeps only the text of what reading it answered
		err = statusOf(errBodies)
	}
	s := status.Convert(err)
	k := kindOfStatus(s.Code())
	p := problem{Status: runtime.HTTPStatusFromCode(s.Code()), Detail: s.Message(), Reason: k.reason, Retryable: k.retryable}
	for _, d := range s.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			p.Reason, p.Retryable = d.Reason, d.Metadata["retryable"] == "true"
		case *errdetails.RetryInfo:
			w.Header().Set("Retry-After", retryAfterHeader(d.RetryDelay.AsDuration().Seconds()))
		}
	}
	if httpErr, ok := err.(*runtime.HTTPStatusError); ok { //nolint:errorlint // the library hands it over unwrapped
		p.Status = httpErr.HTTPStatus
	} else if strings.Contains(s.Message(), "request body too large") {
		p.Status = http.StatusRequestEntityTooLarge
	}
	if s.Code() == codes.Unimplemented { // the path is there, for other methods
		p.Status = http.StatusMethodNotAllowed
	}
	p.Type = "urn:holdfast:error:" + strings.ToLower(strings.ReplaceAll(p.Reason, "_", "-"))
	p.Title = http.StatusText(p.Status)
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p)
}

// limitHeaders adds the RateLimit fields of draft-ietf-httpapi-ratelimit-headers to the answer of a check.
func limitHeaders(ctx context.Context, w http.ResponseWriter, m proto.Message) error {
	r, ok := m.(*pb.CheckResponse)
	if !ok {
		return nil
	}
	var policies, limits []string
	for _, l := range r.Limits {
		if l.Shadow {
			continue
		}
		name := strconv.Quote(l.PolicyName)
		policies = append(policies, fmt.Sprintf("%s;q=%d;w=%d", name, l.Limit, int(math.Ceil(l.Window))))
		limits = append(limits, fmt.Sprintf("%s;r=%d;t=%d", name, l.RemainingQuota, untilReset(l)))
	}
	if len(policies) > 0 {
		w.Header().Set("RateLimit-Policy", strings.Join(policies, ", "))
		w.Header().Set("RateLimit", strings.Join(limits, ", "))
	}
	if want, _ := ctx.Value(httpStatusKey{}).(bool); want && !r.Allowed {
		if r.RetryAfter >= 0 {
			w.Header().Set("Retry-After", retryAfterHeader(r.RetryAfter))
		}
		w.WriteHeader(http.StatusTooManyRequests)
	}
	return nil
}

// untilReset is the number of seconds until there is more quota.
func untilReset(l *pb.LimitState) int {
	if l.Denied && l.RetryAfter >= 0 {
		return int(math.Ceil(l.RetryAfter))
	}
	return int(math.Ceil(max(time.Until(l.ResetTime.AsTime()).Seconds(), 0)))
}

// retryAfterHeader rounds up: earlier would be denied again.
func retryAfterHeader(seconds float64) string {
	return strconv.Itoa(max(int(math.Ceil(seconds)), 1))
}

// envoyJSON is the HTTP form of Envoy's rate limit service, as its reference has it: 429 when over the limit.
func envoyJSON(envoy *envoyrls.Service, w http.ResponseWriter, r *http.Request) {
	var q rls.RateLimitRequest
	body, err := io.ReadAll(r.Body)
	if err == nil {
		err = protojson.Unmarshal(body, &q)
	}
	if err != nil {
		writeProblem(r.Context(), nil, nil, w, r, statusOf(invalidf("malformed request: %v", err)))
		return
	}
	answer, err := envoy.ShouldRateLimit(r.Context(), &q)
	if err != nil {
		writeProblem(r.Context(), nil, nil, w, r, err)
		return
	}
	text, err := protojson.Marshal(answer)
	if err != nil {
		writeProblem(r.Context(), nil, nil, w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if answer.OverallCode == rls.RateLimitResponse_OVER_LIMIT {
		w.WriteHeader(http.StatusTooManyRequests)
	}
	_, _ = w.Write(text)
}
