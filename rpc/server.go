package rpc

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"time"

	rls "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	"github.com/holdfastdb/holdfast/rpc/codec"
	"github.com/holdfastdb/holdfast/rpc/envoyrls"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
	"github.com/holdfastdb/holdfast/rpc/policy"
	"github.com/holdfastdb/holdfast/rpc/seal"
)

// Options configures a Server.
type Options struct {
	Node    Node
	Metrics *Metrics
	// Creds secures gRPC; nil means plain text.
	Creds credentials.TransportCredentials
	// Keys encrypts what sessions say of their users; nil for plain text.
	Keys seal.AEAD
	Log  *slog.Logger
	// Profiles serves net/http/pprof at /debug/pprof/.
	Profiles bool
}

// Server serves one node's gRPC and REST interfaces.
type Server struct {
	// GRPC is ready to Serve.
	GRPC *grpc.Server
	// HTTP handles REST, health and metrics.
	HTTP     http.Handler
	resolver *policy.Resolver
	limits   *limits
	data     *data
	sessions *sessions
	envoy    *envoyrls.Service
}

// maxRequest bounds a request's size in bytes, on all interfaces.
const maxRequest = 4 << 20

// New builds the services. Close ends them.
func New(o Options) (*Server, error) {
	resolver, err := policy.New(o.Node)
	if err != nil {
		return nil, err
	}
	l := &limits{node: o.Node, resolver: resolver}
	l.leases = newLeaser(l)
	s := &Server{resolver: resolver, limits: l}
	if s.envoy, err = envoyrls.New(o.Node, l.decideAll); err != nil {
		return nil, err
	}
	options := []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxRequest), grpc.ForceServerCodecV2(codec.GRPC{}),
		// gRPC takes in as much as the window for each stream of a connection, whether it is read or not.
		grpc.MaxConcurrentStreams(256),
		grpc.InitialWindowSize(1 << 20), grpc.InitialConnWindowSize(4 << 20),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.ChainUnaryInterceptor(o.Metrics.unary, bounded),
		grpc.WaitForHandlers(true), // who still reads must not find the state closed
	}
	if o.Creds != nil {
		options = append(options, grpc.Creds(o.Creds))
	}
	s.GRPC = grpc.NewServer(options...)
	s.sessions = &sessions{node: o.Node, limits: l, sealer: seal.New(o.Keys), closing: make(chan struct{})}
	if s.sessions.policies, err = newSessionPolicies(o.Node); err != nil {
		return nil, err
	}
	s.sessions.uses = newUses(o.Node, s.sessions.group, s.sessions.policies, o.Log)
	services := services{
		sessions: s.sessions,
		limits:   l, policies: &policies{node: o.Node}, cluster: &cluster{node: o.Node},
		data: &data{node: o.Node, limits: l, sessions: s.sessions, metrics: o.Metrics, closing: make(chan struct{})},
	}
	s.data = services.data
	in := registrar{s.GRPC}
	pb.RegisterLimitsServer(in, services.limits)
	pb.RegisterPoliciesServer(in, services.policies)
	pb.RegisterClusterServer(in, services.cluster)
	pb.RegisterDataServer(in, services.data)
	pb.RegisterSessionsServer(in, services.sessions)
	rls.RegisterRateLimitServiceServer(in, s.envoy)
	grpc_health_v1.RegisterHealthServer(in, healthService{node: o.Node})
	reflection.Register(s.GRPC)
	o.Metrics.registry.MustRegister(newShardCollector(o.Node), newSessionCollector(o.Node), s.sessions.uses.signs)
	mux := http.NewServeMux()
	if o.Profiles {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/profile", unhurried(pprof.Profile))
		mux.HandleFunc("GET /debug/pprof/trace", unhurried(pprof.Trace))
	}
	rest, err := newREST(&services, s.envoy, o.Node, o.Metrics, mux)
	if err != nil {
		return nil, err
	}
	s.HTTP = rest
	return s, nil
}

// callTimeout is how long a call may take, whatever its caller says: a group without a majority is waited for as long as
// the call lasts. It is a little more than the deadline of what a call proposes, so that the outcome is known by then.
const callTimeout = requestTimeout + 2*time.Second

func bounded(ctx context.Context, q any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return handle(ctx, q)
}

// boundedHTTP is bounded for the interfaces over HTTP.
func boundedHTTP(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), callTimeout)
		defer cancel()
		h.ServeHTTP(w, r.WithContext(ctx))
	})
}

// unhurried serves what takes longer than the server gives a client to send its request: net/http would end it then.
func unhurried(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).SetReadDeadline(time.Time{}) // a writer that cannot has no deadline
		h(w, r)
	}
}

type services struct {
	limits   *limits
	policies *policies
	cluster  *cluster
	data     *data
	sessions *sessions
}

// Close lets calls under way finish, as long as ctx lasts, and returns the leases that this node holds.
func (s *Server) Close(ctx context.Context) {
	s.limits.leases.close(ctx)
	close(s.data.closing)
	close(s.sessions.closing)
	stopped := make(chan struct{})
	go func() {
		s.GRPC.GracefulStop()
		close(stopped)
	}()
	select {
	case <-stopped:
	case <-ctx.Done():
		s.GRPC.Stop()
		<-stopped
	}
	s.data.streams.Wait()
	s.sessions.streams.Wait()
	s.sessions.uses.close()
	s.sessions.policies.stop()
	s.envoy.Close()
	s.resolver.Close()
}

// healthService implements grpc.health.v1: serving when the node is ready.
type healthService struct {
	grpc_health_v1.UnimplementedHealthServer
	node Node
}

func (h healthService) state() *grpc_health_v1.HealthCheckResponse {
	if h.node.Ready() != nil {
		return &grpc_health_v1.HealthCheckResponse{Status: grpc_health_v1.HealthCheckResponse_NOT_SERVING}
	}
	return &grpc_health_v1.HealthCheckResponse{Status: grpc_health_v1.HealthCheckResponse_SERVING}
}

// Check implements the service.
func (h healthService) Check(_ context.Context, q *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	switch q.Service {
	case "", pb.Limits_ServiceDesc.ServiceName, pb.Policies_ServiceDesc.ServiceName, pb.Cluster_ServiceDesc.ServiceName, pb.Data_ServiceDesc.ServiceName,
		pb.Sessions_ServiceDesc.ServiceName, rls.RateLimitService_ServiceDesc.ServiceName:
		return h.state(), nil
	}
	return nil, status.Errorf(codes.NotFound, "no service %q", q.Service)
}

// Watch implements the service.
func (h healthService) Watch(_ *grpc_health_v1.HealthCheckRequest, st grpc.ServerStreamingServer[grpc_health_v1.HealthCheckResponse]) error {
	every := time.NewTicker(time.Second)
	defer every.Stop()
	last := grpc_health_v1.HealthCheckResponse_UNKNOWN
	for {
		if now := h.state(); now.Status != last {
			last = now.Status
			if err := st.Send(now); err != nil {
				return err
			}
		}
		select {
		case <-st.Context().Done():
			return st.Context().Err()
		case <-every.C:
		}
	}
}
