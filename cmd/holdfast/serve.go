package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfastdb/holdfast/cmd/procs"
	"github.com/holdfastdb/holdfast/node"
	"github.com/holdfastdb/holdfast/node/shard"
	"github.com/holdfastdb/holdfast/rpc/process"
	"github.com/holdfastdb/holdfast/storage/aio"
)

// devTiming makes a cluster on one machine react fast.
var devTiming = shard.Timing{Heartbeat: 250 * time.Millisecond, Commit: 100 * time.Millisecond}

const (
	readyTimeout = 60 * time.Second
	stopTimeout  = 10 * time.Second
)

func newDev(c *cli) *cobra.Command {
	cfg := &serverConfig{}
	var nodes int
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run a node, or a cluster in one process, on this machine",
		Long: `dev runs a real node with all data types on this machine: Raft, storage, every interface.
The data stays in the data directory and is there again at the next start. Ctrl-C stops cleanly.`,
		Example: `  holdfast dev
  holdfast dev --nodes 3 --data /tmp/three
  holdfast dev --http 127.0.0.1:0 --grpc 127.0.0.1:0     any free ports, told in the ready line`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cfg.load(cmd, os.LookupEnv); err != nil {
				return err
			}
			cfg.peer, cfg.gossip = "127.0.0.1:0", "127.0.0.1:0" // nobody joins from outside
			cfg.name, cfg.heartbeat = "n1", devTiming.Heartbeat
			if err := cfg.check(); err != nil {
				return err
			}
			if nodes < 1 || nodes > 9 {
				return usageErrorf("--nodes must be 1 to 9")
			}
			return c.dev(cmd.Context(), cfg, nodes)
		},
	}
	cfg.devFlags(cmd.Flags())
	cmd.Flags().IntVar(&nodes, "nodes", 1, "nodes to run in this process")
	return cmd
}

// dev runs the nodes until ctx ends.
func (c *cli) dev(ctx context.Context, cfg *serverConfig, nodes int) (err error) {
	logger, err := cfg.logger(c.stderr)
	if err != nil {
		return err
	}
	keys, err := cfg.keys()
	if err != nil {
		return err
	}
	defer pacedGC(ctx)()
	processors := procs.New()
	defer processors.Close()
	start, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	var running []*process.Process
	defer func() { err = errors.Join(err, stopAll(running)) }()
	var seed string
	for i := range nodes {
		pc := cfg.process(logger)
		pc.Node.Name = fmt.Sprintf("n%d", i+1)
		pc.Node.Timing, pc.Node.OnWork, pc.Keys = devTiming, processors.Work, keys
		if nodes > 1 {
			pc.Node.Dir = filepath.Join(cfg.data, pc.Node.Name)
		}
		if i == 0 {
			pc.Node.Bootstrap = true
		} else {
			pc.GRPC, pc.HTTP = "127.0.0.1:0", "127.0.0.1:0"
			pc.Node.Join = []string{seed}
		}
		p, err := process.Start(start, pc)
		if err != nil {
			return startError(err)
		}
		running = append(running, p)
		if i == 0 {
			seed = p.Node.GossipAddr()
		}
	}
	for _, p := range running {
		if err := p.WaitReady(start); err != nil {
			return err
		}
	}
	cfg.follow(ctx, processors)
	first := running[0]
	fmt.Fprintf(c.stdout, "holdfast: ready http=%s grpc=%s\n", first.HTTPAddr(), first.GRPCAddr())
	addr := ""
	if first.GRPCAddr() != "127.0.0.1:7400" {
		addr = " --addr " + first.GRPCAddr()
	}
	fmt.Fprintf(c.stdout, `
Try in another terminal:
  holdfast policy create --name api --rate 5 --window 60%[1]s
  holdfast policy assign api alice%[1]s
  holdfast limit check alice%[1]s
  holdfast session create alice%[1]s
  curl -s http://%[2]s/api/v1/ratelimit/check -d '{"client_id":"alice"}'
(holdfast is this program: go run ./cmd/holdfast, or bin/holdfast after make build.)
Data: %[3]s. Stop with Ctrl-C.
`, addr, first.HTTPAddr(), cfg.data)
	<-ctx.Done()
	fmt.Fprintln(c.stdout, "holdfast: stopping")
	return nil
}

func stopAll(running []*process.Process) error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	var errs []error
	for i := len(running) - 1; i >= 0; i-- {
		errs = append(errs, running[i].Close(ctx))
	}
	return errors.Join(errs...)
}

