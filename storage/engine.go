// Package storage is the state database of a node: one Pebble store in which every shard has a span of keys of its own.
//
// Commits are not synced one by one: the Raft log is the durable copy, and Engine.Sync makes all shards' state durable
// before their logs are cut. What survives a crash is a prefix of all commits.
package storage

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/holdfastdb/holdfast/storage/aio"
	"github.com/holdfastdb/holdfast/storage/compaction"
	"github.com/holdfastdb/holdfast/storage/fatal"
	"github.com/holdfastdb/holdfast/storage/manifest"
	"github.com/holdfastdb/holdfast/storage/pace"
)

// Options says where and how to keep the state.
type Options struct {
	// FS is the file system; nil means the real one, watched for slow writes.
	FS  vfs.FS
	Dir string
	// ReadOnly changes nothing on disk: for looking at what a node has left.
	ReadOnly bool
	// CacheBytes and MemTableBytes default to 160 MiB and 32 MiB.
	CacheBytes    int64
	MemTableBytes uint64
	Logger        *slog.Logger
	// OnDiskSlow is told when a write takes long.
	OnDiskSlow func(d time.Duration, path string)
	// OnWork is told when something begins that keeps a processor busy, with true, and when it ends: a compaction, a write of many
	// rows, a snapshot. Flushes are paced, or somebody waits for them. It must not block.
	OnWork func(begins bool)
	// OnFatal is called when the store cannot go on, with an error that says why. It must not return normally into
	// work on the store; the default logs and ends the process, because guessing would risk what was acknowledged.
	OnFatal func(error)
}

// Engine is an open state database. Its methods are safe for concurrent use.
type Engine struct {
	opts    Options
	files   vfs.FS
	paced   *pace.FS
	db      *pebble.DB
	seal    *manifest.Seal
	exports chan struct{} // a slot for each snapshot that is being built
	once    sync.Once
}

// ErrCorrupt is returned, wrapped, for a stored or received stream that fails its checks.
var ErrCorrupt = errors.New("storage: corrupt data")

// Open opens or creates the database and removes what an interrupted snapshot left.
func Open(opts Options) (*Engine, error) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.OnFatal == nil {
		opts.OnFatal = func(err error) {
			opts.Logger.Error("storage cannot go on, stopping the process", "error", err)
			os.Exit(1)
		}
	}
	if opts.OnWork == nil {
		opts.OnWork = func(bool) {}
	}
	if opts.CacheBytes == 0 {
		opts.CacheBytes = 160 << 20
	}
	if opts.MemTableBytes == 0 {
		opts.MemTableBytes = 32 << 20
	}
	e := &Engine{opts: opts, files: opts.FS, exports: make(chan struct{}, 1)}
	if e.files == nil {
		e.files = aio.FS(vfs.Default)
	}
	guard := fatal.New(opts.Logger, "state database", opts.OnFatal)
	if err := manifest.Check(e.files, opts.Dir); err != nil {
		return nil, fmt.Errorf("open state database %s: %w", opts.Dir, err)
	}
	cache := pebble.NewCache(opts.CacheBytes)
	defer cache.Unref()
	compactors := max(1, runtime.GOMAXPROCS(0)/2) // now: later a process may have fewer, as long as it does little
	options := &pebble.Options{
		FS:                          e.files,
		ReadOnly:                    opts.ReadOnly,
		Cache:                       cache,
		FormatMajorVersion:          pebble.FormatNewest,
		MemTableSize:                opts.MemTableBytes,
		MemTableStopWritesThreshold: 4,
		L0CompactionThreshold:       4,
		L0StopWritesThreshold:       24,
		BytesPerSync:                512 << 10,
		MaxManifestFileSize:         manifest.MaxBytes,
		CompactionConcurrencyRange:  func() (int, int) { return 1, compactors },
		FlushDelayDeleteRange:       5 * time.Second,
		Logger:                      guard,
		EventListener:               compaction.Listener(opts.OnWork, e.sealManifest),
	}
	if opts.FS == nil {
		options.WithFSDefaults() // what Pebble does without a file system, which here it has
	}
	e.paced = pace.New(guard.Disk(options.FS), int64(opts.MemTableBytes))
	e.paced.Listen(options.EventListener)
	options.FS = e.paced
	e.seal = manifest.New(options.FS, opts.Dir)
	compactions := compaction.New()
	options.Experimental.CompactionScheduler = compactions
	if opts.OnDiskSlow != nil {
		options.EventListener.DiskSlow = func(info pebble.DiskSlowInfo) { opts.OnDiskSlow(info.Duration, info.Path) }
	}
	for i := range options.Levels {
		options.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
		options.Levels[i].BlockSize = 16 << 10
	}
	db, err := pebble.Open(opts.Dir, options)
	if err != nil {
		return nil, fmt.Errorf("open state database %s: %w", opts.Dir, err)
	}
	e.db = db
	compactions.Start()
	e.paced.Relax()
	if opts.ReadOnly {
		return e, nil
	}
	// A crash in the middle of a transfer leaves files that nobody refers to.
	if err := e.files.RemoveAll(e.spool()); err != nil {
		return nil, errors.Join(fmt.Errorf("remove old spool files: %w", err), db.Close())
	}
	if err := e.files.MkdirAll(e.spool(), 0o700); err != nil {
		return nil, errors.Join(fmt.Errorf("make spool directory: %w", err), db.Close())
	}
	return e, nil
}

