// Package raftlog keeps the Raft logs and votes of all groups of a node in one Pebble database, so that the groups share
// one write-ahead log and one sync.
package raftlog

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/storage/aio"
	"github.com/holdfastdb/holdfast/storage/compaction"
	"github.com/holdfastdb/holdfast/storage/fatal"
	"github.com/holdfastdb/holdfast/storage/manifest"
	"github.com/holdfastdb/holdfast/storage/pace"
)

// Log is one group's log and stable store. It tolerates gaps between entries, as a received snapshot leaves them, and
// makes the two halves of a vote durable in one write: a crash between them could vote twice (hashicorp/raft #661).
type Log interface {
	raft.LogStore
	raft.StableStore
	// Defer makes StoreLogs return when commands are written, before they are on disk. Until the Durability that it
	// returns says that they are, no answer may tell anybody that they are stored, nor may they count as committed:
	// neither may the state machine apply them, nor a follower be told that it may. What a leader does otherwise, that is
	// sending them to its followers, goes on while the disk writes (Ongaro, "Consensus: Bridging Theory and Practice",
	// §10.2.1). Nil if the log always waits.
	Defer() Durability
	// Destroy removes everything of the group, durably. The Log must not be used after.
	Destroy() error
	Close() error
}

// Provider opens logs. Implementations are Store here and bolt.Provider.
type Provider interface {
	Open(group uint32) (Log, error)
	// SyncPending is how long the oldest synced write has been under way, 0 if there is none: a disk that hangs
	// shows here first.
	SyncPending() time.Duration
	Close() error
}

// The keys under which hashicorp/raft stores a vote, in this order.
const (
	KeyVoteTerm      = "LastVoteTerm"
	KeyVoteCandidate = "LastVoteCand"
)

// ErrKeyNotFound is what hashicorp/raft expects for a key without a value; it compares the text.
var ErrKeyNotFound = errors.New("not found")

// ErrCorrupt is returned, wrapped, for a stored entry that fails its checks.
var ErrCorrupt = errors.New("raftlog: corrupt entry")

// Options says where and how to keep the logs.
type Options struct {
	// FS is the file system; nil means the real one, watched for slow writes.
	FS  vfs.FS
	Dir string
	// ReadOnly changes nothing on disk: for looking at what a node has left.
	ReadOnly bool
	Logger   *slog.Logger
	// OnSync is told how long each sync took.
	OnSync func(time.Duration)
	// BeforeSync is called before each sync, for simulations of slow disks.
	BeforeSync func()
	// OnDiskSlow is told when a write takes long.
	OnDiskSlow func(d time.Duration, path string)
	// OnWork is told when a compaction begins, with true, and when it ends: it keeps a processor busy with what it reads. It must
	// not block.
	OnWork func(begins bool)
	// OnFatal is called when the store cannot go on; the default logs and ends the process. Whether an entry is on
	// disk is unknown after a failed write, so there is nothing else to do.
	OnFatal func(error)
	// CacheBytes bounds the newest entries kept in memory, of all groups together; default 32 MiB. One group gets 4 MiB
	// of it at most.
	CacheBytes int
	// LogBytes is how much is written before a write-ahead log is closed and its entries, as far as they are still
	// needed, go into tables; default 32 MiB.
	LogBytes int
}

// Store keeps logs in Pebble. Its methods are safe for concurrent use.
type Store struct {
	opts      Options
	db        *pebble.DB
	seal      *manifest.Seal
	prewriter *prewriter
	paced     *pace.FS
	sync      *syncer
	once      sync.Once
	groups    atomic.Int64 // that are open
}

// groupCache is enough for the entries that a follower which is only a little behind, and the state machine, read next.
const groupCache = 4 << 20

// cacheShare is how much of the cache is for one group, which comes down to it with the next entry that it stores.
func (s *Store) cacheShare() int {
	return min(groupCache, s.opts.CacheBytes/max(1, int(s.groups.Load())))
}

