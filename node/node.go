package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/memberlist"
	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/catalog"
	"github.com/holdfastdb/holdfast/node/gossip"
	"github.com/holdfastdb/holdfast/node/shard"
	"github.com/holdfastdb/holdfast/rpc/raftnet"
	"github.com/holdfastdb/holdfast/storage"
	"github.com/holdfastdb/holdfast/storage/raftlog"
	"github.com/holdfastdb/holdfast/storage/raftlog/bolt"
)

// catalogGroup is the number of the group that every node has a replica of.
const catalogGroup = 0

// shardCommit is how long a follower of an idle shard may be behind. Nobody reads there, unlike in the catalog.
const shardCommit = 2 * time.Second

// Config is what a node is told.
type Config struct {
	Name, Zone string
	// Dir is the data directory.
	Dir string
	// FS is the file system; nil means the real one.
	FS vfs.FS
	// GRPC and HTTP are the addresses at which others reach this node's services.
	GRPC, HTTP string
	// Peer listens for the other nodes; PeerAddr is the address at which they reach it, by default the listener's.
	Peer     net.Listener
	PeerAddr string
	// Dial connects to other nodes; nil means TCP.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// Tamper is for simulations, see raftnet.Config.
	Tamper func(to string, send func())
	// PeerCreds secures the traffic between nodes; nil means plain text.
	PeerCreds credentials.TransportCredentials
	// Advertise is the host at which others reach gossip, if not the one it listens on.
	Advertise string
	// Gossip is the address to gossip at; GossipTransport replaces it in tests.
	Gossip          string
	GossipTransport memberlist.Transport
	GossipKey       []byte
	// Bootstrap makes a new cluster of this node, unless its directory belongs to one.
	Bootstrap bool
	// Join lists gossip addresses of the cluster to join.
	Join []string
	// Shards and Replicas are those of a new cluster.
	Shards   uint32
	Replicas int
	// BoltLog keeps the shards' Raft logs in BoltDB files, as the catalog's is, instead of the shared Pebble.
	BoltLog bool
	// Types are the data types of the shards.
	Types  []fsm.Type
	Timing shard.Timing
	// LogBytes is how much is written to the Raft log before it is cut; 0 means raftlog's default.
	LogBytes int
	// TrailingEntries is how many applied entries each Raft log keeps; 0 means shard's default.
	TrailingEntries uint64
	Logger          *slog.Logger
	// Clock is the wall clock that the node stamps with; nil means time.Now. Tests set it wrong.
	Clock func() time.Time
	// OnSync is told how long each synced write of the Raft log took. It must not block.
	OnSync func(time.Duration)
	// OnWork is told when a node begins, with true, and when it ends something that keeps a processor busy for long. It must not
	// block.
	OnWork func(begins bool)
	// OnFatal is called when the node must stop; the default logs and ends the process.
	OnFatal func(error)
	// What follows is for simulations. WrapLog may put something between Raft and its logs, BeforeSync is called before
	// each sync of a Raft log, and OnCommit is told of the entries of a group that are about to be applied, after a restart
	// again.
	WrapLog    func(raftlog.Provider) raftlog.Provider
	BeforeSync func()
	OnCommit   func(group uint32, entries []*raft.Log)
}

// Node is a running node. Its methods are safe for concurrent use.
type Node struct {
	cfg      Config
	log      *slog.Logger
	identity identity

	state    *storage.Engine
	logs     raftlog.Provider // of the shards
	catLogs  raftlog.Provider // of the catalog
	shardReg *fsm.Registry
	catReg   *fsm.Registry

	net       *raftnet.Net
	peers     *grpc.Server
	gossip    *gossip.Gossip
	router    *router
	gateway   *gateway
	confirmer *confirmer

	mu      sync.RWMutex
	groups  map[uint32]*member
	cluster atomic.Pointer[string] // cluster id

	topology atomic.Pointer[catalog.Topology]
	watchers struct {
		sync.Mutex
		list map[int]func()
		next int
	}

	// clockAhead is how far the right time was ahead of this node's clock when clocks were compared last, 0 if the clock was
	// right; see clock.go.
	clockAhead atomic.Int64
	// clockBase is the difference between the wall clock and the monotonic one when clocks were compared last.
	clockBase atomic.Int64
	clockNews chan struct{} // wakes clockKeeper
	started   time.Time

	// full tells that the disk has hardly room for more; see disk.go.
	full atomic.Bool

	ctx  context.Context
	stop context.CancelFunc
	work sync.WaitGroup
	loop sync.WaitGroup // what opens replicas
	poke chan struct{}
	once sync.Once
	err  error
}

