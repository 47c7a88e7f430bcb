// Package bolt keeps each group's Raft log in a BoltDB file of its own, with hashicorp/raft-boltdb. It is the choice for
// the catalog, which is small and wants no company, and for shards where the operator prefers it.
package bolt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/storage/raftlog"
)

// Options says where to keep the files.
type Options struct {
	Dir string
	// ReadOnly changes nothing on disk: for looking at what a node has left.
	ReadOnly bool
	// OnSync is told how long each synced write took.
	OnSync func(time.Duration)
	// OnFatal is called when a write has failed: what is on the disk is not known then. Nil means that only the writer is
	// told.
	OnFatal func(error)
}

// Provider opens the files of groups. Its methods are safe for concurrent use.
type Provider struct {
	opts Options

	mu      sync.Mutex
	pending map[uint64]time.Time
	next    uint64
}

// Open makes the directory.
func Open(opts Options) (*Provider, error) {
	if !opts.ReadOnly {
		if err := os.MkdirAll(opts.Dir, 0o700); err != nil {
			return nil, fmt.Errorf("open Raft logs: %w", err)
		}
		if err := syncDir(filepath.Dir(opts.Dir)); err != nil {
			return nil, fmt.Errorf("open Raft logs: %w", err)
		}
	}
	return &Provider{opts: opts, pending: make(map[uint64]time.Time)}, nil
}

// syncDir makes the entries of a directory durable, which BoltDB does not: a power cut could take a new file away whole.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// SyncPending implements raftlog.Provider.
func (p *Provider) SyncPending() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	var oldest time.Duration
	for _, since := range p.pending {
		oldest = max(oldest, time.Since(since))
	}
	return oldest
}

// Close implements raftlog.Provider. The files belong to their logs.
func (p *Provider) Close() error { return nil }

// timed runs a synced write.
func (p *Provider) timed(write func() error) error {
	start := time.Now()
	p.mu.Lock()
	id := p.next
	p.next++
	p.pending[id] = start
	p.mu.Unlock()
	err := write()
	p.mu.Lock()
	delete(p.pending, id)
	p.mu.Unlock()
	if p.opts.OnSync != nil {
		p.opts.OnSync(time.Since(start))
	}
	if err != nil && p.opts.OnFatal != nil {
		p.opts.OnFatal(fmt.Errorf("write the Raft log: %w", err))
	}
	return err
}

// log adds to raft-boltdb checksums, the atomic vote and the cheap repeated write.
type log struct {
	*raftboltdb.BoltStore
	p     *Provider
	path  string
	group uint32

	mu        sync.Mutex
	votedTerm uint64 // waits for its candidate
	staged    bool
}

// lockTimeout is how long another process may still have the file open.
const lockTimeout = 5 * time.Second

// keyVote holds both halves of a vote: the term, eight bytes big-endian, and the candidate.
const keyVote = "Vote"

// Open implements raftlog.Provider.
func (p *Provider) Open(group uint32) (raftlog.Log, error) {
	path := filepath.Join(p.opts.Dir, fmt.Sprintf("group-%d.db", group))
	l := &log{p: p, path: path, group: group}
	err := l.caught(func() error {
		entries, old, err := l.check()
		if err != nil {
			return err
		}
		l.BoltStore, err = raftboltdb.New(raftboltdb.Options{
			Path: path,
			BoltOptions: &bbolt.Options{
				NoFreelistSync: true, FreelistType: bbolt.FreelistMapType, Timeout: lockTimeout, ReadOnly: p.opts.ReadOnly,
			},
			MsgpackUseNewTimeFormat: true,
		})
		if err != nil {
			return err
		}
		if old {
			if err := l.adopt(entries); err != nil {
				return err
			}
		}
		return l.verify(entries)
	})
	if err == nil {
		err = syncDir(p.opts.Dir)
	}
	if err != nil {
		err = fmt.Errorf("open Raft log of group %d: %w", group, err)
		if l.BoltStore != nil {
			err = errors.Join(err, l.BoltStore.Close())
		}
		return nil, err
	}
	return l, nil
}

// StoreLog implements raft.LogStore.
func (l *log) StoreLog(entry *raft.Log) error { return l.StoreLogs([]*raft.Log{entry}) }

