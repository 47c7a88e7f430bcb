package disk

import (
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

// wait takes the time that a synced write takes. Above Pebble, not below: it syncs with mutexes held, and in virtual time
// a goroutine that waits for a mutex stops the clock.
func (d *Disk) wait() {
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
func (d *Disk) Logs(p raftlog.Provider) raftlog.Provider {
	return &logs{Provider: p, d: d, pending: make(map[*raftLog]time.Time)}
}

type logs struct {
	raftlog.Provider
	d       *Disk
	pending map[*raftLog]time.Time // since when writes wait; guarded by the disk's mutex
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

// SyncPending implements raftlog.Provider.
func (l *logs) SyncPending() time.Duration {
	longest := l.Provider.SyncPending()
	l.d.mu.Lock()
	defer l.d.mu.Unlock()
	for _, since := range l.pending {
		longest = max(longest, time.Since(since))
	}
	return longest
}

// raftLog is one group's log, whose writes take the disk's time. Raft writes from one goroutine.
type raftLog struct {
	raftlog.Log
	logs  *logs
	group uint32
}

func (l *raftLog) wait() {
	l.logs.d.mu.Lock()
	l.logs.pending[l] = time.Now()
	l.logs.d.mu.Unlock()
	l.logs.d.wait()
	l.logs.d.mu.Lock()
	delete(l.logs.pending, l)
	l.logs.d.mu.Unlock()
}

// change notes what was asked for or promised.
func (l *raftLog) change(f func(*promise)) { l.logs.d.promises.change(l.group, f) }

func (l *raftLog) StoreLog(e *raft.Log) error { return l.StoreLogs([]*raft.Log{e}) }

func (l *raftLog) StoreLogs(entries []*raft.Log) error {
	l.wait()
	if err := l.Log.StoreLogs(entries); err != nil || len(entries) == 0 {
		return err
	}
	l.change(func(p *promise) { p.last = max(p.last, entries[len(entries)-1].Index) })
	l.logs.d.stored(Entries)
	return nil
}

// DeleteRange takes back what it deletes. Entries may come back with a crash: that was never promised otherwise.
func (l *raftLog) DeleteRange(lowest, highest uint64) error {
	l.change(func(p *promise) {
		if highest >= p.last {
			p.last = max(lowest, 1) - 1 // all may be deleted
		}
	})
	return l.Log.DeleteRange(lowest, highest)
}

func (l *raftLog) Set(key, value []byte) error {
	l.wait()
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
	l.wait()
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
