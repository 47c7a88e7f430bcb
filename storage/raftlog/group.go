package raftlog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/storage/plant"
)

// Keys are the group's number, four bytes big-endian, then a kind, then the name or the index, eight bytes big-endian.
const (
	kindStable = 0
	kindEntry  = 1
	groupBytes = 4
)

// group is one group's Log.
type group struct {
	s      *Store
	number uint32

	value []byte // scratch of StoreLogs, which Raft calls from one goroutine

	mu          sync.RWMutex
	first, last uint64 // 0 when empty
	cache       cache
	left        sync.Once

	// stable is held while a value is written, which may take as long as the disk likes: not by readers of entries.
	stable    sync.Mutex
	votedTerm []byte // set by SetUint64, not written before the candidate comes

	deferred deferred
}

// Open implements Provider.
func (s *Store) Open(number uint32) (Log, error) {
	g := &group{s: s, number: number, deferred: deferred{sync: s.sync}}
	if err := g.readBounds(); err != nil {
		return nil, fmt.Errorf("open log of group %d: %w", number, err)
	}
	s.groups.Add(1)
	return g, nil
}

func (g *group) prefix(kind byte) []byte {
	return append(binary.BigEndian.AppendUint32(make([]byte, 0, groupBytes+9), g.number), kind)
}

func (g *group) entryKey(index uint64) []byte {
	return binary.BigEndian.AppendUint64(g.prefix(kindEntry), index)
}

func (g *group) stableKey(name []byte) []byte { return append(g.prefix(kindStable), name...) }

// readBounds finds the first and the last entry on disk.
func (g *group) readBounds() error {
	it, err := g.s.db.NewIter(&pebble.IterOptions{LowerBound: g.entryKey(0), UpperBound: g.prefix(kindEntry + 1)})
	if err != nil {
		return err
	}
	var first, last uint64
	if it.First() {
		first = binary.BigEndian.Uint64(it.Key()[groupBytes+1:])
	}
	err = it.Error() // which the next call would forget
	if err == nil && it.Last() {
		last = binary.BigEndian.Uint64(it.Key()[groupBytes+1:])
	}
	if err := errors.Join(err, it.Close()); err != nil {
		return err
	}
	g.first, g.last = first, last
	return nil
}

// FirstIndex implements raft.LogStore.
func (g *group) FirstIndex() (uint64, error) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.first, nil
}

// LastIndex implements raft.LogStore.
func (g *group) LastIndex() (uint64, error) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.last, nil
}

// GetLog implements raft.LogStore. An entry that is not there is raft.ErrLogNotFound itself.
func (g *group) GetLog(index uint64, out *raft.Log) error {
	g.mu.RLock()
	inside := index >= g.first && index <= g.last && index > 0
	cached := g.cache.get(index)
	g.mu.RUnlock()
	if !inside { // the cache may still hold what was compacted
		return raft.ErrLogNotFound
	}
	if cached != nil {
		*out = *cached
		return nil
	}
	value, closer, err := g.s.db.Get(g.entryKey(index))
	if errors.Is(err, pebble.ErrNotFound) {
		return raft.ErrLogNotFound
	}
	if err != nil {
		return fmt.Errorf("read entry %d of group %d: %w", index, g.number, err)
	}
	defer closer.Close()
	if err := decodeEntry(bytes.Clone(value), g.number, index, out); err != nil {
		return fmt.Errorf("read entry %d of group %d: %w", index, g.number, err)
	}
	return nil
}

// StoreLog implements raft.LogStore.
func (g *group) StoreLog(l *raft.Log) error { return g.StoreLogs([]*raft.Log{l}) }

// Defer implements Log.
func (g *group) Defer() Durability {
	g.deferred.on.Store(true)
	return &g.deferred
}

// StoreLogs implements raft.LogStore: the entries are durable when it returns, or when Durability says so.
func (g *group) StoreLogs(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	b := g.s.db.NewBatch()
	for _, l := range logs {
		g.value = appendEntry(g.value[:0], g.number, l)
		if err := b.Set(g.entryKey(l.Index), g.value, nil); err != nil {
			return errors.Join(fmt.Errorf("store entries of group %d: %w", g.number, err), b.Close())
		}
	}
	writes, err := g.s.write(b)
	if err == nil {
		if g.deferred.may(logs) {
			g.deferred.add(written{logs[0].Index, writes})
		} else {
			err = g.s.sync.wait(writes)
		}
	}
	if err != nil {
		return fmt.Errorf("store entries of group %d: %w", g.number, err)
	}
	g.mu.Lock()
	g.cache.limit = g.s.cacheShare()
	for _, l := range logs {
		if g.first == 0 || l.Index < g.first {
			g.first = l.Index
		}
		g.last = max(g.last, l.Index)
		g.cache.add(l)
	}
	g.mu.Unlock()
	return b.Close()
}

