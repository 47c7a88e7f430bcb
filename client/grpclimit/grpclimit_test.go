package grpclimit_test

import (
	"context"
	"errors"
	"io"
	"net"
	"regexp"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/client/grpclimit"
)

// service is what is limited: gRPC's own health service, which has a unary method and a streaming one.
type service struct {
	grpc_health_v1.UnimplementedHealthServer
	calls atomic.Int32
}

func (s *service) Check(context.Context, *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	s.calls.Add(1)
	return &grpc_health_v1.HealthCheckResponse{Status: grpc_health_v1.HealthCheckResponse_SERVING}, nil
}

// Watch sends three messages.
func (s *service) Watch(_ *grpc_health_v1.HealthCheckRequest, st grpc.ServerStreamingServer[grpc_health_v1.HealthCheckResponse]) error {
	s.calls.Add(1)
	for range 3 {
		if err := st.Send(&grpc_health_v1.HealthCheckResponse{Status: grpc_health_v1.HealthCheckResponse_SERVING}); err != nil {
			return err
		}
	}
	return nil
}

// caller calls the service through a limiter.
type caller struct {
	t    *testing.T
	stub grpc_health_v1.HealthClient
	at   *service
}

func serve(t *testing.T, l *grpclimit.Limiter) *caller {
	t.Helper()
	s := grpc.NewServer(grpc.ChainUnaryInterceptor(l.Unary), grpc.ChainStreamInterceptor(l.Stream))
	c := &caller{t: t, at: &service{}}
	grpc_health_v1.RegisterHealthServer(s, c.at)
	lis := bufconn.Listen(1 << 16)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(lis)
	}()
	conn, err := grpc.NewClient("passthrough:///service", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		s.Stop()
		<-done
	})
	c.stub = grpc_health_v1.NewHealthClient(conn)
	return c
}

// outcome is what a caller sees of a call.
type outcome struct {
	messages int
	err      error
	trailer  metadata.MD
}

// as names the caller; an empty key names nobody.
func (c *caller) as(key string) context.Context {
	if key == "" {
		return c.t.Context()
	}
	return metadata.AppendToOutgoingContext(c.t.Context(), "x-api-key", key)
}

func (c *caller) unary(key string) (o outcome) {
	_, o.err = c.stub.Check(c.as(key), &grpc_health_v1.HealthCheckRequest{}, grpc.Trailer(&o.trailer))
	if o.err == nil {
		o.messages = 1
	}
	return o
}

func (c *caller) stream(key string) (o outcome) {
	st, err := c.stub.Watch(c.as(key), &grpc_health_v1.HealthCheckRequest{})
	for err == nil {
		if _, err = st.Recv(); err == nil {
			o.messages++
		}
	}
	if !errors.Is(err, io.EOF) {
		o.err = err
	}
	if st != nil {
		o.trailer = st.Trailer()
	}
	return o
}

// both runs a test for unary calls and for streams.
func both(t *testing.T, test func(t *testing.T, kind string, call func(c *caller, key string) outcome, messages int)) {
	t.Run("unary", func(t *testing.T) { test(t, "unary", (*caller).unary, 1) })
	t.Run("stream", func(t *testing.T) { test(t, "stream", (*caller).stream, 3) })
}

// retryInfo is when a denied caller is told to come back; false if it is not told.
func retryInfo(err error) (time.Duration, bool) {
	for _, d := range status.Convert(err).Details() {
		if r, ok := d.(*errdetails.RetryInfo); ok {
			return r.RetryDelay.AsDuration(), true
		}
	}
	return 0, false
}

func TestCallsPassUntilTheLimitAndThenEndWithResourceExhausted(t *testing.T) {
	both(t, func(t *testing.T, kind string, call func(*caller, string) outcome, messages int) {
		name := "grpc-" + kind
		defer cluster.Quota(name, "client", "key-of-"+kind, 2)()
		c := serve(t, grpclimit.New(sdk.Limits(), grpclimit.ByMetadata("x-api-key")))
		field := func(o outcome, key, form string) {
			t.Helper()
			if v := o.trailer.Get(key); len(v) != 1 || !regexp.MustCompile("^"+form+"$").MatchString(v[0]) {
				t.Errorf("%s is %q, want the form %s", key, v, form)
			}
		}
		for _, left := range []string{"1", "0"} {
			o := call(c, "key-of-"+kind)
			if o.err != nil || o.messages != messages {
				t.Fatalf("with %s left: %+v", left, o)
			}
			field(o, "ratelimit-policy", `"`+name+`";q=2;w=\d+`)
			field(o, "ratelimit", `"`+name+`";r=`+left+`;t=\d+`)
			if len(o.trailer.Get("retry-after")) > 0 {
				t.Errorf("an allowed call is told to come back: %v", o.trailer)
			}
		}
		o := call(c, "key-of-"+kind)
		if status.Code(o.err) != codes.ResourceExhausted || o.messages != 0 {
			t.Fatalf("beyond the limit: %+v", o)
		}
		if d, ok := retryInfo(o.err); !ok || d <= 0 || d > 366*24*time.Hour {
			t.Errorf("come back in %v, %v", d, ok)
		}
		field(o, "ratelimit-policy", `"`+name+`";q=2;w=\d+`)
		field(o, "ratelimit", `"`+name+`";r=0;t=\d+`)
		field(o, "retry-after", `[1-9]\d*`)
		if n := c.at.calls.Load(); n != 2 {
			t.Errorf("the service was called %d times", n)
		}
	})
}

