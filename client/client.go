// Package client is the Go SDK of Holdfast.
//
//	c, err := client.Dial(ctx, client.Config{Addrs: []string{"127.0.0.1:7400"}})
//	d, err := c.Limits().Check(ctx, client.Request{Client: "alice"})
//	if d.Allowed { … }
//
// A Client knows which node leads which shard and sends operations there over one stream for each node. What is called
// from many goroutines at the same time travels together: the operations of one shard are packed into frames, and a
// frame leaves as soon as one before it was answered. A frame carries this client's random id and a number; when a node
// dies, the frame is sent again with the same number, and a shard that has executed it before answers with the first
// results. So every operation is executed once, whatever fails, or the error says that it is unknown.
package client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"github.com/holdfastdb/holdfast/rpc/codec"
)

// Config says how to reach a cluster.
type Config struct {
	// Addrs are gRPC addresses of some of the nodes; the others are learned, and a list of them is fetched again every 15 to
	// 19 seconds from up to five nodes, also by a client that nobody uses.
	Addrs []string
	// Timeout bounds how long an operation is tried; a context may end it earlier. Default 10 s, at most 60 s.
	Timeout time.Duration
	// DialTimeout bounds how long Dial waits for a node that answers; its context may end it earlier. If it is 0, the
	// context's deadline counts, and 10 s if it has none. Less than 0 is to wait for ever, or with the context: for programs
	// that may start before their cluster does.
	DialTimeout time.Duration
	// Creds secures the connections; nil means plain text.
	Creds credentials.TransportCredentials
	// SessionCache bounds the bytes that remembered sessions take, see MaxStale. Default 64 MiB.
	SessionCache int
	// Dial connects; nil means TCP.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
}

// Client is a connection to a cluster, for any number of goroutines. Close it when it is no longer needed.
type Client struct {
	cfg    Config
	id     [16]byte
	routes atomic.Pointer[routes]
	silent atomic.Pointer[string] // the address that kept us waiting last; it is asked for the map last

	ctx  context.Context
	stop context.CancelFunc
	work sync.WaitGroup

	mu      sync.Mutex
	conns   map[string]*grpc.ClientConn
	streams map[string]*stream
	lanes   map[laneKey]*lane
	closed  bool

	operations sync.Pool     // of *operation, whose channels belong to this client alone: clients of tests live in bubbles
	refreshing chan struct{} // capacity 1: held by who fetches the cluster map
	refreshed  time.Time     // guarded by mu
	limits     *Limits
	sessions   *Sessions
}

type laneKey struct {
	shard uint32
	query bool
}

// The errors of the SDK. Use errors.Is.
var (
	// ErrUnavailable: no node could serve the operation in time. It had no effect.
	ErrUnavailable = errors.New("holdfast: unavailable")
	// ErrOutcomeUnknown: the operation may have been executed; nobody could tell in time.
	ErrOutcomeUnknown = errors.New("holdfast: outcome unknown, the operation may have been executed")
	// ErrClosed: the client was closed. The operation had no effect.
	ErrClosed = errors.New("holdfast: client closed")
	// ErrInvalid: the request makes no sense.
	ErrInvalid = errors.New("holdfast: invalid request")
	// ErrNotFound: what the request names does not exist.
	ErrNotFound = errors.New("holdfast: not found")
	// ErrConflict: the request contradicts the state.
	ErrConflict = errors.New("holdfast: conflict")
	// ErrToken: the token does not count, or no longer.
	ErrToken = errors.New("holdfast: the token does not count")
	// ErrExhausted: a bound of the system is reached. It had no effect; try again later.
	ErrExhausted = errors.New("holdfast: exhausted")
)

const (
	defaultTimeout     = 10 * time.Second
	maxTimeout         = 60 * time.Second
	defaultDialTimeout = 10 * time.Second
)