func (e *Engine) spool() string { return e.files.PathJoin(e.opts.Dir, "spool") }

// Sync returns after everything committed before the call is durable, for all shards. Pebble's commit
// pipeline lets concurrent calls share one write.
func (e *Engine) Sync() error {
	err := e.db.LogData(nil, pebble.Sync)
	if err != nil {
		return fmt.Errorf("sync state database: %w", err)
	}
	return nil
}

// sealManifest renews the seal. Without the new one that of before holds, for less.
func (e *Engine) sealManifest() {
	if err := e.seal.Renew(); err != nil {
		e.opts.Logger.Error("the list of the state's files is not sealed", "error", err)
	}
}

// Close closes the database. Open views, batches and exports must be closed before.
func (e *Engine) Close() error {
	var err error
	e.once.Do(func() {
		e.paced.Hurry()
		err = errors.Join(e.db.Close(), e.seal.Close())
	})
	if err != nil {
		return fmt.Errorf("close state database: %w", err)
	}
	return nil
}

// Shard returns the part of the database that belongs to one Raft group.
func (e *Engine) Shard(group uint32) *Shard {
	return &Shard{e: e, group: group, prefix: spanStart(group), end: spanStart(group + 1)}
}

// prefixBytes is the length of the group number in front of every key.
const prefixBytes = 3

func spanStart(group uint32) []byte {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], group)
	return b[4-prefixBytes:]
}

// Shard is one group's keys. Its methods are safe for concurrent use.
type Shard struct {
	e           *Engine
	group       uint32
	prefix, end []byte
}

func (s *Shard) span() pebble.KeyRange { return pebble.KeyRange{Start: s.prefix, End: s.end} }

// Size estimates the shard's bytes on disk.
func (s *Shard) Size() (uint64, error) {
	size, err := s.e.db.EstimateDiskUsage(s.prefix, s.end)
	if err != nil {
		return 0, fmt.Errorf("size of group %d: %w", s.group, err)
	}
	return size, nil
}

// Compact rewrites the shard's keys without what was overwritten or removed. It takes long; nothing needs it but
// measurements and impatient operators.
func (s *Shard) Compact(ctx context.Context) error {
	s.e.paced.Hurry()
	defer s.e.paced.Relax()
	if err := s.e.db.Flush(); err != nil {
		return fmt.Errorf("flush before compaction: %w", err)
	}
	if err := s.e.db.Compact(ctx, s.prefix, s.end, false); err != nil {
		return fmt.Errorf("compact group %d: %w", s.group, err)
	}
	return nil
}

// Destroy removes all keys of the shard, durably.
func (s *Shard) Destroy() error {
	s.e.paced.Hurry() // Pebble may wait for memtables, and with it all that commit
	defer s.e.paced.Relax()
	if err := s.e.db.Excise(context.Background(), s.span()); err != nil {
		return fmt.Errorf("remove group %d: %w", s.group, err)
	}
	s.e.sealManifest()
	return s.e.Sync()
}
