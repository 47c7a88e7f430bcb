// Package shard runs one Raft group on this node: a shard, or the catalog.
//
// The parts are small and each can be read alone: machine.go applies committed entries, snapshot.go hands states over,
// proposer.go packs frames into entries, reader.go answers queries linearizably, lead.go watches leadership and expiry,
// members.go changes the group's replicas, vote.go asks for votes. Group ties them together and restarts the Raft instance
// where the library cannot go on (multi-Raft hazards hashicorp/raft #696 and #697).
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

// Durability tells what of the log is on disk; see raftlog.Log.
type Durability interface {
	// Durable is an index up to which all entries are on disk.
	Durable() uint64
	// When calls done once an entry is, or with the reason why it will not be. Done must not block.
	When(index uint64, done func(error))
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
	Sync func() error
	Log  Log
	// Durability is nil if what Log has stored is on disk. If not, Transport must respect it too.
	Durability Durability
	Transport  Transport
	// Attach is told of each Raft instance that Transport serves.
	Attach func(*raft.Raft)
	// Confirm returns nil if a majority says that the term is the newest they know; see reader.go.
	Confirm func(ctx context.Context, check TermCheck) error
	// AskSums asks other replicas of the group for the sums of their states, see agreement.go. Who does not answer is missing.
	AskSums func(ctx context.Context, replicaIDs []string) map[string]fsm.Sum
	Timing  Timing
	// TrailingEntries is how many entries the log keeps that the state includes already, so that a replica that comes
	// back needs entries instead of the whole state. Default 4096.
	TrailingEntries uint64
	// Bootstrap makes a new group with this replica as its only voter, if there is no state yet.
	Bootstrap bool
	Logger    *slog.Logger
	// Clock is the node's wall clock; nil means time.Now.
	Clock func() time.Time
	// ClockWrong tells that most other nodes say that this node's clock is wrong; nil means never. Such a replica does not
	// begin to lead if another can: shard time would jump, or stand still.
	ClockWrong func() bool
	// DiskFull tells that the disk has hardly room for more; nil means never. Such a replica takes no frames.
	DiskFull func() bool
	// Fit tells that another replica could lead: its node is alive, its clock right and its log caught up. Nil means
	// that any could.
	Fit func(ctx context.Context, replicaID string) bool
	// OnLead is told, from a goroutine of the group, when this replica can serve as leader of a term, and when it
	// cannot any more. It must not block.
	OnLead func(leading bool, term uint64)
	// OnApplied is told after each change of the state, from the goroutine that applies. It must not block.
	OnApplied func(fsm.Applied)
	// OnCommit is told, from the goroutine that applies, of entries that it is about to apply, after a restart again. It
	// must neither block nor change them.
	OnCommit func(entries []*raft.Log)
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
	nudges    nudges
	agreement *agreement

	current atomic.Pointer[instance]
	ready   atomic.Uint64 // the term in which this replica has committed an entry as leader

	ctx  context.Context // ends at Close
	stop context.CancelFunc
	work sync.WaitGroup
	poke chan struct{}
	// refused is since when this replica looks for another leader in a term; owned by watch.
	refused struct {
		term  uint64
		since time.Time
	}
	redo chan string // asks for a restart of the Raft instance, with the reason

	members   chan struct{} // has room for one: who sends changes the membership or transfers leadership
	tried     attempts
	closeOnce sync.Once
	closeErr  error
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
	if cfg.TrailingEntries == 0 {
		cfg.TrailingEntries = 4096
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	m, err := openMachine(cfg)
	if err != nil {
		return nil, fmt.Errorf("open group %d: %w", cfg.Group, err)
	}
	g := &Group{
		cfg: cfg, log: cfg.Logger.With("group", cfg.Group), machine: m, clock: clock{wall: cfg.Clock},
		poke: make(chan struct{}, 1), redo: make(chan string, 1), members: make(chan struct{}, 1),
	}
	g.ctx, g.stop = context.WithCancel(context.Background())
	m.restored = g.restored
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

// bootstrap writes the first configuration, unless the replica has one. raft.BootstrapCluster does it in two steps, the
// term and then the entry, and takes the term alone for a group: after a crash between the two there would never be one.
func (g *Group) bootstrap() error {
	if !g.cfg.Bootstrap {
		return nil
	}
	last, err := g.cfg.Log.LastIndex()
	if err != nil {
		return fmt.Errorf("bootstrap group %d: %w", g.cfg.Group, err)
	}
	if a := g.machine.Applied(); last > 0 || a.Index > 0 || a.ConfigIndex > 0 {
		return nil
	}
	only := raft.Configuration{Servers: []raft.Server{{
		Suffrage: raft.Voter, ID: raft.ServerID(g.cfg.ReplicaID), Address: raft.ServerAddress(g.cfg.ReplicaID),
	}}}
	term, err := g.cfg.Log.GetUint64([]byte(keyCurrentTerm))
	if err == nil && term == 0 {
		term = 1
		err = g.cfg.Log.SetUint64([]byte(keyCurrentTerm), term)
	}
	if err == nil {
		err = g.cfg.Log.StoreLog(&raft.Log{
			Index: 1, Term: term, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(only),
		})
	}
	if err != nil {
		return fmt.Errorf("bootstrap group %d: %w", g.cfg.Group, err)
	}
	return nil
}

// keyCurrentTerm is where the Raft library keeps the term.
const keyCurrentTerm = "CurrentTerm"

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
	c.SnapshotThreshold = min(4096, g.cfg.TrailingEntries) // a log that shall be short is cut often
	c.TrailingLogs = g.cfg.TrailingEntries
	c.ShutdownOnRemove = false
	c.NoLegacyTelemetry = true
	c.NoSnapshotRestoreOnStart = true // the state is there already, see snapshot.go
	return c
}

func (g *Group) wake() {
	select {
	case g.poke <- struct{}{}:
	default:
	}
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
	g.closeOnce.Do(func() { g.closeErr = g.close() })
	return g.closeErr
}

func (g *Group) close() error {
	g.HandOver(context.Background())
	g.ready.Store(0)
	g.stop()
	g.agreement.close()
	g.proposer.close()
	ended := make(chan struct{})
	go func() { // ends with those it waits for
		g.work.Wait()
		close(ended)
	}()
	// First who works here, as long as Raft can answer them; the watcher may be about to replace the instance.
	within(stopTimeout, ended)
	var errs []error
	if err := g.current.Load().stop(); err != nil {
		errs = append(errs, fmt.Errorf("stop Raft of group %d: %w", g.cfg.Group, err))
	}
	if !within(time.Second, ended) {
		errs = append(errs, fmt.Errorf("stop group %d: %w", g.cfg.Group, errAbandoned))
	}
	g.snaps.discard()
	if err := g.machine.close(); err != nil {
		errs = append(errs, fmt.Errorf("close the state of group %d: %w", g.cfg.Group, err))
	}
	return errors.Join(errs...)
}
