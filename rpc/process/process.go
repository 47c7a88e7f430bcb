// Package process runs a node as one process does: the node, its services and their listeners. It is the one place
// where node and rpc meet.
package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/holdfastdb/holdfast/node"
	"github.com/holdfastdb/holdfast/node/shard"
	"github.com/holdfastdb/holdfast/rpc"
	"github.com/holdfastdb/holdfast/rpc/seal"
)

// Config is what a process is told, beside the node's own.
type Config struct {
	Node node.Config
	// GRPC, HTTP and Peer are addresses to listen at; port 0 is any free one. Advertise is the host that others reach
	// this node at, if not the one it listens on.
	GRPC, HTTP, Peer string
	Advertise        string
	// Listen opens a listener; nil means TCP.
	Listen func(ctx context.Context, addr string) (net.Listener, error)
	// Profiles serves net/http/pprof.
	Profiles bool
	// Keys encrypts what sessions say of their users; nil for plain text.
	Keys seal.AEAD
}

// readTimeout is how long a client may take to send a request. It is longer than a call may take, for net/http gives a
// call up then.
const readTimeout = 15 * time.Second

// Process is a running node with its services.
type Process struct {
	Node   *node.Node
	log    *slog.Logger
	server *rpc.Server
	http   *http.Server
	grpcAt net.Addr
	httpAt net.Addr
	work   sync.WaitGroup
	once   sync.Once
	err    error
}

// Start starts a node and its services. ctx ends the start, not the process.
func Start(ctx context.Context, cfg Config) (_ *Process, err error) {
	var open []net.Listener
	defer func() {
		if err != nil {
			for _, l := range open {
				_ = l.Close()
			}
		}
	}()
	if cfg.Listen == nil {
		cfg.Listen = func(ctx context.Context, addr string) (net.Listener, error) {
			return (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
		}
	}
	listen := func(addr string) (net.Listener, error) {
		l, err := cfg.Listen(ctx, addr)
		if err != nil {
			return nil, fmt.Errorf("listen: %w", err)
		}
		open = append(open, l)
		return l, nil
	}
	grpcLis, err := listen(cfg.GRPC)
	if err != nil {
		return nil, err
	}
	httpLis, err := listen(cfg.HTTP)
	if err != nil {
		return nil, err
	}
	if cfg.Node.Peer, err = listen(cfg.Peer); err != nil {
		return nil, err
	}
	metrics := rpc.NewMetrics()
	cfg.Node.GRPC, cfg.Node.HTTP = advertised(grpcLis, cfg.Advertise), advertised(httpLis, cfg.Advertise)
	cfg.Node.PeerAddr, cfg.Node.Advertise = advertised(cfg.Node.Peer, cfg.Advertise), cfg.Advertise
	cfg.Node.Types = rpc.Types()
	cfg.Node.OnSync = metrics.ObserveSync
	p := &Process{log: cfg.Node.Logger, grpcAt: grpcLis.Addr(), httpAt: httpLis.Addr()}
	if p.Node, err = node.Open(ctx, cfg.Node); err != nil {
		return nil, err
	}
	if p.server, err = rpc.New(rpc.Options{Node: adapter{p.Node}, Metrics: metrics, Profiles: cfg.Profiles, Log: cfg.Node.Logger, Keys: cfg.Keys}); err != nil {
		return nil, errors.Join(err, p.Node.Close())
	}
	p.http = &http.Server{
		Handler: p.server.HTTP, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: readTimeout, WriteTimeout: time.Minute,
		IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
	}
	p.work.Go(func() {
		if err := p.server.GRPC.Serve(grpcLis); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			p.log.Error("gRPC ended", "error", err)
		}
	})
	p.work.Go(func() {
		if err := p.http.Serve(httpLis); err != nil && !errors.Is(err, http.ErrServerClosed) {
			p.log.Error("HTTP ended", "error", err)
		}
	})
	return p, nil
}

// advertised is the address of a listener for others.
func advertised(l net.Listener, host string) string {
	if host == "" {
		return l.Addr().String()
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return l.Addr().String()
	}
	return net.JoinHostPort(host, port)
}

// GRPCAddr is where gRPC listens.
func (p *Process) GRPCAddr() string { return p.grpcAt.String() }

// HTTPAddr is where REST listens.
func (p *Process) HTTPAddr() string { return p.httpAt.String() }

// WaitReady returns when the node serves.
func (p *Process) WaitReady(ctx context.Context) error {
	every := time.NewTicker(10 * time.Millisecond)
	defer every.Stop()
	for {
		err := p.Node.Ready()
		if err == nil {
			return nil
		}
		select {
		case <-every.C:
		case <-ctx.Done():
			return fmt.Errorf("not ready: %w", errors.Join(err, ctx.Err()))
		}
	}
}

// Close stops taking requests, lets those under way finish as long as ctx lasts, hands leadership over and stops.
func (p *Process) Close(ctx context.Context) error {
	p.once.Do(func() {
		grace, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		if err := p.http.Shutdown(grace); err != nil {
			p.err = p.http.Close()
		}
		// Leadership first: the SDKs' streams then move on by themselves.
		p.Node.HandOver(grace)
		p.server.Close(grace)
		p.work.Wait()
		p.err = errors.Join(p.err, p.Node.Close())
	})
	return p.err
}

// adapter shows a node as the services see it.
type adapter struct{ *node.Node }

// Replica implements rpc.Node.
func (a adapter) Replica(group uint32) (rpc.Replica, bool) { return a.Group(group) }

// Statuses implements rpc.Node.
func (a adapter) Statuses(ctx context.Context) map[string][]rpc.ReplicaStatus {
	all := make(map[string][]rpc.ReplicaStatus)
	for id, s := range a.ClusterStatus(ctx) {
		all[id] = replicaStatuses(s.Groups)
	}
	return all
}

// LocalReplicas implements rpc.Node.
func (a adapter) LocalReplicas() []rpc.ReplicaStatus { return replicaStatuses(a.LocalStatus().Groups) }

func replicaStatuses(groups []shard.Status) []rpc.ReplicaStatus {
	list := make([]rpc.ReplicaStatus, len(groups))
	for i, s := range groups {
		list[i] = rpc.ReplicaStatus{
			Group: s.Group, ReplicaID: s.ReplicaID, State: s.State, Term: s.Term, Commit: s.Commit, Applied: s.Applied,
			SizeBytes: s.SizeBytes, Queued: s.Queued, Entries: s.Entries, Commands: s.Commands,
			Checksum: s.Sum.Index, Diverged: s.Diverged,
		}
	}
	return list
}
