// Package disk is a disk in memory that fails as told: it loses what was not synced, answers with errors, is full, is slow.
package disk

import (
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Disk is a disk as one run of a process sees it: a vfs.FS. Its methods are safe for concurrent use.
type Disk struct {
	vfs.FS
	mem *vfs.MemFS

	promises *promises

	mu       sync.Mutex
	fault    error         // what writes answer
	end      func(error)   // is told of a write that no process survives
	released chan struct{} // closed when the process is gone
	stalled  chan struct{} // while set, closed at the end of the stall
	slow     time.Duration
	failures int
	delayed  int
	cut      func() // takes the power away
	cutIn    Write
	cutAt    int // after so many writes from now on
}

// The errors of a broken and of a full disk.
var (
	EIO    error = syscall.EIO
	ENOSPC error = syscall.ENOSPC
)

// New is an empty disk.
func New() *Disk { return on(vfs.NewCrashableMem(), newPromises(), nil) }

func on(mem *vfs.MemFS, p *promises, end func(error)) *Disk {
	return &Disk{FS: mem, mem: mem, promises: p, end: end, released: make(chan struct{})}
}

// Crash is the disk as the next process finds it: of what was not synced, so many percent survive. A process that is
// killed leaves 100, a power cut less.
func (d *Disk) Crash(survives int, rng *rand.Rand) *Disk {
	var left *vfs.MemFS
	p := d.promises.copy(func() { left = d.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: survives, RNG: rng}) })
	return on(left, p, nil)
}

// Reopen is the disk for the next process. end is called when a write fails that no process survives, from the goroutine
// that writes, which then waits for Release.
func (d *Disk) Reopen(end func(error)) *Disk { return on(d.mem, d.promises, end) }

// Fail makes writes fail, until it is called with nil. Those of write-ahead logs and manifests end the process: nobody
// could say what is on the disk. Half of the write that ends it is there.
func (d *Disk) Fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fault = err
}

// Failures counts the writes that failed.
func (d *Disk) Failures() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.failures
}

// Delayed counts the writes that a slow or stalled disk has held up.
func (d *Disk) Delayed() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.delayed
}

// Release lets everything through: what happens on this disk interests nobody any more.
func (d *Disk) Release() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fault, d.end = nil, nil
	select {
	case <-d.released:
	default:
		close(d.released)
	}
}

// check returns what a write of a file shall answer. With dead set, the process does not survive it: the caller waits
// for Release when it has done what it wants.
func (d *Disk) check(name string) (err error, dead bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fault == nil {
		return nil, false
	}
	d.failures++
	base := name[strings.LastIndexByte(name, '/')+1:]
	return d.fault, strings.HasSuffix(base, ".log") || strings.HasPrefix(base, "MANIFEST") || strings.HasPrefix(base, "marker")
}

// die ends the process that writes.
func (d *Disk) die(err error) {
	d.mu.Lock()
	end, released := d.end, d.released
	d.mu.Unlock()
	if end != nil {
		end(err)
		<-released
	}
}

// survive returns what a write shall answer to a process that may go on after it.
func (d *Disk) survive(name string) error {
	err, dead := d.check(name)
	if dead {
		d.die(err)
		return nil
	}
	return err
}

// Create implements vfs.FS.
func (d *Disk) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if err := d.survive(name); err != nil {
		return nil, err
	}
	f, err := d.FS.Create(name, category)
	if err != nil {
		return nil, err
	}
	return &file{f, d, name}, nil
}

// ReuseForWrite implements vfs.FS.
func (d *Disk) ReuseForWrite(old, name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if err := d.survive(name); err != nil {
		return nil, err
	}
	f, err := d.FS.ReuseForWrite(old, name, category)
	if err != nil {
		return nil, err
	}
	return &file{f, d, name}, nil
}

// file is a file that is written.
type file struct {
	vfs.File
	d    *Disk
	name string
}

// Write implements vfs.File.
func (f *file) Write(b []byte) (int, error) {
	err, dead := f.d.check(f.name)
	switch {
	case dead:
		half := len(b) / 2
		if _, err := f.File.Write(b[:half]); err != nil {
			return 0, err
		}
		f.d.die(err)
		count, err := f.File.Write(b[half:])
		return half + count, err
	case err != nil:
		return 0, err
	}
	return f.File.Write(b)
}

// Sync implements vfs.File.
func (f *file) Sync() error {
	if err := f.d.survive(f.name); err != nil {
		return err
	}
	return f.File.Sync()
}

// SyncData implements vfs.File.
func (f *file) SyncData() error {
	if err := f.d.survive(f.name); err != nil {
		return err
	}
	return f.File.SyncData()
}

// SyncTo implements vfs.File.
func (f *file) SyncTo(length int64) (bool, error) {
	if err := f.d.survive(f.name); err != nil {
		return false, err
	}
	return f.File.SyncTo(length)
}
