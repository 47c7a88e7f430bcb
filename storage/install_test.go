package storage

import (
	"errors"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// keepingFS is a file system that does not remove anything while keeps is set.
type keepingFS struct {
	vfs.FS
	keeps atomic.Bool
}

func (f *keepingFS) RemoveAll(name string) error {
	if f.keeps.Load() {
		return errors.New("permission denied")
	}
	return f.FS.RemoveAll(name)
}

// The new content is in place when its temporary files are removed: if that fails the caller must still learn that it has
// the new content, or it would go on with the old one in memory.
func TestAnInstallWhoseFilesCannotBeRemovedIsInPlace(t *testing.T) {
	source := open(t, vfs.NewMem()).Shard(1)
	set(t, source, "a", "new")
	stream := exported(t, source)
	files := &keepingFS{FS: vfs.NewMem()}
	e := open(t, files)
	s := e.Shard(1)
	set(t, s, "a", "old")
	in, err := s.NewInstall()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write(stream); err != nil {
		t.Fatal(err)
	}
	if err := in.Finish(); err != nil {
		t.Fatal(err)
	}
	files.keeps.Store(true)
	if err := in.Apply(); err != nil {
		t.Errorf("installed, and yet: %v", err)
	}
	files.keeps.Store(false)
	want(t, s, map[string]string{"a": "new"})
}
