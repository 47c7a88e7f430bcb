package storage

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/holdfastdb/holdfast/storage/storagetest"
)

// incompressible is a value of 64 KiB, of which compression leaves all to write.
var incompressible = func() string {
	rng, b := testRNG(1), make([]byte, 64<<10)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return string(b)
}()

// fill writes to a shard, 8 MiB in more than a second, until a memtable is full, and returns while it is being written out.
func fill(t *testing.T, e *Engine, disk *storagetest.Tables) {
	t.Helper()
	for i := 0; disk.Writing.Load() == 0 || i < 300; i++ {
		time.Sleep(10 * time.Millisecond)
		if i > 1000 {
			t.Fatal("after 1000 rows the memtable is not full")
		}
		set(t, e.Shard(1), fmt.Sprint(i), incompressible)
	}
	time.Sleep(51 * time.Millisecond)
	if disk.Writing.Load() == 0 {
		t.Error("a memtable of 8 MiB, which took more than a second to come together, is written out in a moment")
	}
}

// A full memtable is not written out as fast as possible; who closes or compacts the database does not wait for that, nor who
// opens it.
func TestMemtablesAreWrittenSlowlyWhileTheEngineIsOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := &storagetest.Tables{FS: vfs.NewMem()}
		e, err := Open(Options{FS: disk, Dir: "state", MemTableBytes: 8 << 20})
		if err != nil {
			t.Fatal(err)
		}
		fill(t, e, disk)
		start := time.Now()
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > 10*time.Millisecond {
			t.Errorf("to close the engine took %v", took)
		}
		start = time.Now()
		if e, err = Open(Options{FS: disk, Dir: "state", MemTableBytes: 8 << 20}); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > 10*time.Millisecond {
			t.Errorf("to open the engine again took %v", took)
		}
		fill(t, e, disk)
		start = time.Now()
		if err := e.Shard(1).Compact(t.Context()); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > 10*time.Millisecond {
			t.Errorf("to compact a shard took %v", took)
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// A flush does not go on with its pauses while writes wait for memory.
func TestAStalledWriteDoesNotWaitForPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := &storagetest.Tables{FS: vfs.NewMem()}
		e, err := Open(Options{FS: disk, Dir: "state", MemTableBytes: 8 << 20})
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		fill(t, e, disk)
		start := time.Now()
		for i := range 640 { // 40 MiB, for which there are 32
			set(t, e.Shard(1), fmt.Sprint("more", i), incompressible)
		}
		if took := time.Since(start); took > 0 {
			t.Errorf("the writes took %v", took)
		}
	})
}
