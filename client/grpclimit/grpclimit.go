// Package grpclimit limits the calls of a gRPC server.
//
//	grpc.NewServer(grpc.ChainUnaryInterceptor(grpclimit.New(c.Limits(), key).Unary))
//
// A denied call ends with RESOURCE_EXHAUSTED and a google.rpc.RetryInfo; answers carry the ratelimit and
// ratelimit-policy headers as trailers of the same form as HTTP's.
package grpclimit

import (
	"context"
	"net/http"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/client/httplimit"
)

// Key tells what is limited about a call; false lets it pass unlimited.
type Key func(ctx context.Context, fullMethod string) (client.Request, bool)

// ByMetadata limits by the value of a metadata key, such as an API key; calls without it pass.
func ByMetadata(name string) Key {
	return func(ctx context.Context, method string) (client.Request, bool) {
		md, _ := metadata.FromIncomingContext(ctx)
		v := md.Get(name)
		if len(v) == 0 || v[0] == "" {
			return client.Request{}, false
		}
		return client.Request{Client: v[0], Resource: method}, true
	}
}

// Limiter makes interceptors. Change its fields before the first call.
type Limiter struct {
	Limits *client.Limits
	Key    Key
	// Leased decides from leases; see client.Limits.Async.
	Leased bool
	// FailClosed refuses calls while no decision can be had; by default they pass.
	FailClosed bool
}

// New makes a limiter with the defaults.
func New(limits *client.Limits, key Key) *Limiter { return &Limiter{Limits: limits, Key: key} }

// Unary limits unary calls.
func (l *Limiter) Unary(ctx context.Context, q any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	headers, err := l.decide(ctx, info.FullMethod)
	if len(headers) > 0 {
		_ = grpc.SetTrailer(ctx, headers) // only fails outside of a call
	}
	if err != nil {
		return nil, err
	}
	return handle(ctx, q)
}

// Stream limits the opening of streams.
func (l *Limiter) Stream(srv any, st grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	headers, err := l.decide(st.Context(), info.FullMethod)
	if len(headers) > 0 {
		st.SetTrailer(headers)
	}
	if err != nil {
		return err
	}
	return handle(srv, st)
}

func (l *Limiter) decide(ctx context.Context, method string) (metadata.MD, error) {
	q, limited := l.Key(ctx, method)
	if !limited {
		return nil, nil
	}
	decide := l.Limits.Check
	if l.Leased {
		decide = l.Limits.Async
	}
	d, err := decide(ctx, q)
	if err != nil {
		if l.FailClosed {
			return nil, status.Errorf(codes.Unavailable, "no rate-limit decision: %v", err)
		}
		return nil, nil
	}
	h := make(http.Header)
	httplimit.SetHeaders(h, &d)
	md := metadata.MD{}
	for name, values := range h {
		md[strings.ToLower(name)] = values
	}
	if d.Allowed {
		return md, nil
	}
	s := status.New(codes.ResourceExhausted, "the rate limit is reached")
	if d.RetryAfter >= 0 {
		if with, err := s.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(d.RetryAfter)}); err == nil {
			s = with
		}
	}
	return md, s.Err()
}