// DeleteRange implements raft.LogStore, for both ends of the log. It is not synced: a later StoreLogs comes after it in
// the write-ahead log, and until then the entries that come back after a crash do no harm.
func (g *group) DeleteRange(lowest, highest uint64) error {
	b := g.s.db.NewBatch()
	defer b.Close()
	if err := b.DeleteRange(g.entryKey(lowest), g.entryKey(highest+1), nil); err != nil {
		return fmt.Errorf("delete entries of group %d: %w", g.number, err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := b.Commit(pebble.NoSync); err != nil {
		return fmt.Errorf("delete entries of group %d: %w", g.number, err)
	}
	if highest >= g.last {
		g.cache.cut(lowest)
	}
	if lowest <= g.first && highest < g.last {
		// The usual case, without a search: the log has no gap here.
		if _, closer, err := g.s.db.Get(g.entryKey(highest + 1)); err == nil {
			g.first = highest + 1
			return closer.Close()
		}
	}
	if err := g.readBounds(); err != nil {
		return fmt.Errorf("delete entries of group %d: %w", g.number, err)
	}
	return nil
}

// Set implements raft.StableStore.
func (g *group) Set(key, value []byte) error {
	g.stable.Lock()
	defer g.stable.Unlock()
	same, err := g.same(key, value)
	if err != nil {
		return err
	}
	vote := string(key) == KeyVoteCandidate && g.votedTerm != nil
	if same && !vote {
		return nil
	}
	b := g.s.db.NewBatch()
	defer b.Close()
	err = b.Set(g.stableKey(key), value, nil)
	if err == nil && vote {
		err = b.Set(g.stableKey([]byte(KeyVoteTerm)), g.votedTerm, nil)
	}
	switch {
	case err != nil:
	case vote && plant.On(plant.VoteUnsynced):
		err = b.Commit(pebble.NoSync)
	default:
		err = g.s.commit(b)
	}
	if err != nil {
		return fmt.Errorf("store %s of group %d: %w", key, g.number, err)
	}
	if vote {
		g.votedTerm = nil
	}
	return nil
}

func (g *group) same(key, value []byte) (bool, error) {
	old, err := g.read(key)
	if errors.Is(err, ErrKeyNotFound) {
		return false, nil
	}
	return err == nil && bytes.Equal(old, value), err
}

// Get implements raft.StableStore.
func (g *group) Get(key []byte) ([]byte, error) { return g.read(key) }

func (g *group) read(key []byte) ([]byte, error) {
	value, closer, err := g.s.db.Get(g.stableKey(key))
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, ErrKeyNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("read %s of group %d: %w", key, g.number, err)
	}
	return bytes.Clone(value), closer.Close()
}

// SetUint64 implements raft.StableStore. The term of a vote waits for its candidate, which Raft sets next.
func (g *group) SetUint64(key []byte, v uint64) error {
	value := binary.BigEndian.AppendUint64(nil, v)
	if string(key) == KeyVoteTerm && !plant.On(plant.VoteApart) {
		g.stable.Lock()
		g.votedTerm = value
		g.stable.Unlock()
		return nil
	}
	return g.Set(key, value)
}

// GetUint64 implements raft.StableStore; a key without a value is 0.
func (g *group) GetUint64(key []byte) (uint64, error) {
	value, err := g.read(key)
	if errors.Is(err, ErrKeyNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if len(value) != 8 {
		return 0, fmt.Errorf("%w: %s of group %d", ErrCorrupt, key, g.number)
	}
	return binary.BigEndian.Uint64(value), nil
}

// Destroy implements Log.
func (g *group) Destroy() error {
	b := g.s.db.NewBatch()
	defer b.Close()
	g.stable.Lock()
	defer g.stable.Unlock()
	g.mu.Lock()
	defer g.mu.Unlock()
	err := b.DeleteRange(g.prefix(kindStable), g.prefix(kindEntry+1), nil)
	if err == nil {
		err = g.s.commit(b)
	}
	if err != nil {
		return fmt.Errorf("remove log of group %d: %w", g.number, err)
	}
	g.leave()
	g.first, g.last, g.votedTerm, g.cache = 0, 0, nil, cache{}
	return nil
}

// Close implements Log. The database belongs to the Store.
func (g *group) Close() error {
	g.leave()
	return nil
}

// leave gives the group's share of the cache to the others.
func (g *group) leave() {
	g.left.Do(func() { g.s.groups.Add(-1) })
}
