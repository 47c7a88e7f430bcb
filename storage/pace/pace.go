// Package pace spreads over time what a database writes to the tables of its memtables. Pebble writes a full memtable out as
// fast as it can, and the replicas of a group, which fill theirs with the same entries, do so at the same moment: commands
// then wait for the processors and for the disk, on all nodes at once. Nothing needs a table that soon: it has to be there
// before the next memtables are full.
//
// Compactions are not paced: how much they have to write is not known before, and a database that falls behind with them
// stops.
package pace

import (
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// Flush is the category of the files to which Pebble writes memtables.
const Flush vfs.DiskWriteCategory = "pebble-memtable-flush"

const (
	// ahead is how many times faster a table is written than its log was, or so: Pebble begins some logs early.
	ahead = 4
	// slowest is in bytes a second: for a memtable that took hours to fill.
	slowest = 16 << 20
	// A pause is not shorter than step: Pebble writes a few KiB at a time, and a timer costs more than these. What a pause
	// was too long, up to most, the following ones are shorter.
	step = 10 * time.Millisecond
	most = 4 * step
)

// FS is a file system for one database. Its methods are safe for concurrent use.
type FS struct {
	vfs.FS
	logBytes float64

	mu      sync.Mutex
	rate    int64         // bytes a second
	log     time.Time     // when the newest write-ahead log was begun
	due     time.Time     // when there may be more in tables, of which one is written at a time
	hurried int           // calls of Hurry without Relax
	hurry   chan struct{} // closed while there are any
}

// New makes the file system of a database that begins a new write-ahead log after logBytes. It is hurried until Relax is
// called: who opens a database waits for what its logs have left in memtables.
func New(fs vfs.FS, logBytes int64) *FS {
	p := &FS{FS: fs, logBytes: float64(logBytes), log: time.Now(), rate: slowest, hurry: make(chan struct{})}
	p.Hurry()
	return p
}

// Hurry ends all pauses until Relax is called as often: somebody waits for a table, or for what comes after it.
func (p *FS) Hurry() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.hurried++; p.hurried == 1 {
		close(p.hurry)
	}
}

// Relax takes a Hurry back.
func (p *FS) Relax() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.hurried--; p.hurried == 0 {
		p.hurry = make(chan struct{})
	}
}

// Listen has the database hurry while it cannot take writes because it is behind.
func (p *FS) Listen(events *pebble.EventListener) {
	events.WriteStallBegin = func(pebble.WriteStallBeginInfo) { p.Hurry() }
	events.WriteStallEnd = func() { p.Relax() }
}

// Create implements vfs.FS.
func (p *FS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	p.begun(name)
	f, err := p.FS.Create(name, category)
	if err != nil || category != Flush {
		return f, err
	}
	return &file{f, p}, nil
}

// ReuseForWrite implements vfs.FS.
func (p *FS) ReuseForWrite(from, to string, category vfs.DiskWriteCategory) (vfs.File, error) {
	p.begun(to)
	return p.FS.ReuseForWrite(from, to, category)
}

// begun notices how long the last log took.
func (p *FS) begun(name string) {
	if !strings.HasSuffix(name, ".log") {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	took := max(now.Sub(p.log), time.Millisecond)
	p.log = now
	p.rate = max(int64(ahead*p.logBytes/took.Seconds()), slowest)
}

type file struct {
	vfs.File
	p *FS
}

// Write implements vfs.File.
func (f *file) Write(b []byte) (int, error) {
	if early, hurry := f.p.take(len(b)); early > 0 {
		t := time.NewTimer(early)
		defer t.Stop()
		select {
		case <-hurry:
		case <-t.C:
		}
	}
	return f.File.Write(b)
}

// take counts n bytes, and tells how long to wait before they are written.
func (p *FS) take(n int) (early time.Duration, hurry <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if p.hurried > 0 {
		p.due = now
		return 0, nil
	}
	if longest := now.Add(-most); p.due.Before(longest) {
		p.due = longest
	}
	if early = p.due.Sub(now); early < step {
		early = 0
	}
	p.due = p.due.Add(time.Duration(float64(n) / float64(p.rate) * float64(time.Second)))
	return early, p.hurry
}