func TestCallsWithoutAKeyPassUnlimited(t *testing.T) {
	both(t, func(t *testing.T, _ string, call func(*caller, string) outcome, messages int) {
		c := serve(t, grpclimit.New(broken(t), grpclimit.ByMetadata("x-api-key")))
		if o := call(c, ""); o.err != nil || o.messages != messages || len(o.trailer.Get("ratelimit")) > 0 {
			t.Errorf("%+v", o)
		}
	})
}

func TestByMetadataTakesTheFirstValueAndTheMethod(t *testing.T) {
	key := grpclimit.ByMetadata("X-Api-Key")
	for name, tt := range map[string]struct {
		md     metadata.MD
		client string
	}{
		"one value": {metadata.Pairs("x-api-key", "a"), "a"}, "two values": {metadata.Pairs("x-api-key", "a", "x-api-key", "b"), "a"},
		"an empty value": {metadata.Pairs("x-api-key", ""), ""}, "another key": {metadata.Pairs("authorization", "a"), ""}, "no metadata": {nil, ""},
	} {
		ctx := t.Context()
		if tt.md != nil {
			ctx = metadata.NewIncomingContext(ctx, tt.md)
		}
		q, limited := key(ctx, "/shop.Orders/List")
		if limited != (tt.client != "") || limited && (q.Client != tt.client || q.Resource != "/shop.Orders/List") {
			t.Errorf("%s: %+v, %v", name, q, limited)
		}
	}
}

// A key of one's own sees the method, so that a service can have methods that are free.
func TestTheKeyDecidesByMethodAndWeight(t *testing.T) {
	defer cluster.Quota("grpc-weighed", "client", "weigher", 10)()
	c := serve(t, grpclimit.New(sdk.Limits(), func(_ context.Context, method string) (client.Request, bool) {
		return client.Request{Client: "weigher", Weight: 6}, method == grpc_health_v1.Health_Check_FullMethodName
	}))
	if o := c.unary(""); o.err != nil {
		t.Error(o.err)
	}
	if o := c.unary(""); status.Code(o.err) != codes.ResourceExhausted {
		t.Errorf("twelve of ten tokens: %v", o.err)
	}
	if o := c.stream(""); o.err != nil || o.messages != 3 {
		t.Errorf("a free method: %+v", o)
	}
}

func TestLeasedDecisionsDenyWithRetryInfoAndWithoutLimits(t *testing.T) {
	both(t, func(t *testing.T, kind string, call func(*caller, string) outcome, _ int) {
		who := "leaser-of-" + kind
		defer cluster.Quota("grpc-leased-"+kind, "client", who, 3)()
		l := grpclimit.New(cluster.ClientFor(t).Limits(), grpclimit.ByMetadata("x-api-key"))
		l.Leased = true
		c := serve(t, l)
		if o := call(c, who); o.err != nil || len(o.trailer.Get("ratelimit")) > 0 {
			t.Errorf("%+v", o)
		}
		// However leases are cut, five calls do not all pass.
		var last outcome
		for range 4 {
			last = call(c, who)
		}
		if d, ok := retryInfo(last.err); status.Code(last.err) != codes.ResourceExhausted || !ok || d <= 0 {
			t.Errorf("%+v", last)
		}
		if n := c.at.calls.Load(); n < 1 || n > 3 {
			t.Errorf("%d calls passed a limit of 3", n)
		}
	})
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

func TestWithoutADecisionCallsPassUnlessToldOtherwise(t *testing.T) {
	both(t, func(t *testing.T, _ string, call func(*caller, string) outcome, messages int) {
		for _, leased := range []bool{false, true} {
			l := grpclimit.New(broken(t), grpclimit.ByMetadata("x-api-key"))
			l.Leased = leased
			if o := call(serve(t, l), "anyone"); o.err != nil || o.messages != messages {
				t.Errorf("open, leased %v: %+v", leased, o)
			}
			l = grpclimit.New(broken(t), grpclimit.ByMetadata("x-api-key"))
			l.Leased, l.FailClosed = leased, true
			c := serve(t, l)
			// Not RESOURCE_EXHAUSTED: the caller did nothing wrong and may try another server.
			if o := call(c, "anyone"); status.Code(o.err) != codes.Unavailable || o.messages != 0 || c.at.calls.Load() != 0 {
				t.Errorf("closed, leased %v: %+v", leased, o)
			}
			if o := call(c, ""); o.err != nil {
				t.Errorf("a call that is not limited needs no decision: %v", o.err)
			}
		}
	})
}