// member is a replica on this node.
type member struct {
	*shard.Group
	log raftlog.Log
}

// Open starts a node and returns when it belongs to a cluster; Ready tells when it serves. ctx ends the start, not the
// node.
func Open(ctx context.Context, cfg Config) (_ *Node, err error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.OnFatal == nil {
		cfg.OnFatal = func(err error) {
			cfg.Logger.Error("the node cannot go on, stopping the process", "error", err)
			os.Exit(1)
		}
	}
	if cfg.PeerAddr == "" {
		cfg.PeerAddr = cfg.Peer.Addr().String()
	}
	n := &Node{cfg: cfg, log: cfg.Logger, groups: make(map[uint32]*member), poke: make(chan struct{}, 1), clockNews: make(chan struct{}, 1), started: time.Now()}
	n.clockBase.Store(n.clockDrift())
	n.watchers.list = make(map[int]func())
	n.ctx, n.stop = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
		}
	}()
	n.cfg.OnFatal = func(err error) { cfg.OnFatal(n.explained(err)) }
	if err := n.openStorage(); err != nil {
		return nil, n.explained(err)
	}
	kept := n.recallClock() // before any replica can be elected
	if err := n.openNetwork(); err != nil {
		return nil, err
	}
	if err := n.enter(ctx); err != nil {
		return nil, n.explained(err)
	}
	n.loop.Go(n.reconcileLoop)
	n.work.Go(n.clockLoop)
	n.work.Go(func() { n.clockKeeper(kept) })
	n.work.Go(n.watchDisk)
	n.work.Go(n.watchSpace)
	return n, nil
}

func (n *Node) filesystem() vfs.FS {
	if n.cfg.FS == nil {
		return vfs.Default
	}
	return n.cfg.FS
}

func (n *Node) openStorage() (err error) {
	filesystem := n.filesystem()
	if err := makeDir(filesystem, n.cfg.Dir); err != nil {
		return fmt.Errorf("make the data directory: %w", err)
	}
	var found bool
	if n.identity, found, err = loadIdentity(filesystem, n.cfg.Dir); err != nil {
		return err
	}
	kind := logPebble
	if n.cfg.BoltLog {
		kind = logBolt
		if n.cfg.FS != nil {
			return errors.New("BoltDB needs the real file system: choose the other Raft log")
		}
	}
	changed, err := n.identity.useLog(kind)
	if err != nil {
		return err
	}
	if err := n.checkDir(filesystem, found); err != nil {
		return err
	}
	if !found && !n.cfg.Bootstrap && len(n.cfg.Join) == 0 { // and nothing else is there either
		return fmt.Errorf("data directory %s is new: start with --bootstrap to make a cluster, or with --join to become part of one", n.cfg.Dir)
	}
	if changed {
		if err := n.identity.save(filesystem, n.cfg.Dir); err != nil {
			return err
		}
	}
	n.log = n.log.With("node", n.cfg.Name)
	n.setCluster(n.identity.ClusterID)
	if n.catReg, err = fsm.New(catalog.Type()); err != nil {
		return err
	}
	if n.shardReg, err = fsm.New(n.cfg.Types...); err != nil {
		return err
	}
	slow := func(d time.Duration, path string) {
		n.log.Warn("a write to the disk takes long", "duration", d, "path", path)
	}
	n.state, err = storage.Open(storage.Options{
		FS: n.cfg.FS, Dir: filesystem.PathJoin(n.cfg.Dir, stateDir), Logger: n.log, OnDiskSlow: slow, OnWork: n.cfg.OnWork, OnFatal: n.cfg.OnFatal,
	})
	if err != nil {
		return err
	}
	parts := n.parts()
	if n.logs, err = n.openLogs(filesystem, parts[1], slow); err != nil {
		return err
	}
	n.catLogs, err = n.openLogs(filesystem, parts[2], slow)
	return err
}

