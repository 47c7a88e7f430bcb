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
	"sync/atomic"
	"time"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/cluster-tests/check"
	"github.com/holdfastdb/holdfast/cluster-tests/models"
	"github.com/holdfastdb/holdfast/cluster-tests/sim/disk"
	"github.com/holdfastdb/holdfast/cluster-tests/sim/network"
	"github.com/holdfastdb/holdfast/rpc/process"
)

// Options says what to simulate.
type Options struct {
	Seed uint64
	// Nodes is how many there are in the end, and Begin how many in the beginning, all by default. The others join meanwhile.
	Nodes, Begin int
	Shards       uint32
	// Duration is how long there are faults and load.
	Duration time.Duration
	// Think is how long each caller waits between two operations, on average.
	Think time.Duration
	// TrailingEntries is how short the nodes keep their logs.
	TrailingEntries uint64
	// Checksum is how often replicas compare their states, 5 s by default. To be compared a state is written, so that often
	// there is less for a crash to lose.
	Checksum time.Duration
	// Faults names the kinds of faults; nil means all. Pause is the longest time between two, 25 s by default.
	Faults []string
	Pause  time.Duration
	// Types are the data types that clients use; nil means all.
	Types  []models.Type
	Logger *slog.Logger
}

// runTime is how long a seed runs.
const runTime = 10 * time.Minute

// FromSeed is what a seed stands for: every fourth has five nodes, every fourth begins with one or two that others join, and in
// every second one states are compared, and so written, seldom.
func FromSeed(seed uint64) Options {
	o := Options{Seed: seed, Nodes: 3, Shards: 2, Duration: runTime, Think: time.Second, TrailingEntries: 64}
	if seed%4 >= 2 {
		o.Checksum = 45 * time.Second
	}
	switch seed % 4 {
	case 0:
		o.Nodes = 5
	case 2:
		o.Begin = 1
		if seed%8 == 6 {
			o.Begin, o.Nodes = 2, 4
		}
	}
	return o
}

// Cluster is a simulated cluster.
type Cluster struct {
	opts    Options
	net     *network.Network
	servers []*server
	work    sync.WaitGroup
	record  *record
	frames  atomic.Pointer[Frames]
	frame   frameStats

	watch watched
	wrong wrongClocks

	mu     sync.Mutex
	rng    *rand.Rand
	errs   []error
	broken []check.Violation
}

// New makes a cluster of which nothing runs yet.
func New(opts Options) *Cluster {
	if opts.Checksum == 0 {
		opts.Checksum = checksumEvery
	}
	if opts.Types == nil {
		opts.Types = models.Types()
	}
	if opts.Begin == 0 {
		opts.Begin = opts.Nodes
	}
	c := &Cluster{opts: opts, net: network.New(opts.Seed), rng: rand.New(rand.NewPCG(opts.Seed, 2)), record: newRecord()}
	for range opts.Begin {
		c.addServer()
	}
	return c
}

// addServer adds a machine with an empty disk, which joins the cluster when it is started.
func (c *Cluster) addServer() *server {
	c.mu.Lock()
	defer c.mu.Unlock()
	number := len(c.servers) + 1
	name := fmt.Sprintf("n%d", number)
	s := &server{c: c, name: name, ip: fmt.Sprintf("10.0.0.%d", number), log: slog.New(&clockHandler{c.opts.Logger.Handler(), c}).With("server", name), disk: disk.New()}
	c.servers = append(c.servers[:len(c.servers):len(c.servers)], s) // who has the old list keeps it
	return s
}

// list is the servers of this moment.
func (c *Cluster) list() []*server {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.servers
}

func (c *Cluster) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.errs = append(c.errs, err)
}

// violate notes a broken promise.
func (c *Cluster) violate(kind, format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.broken = append(c.broken, check.Violation{Kind: kind, Detail: fmt.Sprintf(format, args...)})
}

// random is a source of its own for one purpose.
func (c *Cluster) random() *rand.Rand {
	c.mu.Lock()
	defer c.mu.Unlock()
	return rand.New(rand.NewPCG(c.rng.Uint64(), 0))
}

// Start starts all servers and returns when the cluster is whole.
func (c *Cluster) Start(ctx context.Context) error {
	for _, s := range c.list() {
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
	for _, s := range c.list() {
		p := s.running()
		if p == nil {
			return fmt.Errorf("%s does not run", s.name)
		}
		if err := p.Node.Ready(); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		if err := spread(p, len(c.list())); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// spread tells what is missing, as a node knows it, until so many nodes have all shards.
func spread(p *process.Process, nodes int) error {
	t := p.Node.Topology()
	if len(t.Nodes) != nodes {
		return fmt.Errorf("it knows %d nodes", len(t.Nodes))
	}
	for _, sh := range t.Shards {
		voters := 0
		for _, r := range sh.Replicas {
			if r.Role == "voter" {
				voters++
			}
		}
		if voters != min(replicas, nodes) {
			return fmt.Errorf("shard %d has %d voters", sh.ID, voters)
		}
	}
	return nil
}

// grow has the other nodes join, one after the other, and returns when all have their shards.
func (c *Cluster) grow(ctx context.Context, n *nemesis, at []time.Duration) {
	if len(at) == 0 {
		return
	}
	begin := time.Now()
	for _, d := range at {
		hold(ctx, time.Until(begin.Add(d)))
		c.addServer().start()
		n.count("a node joins")
	}
	for sleep(ctx, time.Second) == nil {
		p := c.list()[0].running()
		if p != nil && spread(p, c.opts.Nodes) == nil {
			break
		}
	}
	n.over("the cluster grows", begin, true) // and another fault meanwhile may be one too many: one of two voters is no majority
}

// Dial connects an SDK from a machine of its own.
func (c *Cluster) Dial(ctx context.Context, ip string) (*client.Client, error) {
	cfg := client.Config{Dial: c.net.Host(ip).Dial}
	for _, s := range c.list() {
		cfg.Addrs = append(cfg.Addrs, fmt.Sprintf("%s:%d", s.ip, grpcPort))
	}
	return client.Dial(ctx, cfg)
}

// Stop stops all servers and waits for everything that was started.
func (c *Cluster) Stop() error {
	var mu sync.Mutex
	var errs []error
	var stopping sync.WaitGroup
	for _, s := range c.list() {
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
