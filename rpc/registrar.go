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
	r.server.RegisterService(&own, impl)
}
