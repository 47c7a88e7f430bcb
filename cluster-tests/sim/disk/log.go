package disk

import (
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/storage/raftlog"
)

// Slow makes every synced write of the Raft logs take so long; 0 ends it.
func (d *Disk) Slow(latency time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.slow = latency
}

// Stall holds all synced writes of the Raft logs up until the function that it returns is called.
func (d *Disk) Stall() (end func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	stalled := make(chan struct{})
	d.stalled = stalled
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.stalled == stalled {
			d.stalled = nil
		}
		select {
		case <-stalled:
		default:
			close(stalled) // another stall may have begun; those who wait wait for this one
		}
	}
}

// Wait takes the time that a sync of a Raft log takes. Above Pebble, not below: it syncs with mutexes held, and in virtual time
// a goroutine that waits for a mutex stops the clock.
func (d *Disk) Wait() {
	d.mu.Lock()
	slow, stalled, released := d.slow, d.stalled, d.released
	if slow > 0 || stalled != nil {
		d.delayed++
	}
	d.mu.Unlock()
	if slow > 0 {
		t := time.NewTimer(slow)
		defer t.Stop()
		select {
		case <-t.C:
		case <-released:
		}
	}
	if stalled != nil {
		select {
		case <-stalled:
		case <-released:
		}
	}
}

// Logs are Raft logs on the disk.
func (d *Disk) Logs(p raftlog.Provider) raftlog.Provider { return &logs{Provider: p, d: d} }

type logs struct {
	raftlog.Provider
	d *Disk
}

// Open implements raftlog.Provider.
func (l *logs) Open(group uint32) (raftlog.Log, error) {
	inner, err := l.Provider.Open(group)
	if err != nil {
		return nil, err
	}
	if err := l.d.promises.check(group, inner); err != nil {
		return nil, err
	}
	return &raftLog{Log: inner, logs: l, group: group}, nil
}

// raftLog is one group's log, of which the disk remembers what it promised.
type raftLog struct {
	raftlog.Log
	logs       *logs
	group      uint32
	durability raftlog.Durability // nil as long as writes wait for the disk

	mu      sync.Mutex
	pending []*uint64 // the last entries of writes that are not promised yet, in the order of writing
}

// Defer implements raftlog.Log.
func (l *raftLog) Defer() raftlog.Durability {
	if l.durability = l.Log.Defer(); l.durability == nil {
		return nil
	}
	return (*durability)(l)
}

// durability promises entries before it says that they are on disk.
type durability raftLog

// Durable implements raftlog.Durability.
func (d *durability) Durable() uint64 {
	index := d.durability.Durable()
	(*raftLog)(d).settle(index)
	return index
}

// When implements raftlog.Durability.
func (d *durability) When(index uint64, done func(error)) {
	d.durability.When(index, func(err error) {
		(*raftLog)(d).settle(d.durability.Durable())
		done(err)
	})
}

// settle promises what is on disk: entries up to an index. Whoever finds nothing left to promise finds it promised.
func (l *raftLog) settle(index uint64) {
	l.mu.Lock()
	n, last := 0, uint64(0)
	for n < len(l.pending) && *l.pending[n] <= index {
		last = max(last, *l.pending[n])
		n++
	}
	l.pending = l.pending[n:]
	l.promise(last)
	l.mu.Unlock()
	for range n {
		l.logs.d.stored(Entries)
	}
}

// change notes what was asked for or promised.
func (l *raftLog) change(f func(*promise)) { l.logs.d.promises.change(l.group, f) }

func (l *raftLog) StoreLog(e *raft.Log) error { return l.StoreLogs([]*raft.Log{e}) }

// StoreLogs promises the entries, if it has waited for the disk.
func (l *raftLog) StoreLogs(entries []*raft.Log) error {
	if err := l.Log.StoreLogs(entries); err != nil || len(entries) == 0 {
		return err
	}
	last := entries[len(entries)-1].Index
	if l.durability == nil {
		l.promise(last)
		l.logs.d.stored(Entries)
		return nil
	}
	l.mu.Lock()
	l.pending = append(l.pending, &last)
	l.mu.Unlock()
	return nil
}

func (l *raftLog) promise(last uint64) {
	l.change(func(p *promise) { p.last = max(p.last, last) })
}

// DeleteRange takes back what it deletes. Entries may come back with a crash: that was never promised otherwise.
func (l *raftLog) DeleteRange(lowest, highest uint64) error {
	l.mu.Lock()
	for _, last := range l.pending {
		if highest >= *last {
			*last = min(*last, max(lowest, 1)-1)
		}
	}
	l.mu.Unlock()
	l.change(func(p *promise) {
		if highest >= p.last {
			p.last = max(lowest, 1) - 1 // all may be deleted
		}
	})
	return l.Log.DeleteRange(lowest, highest)
}

func (l *raftLog) Set(key, value []byte) error {
	isVote, v := string(key) == raftlog.KeyVoteCandidate, vote{candidate: string(value)}
	if isVote {
		l.change(func(p *promise) {
			v.term = p.half
			p.asked = append(p.asked, v)
		})
	}
	if err := l.Log.Set(key, value); err != nil {
		return err
	}
	if isVote {
		l.change(func(p *promise) { p.vote, p.asked = v, nil })
		l.logs.d.stored(Votes)
	}
	return nil
}

func (l *raftLog) SetUint64(key []byte, value uint64) error {
	if err := l.Log.SetUint64(key, value); err != nil {
		return err
	}
	switch string(key) {
	case keyTerm:
		l.change(func(p *promise) { p.term = value })
	case raftlog.KeyVoteTerm:
		l.change(func(p *promise) { p.half = value })
		l.logs.d.stored(Votes)
	}
	return nil
}

func (l *raftLog) Destroy() error {
	l.change(func(p *promise) { *p = promise{} })
	return l.Log.Destroy()
}
