// Package shard runs one Raft group on this node: a shard, or the catalog.
//
// The parts are small and each can be read alone: machine.go applies committed entries, snapshot.go hands states over,
// proposer.go packs frames into entries, reader.go answers queries linearizably, lead.go watches leadership and expiry,
// members.go changes the group's replicas. Group ties them together and restarts the Raft instance where the library
// cannot go on (multi-Raft hazards hashicorp/raft #696 and #697).
package shard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage"
)

// Log is where a group keeps its Raft log and its vote.
type Log interface {
	raft.LogStore
	raft.StableStore
}

// Raft is the library's Raft instance, of which transports ask a few things directly.
type Raft = raft.Raft

// TermCheck asks whether a leader's term is still the newest: a question to a majority of Voters.
type TermCheck struct {
	Group  uint32
	Term   uint64
	Self   string   // replica id
	Voters []string // replica ids
}

// Timing is how fast a group reacts. Zero values get the defaults.
type Timing struct {
	// Heartbeat is how long a follower waits for its leader before it looks for another one; also the time of an
	// election. Default 1 s.
	Heartbeat time.Duration
	// Commit is how often a leader tells idle followers the commit index. Default 200 ms.
	Commit time.Duration
	// Checksum is how often the replicas compare their states, if they changed; negative for never. Default 5 min.
	Checksum time.Duration
}

// Config is what a group needs of its node.
type Config struct {
	Group     uint32
	ReplicaID string
	Registry  *fsm.Registry
	State     *storage.Shard
	// Sync makes everything that was committed to the state durable.
	Sync      func() error
	Log       Log
	Transport raft.Transport
	// Attach is told of each Raft instance that Transport serves.
	Attach func(*raft.Raft)
	// Confirm returns nil if a majority says that the term is the newest they know; see reader.go.
	Confirm func(ctx context.Context, check TermCheck) error
	// AskSums asks other replicas of the group for the sums of their states, see agreement.go. Who does not answer is missing.
	AskSums func(ctx context.Context, replicaIDs []string) map[string]fsm.Sum
	Timing  Timing
	// Bootstrap makes a new group with this replica as its only voter, if there is no state yet.
	Bootstrap bool
	Logger    *slog.Logger
	// OnLead is told, from a goroutine of the group, when this replica can serve as leader of a term, and when it
	// cannot any more. It must not block.
	OnLead func(leading bool, term uint64)
	// OnApplied is told after each change of the state, from the goroutine that applies. It must not block.
	OnApplied func(fsm.Applied)
	// OnFatal is called when the replica cannot go on, such as for a corrupt entry. The node must stop.
	OnFatal func(error)
}

// Group is one Raft group on this node. Its methods are safe for concurrent use.
type Group struct {
	cfg       Config
	log       *slog.Logger
	machine   *machine
	snaps     *snapshotStore
	clock     clock
	proposer  *proposer
	agreement *agreement

	current atomic.Pointer[instance]
	ready   atomic.Uint64 // the term in which this replica has committed an entry as leader

	ctx  context.Context // ends at Close
	stop context.CancelFunc
	work sync.WaitGroup
	poke chan struct{}
	redo chan string // asks for a restart of the Raft instance, with the reason

	members   sync.Mutex // one membership change or transfer at a time
	closeOnce sync.Once
	closeErr  error
}

// instance is one life of a Raft instance.
type instance struct {
	raft     *raft.Raft
	observer *raft.Observer
}

// Open starts the replica from what its state and log hold.
func Open(cfg Config) (*Group, error) {
	if cfg.Timing.Heartbeat == 0 {
		cfg.Timing.Heartbeat = time.Second
	}
	if cfg.Timing.Commit == 0 {
		cfg.Timing.Commit = 200 * time.Millisecond
	}
	if cfg.Timing.Checksum == 0 {
		cfg.Timing.Checksum = checksumEvery
	}
	m, err := openMachine(cfg)
	if err != nil {
		return nil, fmt.Errorf("open group %d: %w", cfg.Group, err)
	}
	g := &Group{
		cfg: cfg, log: cfg.Logger.With("group", cfg.Group), machine: m,
		poke: make(chan struct{}, 1), redo: make(chan string, 1),
	}
	g.ctx, g.stop = context.WithCancel(context.Background())
	m.askRestart = g.askRestart
	g.agreement = &agreement{g: g}
	m.OnChecksum(g.agreement.at)
	g.snaps = &snapshotStore{group: g}
	g.proposer = newProposer(g)
	if err := g.checkLog(); err != nil {
		return nil, err
	}
	if err := g.bootstrap(); err != nil {
		return nil, err
	}
	if err := g.startRaft(); err != nil {
		return nil, err
	}
	g.work.Go(g.watch)
	g.work.Go(g.checksums)
	g.work.Go(g.proposer.run)
	g.work.Go(g.proposer.complete)
	return g, nil
}

// checkLog refuses a state that the log does not connect to: entries between the two would be missing for good.
func (g *Group) checkLog() error {
	first, err := g.cfg.Log.FirstIndex()
	if err != nil {
		return fmt.Errorf("open group %d: %w", g.cfg.Group, err)
	}
	if applied := g.machine.Applied().Index; first > applied+1 {
		return fmt.Errorf("group %d: the state ends at entry %d but the log begins at %d: restore the data directory, or start this node with an empty one",
			g.cfg.Group, applied, first)
	}
	return nil
}