// Open opens or creates the database.
func Open(opts Options) (*Store, error) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.OnFatal == nil {
		opts.OnFatal = func(err error) {
			opts.Logger.Error("the Raft log cannot go on, stopping the process", "error", err)
			os.Exit(1)
		}
	}
	if opts.OnWork == nil {
		opts.OnWork = func(bool) {}
	}
	if opts.CacheBytes == 0 {
		opts.CacheBytes = 32 << 20
	}
	if opts.LogBytes == 0 {
		opts.LogBytes = 32 << 20
	}
	guard := fatal.New(opts.Logger, "raft log", opts.OnFatal)
	cache := pebble.NewCache(8 << 20)
	defer cache.Unref()
	var seal *manifest.Seal
	options := &pebble.Options{
		FS:                          opts.FS,
		ReadOnly:                    opts.ReadOnly,
		Cache:                       cache,
		FormatMajorVersion:          pebble.FormatNewest,
		MemTableSize:                uint64(opts.LogBytes),
		MemTableStopWritesThreshold: 4,
		L0CompactionThreshold:       4,
		L0StopWritesThreshold:       24,
		BytesPerSync:                512 << 10,
		FlushDelayDeleteRange:       5 * time.Second,
		Logger:                      guard,
		MaxManifestFileSize:         manifest.MaxBytes,
		EventListener: compaction.Listener(opts.OnWork, func() {
			if err := seal.Renew(); err != nil {
				opts.Logger.Error("the list of the Raft log's files is not sealed", "error", err)
			}
		}),
	}
	if opts.OnDiskSlow != nil {
		options.EventListener.DiskSlow = func(info pebble.DiskSlowInfo) { opts.OnDiskSlow(info.Duration, info.Path) }
	}
	for i := range options.Levels {
		options.Levels[i].Compression = func() *sstable.CompressionProfile { return sstable.NoCompression }
	}
	compactions := compaction.New()
	options.Experimental.CompactionScheduler = compactions
	if options.FS == nil {
		options.FS = aio.FS(vfs.Default)
		options.WithFSDefaults() // what Pebble does without a file system, which here it has
	}
	prewriter := newPrewriter(options.FS, opts.Dir, int64(opts.LogBytes))
	paced := pace.New(guard.Disk(prewriter), int64(opts.LogBytes))
	options.FS = paced
	if err := errors.Join(verify(prewriter, opts.Dir), manifest.Check(prewriter, opts.Dir)); err != nil {
		return nil, fmt.Errorf("open Raft log: %w", err)
	}
	paced.Listen(options.EventListener)
	seal = manifest.New(options.FS, opts.Dir)
	db, err := pebble.Open(opts.Dir, options)
	if err != nil {
		return nil, fmt.Errorf("open Raft log %s: %w", opts.Dir, err)
	}
	compactions.Start()
	paced.Relax()
	return &Store{opts: opts, db: db, seal: seal, prewriter: prewriter, paced: paced, sync: newSyncer(db, opts)}, nil
}

// Close closes the database. All logs must be out of use.
func (s *Store) Close() error {
	var err error
	s.once.Do(func() {
		err = s.sync.close()
		s.prewriter.close()
		s.paced.Hurry()
		err = errors.Join(err, s.db.Close(), s.seal.Close())
	})
	if err != nil {
		return fmt.Errorf("close Raft log: %w", err)
	}
	return nil
}

// SyncPending implements Provider.
func (s *Store) SyncPending() time.Duration { return s.sync.pending() }

// write puts a batch into the write-ahead log and returns what the syncer knows it by.
func (s *Store) write(b *pebble.Batch) (uint64, error) {
	id := s.sync.begin()
	if err := b.Commit(pebble.NoSync); err != nil {
		return 0, err
	}
	return s.sync.wrote(id), nil
}

// commit writes a batch and waits until it is durable.
func (s *Store) commit(b *pebble.Batch) error {
	writes, err := s.write(b)
	if err != nil {
		return err
	}
	return s.sync.wait(writes)
}