// startError says what to do about the usual reasons.
func startError(err error) error {
	if strings.Contains(err.Error(), "resource temporarily unavailable") || strings.Contains(err.Error(), "lock held") {
		return fmt.Errorf("the data directory is in use by another process: stop that, or choose another with --data: %w", err)
	}
	var opErr *net.OpError
	if errors.As(err, &opErr) && opErr.Op == "listen" {
		return fmt.Errorf("%w\nAnother program uses the address: choose another one, port 0 is any free one", err)
	}
	return err
}

func newStart(c *cli) *cobra.Command {
	cfg := &serverConfig{}
	cmd := &cobra.Command{
		Use:   "start",
		Short: "Run one node of a cluster",
		Long: `start runs one node. The first node of a cluster is started with --bootstrap, every other one with --join and
the gossip address of any member. A restart needs neither: the node knows its cluster from its data directory.
Each flag is also a key of the YAML file and an environment variable: --raft-log is raft_log and HOLDFAST_RAFT_LOG.`,
		Example: `  holdfast start --name n1 --data /var/lib/holdfast --bootstrap
  holdfast start --name n2 --data d2 --grpc 127.0.0.1:7410 --http 127.0.0.1:7490 \
      --peer 127.0.0.1:7411 --gossip 127.0.0.1:7412 --join 127.0.0.1:7402`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cfg.load(cmd, os.LookupEnv); err != nil {
				return err
			}
			if err := cfg.check(); err != nil {
				return err
			}
			if err := cfg.checkReachable(); err != nil {
				return err
			}
			return c.start(cmd.Context(), cfg)
		},
	}
	cfg.flags(cmd.Flags())
	return cmd
}

func (c *cli) start(ctx context.Context, cfg *serverConfig) (err error) {
	logger, err := cfg.logger(c.stderr)
	if err != nil {
		return err
	}
	pc := cfg.process(logger)
	if cfg.gossipKeyFile != "" {
		if pc.Node.GossipKey, err = readGossipKey(cfg.gossipKeyFile); err != nil {
			return err
		}
	}
	if pc.Keys, err = cfg.keys(); err != nil {
		return err
	}
	if pc.Keys == nil {
		logger.Warn("what sessions say of their users is stored as plain text: make keys with holdfast session keys create, and give all nodes the same with --session-keys")
	}
	defer pacedGC(ctx)()
	processors := procs.New()
	defer processors.Close()
	pc.Node.OnWork = processors.Work
	p, err := process.Start(ctx, pc)
	if err != nil {
		return startError(err)
	}
	defer func() { err = errors.Join(err, stopAll([]*process.Process{p})) }()
	logger.Info("started", "name", cfg.name, "http", p.HTTPAddr(), "grpc", p.GRPCAddr(), "gossip", p.Node.GossipAddr())
	if err := p.WaitReady(ctx); err != nil {
		if ctx.Err() != nil {
			return nil // told to stop before it was ready
		}
		return err
	}
	cfg.follow(ctx, processors)
	fmt.Fprintf(c.stdout, "holdfast: ready http=%s grpc=%s\n", p.HTTPAddr(), p.GRPCAddr())
	<-ctx.Done()
	logger.Info("stopping")
	return nil
}

// follow lets the number of processors follow the load, once the start is over, for which all are needed. With one, plain
// syncs would stop a node, each of which keeps a processor: BoltDB's, and all where the kernel has no others.
func (c *serverConfig) follow(ctx context.Context, p *procs.Processors) {
	if c.raftLog != "boltdb" && aio.Supported(c.data) {
		p.Follow(ctx)
	}
}

func readGossipKey(path string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, &exitError{code: exitUsage, err: fmt.Errorf("read --gossip-key-file: %w", err)}
	}
	key, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(key) != 32 {
		return nil, usageErrorf("%s must hold 64 hex digits: make it with openssl rand -hex 32", path)
	}
	return key, nil
}

func (c *serverConfig) timing() shard.Timing {
	t := shard.Timing{Heartbeat: c.heartbeat, Checksum: c.checksum}
	if c.checksum == 0 {
		t.Checksum = -1 // never
	}
	return t
}

// process is what the flags mean for a node.
func (c *serverConfig) process(logger *slog.Logger) process.Config {
	return process.Config{
		GRPC: c.grpc, HTTP: c.http, Peer: c.peer, Advertise: c.advertise, Profiles: c.pprof,
		Node: node.Config{
			Name: c.name, Zone: c.zone, Dir: c.data, Gossip: c.gossip, Bootstrap: c.bootstrap, Join: c.join,
			Shards: uint32(c.shards), Replicas: c.replicas, BoltLog: c.raftLog == "boltdb",
			TrailingEntries: c.trailingEntries, Timing: c.timing(), Logger: logger,
		},
	}
}
