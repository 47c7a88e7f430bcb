// Package chaos runs clusters of real processes and does to them what machines, disks and networks do.
package chaos

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/holdfastdb/holdfast/client"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
	"github.com/holdfastdb/holdfast/storage/plant"
)

// binary builds the program once for all tests of the process, plantedBinary the one in which bugs can be planted.
var (
	binary        = sync.OnceValues(func() (string, error) { return build() })
	plantedBinary = sync.OnceValues(func() (string, error) { return build("-tags", "planted") })
)

func build(flags ...string) (string, error) {
	dir, err := os.MkdirTemp("", "holdfast-chaos-*")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "holdfast")
	args := slices.Concat([]string{"build", "-pgo=off", "-o", path}, flags, []string{"github.com/holdfastdb/holdfast/cmd/holdfast"})
	if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("build holdfast: %w\n%s", err, out)
	}
	return path, nil
}

// Options say what cluster to start.
type Options struct {
	Nodes int
	// Begin is how many there are in the beginning, default all. The others join when they are told.
	Begin int
	// Dir keeps what the nodes write; empty means one that goes with the test if that passes.
	Dir string
	// Disks gives each node a file system of its own, which can be full and can hang.
	Disks bool
	// Shards, default 4; each has a replica on every node.
	Shards int
	// Checksum is how often replicas compare their states, default checksumEvery.
	Checksum time.Duration
	// What follows are the nodes' settings; nothing means their defaults.
	Heartbeat         time.Duration
	TrailingEntries   uint64
	RaftLog, LogLevel string
	// Bug is planted into all nodes.
	Bug plant.Bug
}

const (
	// checksumEvery is how often replicas compare their states: every history has some of it.
	checksumEvery = 5 * time.Second
	// checksumUsual is how often they do it by default. What measures is over before the first time.
	checksumUsual = 5 * time.Minute
)

// Cluster is a set of processes on a network of their own.
type Cluster struct {
	t      testing.TB
	opts   Options
	binary string
	net    network
	Nodes  []*Node
	later  []*Node // who may still join
}

// Node is one process and what outlives it.
type Node struct {
	c     *Cluster
	Name  string
	GRPC  string // where others reach it
	place place
	join  []string // nil once it has a data directory
	data  string
	log   string
	disk  *disk // nil without one of its own

	mu       sync.Mutex
	cmd      *exec.Cmd
	finished chan struct{} // closed when the process has ended
	doomed   bool          // the process is meant to end
	surprise []string      // how processes ended that were not
	exit     error         // how the last one ended, nil if in peace
}

// Start starts a cluster and waits until every shard has its voters. It ends with the test. What goes wrong with a cluster is
// returned, here and below, and not the end of the test: the history that it belongs to is judged and published all the same.
func Start(t testing.TB, opts Options) (*Cluster, error) {
	program := binary
	if opts.Bug != plant.None {
		program = plantedBinary
	}
	path, err := program()
	if err != nil {
		return nil, err
	}
	if opts.Dir == "" {
		if opts.Dir, err = os.MkdirTemp("", "holdfast-chaos-*"); err != nil {
			return nil, err
		}
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("what the nodes wrote is in %s", opts.Dir)
				return
			}
			_ = os.RemoveAll(opts.Dir) // the next clean-up of the machine's temporary files finds the rest
		})
	}
	if opts.Shards == 0 {
		opts.Shards = 4
	}
	var all []*Node
	for i := range opts.Nodes { // before the network, which asks for their processes
		all = append(all, &Node{Name: "n" + strconv.Itoa(i+1)})
	}
	begin := cmp.Or(opts.Begin, opts.Nodes)
	c := &Cluster{t: t, opts: opts, binary: path, Nodes: all[:begin:begin], later: all[begin:]}
	if c.net, err = newNetwork(opts.Nodes, opts.Dir, func(i int) int { return all[i].pid() }, t.Logf); err != nil {
		return nil, err
	}
	t.Cleanup(c.stop)
	for i, n := range all {
		n.c = c
		n.place = c.net.place(i)
		n.GRPC, n.log, n.data = n.place.grpcAt, filepath.Join(opts.Dir, n.Name+".log"), filepath.Join(opts.Dir, n.Name)
		n.join = []string{"--bootstrap", "--shards", strconv.Itoa(opts.Shards), "--replicas", strconv.Itoa(opts.Nodes)}
		if i > 0 {
			n.join = []string{"--join", c.net.place(0).gossipAt}
		}
		if opts.Disks {
			if err := os.Mkdir(n.data, 0o700); err != nil {
				return nil, err
			}
			if n.disk, err = newDisk(n.data); err != nil {
				return nil, err
			}
			n.data = filepath.Join(n.disk.dir, "data")
		}
	}
	for _, n := range c.Nodes {
		if err := n.Start(); err != nil {
			return nil, err
		}
		if err := n.WaitReady(30 * time.Second); err != nil {
			return nil, err
		}
	}
	return c, c.WaitHealthy(2 * time.Minute)
}

