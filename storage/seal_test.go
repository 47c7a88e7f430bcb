package storage

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// flushedState is a state that was flushed a few times and then went on: row 0 to row n-1, each in a commit of its own with
// the number of those so far as the applied index. At last another shard was removed. It returns where the manifest is.
func flushedState(t *testing.T, disk vfs.FS) (rows int, manifest string) {
	t.Helper()
	e, err := Open(Options{FS: disk, Dir: "state"})
	if err != nil {
		t.Fatal(err)
	}
	set(t, e.Shard(2), "gone", "x")
	for rows < 160 {
		set(t, e.Shard(1), fmt.Sprintf("row %04d", rows), "x", "applied", fmt.Sprint(rows+1))
		if rows++; rows%40 == 0 && rows < 160 {
			if err := e.db.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := e.Shard(2).Destroy(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(e.Sync(), e.Close()); err != nil {
		t.Fatal(err)
	}
	found, err := pebble.Peek("state", disk)
	if err != nil || !found.Exists {
		t.Fatal(found, err)
	}
	return rows, found.ManifestFilename
}

// opened opens a copy of the state with another manifest and tells how many rows it has, and how many it says it has.
func opened(t *testing.T, disk vfs.FS, manifest string, text []byte) (rows int, applied string, err error) {
	t.Helper()
	own := vfs.NewMem()
	if _, err := vfs.Clone(disk, own, "state", "state"); err != nil {
		t.Fatal(err)
	}
	f, err := own.Create(manifest, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(text); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	e, err := Open(Options{FS: own, Dir: "state"})
	if err != nil {
		return 0, "", err
	}
	defer e.Close()
	view, other := e.Shard(1).View(), e.Shard(2).View()
	defer view.Close()
	defer other.Close()
	if back := content(t, other); len(back) > 0 {
		return 0, "with a shard that was removed", nil
	}
	all := content(t, view)
	return len(all) - 1, all["applied"], nil
}

// A manifest that was cut anywhere, or damaged, is refused, or it takes nothing away. Without the seal Pebble opens it as one
// that a crash cut off, and rows are missing in the middle of a state that says that it has them.
func TestADamagedManifestIsRefusedOrLosesNothing(t *testing.T) {
	disk := vfs.NewMem()
	rows, manifest := flushedState(t, disk)
	f, err := disk.Open(manifest)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	whole, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	if got, applied, err := opened(t, disk, manifest, whole); got != rows || applied != fmt.Sprint(rows) || err != nil {
		t.Fatalf("as it was: %d rows, applied %s, %v", got, applied, err)
	}
	refused := 0
	for at := range whole { // the ends of records among them
		flipped := bytes.Clone(whole)
		flipped[at] ^= 0x40
		for what, text := range map[string][]byte{"cut": whole[:at], "damaged": flipped} {
			got, applied, err := opened(t, disk, manifest, text)
			switch {
			case err != nil:
				refused++
			case got != rows || applied != fmt.Sprint(rows):
				t.Errorf("%s at %d of %d: %d rows of %d, applied %s", what, at, len(whole), got, rows, applied)
			}
		}
	}
	if refused < len(whole) {
		t.Errorf("of %d manifests only %d were refused", 2*len(whole), refused)
	}
}