func (g *Group) bootstrap() error {
	if !g.cfg.Bootstrap {
		return nil
	}
	known, err := raft.HasExistingState(g.cfg.Log, g.cfg.Log, g.snaps)
	if err != nil || known {
		return err
	}
	only := raft.Configuration{Servers: []raft.Server{{
		Suffrage: raft.Voter, ID: raft.ServerID(g.cfg.ReplicaID), Address: raft.ServerAddress(g.cfg.ReplicaID),
	}}}
	err = raft.BootstrapCluster(g.raftConfig(), g.cfg.Log, g.cfg.Log, g.snaps, g.cfg.Transport, only)
	if err != nil {
		return fmt.Errorf("bootstrap group %d: %w", g.cfg.Group, err)
	}
	return nil
}

func (g *Group) raftConfig() *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(g.cfg.ReplicaID)
	c.Logger = newRaftLogger(g.log)
	// A little difference between replicas makes split votes rare.
	jitter := time.Duration(rand.Int64N(int64(g.cfg.Timing.Heartbeat) / 10))
	c.HeartbeatTimeout = g.cfg.Timing.Heartbeat + jitter
	c.ElectionTimeout = g.cfg.Timing.Heartbeat + jitter
	c.LeaderLeaseTimeout = g.cfg.Timing.Heartbeat
	c.CommitTimeout = g.cfg.Timing.Commit
	c.MaxAppendEntries = 128
	c.BatchApplyCh = true
	c.SnapshotInterval = 20 * time.Second
	c.SnapshotThreshold = 4096
	c.TrailingLogs = 4096
	c.ShutdownOnRemove = false
	c.NoLegacyTelemetry = true
	c.NoSnapshotRestoreOnStart = true // the state is there already, see snapshot.go
	return c
}

func (g *Group) startRaft() error {
	r, err := raft.NewRaft(g.raftConfig(), g.machine, g.cfg.Log, g.cfg.Log, g.snaps, g.cfg.Transport)
	if err != nil {
		return fmt.Errorf("start Raft of group %d: %w", g.cfg.Group, err)
	}
	in := &instance{raft: r}
	// The channel is never used: the filter runs on Raft's goroutine and only wakes the watcher.
	in.observer = raft.NewObserver(nil, false, func(*raft.Observation) bool {
		g.wake()
		return false
	})
	r.RegisterObserver(in.observer)
	g.current.Store(in)
	g.cfg.Attach(r)
	g.wake()
	return nil
}

func (g *Group) raft() *raft.Raft { return g.current.Load().raft }

func (g *Group) wake() {
	select {
	case g.poke <- struct{}{}:
	default:
	}
}

// restart replaces the Raft instance: what it has in memory has become useless.
func (g *Group) restart(reason string, clearLog bool) {
	g.log.Warn("restarting the Raft instance", "reason", reason)
	in := g.current.Load()
	in.raft.DeregisterObserver(in.observer)
	if err := in.raft.Shutdown().Error(); err != nil {
		g.fatal(fmt.Errorf("stop Raft of group %d: %w", g.cfg.Group, err))
		return
	}
	if clearLog {
		if err := g.clearLog(); err != nil {
			g.fatal(err)
			return
		}
	}
	if err := g.startRaft(); err != nil {
		g.fatal(err)
	}
}

// clearLog removes all entries. Only right after a snapshot was installed, which stands for what it removes.
func (g *Group) clearLog() error {
	first, err1 := g.cfg.Log.FirstIndex()
	last, err2 := g.cfg.Log.LastIndex()
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Errorf("clear the log of group %d: %w", g.cfg.Group, err)
	}
	if last == 0 {
		return nil
	}
	if err := g.cfg.Log.DeleteRange(first, last); err != nil {
		return fmt.Errorf("clear the log of group %d: %w", g.cfg.Group, err)
	}
	return nil
}

func (g *Group) fatal(err error) {
	if g.ctx.Err() == nil {
		g.cfg.OnFatal(err)
	}
}

// ID is the group's number.
func (g *Group) ID() uint32 { return g.cfg.Group }

// ReplicaID is this replica's id.
func (g *Group) ReplicaID() string { return g.cfg.ReplicaID }

// Applied is the position of the state.
func (g *Group) Applied() fsm.Applied { return g.machine.Applied() }

// WaitApplied waits until the state includes the entry index.
func (g *Group) WaitApplied(ctx context.Context, index uint64) error {
	return g.machine.wait(ctx, index)
}

// Close hands leadership over if it can, then stops the replica.
func (g *Group) Close() error {
	g.closeOnce.Do(func() {
		g.HandOver()
		g.ready.Store(0)
		g.stop()
		g.proposer.close()
		in := g.current.Load()
		in.raft.DeregisterObserver(in.observer)
		if err := in.raft.Shutdown().Error(); err != nil {
			g.closeErr = fmt.Errorf("stop Raft of group %d: %w", g.cfg.Group, err)
		}
		g.work.Wait()
		g.snaps.discard()
		if err := g.machine.close(); err != nil {
			g.closeErr = errors.Join(g.closeErr, fmt.Errorf("close the state of group %d: %w", g.cfg.Group, err))
		}
	})
	return g.closeErr
}
