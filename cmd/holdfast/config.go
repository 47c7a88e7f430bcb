package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"github.com/holdfastdb/holdfast/fsm/catalog"
)

// envPrefix starts the environment variable of every flag: --raft-log is HOLDFAST_RAFT_LOG.
const envPrefix = "HOLDFAST_"

// Below, scheduling and disks alone look like dead leaders; above, an election takes longer than clients wait.
const minHeartbeat, maxHeartbeat = 50 * time.Millisecond, 30 * time.Second

// minChecksum is as often as tests of the comparison need it.
const minChecksum = time.Second

// serverConfig is what one node is told. Each field is a flag, a YAML key and an environment variable; the flag wins
// over the environment, and that over the file.
type serverConfig struct {
	name, data               string
	grpc, http, peer, gossip string
	advertise                string
	bootstrap                bool
	join                     []string
	shards, replicas         int
	zone                     string
	raftLog                  string
	trailingEntries          uint64
	heartbeat, checksum      time.Duration
	gossipKeyFile            string
	insecure, pprof          bool
	logLevel, logFormat      string
	config                   string
}

// devFlags are those that make sense for every node.
func (c *serverConfig) devFlags(f *pflag.FlagSet) {
	f.StringVar(&c.data, "data", "./holdfast-data", "data directory")
	f.StringVar(&c.grpc, "grpc", "127.0.0.1:7400", "address for SDKs and gRPC clients")
	f.StringVar(&c.http, "http", "127.0.0.1:7480", "address for REST, metrics and health")
	f.IntVar(&c.shards, "shards", 8, "shards of a new cluster")
	f.IntVar(&c.replicas, "replicas", 3, "voters of each shard of a new cluster, as far as there are nodes")
	f.StringVar(&c.raftLog, "raft-log", "pebble", "raft log of the shards: pebble (one for all) or boltdb (a file for each)")
	f.Uint64Var(&c.trailingEntries, "trailing-entries", 4096, "applied entries that each raft log keeps, so that a node that comes back needs no whole state")
	f.BoolVar(&c.insecure, "insecure", false, "serve in plain text on an address that is not loopback")
	f.BoolVar(&c.pprof, "pprof", false, "serve profiles at /debug/pprof/ of the HTTP address")
	f.StringVar(&c.logLevel, "log-level", "warn", "debug, info, warn or error")
	f.StringVar(&c.logFormat, "log-format", "text", "text or json")
	f.StringVar(&c.config, "config", "", "YAML file with any of these settings")
}

func (c *serverConfig) flags(f *pflag.FlagSet) {
	c.devFlags(f)
	f.Lookup("log-level").DefValue = "info"
	c.logLevel = "info"
	f.StringVar(&c.name, "name", "n1", "name of the node, for people")
	f.StringVar(&c.peer, "peer", "127.0.0.1:7401", "address for the other nodes")
	f.StringVar(&c.gossip, "gossip", "127.0.0.1:7402", "address for gossip")
	f.StringVar(&c.advertise, "advertise", "", "host that others reach this node at, if not the one it listens on")
	f.BoolVar(&c.bootstrap, "bootstrap", false, "make a new cluster of this one node")
	f.StringSliceVar(&c.join, "join", nil, "gossip addresses of nodes of the cluster to join")
	f.DurationVar(&c.checksum, "checksum-interval", 5*time.Minute, "how often the replicas of a shard that has changed compare their states; 0 for never")
	f.DurationVar(&c.heartbeat, "heartbeat", time.Second, "how long a follower waits for its leader before it looks for another one")
	f.StringVar(&c.zone, "zone", "", "failure domain of the node")
	f.StringVar(&c.gossipKeyFile, "gossip-key-file", "", "file with the gossip key: 32 bytes as 64 hex digits")
}

// load fills the flags that the command line left alone from the environment and then from the file.
func (c *serverConfig) load(cmd *cobra.Command, lookupEnv func(string) (string, bool)) error {
	flags := cmd.Flags()
	var errs []error
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Changed || f.Name == "help" {
			return
		}
		if v, ok := lookupEnv(envPrefix + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))); ok {
			if err := flags.Set(f.Name, v); err != nil {
				errs = append(errs, fmt.Errorf("environment variable for --%s: %w", f.Name, err))
			}
		}
	})
	if err := errors.Join(errs...); err != nil {
		return &exitError{code: exitUsage, err: err}
	}
	if c.config == "" {
		return nil
	}
	text, err := os.ReadFile(c.config)
	if err != nil {
		return &exitError{code: exitUsage, err: fmt.Errorf("read --config: %w", err)}
	}
	if err := setFromYAML(flags, text); err != nil {
		return &exitError{code: exitUsage, err: fmt.Errorf("%s: %w", c.config, err)}
	}
	return nil
}