func (c *Cluster) stop() {
	for _, n := range slices.Concat(c.Nodes, c.later) {
		if n.disk != nil {
			_ = n.disk.thaw() // a process that waits for its disk cannot even be killed
		}
		n.Kill()
		if !c.t.Failed() { // what it says is in its log
			_ = os.RemoveAll(n.data)
		}
		if n.disk != nil {
			if err := n.disk.close(); err != nil {
				c.t.Logf("the disk of %s: %v", n.Name, err)
			}
		}
		if c.t.Failed() {
			if text, err := os.ReadFile(n.log); err == nil {
				c.t.Logf("log of %s:\n%s", n.Name, tail(string(text), 30))
			}
		}
	}
	if err := c.net.close(); err != nil {
		c.t.Logf("network: %v", err)
	}
}

func tail(text string, lines int) string {
	all := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Addrs are the gRPC addresses of all nodes.
func (c *Cluster) Addrs() []string {
	var addrs []string
	for _, n := range c.Nodes {
		addrs = append(addrs, n.GRPC)
	}
	return addrs
}

// Dial opens a client that ends with the test. It tries operations for so long; 0 means the SDK's default.
func (c *Cluster) Dial(timeout time.Duration) (*client.Client, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cl, err := client.Dial(ctx, client.Config{Addrs: c.Addrs(), Timeout: timeout})
	if err != nil {
		return nil, err
	}
	c.t.Cleanup(func() { _ = cl.Close() }) // the cluster may be gone already
	return cl, nil
}

// command prepares the program as a client of the cluster.
func (c *Cluster) command(args ...string) *exec.Cmd {
	return exec.CommandContext(context.Background(), c.binary, append(args, "--addr", strings.Join(c.Addrs(), ","))...)
}

// Status asks any node that answers.
func (c *Cluster) Status(ctx context.Context) (*pb.ClusterStatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	cl, err := client.Dial(ctx, client.Config{Addrs: c.Addrs()})
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	return pb.NewClusterClient(cl.Conn()).Status(ctx, &pb.ClusterStatusRequest{})
}

// WaitHealthy waits until all nodes are there and every shard has its voters and a leader.
func (c *Cluster) WaitHealthy(within time.Duration) error {
	return c.wait(within, "healthy cluster", func() error {
		s, err := c.Status(context.Background())
		switch {
		case err != nil:
			return err
		case !s.Healthy:
			return errors.New("not healthy")
		case len(s.Nodes) != len(c.Nodes):
			return fmt.Errorf("%d nodes", len(s.Nodes))
		}
		return nil
	})
}

// at finds the node with a gRPC address.
func (c *Cluster) at(grpc string) *Node {
	for _, n := range c.Nodes {
		if n.GRPC == grpc {
			return n
		}
	}
	return nil
}

// Leaders tells which shards each node leads, the catalog not counted.
func (c *Cluster) Leaders(ctx context.Context) (map[*Node][]uint32, error) {
	s, err := c.Status(ctx)
	if err != nil {
		return nil, err
	}
	nodes := make(map[string]*Node)
	for _, info := range s.Nodes {
		nodes[info.NodeId] = c.at(info.GrpcAddr)
	}
	leads := make(map[*Node][]uint32)
	for _, shard := range s.Shards {
		for _, replica := range shard.Replicas {
			if n := nodes[replica.NodeId]; n != nil && replica.State == "leader" {
				leads[n] = append(leads[n], shard.Info.Shard)
			}
		}
	}
	return leads, nil
}

// wait polls until try succeeds.
func (c *Cluster) wait(within time.Duration, what string, try func() error) error {
	deadline := time.After(within)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-deadline:
			return fmt.Errorf("no %s within %v: %w", what, within, err)
		}
	}
}

// Start starts the process.
func (n *Node) Start() error { return n.start(n.command()) }

