package storagetest

import (
	"math/rand/v2"
	"slices"
	"sync"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// Disk is a disk in memory of which one operation fails. As of a real one, what a failed sync should have made durable
// never is: the pages count as clean, and a sync that is tried again succeeds and writes nothing (Rebello et al., "Can
// Applications Recover from fsync Failures?", 2020).
type Disk struct {
	*errorfs.FS
	mem    *vfs.MemFS
	kinds  []errorfs.OpKind
	broken func() // is called when the operation fails, before its caller knows

	mu     sync.Mutex
	nth    int // of the operations of those kinds, counted down to 0
	failed *errorfs.Op
	lost   map[string]bool // files of which a sync failed
	ends   []error         // what End was told
	gone   chan struct{}   // closed when the process is
}

// NewDisk returns an empty disk of which the nth operation of the kinds fails, counted from 1.
func NewDisk(nth int, kinds ...errorfs.OpKind) *Disk {
	d := &Disk{
		mem: vfs.NewCrashableMem(), kinds: kinds, broken: func() {}, nth: nth,
		lost: make(map[string]bool), gone: make(chan struct{}),
	}
	d.FS = errorfs.Wrap(pages{d.mem, d}, errorfs.InjectorFunc(d.fail))
	return d
}

// fail is what an operation answers.
func (d *Disk) fail(op errorfs.Op) error {
	d.alive()
	if !slices.Contains(d.kinds, op.Kind) {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.nth--; d.nth != 0 {
		return nil
	}
	d.failed = &op
	if slices.Contains(Writes["sync"], op.Kind) {
		d.lost[op.Path] = true
	}
	d.broken()
	return syscall.EIO
}

// End is an OnFatal: the process is gone, whose goroutines all stop at their next operation on the disk at the latest.
func (d *Disk) End(err error) {
	d.mu.Lock()
	if d.ends = append(d.ends, err); len(d.ends) == 1 {
		close(d.gone)
	}
	d.mu.Unlock()
	d.alive()
}

// alive returns if the process is.
func (d *Disk) alive() {
	select {
	case <-d.gone:
		select {}
	default:
	}
}

// Crash is the disk as the next process finds it. What was not synced is there or not.
func (d *Disk) Crash(unsynced bool) vfs.FS {
	cfg := vfs.CrashCloneCfg{}
	if unsynced {
		cfg = vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 1))}
	}
	return d.mem.CrashClone(cfg)
}

// ReuseForWrite implements vfs.FS: what errorfs returns does not fail.
func (d *Disk) ReuseForWrite(old, name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := d.FS.ReuseForWrite(old, name, category)
	if err != nil {
		return nil, err
	}
	return errorfs.WrapFile(f, errorfs.InjectorFunc(func(op errorfs.Op) error {
		op.Path = name
		return d.fail(op)
	})), nil
}

// pages are the files below the operations that fail.
type pages struct {
	vfs.FS
	d *Disk
}

func (p pages) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	return p.fresh(name)(p.FS.Create(name, category))
}

func (p pages) ReuseForWrite(old, name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	return p.fresh(name)(p.FS.ReuseForWrite(old, name, category))
}

func (p pages) Open(name string, options ...vfs.OpenOption) (vfs.File, error) {
	return p.file(name)(p.FS.Open(name, options...))
}

func (p pages) OpenDir(name string) (vfs.File, error) { return p.file(name)(p.FS.OpenDir(name)) }

func (p pages) fresh(name string) func(vfs.File, error) (vfs.File, error) {
	p.d.mu.Lock()
	delete(p.d.lost, name)
	p.d.mu.Unlock()
	return p.file(name)
}

func (p pages) file(name string) func(vfs.File, error) (vfs.File, error) {
	return func(f vfs.File, err error) (vfs.File, error) {
		if err != nil {
			return nil, err
		}
		return page{f, p.d, name}, nil
	}
}

type page struct {
	vfs.File
	d    *Disk
	name string
}

// Sync implements vfs.File.
func (p page) Sync() error {
	p.d.mu.Lock()
	lost := p.d.lost[p.name]
	p.d.mu.Unlock()
	if lost {
		return nil
	}
	return p.File.Sync()
}

// SyncData implements vfs.File.
func (p page) SyncData() error { return p.Sync() }

// Close implements vfs.File. It does not fail, but a process that is gone does not come as far as that.
func (p page) Close() error {
	p.d.alive()
	return p.File.Close()
}
