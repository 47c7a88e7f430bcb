// Package aio syncs files without keeping one of the Go runtime's processors busy.
//
// A goroutine that calls fsync(2) keeps its processor, on which no other goroutine runs then, until the runtime's monitor
// thread notices: that takes 20 µs at best, and much longer where timers are late (cmd/timers). A sync takes a
// millisecond, so that a process with one processor would stand still while it syncs. Here the kernel is asked to begin a
// sync (io_submit(2), IOCB_CMD_FSYNC, Linux 4.18) and to say through an eventfd(2) when it is done, for which the goroutine
// waits as it would for a connection. Where that cannot be had, syncs are as they were. SyncTo is as it was everywhere: the
// kernel has nothing of the kind. It serves flushes, which are paced, and compactions, for which a process has a processor more
// (cmd/procs).
package aio

import (
	"os"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// FS is fs with such syncs of the files that the operating system has.
func FS(fs vfs.FS) vfs.FS { return system{fs, newSyncs()} }

// Supported tells whether the kernel does such syncs where dir is, which it syncs to see.
func Supported(dir string) bool {
	f, err := os.Open(dir)
	if err != nil {
		return false
	}
	defer f.Close()
	supported := true
	err = newSyncs().do(f.Fd(), all, func() error {
		supported = false
		return nil
	})
	return supported && err == nil
}

type system struct {
	vfs.FS
	syncs *syncs
}

// Create implements vfs.FS.
func (s system) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	return s.opened(s.FS.Create(name, category))
}

// Open implements vfs.FS.
func (s system) Open(name string, options ...vfs.OpenOption) (vfs.File, error) {
	return s.opened(s.FS.Open(name, options...))
}

// OpenReadWrite implements vfs.FS.
func (s system) OpenReadWrite(name string, category vfs.DiskWriteCategory, options ...vfs.OpenOption) (vfs.File, error) {
	return s.opened(s.FS.OpenReadWrite(name, category, options...))
}

// OpenDir implements vfs.FS.
func (s system) OpenDir(name string) (vfs.File, error) { return s.opened(s.FS.OpenDir(name)) }

// ReuseForWrite implements vfs.FS.
func (s system) ReuseForWrite(from, to string, category vfs.DiskWriteCategory) (vfs.File, error) {
	return s.opened(s.FS.ReuseForWrite(from, to, category))
}

// Unwrap implements vfs.FS.
func (s system) Unwrap() vfs.FS { return s.FS }

func (s system) opened(f vfs.File, err error) (vfs.File, error) {
	if err != nil || f.Fd() == vfs.InvalidFd {
		return f, err
	}
	return file{f, s.syncs}, nil
}

// file must not be closed during a sync, which could be that of another file then that has its number. Pebble does not.
type file struct {
	vfs.File
	syncs *syncs
}

// Sync implements vfs.File.
func (f file) Sync() error { return f.syncs.do(f.Fd(), all, f.File.Sync) }

// SyncData implements vfs.File.
func (f file) SyncData() error { return f.syncs.do(f.Fd(), data, f.File.SyncData) }
