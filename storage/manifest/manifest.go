// Package manifest finds that one of Pebble's manifests has lost what it had.
//
// A manifest lists the tables and write-ahead logs that make a database. One that ends early, or has a damaged record,
// is to Pebble one whose end a crash cut off: it opens with the list of before. What had been moved from a log into a table
// since is gone then, for the log was removed, but what later logs have is there. Of a state, the applied index is there
// too: it says that it has entries that it has not, and no replay brings them back. Of a Raft log, entries and votes of
// before come back in place of newer ones.
//
// So the manifest is sealed after each flush, before Pebble removes the logs that became superfluous by it, and after what
// is in no log was put in: a marker beside it has its length and checksum. What is written to it later only rearranges
// tables, or has its logs still.
package manifest

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"strconv"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/atomicfs"
)

// ErrCorrupt is returned, wrapped, for a manifest that is not what was sealed.
var ErrCorrupt = errors.New("manifest: corrupt")

// MaxBytes is at which size Pebble shall begin another manifest: it is read as a whole to be sealed.
const MaxBytes = 1 << 20

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

const sealMarker = "sealed"

// Seal is that of one database. Its methods are safe for concurrent use.
type Seal struct {
	fs     vfs.FS
	dir    string
	mu     sync.Mutex
	marker *atomicfs.Marker // nil before the first Renew
}

// New returns the seal of the database in dir, which it does not touch.
func New(filesystem vfs.FS, dir string) *Seal { return &Seal{fs: filesystem, dir: dir} }

// Renew seals the manifest as it is now. If that fails the seal of before holds, for less.
func (s *Seal) Renew() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.marker == nil {
		marker, _, err := atomicfs.LocateMarker(s.fs, s.dir, sealMarker)
		if err != nil {
			return fmt.Errorf("find the seal of the manifest: %w", err)
		}
		s.marker = marker
	}
	found, err := pebble.Peek(s.dir, s.fs)
	if err != nil {
		return fmt.Errorf("find the manifest: %w", err)
	}
	value, err := sealOf(s.fs, found.ManifestFilename, -1)
	if err == nil {
		err = s.marker.Move(value)
	}
	if err == nil {
		err = s.marker.RemoveObsolete()
	}
	if err != nil {
		return fmt.Errorf("seal the manifest: %w", err)
	}
	return nil
}

// Close lets go of the marker.
func (s *Seal) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.marker == nil {
		return nil
	}
	return s.marker.Close()
}

// Check refuses, a manifest that has lost what it had when it was sealed.
func Check(filesystem vfs.FS, dir string) error {
	value, err := atomicfs.ReadMarker(filesystem, dir, sealMarker)
	if errors.Is(err, fs.ErrNotExist) || err == nil && value == "" {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the seal of the manifest: %w", err)
	}
	found, err := pebble.Peek(dir, filesystem)
	if err != nil || !found.Exists {
		return err
	}
	name, rest, _ := strings.Cut(value, ".")
	if name != filesystem.PathBase(found.ManifestFilename) {
		return nil // Pebble has begun another one since, with all that was in this one
	}
	digits, _, _ := strings.Cut(rest, ".")
	size, err := strconv.ParseInt(digits, 10, 64)
	if err != nil {
		return fmt.Errorf("%w: the seal of the manifest is %q", ErrCorrupt, value)
	}
	now, err := sealOf(filesystem, found.ManifestFilename, size)
	if err != nil {
		return fmt.Errorf("check the seal of the manifest: %w", err)
	}
	if now != value {
		return fmt.Errorf("%w: the manifest of %s is not what was sealed: %s, but %s was", ErrCorrupt, dir, now, value)
	}
	return nil
}

// sealOf is the seal of the first bytes of a manifest, size of them, or all that there are if that is -1. Those are on disk
// then: a power cut must not take from the manifest what was sealed.
func sealOf(filesystem vfs.FS, path string, size int64) (string, error) {
	f, err := filesystem.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if size < 0 {
		info, err := f.Stat()
		if err != nil {
			return "", err
		}
		size = info.Size()
		if err := f.Sync(); err != nil {
			return "", err
		}
	}
	sum := crc32.New(castagnoli)
	n, err := io.Copy(sum, io.LimitReader(f, size))
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s.%d.%08x", filesystem.PathBase(path), n, sum.Sum32()), nil
}
