package storagetest

import (
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/holdfastdb/holdfast/storage/pace"
)

// Tables is a file system that knows how many memtables are being written out.
type Tables struct {
	vfs.FS
	Writing atomic.Int64
}

// Create implements vfs.FS.
func (t *Tables) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := t.FS.Create(name, category)
	if err != nil || category != pace.Flush {
		return f, err
	}
	t.Writing.Add(1)
	return &table{f, t}, nil
}

type table struct {
	vfs.File
	of *Tables
}

// Close implements vfs.File.
func (f *table) Close() error {
	f.of.Writing.Add(-1)
	return f.File.Close()
}