// Dial connects to a cluster. It returns when a node has answered. When none does in time, see
// Config.DialTimeout, the error is an ErrUnavailable that tells who was asked and what came of it.
func Dial(ctx context.Context, cfg Config) (*Client, error) {
	if len(cfg.Addrs) == 0 {
		return nil, fmt.Errorf("%w: no addresses", ErrInvalid)
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = defaultTimeout
	}
	cfg.Timeout = min(cfg.Timeout, maxTimeout)
	c := &Client{
		cfg: cfg, conns: make(map[string]*grpc.ClientConn), streams: make(map[string]*stream), lanes: make(map[laneKey]*lane),
		refreshing: make(chan struct{}, 1),
	}
	c.operations.New = func() any { return &operation{done: make(chan struct{}, 1)} }
	_, _ = rand.Read(c.id[:]) // never fails: crypto/rand stops the process instead
	c.ctx, c.stop = context.WithCancel(context.Background())
	c.limits, c.sessions = newLimits(c), newSessions(c)
	if err := c.reach(ctx); err != nil {
		_ = c.Close()
		return nil, err
	}
	c.spawn(c.keepMap)
	return c, nil
}

// reach asks for the cluster map until a node answers.
func (c *Client) reach(ctx context.Context) error {
	limit := c.cfg.DialTimeout
	if _, bounded := ctx.Deadline(); limit == 0 && !bounded {
		limit = defaultDialTimeout
	}
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	begun := time.Now()
	var reason error // of the last round that went to its end: the one that ctx cuts off knows less
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		err := c.refresh(ctx)
		if err == nil {
			return nil
		}
		if reason == nil || ctx.Err() == nil {
			reason = err
		}
		if sleep(ctx, pause) != nil {
			return fmt.Errorf("%w: no node answered within %v: %w (check that a cluster runs and that these are its gRPC addresses; "+
				"`holdfast dev` starts one at 127.0.0.1:7400)", ErrUnavailable, time.Since(begun).Round(time.Millisecond), reason)
		}
	}
}

// Limits are the rate limits.
func (c *Client) Limits() *Limits { return c.limits }

// Sessions are the sessions of users.
func (c *Client) Sessions() *Sessions { return c.sessions }

// Close returns leases and ends the connections. Operations under way fail.
func (c *Client) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	c.limits.close(ctx)
	cancel()
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	lanes, streams, conns := c.lanes, c.streams, c.conns
	c.mu.Unlock()
	c.stop()
	for _, l := range lanes {
		l.close()
	}
	for _, s := range streams {
		s.cancel()
	}
	var errs []error
	for _, conn := range conns {
		errs = append(errs, conn.Close())
	}
	c.work.Wait()
	return errors.Join(errs...)
}

// spawn runs f on a goroutine that Close waits for, unless the client is closed.
func (c *Client) spawn(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.work.Go(f)
	}
}

// conn returns the connection to an address.
func (c *Client) conn(addr string) (*grpc.ClientConn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.connLocked(addr)
}

func (c *Client) connLocked(addr string) (*grpc.ClientConn, error) {
	if c.closed {
		return nil, ErrClosed
	}
	if conn := c.conns[addr]; conn != nil {
		return conn, nil
	}
	creds := c.cfg.Creds
	if creds == nil {
		creds = insecure.NewCredentials()
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: 2 * time.Second,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(codec.GRPC{})),
		grpc.WithInitialWindowSize(1 << 20), grpc.WithInitialConnWindowSize(4 << 20),
		grpc.WithDisableServiceConfig(),
	}
	if c.cfg.Dial != nil {
		options = append(options, grpc.WithContextDialer(c.cfg.Dial))
	}
	conn, err := grpc.NewClient("passthrough:///"+addr, options...)
	if err != nil {
		return nil, fmt.Errorf("%w: address %q: %w", ErrInvalid, addr, err)
	}
	c.conns[addr] = conn
	return conn, nil
}

// sleep waits for d or until ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
