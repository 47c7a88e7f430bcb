package storage

import (
	"errors"
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/holdfastdb/holdfast/storage/storagetest"
)

// flushedState is a state that was flushed a few times and then went on: row 0 to row n-1, each in a commit of its own with
// the number of those so far as the applied index. At last another shard was removed.
func flushedState(t *testing.T, disk vfs.FS) (rows int) {
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
	return rows
}

// A manifest that was cut anywhere, or damaged, is refused, or it takes nothing away. Without the seal Pebble opens it as one
// that a crash cut off, and rows are missing in the middle of a state that says that it has them.
func TestADamagedManifestIsRefusedOrLosesNothing(t *testing.T) {
	disk := vfs.NewMem()
	rows := flushedState(t, disk)
	storagetest.SpoilManifests(t, disk, "state", 1, func(fs vfs.FS) (refused, lost error) {
		e, err := Open(Options{FS: fs, Dir: "state"})
		if err != nil {
			return err, nil
		}
		defer e.Close()
		view, other := e.Shard(1).View(), e.Shard(2).View()
		defer view.Close()
		defer other.Close()
		if back := content(t, other); len(back) > 0 {
			return nil, errors.New("with a shard that was removed")
		}
		all := content(t, view)
		if got, applied := len(all)-1, all["applied"]; got != rows || applied != fmt.Sprint(rows) {
			return nil, fmt.Errorf("%d rows of %d, applied %s", got, rows, applied)
		}
		return nil, nil
	})
}
