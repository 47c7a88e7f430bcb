// Package sim runs whole clusters in virtual time: the SDK, the nodes with their real Raft, storage and services, on a
// network and on disks in memory that fail as told. It runs inside testing/synctest, where an hour takes seconds.
//
// A seed decides what fails when, and what is asked. The order in which goroutines run it does not decide: a seed brings
// about the same faults again, and mostly the same trouble.
package sim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/cluster-tests/sim/network"
)

// Options says what to simulate.
type Options struct {
	Seed   uint64
	Nodes  int
	Shards uint32
	// Duration is how long there are faults and load.
	Duration time.Duration
	Logger   *slog.Logger
}

// Cluster is a simulated cluster.
type Cluster struct {
	opts    Options
	net     *network.Network
	servers []*server
	work    sync.WaitGroup

	mu     sync.Mutex
	rng    *rand.Rand
	errs   []error
	deaths []error // of nodes that said that they cannot go on
}

// New makes a cluster of which nothing runs yet.
func New(opts Options) *Cluster {
	c := &Cluster{opts: opts, net: network.New(opts.Seed), rng: rand.New(rand.NewPCG(opts.Seed, 2))}
	for i := range opts.Nodes {
		name := fmt.Sprintf("n%d", i+1)
		c.servers = append(c.servers, &server{
			c: c, name: name, ip: fmt.Sprintf("10.0.0.%d", i+1), log: opts.Logger.With("server", name), disk: vfs.NewCrashableMem(),
		})
	}
	return c
}

func (c *Cluster) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.errs = append(c.errs, err)
}

// fatal is told by a node that cannot go on. Its process would end itself.
func (c *Cluster) fatal(l *life, err error) {
	c.mu.Lock()
	c.deaths = append(c.deaths, err)
	c.mu.Unlock()
	l.s.log.Warn("the node cannot go on", "error", err)
	c.work.Go(func() { l.s.kill() })
}

// random is a source of its own for one purpose.
func (c *Cluster) random() *rand.Rand {
	c.mu.Lock()
	defer c.mu.Unlock()
	return rand.New(rand.NewPCG(c.rng.Uint64(), 0))
}

// Start starts all servers and returns when the cluster is whole.
func (c *Cluster) Start(ctx context.Context) error {
	for _, s := range c.servers {
		s.start()
	}
	return c.WaitHealthy(ctx)
}

// WaitHealthy returns when all servers run and serve, and every shard has its voters.
func (c *Cluster) WaitHealthy(ctx context.Context) error {
	for {
		err := c.unhealthy()
		if err == nil {
			return nil
		}
		if stop := sleep(ctx, 100*time.Millisecond); stop != nil {
			return fmt.Errorf("the cluster does not get healthy: %w", errors.Join(err, stop))
		}
	}
}

func (c *Cluster) unhealthy() error {
	for _, s := range c.servers {
		p := s.running()
		if p == nil {
			return fmt.Errorf("%s does not run", s.name)
		}
		if err := p.Node.Ready(); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		t := p.Node.Topology()
		if len(t.Nodes) != len(c.servers) {
			return fmt.Errorf("%s knows %d nodes", s.name, len(t.Nodes))
		}
		for _, sh := range t.Shards {
			voters := 0
			for _, r := range sh.Replicas {
				if r.Role == "voter" {
					voters++
				}
			}
			if voters != 3 {
				return fmt.Errorf("shard %d has %d voters", sh.ID, voters)
			}
		}
	}
	return nil
}

// Dial connects an SDK from a machine of its own.
func (c *Cluster) Dial(ctx context.Context, ip string) (*client.Client, error) {
	cfg := client.Config{Dial: c.net.Host(ip).Dial}
	for _, s := range c.servers {
		cfg.Addrs = append(cfg.Addrs, fmt.Sprintf("%s:%d", s.ip, grpcPort))
	}
	return client.Dial(ctx, cfg)
}

// Stop stops all servers and waits for everything that was started.
func (c *Cluster) Stop() error {
	var mu sync.Mutex
	var errs []error
	var stopping sync.WaitGroup
	for _, s := range c.servers {
		stopping.Go(func() {
			err := s.stop()
			mu.Lock()
			errs = append(errs, err)
			mu.Unlock()
		})
	}
	stopping.Wait()
	c.work.Wait()
	time.Sleep(time.Minute) // what Raft started for a transfer ends with a time-out of its own
	c.mu.Lock()
	defer c.mu.Unlock()
	return errors.Join(append(errs, c.errs...)...)
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