func (n *Node) start(cmd *exec.Cmd) error {
	log, err := os.OpenFile(n.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return errors.Join(err, log.Close())
	}
	finished := make(chan struct{})
	n.mu.Lock()
	n.cmd, n.finished, n.doomed = cmd, finished, false
	n.mu.Unlock()
	go func() {
		err := cmd.Wait() // it is killed, as a rule
		_ = log.Close()
		n.mu.Lock()
		n.exit = err
		if !n.doomed {
			said, _ := os.ReadFile(n.log)
			n.surprise = append(n.surprise, fmt.Sprintf("%s ended by itself: %v: %.500s", n.Name, err, tail(string(said), 1)))
		}
		n.mu.Unlock()
		close(finished)
	}()
	return nil
}

// command is the command line of the node.
func (n *Node) command() *exec.Cmd {
	p := n.place
	args := slices.Concat(p.wrap, []string{
		n.c.binary, "start", "--name", n.Name, "--data", n.data, "--log-format", "json", "--checksum-interval", cmp.Or(n.c.opts.Checksum, checksumEvery).String(),
		"--grpc", p.grpc, "--http", p.http, "--peer", p.peer, "--gossip", p.gossip,
	}, p.flags, n.join)
	if n.c.opts.Heartbeat > 0 {
		args = append(args, "--heartbeat", n.c.opts.Heartbeat.String())
	}
	if n.c.opts.TrailingEntries > 0 {
		args = append(args, "--trailing-entries", strconv.FormatUint(n.c.opts.TrailingEntries, 10))
	}
	if n.c.opts.RaftLog != "" {
		args = append(args, "--raft-log", n.c.opts.RaftLog)
	}
	if n.c.opts.LogLevel != "" {
		args = append(args, "--log-level", n.c.opts.LogLevel)
	}
	cmd := exec.CommandContext(context.Background(), args[0], args[1:]...)
	if n.c.opts.Bug != plant.None {
		cmd.Env = append(os.Environ(), fmt.Sprintf("HOLDFAST_PLANTED=%d", n.c.opts.Bug))
	}
	return cmd
}

// pid is the process of the node, 0 if it has none.
func (n *Node) pid() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cmd == nil {
		return 0
	}
	return n.cmd.Process.Pid
}

// signal sends a signal to the process, if it runs.
func (n *Node) signal(s syscall.Signal) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cmd != nil {
		_ = n.cmd.Process.Signal(s) // it may have ended
	}
}

// Pause stops the process in its tracks until Resume.
func (n *Node) Pause() { n.signal(syscall.SIGSTOP) }

// Resume lets a paused process go on.
func (n *Node) Resume() { n.signal(syscall.SIGCONT) }

// doom says that the process is meant to end, and returns when that will be known.
func (n *Node) doom() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.doomed = true
	if n.finished == nil { // never started
		ended := make(chan struct{})
		close(ended)
		return ended
	}
	return n.finished
}

// Stop ends the process in peace.
func (n *Node) Stop(within time.Duration) error {
	if !n.Running() {
		return nil
	}
	ended := n.doom()
	n.signal(syscall.SIGTERM)
	select {
	case <-ended:
	case <-time.After(within):
		return fmt.Errorf("%s did not stop within %v", n.Name, within)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.exit != nil {
		return fmt.Errorf("%s was to stop in peace: %w", n.Name, n.exit)
	}
	return nil
}

// Running reports whether the process lives.
func (n *Node) Running() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cmd == nil {
		return false
	}
	select {
	case <-n.finished:
		return false
	default:
		return true
	}
}

// Surprises tells how the processes of the node ended that nobody ended.
func (n *Node) Surprises() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.surprise)
}

// Kill ends the process as a power switch does, as far as the process can tell, and waits for its end.
func (n *Node) Kill() { <-n.killNow() }

// killNow is Kill without the wait.
func (n *Node) killNow() (ended <-chan struct{}) {
	ended = n.doom()
	n.signal(syscall.SIGKILL)
	return ended
}

// WaitReady waits until the node says that it serves.
func (n *Node) WaitReady(within time.Duration) error {
	return n.c.wait(within, n.Name+" that is ready", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		q, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.place.http+"/readyz", nil)
		if err != nil {
			return err
		}
		r, err := http.DefaultClient.Do(q)
		if err != nil {
			return err
		}
		defer r.Body.Close()
		if r.StatusCode != http.StatusOK {
			return errors.New(r.Status)
		}
		return nil
	})
}