func (n *Node) openLogs(filesystem vfs.FS, where part, slow func(time.Duration, string)) (p raftlog.Provider, err error) {
	dir := filesystem.PathJoin(n.cfg.Dir, where.name)
	if where.bolt {
		p, err = bolt.Open(bolt.Options{Dir: dir, OnSync: n.cfg.OnSync, OnFatal: n.cfg.OnFatal})
	} else {
		p, err = raftlog.Open(raftlog.Options{
			FS: n.cfg.FS, Dir: dir, Logger: n.log, OnSync: n.cfg.OnSync, OnDiskSlow: slow, OnFatal: n.cfg.OnFatal, LogBytes: n.cfg.LogBytes,
			BeforeSync: n.cfg.BeforeSync, OnWork: n.cfg.OnWork,
		})
	}
	if err != nil {
		return nil, err // not what p holds: an interface around nothing
	}
	if n.cfg.WrapLog != nil {
		p = n.cfg.WrapLog(p)
	}
	return p, nil
}

func (n *Node) openNetwork() (err error) {
	n.net = raftnet.New(raftnet.Config{
		NodeID: n.identity.NodeID, ClusterID: n.ClusterID, Resolve: n.resolvePeer, Dial: n.cfg.Dial, Creds: n.cfg.PeerCreds,
		DiskStalled: func() bool { return n.diskPending() > diskStall },
		Logger:      n.log, Heartbeat: n.cfg.Timing.Heartbeat, Tamper: n.cfg.Tamper, Clock: n.cfg.Clock,
	})
	n.router = &router{nodeID: n.identity.NodeID, local: n.local, hint: n.gossipLeader, call: n.net.Call, log: n.log}
	n.gateway = newGateway(randomID(), n.Now, n.router.propose)
	n.confirmer = newConfirmer(n.identity.NodeID, n.net.ConfirmTerms)
	n.net.Handle(callPropose, func(ctx context.Context, _ string, q []byte) ([]byte, error) { return n.router.servePropose(ctx, q) })
	n.net.Handle(callQuery, func(ctx context.Context, _ string, q []byte) ([]byte, error) { return n.router.serveQuery(ctx, q) })
	n.net.HandleOpen(callJoin, n.serveJoin)
	n.net.Handle(callStatus, n.serveStatus)
	n.net.Handle(callCatalogAt, n.serveCatalogAt)
	n.net.Handle(callTransfer, n.serveTransfer)
	n.gossip, err = gossip.Start(gossip.Config{
		NodeID: n.identity.NodeID, Bind: n.cfg.Gossip, Advertise: n.cfg.Advertise, Transport: n.cfg.GossipTransport, Key: n.cfg.GossipKey,
		Meta: n.meta(), OnChange: n.wake, Logger: n.log,
	})
	if err != nil {
		return err
	}
	n.peers = grpc.NewServer(n.net.ServerOptions()...)
	n.net.Register(n.peers)
	n.work.Go(func() {
		if err := n.peers.Serve(n.cfg.Peer); err != nil && n.ctx.Err() == nil {
			n.cfg.OnFatal(fmt.Errorf("serve other nodes: %w", err))
		}
	})
	return nil
}

func (n *Node) meta() gossip.Meta {
	return gossip.Meta{
		ClusterID: n.ClusterID(), Name: n.cfg.Name, GRPC: n.cfg.GRPC, HTTP: n.cfg.HTTP, Peer: n.cfg.PeerAddr, Zone: n.cfg.Zone,
	}
}

// ID is the node's id.
func (n *Node) ID() string { return n.identity.NodeID }

// ClusterID is the id of the node's cluster, empty until it belongs to one.
func (n *Node) ClusterID() string { return *n.cluster.Load() }

func (n *Node) setCluster(id string) { n.cluster.Store(&id) }

// resolvePeer finds where a node takes requests of other nodes: gossip knows best, the catalog remembers.
func (n *Node) resolvePeer(id string) (string, bool) {
	if m, ok := n.gossip.Member(id); ok && m.Meta.Peer != "" {
		return m.Meta.Peer, true
	}
	if t := n.topology.Load(); t != nil {
		if node, ok := t.Node(id); ok {
			return node.Peer, true
		}
	}
	return "", false
}

func (n *Node) gossipLeader(group uint32) (string, bool) {
	lead, ok := n.gossip.Leader(group)
	return lead.NodeID, ok
}

func (n *Node) local(group uint32) (replica, bool) {
	g, ok := n.Group(group)
	return g, ok
}

// Group returns this node's replica of a group.
func (n *Node) Group(group uint32) (*shard.Group, bool) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	m, ok := n.groups[group]
	if !ok {
		return nil, false
	}
	return m.Group, true
}

func (n *Node) members() map[uint32]*member {
	n.mu.RLock()
	defer n.mu.RUnlock()
	groups := make(map[uint32]*member, len(n.groups))
	for id, m := range n.groups {
		groups[id] = m
	}
	return groups
}

