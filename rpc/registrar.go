package rpc

import (
	"context"
	"slices"

	"google.golang.org/grpc"

	"github.com/holdfastdb/holdfast/rpc/codec"
)

// registrar registers services so that a request which is no message is its caller's fault: gRPC would answer itself that
// the server is at fault.
type registrar struct{ server *grpc.Server }

// RegisterService implements grpc.ServiceRegistrar.
func (r registrar) RegisterService(d *grpc.ServiceDesc, impl any) {
	own := *d
	own.Methods = slices.Clone(d.Methods)
	for i := range own.Methods {
		handle := own.Methods[i].Handler
		own.Methods[i].Handler = func(srv any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
			return handle(srv, ctx, func(m any) error {
				tried := codec.Tried{Message: m}
				if err := decode(&tried); err != nil {
					return err
				}
				if tried.Err != nil {
					return statusOf(invalidf("malformed request: %v", tried.Err))
				}
				return nil
			}, interceptor)
		}
	}
	own.Streams = slices.Clone(d.Streams)
	for i := range own.Streams {
		handle := own.Streams[i].Handler
		own.Streams[i].Handler = func(srv any, st grpc.ServerStream) error { return handle(srv, triedStream{st}) }
	}
	r.server.RegisterService(&own, impl)
}

// triedStream is a stream whose requests that are no messages are its caller's fault too.
type triedStream struct{ grpc.ServerStream }

// RecvMsg implements grpc.ServerStream.
func (s triedStream) RecvMsg(m any) error {
	tried := codec.Tried{Message: m}
	if err := s.ServerStream.RecvMsg(&tried); err != nil {
		return err
	}
	if tried.Err != nil {
		return statusOf(invalidf("malformed request: %v", tried.Err))
	}
	return nil
}
