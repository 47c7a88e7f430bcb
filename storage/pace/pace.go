// Package pace spreads over time what a database writes to its tables. Pebble writes a full memtable out as fast as it can,
// and the replicas of a group, which fill theirs with the same entries, do so at the same moment: commands then wait for
// the processors and for the disk, on all nodes at once. Nothing needs a table that soon: it has to be there before the
// next memtable is full.
package pace

import (
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Flush and Compaction are the categories of files that Pebble writes memtables and compacted tables to.
const (
	Flush      vfs.DiskWriteCategory = "pebble-memtable-flush"
	Compaction vfs.DiskWriteCategory = "pebble-compaction"
)

const (
	// ahead is how many times faster tables are written than the write-ahead log of late.
	ahead = 4
	// slowest is in bytes a second: for a memtable that took hours to fill.
	slowest = 16 << 20
)

// FS is a file system for one database. Its methods are safe for concurrent use.
type FS struct {
	vfs.FS
	logBytes float64
	paced    []vfs.DiskWriteCategory
	rate     atomic.Int64 // bytes a second

	mu   sync.Mutex
	log  time.Time // when the newest write-ahead log was begun
	once sync.Once
	stop chan struct{}
}

// New paces the files of the categories given, in a database that begins a new write-ahead log after logBytes.
func New(fs vfs.FS, logBytes int64, paced ...vfs.DiskWriteCategory) *FS {
	p := &FS{FS: fs, logBytes: float64(logBytes), paced: paced, log: time.Now(), stop: make(chan struct{})}
	p.rate.Store(slowest)
	return p
}

// Hurry ends all pauses, for good: somebody waits for the tables, as who closes the database does.
func (p *FS) Hurry() { p.once.Do(func() { close(p.stop) }) }

// Create implements vfs.FS.
func (p *FS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	p.begun(name)
	f, err := p.FS.Create(name, category)
	if err != nil {
		return nil, err
	}
	for _, c := range p.paced {
		if c == category {
			return &file{File: f, p: p}, nil
		}
	}
	return f, nil
}

// ReuseForWrite implements vfs.FS.
func (p *FS) ReuseForWrite(from, to string, category vfs.DiskWriteCategory) (vfs.File, error) {
	p.begun(to)
	return p.FS.ReuseForWrite(from, to, category)
}

// begun notices how long the last log took: the tables that are written now hold what was in it.
func (p *FS) begun(name string) {
	if !strings.HasSuffix(name, ".log") {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	took := max(now.Sub(p.log), time.Millisecond)
	p.log = now
	p.rate.Store(max(int64(ahead*p.logBytes/took.Seconds()), slowest))
}

// file is written by one goroutine.
type file struct {
	vfs.File
	p    *FS
	next time.Time // when there may be more
}

// Write implements vfs.File.
func (f *file) Write(b []byte) (int, error) {
	f.p.wait(time.Until(f.next))
	if now := time.Now(); f.next.Before(now) {
		f.next = now // what was late is not made up for
	}
	f.next = f.next.Add(time.Duration(float64(len(b)) / float64(f.p.rate.Load()) * float64(time.Second)))
	return f.File.Write(b)
}

func (p *FS) wait(d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-p.stop:
	case <-t.C:
	}
}