// shardMemory is about what the state machines of a node's shards keep in memory together at most.
const shardMemory = 1 << 30

// shards is how many there are in the cluster.
func (n *Node) shards() int {
	if t := n.topology.Load(); t != nil {
		return max(len(t.Shards), 1)
	}
	return 1
}

// openGroup starts a replica on this node.
func (n *Node) openGroup(group uint32, gen uint32, bootstrap bool) error {
	n.mu.RLock()
	_, open := n.groups[group]
	n.mu.RUnlock()
	if open {
		return nil
	}
	provider, registry := n.logs, n.shardReg.Within(shardMemory/n.shards())
	var onApplied func(fsm.Applied)
	if group == catalogGroup {
		provider, registry, onApplied = n.catLogs, n.catReg, func(fsm.Applied) { n.wake() }
	}
	log, err := provider.Open(group)
	if err != nil {
		return err
	}
	if err := checkLog(group, log, n.state.Shard(group)); err != nil {
		return errors.Join(err, log.Close())
	}
	var onCommit func([]*raft.Log)
	if n.cfg.OnCommit != nil {
		onCommit = func(entries []*raft.Log) { n.cfg.OnCommit(group, entries) }
	}
	id := catalog.ReplicaID(n.identity.NodeID, gen)
	durability := log.Defer()
	transport := n.net.Group(group, id, durability)
	timing := n.cfg.Timing
	if timing.Commit == 0 && group != catalogGroup {
		timing.Commit = shardCommit
	}
	g, err := shard.Open(shard.Config{
		Group: group, ReplicaID: id, Registry: registry, State: n.state.Shard(group), Sync: n.state.Sync, Log: log, Durability: durability,
		Transport: transport, Attach: func(r *shard.Raft) { transport.Attach(r) }, Confirm: n.confirmer.confirm,
		AskSums: func(ctx context.Context, replicaIDs []string) map[string]fsm.Sum {
			return n.askSums(ctx, group, replicaIDs)
		},
		Timing: timing, TrailingEntries: n.cfg.TrailingEntries, Bootstrap: bootstrap, Logger: n.log, OnApplied: onApplied, OnFatal: n.cfg.OnFatal,
		OnCommit: onCommit, Clock: n.cfg.Clock, ClockWrong: n.clockWrong, DiskFull: n.full.Load,
		Fit: func(ctx context.Context, replicaID string) bool {
			g, ok := n.Group(group)
			return ok && n.fit(ctx, g, replicaID)
		},
		OnLead: func(leading bool, term uint64) {
			if leading {
				n.gossip.Announce(group, term)
			}
			n.wake()
		},
	})
	if err != nil {
		return errors.Join(err, log.Close())
	}
	n.mu.Lock()
	n.groups[group] = &member{g, log}
	n.mu.Unlock()
	return nil
}

// HandOver gives the leadership of all groups to other nodes, as far as there are any and ctx lasts.
func (n *Node) HandOver(ctx context.Context) {
	var moving sync.WaitGroup
	for _, m := range n.members() {
		moving.Go(func() { m.HandOver(ctx) })
	}
	moving.Wait()
}

// Close hands leadership over, stops everything and closes the files.
func (n *Node) Close() error {
	n.once.Do(func() { n.err = n.close() })
	return n.err
}

func (n *Node) close() error {
	n.stop()
	if n.gateway != nil {
		n.gateway.close()
	}
	n.loop.Wait() // no replica is opened any more
	var errs []error
	var closing sync.WaitGroup
	var mu sync.Mutex
	for _, m := range n.members() {
		closing.Go(func() {
			err := m.Group.Close()
			mu.Lock()
			errs = append(errs, err)
			mu.Unlock()
		})
	}
	closing.Wait()
	if n.peers != nil {
		n.peers.Stop()
	}
	if n.confirmer != nil {
		n.confirmer.close()
	}
	if n.net != nil {
		n.net.Close()
	}
	if n.gossip != nil {
		errs = append(errs, n.gossip.Close())
	}
	n.work.Wait()
	for _, m := range n.members() {
		errs = append(errs, m.log.Close())
	}
	if n.logs != nil {
		errs = append(errs, n.logs.Close())
	}
	if n.catLogs != nil {
		errs = append(errs, n.catLogs.Close())
	}
	if n.state != nil {
		errs = append(errs, n.state.Close())
	}
	return errors.Join(errs...)
}
