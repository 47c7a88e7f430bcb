package fatal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Disk is a file system for Pebble that ends the process when an operation on a write-ahead log or a manifest fails, or the
// sync of a directory. Pebble takes no errors there. It panics, later or from goroutines of its own, and as it holds
// locks then, what is left to read of a full disk is that of an unlocked mutex.
//
// The file of options is written last at a start, and then the directory is listed once more. If that fails, Pebble closes what
// goroutines of the start still use, and the process would end by a division by zero.
//
// It also ends the process when a table cannot be read. Pebble tells who reads, but not always itself: what is cut out of a
// table that it cannot read to the end, as when a shard's content is replaced, takes the table's other keys with it.
func (g *Guard) Disk(fs vfs.FS) vfs.FS { return disk{fs, g} }

type disk struct {
	vfs.FS
	g *Guard
}

// vital tells of a file that must not fail from its creation on.
func (d disk) vital(name string) bool {
	return strings.HasSuffix(name, ".log") || strings.HasPrefix(d.PathBase(name), "temporary.")
}

// Create implements vfs.FS.
func (d disk) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := d.FS.Create(name, category)
	return d.created(name, f, err)
}

// ReuseForWrite implements vfs.FS.
func (d disk) ReuseForWrite(from, to string, category vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := d.FS.ReuseForWrite(from, to, category)
	return d.created(to, f, err)
}

func (d disk) created(name string, f vfs.File, err error) (vfs.File, error) {
	if d.vital(name) {
		err = d.g.check("create", name, err)
	}
	return d.opened(name, f, err)
}

// Rename implements vfs.FS.
func (d disk) Rename(from, to string) error {
	err := d.FS.Rename(from, to)
	if d.vital(from) {
		err = d.g.check("rename", from, err)
	}
	return err
}

// Open implements vfs.FS.
func (d disk) Open(name string, options ...vfs.OpenOption) (vfs.File, error) {
	f, err := d.FS.Open(name, options...)
	return d.opened(name, f, err)
}

func (d disk) opened(name string, f vfs.File, err error) (vfs.File, error) {
	switch {
	case err != nil:
		return nil, err
	case strings.HasSuffix(name, ".sst"):
		return table{f, d.g, name}, nil
	case d.vital(name), strings.HasPrefix(d.PathBase(name), "MANIFEST"):
		return file{f, d.g, name}, nil
	}
	return f, nil
}

// List implements vfs.FS.
func (d disk) List(dir string) ([]string, error) {
	names, err := d.FS.List(dir)
	if errors.Is(err, os.ErrNotExist) {
		return names, err
	}
	return names, d.g.check("list", dir, err)
}

// OpenDir implements vfs.FS.
func (d disk) OpenDir(name string) (vfs.File, error) {
	f, err := d.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return file{f, d.g, name}, nil
}

func (g *Guard) check(what, name string, err error) error {
	if err != nil {
		g.stop(fmt.Errorf("%s: %s %s: %w", g.name, what, name, err))
	}
	return err
}

// file is one without whose writes the process cannot go on.
type file struct {
	vfs.File
	g    *Guard
	name string
}

// Write implements vfs.File.
func (f file) Write(b []byte) (int, error) {
	n, err := f.File.Write(b)
	return n, f.g.check("write", f.name, err)
}

// Sync implements vfs.File.
func (f file) Sync() error { return f.g.check("sync", f.name, f.File.Sync()) }

// SyncData implements vfs.File.
func (f file) SyncData() error { return f.g.check("sync", f.name, f.File.SyncData()) }

// SyncTo implements vfs.File.
func (f file) SyncTo(length int64) (bool, error) {
	all, err := f.File.SyncTo(length)
	return all, f.g.check("sync", f.name, err)
}

// Stat implements vfs.File. Pebble asks for the size of a log that is made of a used file.
func (f file) Stat() (vfs.FileInfo, error) {
	info, err := f.File.Stat()
	return info, f.g.check("stat", f.name, err)
}

// Close implements vfs.File.
func (f file) Close() error { return f.g.check("close", f.name, f.File.Close()) }

// table is one without whose content the process cannot go on.
type table struct {
	vfs.File
	g    *Guard
	name string
}

// Read implements vfs.File.
func (t table) Read(b []byte) (int, error) {
	n, err := t.File.Read(b)
	if errors.Is(err, io.EOF) {
		return n, err
	}
	return n, t.g.check("read", t.name, err)
}

// ReadAt implements vfs.File. A table that is shorter than what is asked of it is no better than one that cannot be read.
func (t table) ReadAt(b []byte, offset int64) (int, error) {
	n, err := t.File.ReadAt(b, offset)
	if n == len(b) {
		return n, err
	}
	return n, t.g.check("read", t.name, err)
}