// setFromYAML sets flags from a flat YAML mapping; keys are flag names, with - or _.
func setFromYAML(flags *pflag.FlagSet, text []byte) error {
	var values map[string]any
	if err := yaml.Unmarshal(text, &values); err != nil {
		return err
	}
	var errs []error
	for key, value := range values {
		name := strings.ReplaceAll(key, "_", "-")
		f := flags.Lookup(name)
		if f == nil || name == "config" {
			errs = append(errs, fmt.Errorf("unknown key %q", key))
			continue
		}
		if f.Changed || value == nil { // a key without a value says nothing
			continue
		}
		if list, ok := value.([]any); ok {
			parts := make([]string, len(list))
			for i, v := range list {
				parts[i] = fmt.Sprint(v)
			}
			value = strings.Join(parts, ",")
		}
		if err := flags.Set(name, fmt.Sprint(value)); err != nil {
			errs = append(errs, fmt.Errorf("key %q: %w", key, err))
		}
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}

// logger builds the process's logger.
func (c *serverConfig) logger(w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.logLevel)); err != nil {
		return nil, usageErrorf("--log-level %q: use debug, info, warn or error", c.logLevel)
	}
	opts := &slog.HandlerOptions{Level: level}
	switch c.logFormat {
	case "text":
		return slog.New(slog.NewTextHandler(w, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	}
	return nil, usageErrorf("--log-format %q: use text or json", c.logFormat)
}

// check refuses settings that cannot be meant.
func (c *serverConfig) check() error {
	switch {
	case strings.TrimSpace(c.name) == "":
		return usageErrorf("--name is empty: name the node, for example n1")
	case c.data == "":
		return usageErrorf("--data is empty: say in which directory the node keeps its data")
	case c.bootstrap && len(c.join) > 0:
		return usageErrorf("--bootstrap makes a new cluster and --join enters one: use one of them")
	case c.shards < 1 || c.shards > catalog.MaxShards:
		return usageErrorf("--shards must be 1 to %d", catalog.MaxShards)
	case c.replicas < 1 || c.replicas > 9:
		return usageErrorf("--replicas must be 1 to 9")
	case c.raftLog != "pebble" && c.raftLog != "boltdb":
		return usageErrorf("--raft-log %q: use pebble or boltdb", c.raftLog)
	case c.trailingEntries < 1:
		return usageErrorf("--trailing-entries must be at least 1")
	case c.checksum != 0 && c.checksum < minChecksum:
		return usageErrorf("--checksum-interval must be 0 or at least %v", minChecksum)
	case c.heartbeat < minHeartbeat || c.heartbeat > maxHeartbeat:
		return usageErrorf("--heartbeat must be %v to %v", minHeartbeat, maxHeartbeat)
	}
	for _, a := range c.addresses() {
		host, _, err := net.SplitHostPort(a.addr)
		if err != nil {
			return usageErrorf("--%s %q: use HOST:PORT", a.flag, a.addr)
		}
		if ip := net.ParseIP(host); host == "localhost" || ip != nil && ip.IsLoopback() {
			continue
		}
		switch { // who reaches gossip without a key takes part in the cluster: a private network is not enough
		case a.flag == "gossip" && c.gossipKeyFile == "":
			return usageErrorf("--gossip %s is reachable from other machines: give every node the same --gossip-key-file, made with openssl rand -hex 32", a.addr)
		case a.flag == "gossip", c.insecure:
			continue
		}
		return usageErrorf("--%s %s is reachable from other machines and speaks plain text: say --insecure if the network is private", a.flag, a.addr)
	}
	return nil
}

type address struct{ flag, addr string }

func (c *serverConfig) addresses() [4]address {
	return [...]address{{"grpc", c.grpc}, {"http", c.http}, {"peer", c.peer}, {"gossip", c.gossip}}
}

// checkReachable refuses addresses that others cannot come back to: a node tells the cluster where it listens.
func (c *serverConfig) checkReachable() error {
	if _, _, err := net.SplitHostPort(c.advertise); err == nil || isWildcard(c.advertise) && c.advertise != "" {
		return usageErrorf("--advertise %q: use a host name or an IP address, without a port", c.advertise)
	}
	for _, a := range c.addresses() {
		if host, _, err := net.SplitHostPort(a.addr); err == nil && isWildcard(host) && c.advertise == "" {
			return usageErrorf("--%s %s listens everywhere and tells nobody where: say at which host others reach this node, with --advertise HOST", a.flag, a.addr)
		}
	}
	return nil
}

// isWildcard tells of a host that stands for every interface.
func isWildcard(host string) bool {
	ip := net.ParseIP(host)
	return host == "" || ip != nil && ip.IsUnspecified()
}