// StoreLogs implements raft.LogStore.
func (l *log) StoreLogs(entries []*raft.Log) error {
	sealed := make([]raft.Log, len(entries))
	refs := make([]*raft.Log, len(entries))
	for i, e := range entries {
		sealed[i], refs[i] = l.seal(e), &sealed[i]
	}
	return l.p.timed(func() error { return l.BoltStore.StoreLogs(refs) })
}

// GetLog implements raft.LogStore.
func (l *log) GetLog(index uint64, out *raft.Log) error {
	switch err := l.BoltStore.GetLog(index, out); {
	case err == nil:
		return l.open(index, out)
	case errors.Is(err, raft.ErrLogNotFound), errors.Is(err, bolterrors.ErrDatabaseNotOpen), errors.Is(err, bolterrors.ErrInvalidMapping):
		return err
	default: // what the library cannot decode
		return l.corrupt("entry %d: %v", index, err)
	}
}

// DeleteRange implements raft.LogStore.
func (l *log) DeleteRange(lowest, highest uint64) error {
	return l.p.timed(func() error { return l.BoltStore.DeleteRange(lowest, highest) })
}

// IsMonotonic hides the library's answer: with true, Raft would delete the whole log after a snapshot was received,
// entries above its index included.
func (l *log) IsMonotonic() bool { return false }

// Get implements raft.StableStore.
func (l *log) Get(key []byte) ([]byte, error) {
	if string(key) != raftlog.KeyVoteCandidate {
		return l.get(key)
	}
	vote, err := l.get([]byte(keyVote))
	if err != nil {
		return nil, err
	}
	if len(vote) < 8 {
		return nil, l.corrupt("vote")
	}
	return vote[8:], nil
}

func (l *log) get(key []byte) ([]byte, error) {
	value, err := l.BoltStore.Get(key)
	if errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return nil, raftlog.ErrKeyNotFound
	}
	if err != nil {
		return nil, err
	}
	return l.openValue(key, value)
}

// Set implements raft.StableStore.
func (l *log) Set(key, value []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if string(key) == raftlog.KeyVoteCandidate {
		term := l.votedTerm
		if !l.staged {
			var err error
			if term, err = l.voteTerm(); err != nil {
				return err
			}
		}
		value = append(binary.BigEndian.AppendUint64(nil, term), value...)
		if err := l.set([]byte(keyVote), value); err != nil {
			return err
		}
		l.staged = false
		return nil
	}
	return l.set(key, value)
}

func (l *log) set(key, value []byte) error {
	old, err := l.get(key)
	if err == nil && string(old) == string(value) {
		return nil
	}
	if err != nil && !errors.Is(err, raftlog.ErrKeyNotFound) {
		return err
	}
	return l.p.timed(func() error { return l.BoltStore.Set(key, l.sealValue(key, value)) })
}

// SetUint64 implements raft.StableStore. The term of a vote waits for its candidate, which Raft sets next.
func (l *log) SetUint64(key []byte, v uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if string(key) == raftlog.KeyVoteTerm {
		l.votedTerm, l.staged = v, true
		return nil
	}
	return l.set(key, binary.BigEndian.AppendUint64(nil, v))
}

// GetUint64 implements raft.StableStore; a key without a value is 0.
func (l *log) GetUint64(key []byte) (uint64, error) {
	if string(key) == raftlog.KeyVoteTerm {
		return l.voteTerm()
	}
	value, err := l.get(key)
	if errors.Is(err, raftlog.ErrKeyNotFound) {
		return 0, nil
	}
	if err == nil && len(value) != 8 {
		err = l.corrupt("%q", key)
	}
	if err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint64(value), nil
}

func (l *log) voteTerm() (uint64, error) {
	vote, err := l.get([]byte(keyVote))
	if errors.Is(err, raftlog.ErrKeyNotFound) {
		return 0, nil
	}
	if err == nil && len(vote) < 8 {
		err = l.corrupt("vote")
	}
	if err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint64(vote), nil
}

// Defer implements raftlog.Log: each write is synced before it returns.
func (l *log) Defer() raftlog.Durability { return nil }

// Destroy implements raftlog.Log.
func (l *log) Destroy() error {
	if err := l.BoltStore.Close(); err != nil {
		return fmt.Errorf("close %s: %w", l.path, err)
	}
	if err := os.Remove(l.path); err != nil {
		return fmt.Errorf("remove the log: %w", err)
	}
	return nil
}
