package raftlog_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/storage/raftlog"
	"github.com/holdfastdb/holdfast/storage/storagetest"
)

// The tables that a full log goes to are not written as fast as possible; who closes the log does not wait for that, nor who
// opens it.
func TestTablesAreWrittenSlowlyWhileTheLogIsOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := &storagetest.Tables{FS: vfs.NewMem()}
		s, err := raftlog.Open(raftlog.Options{FS: disk, Dir: "log", LogBytes: 8 << 20})
		if err != nil {
			t.Fatal(err)
		}
		l, err := s.Open(1)
		if err != nil {
			t.Fatal(err)
		}
		data := make([]byte, 64<<10)
		for index := uint64(1); disk.Writing.Load() == 0 || index < 300; index++ {
			time.Sleep(10 * time.Millisecond)
			if index > 1000 {
				t.Fatal("after 1000 entries the log is not full")
			}
			if err := l.StoreLog(&raft.Log{Index: index, Term: 1, Data: data}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(50 * time.Millisecond)
		if disk.Writing.Load() == 0 {
			t.Error("a table of 8 MiB, which took more than a second to come together, is written in a moment")
		}
		start := time.Now()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > 10*time.Millisecond {
			t.Errorf("to close the log took %v", took)
		}
		start = time.Now()
		if s, err = raftlog.Open(raftlog.Options{FS: disk, Dir: "log", LogBytes: 8 << 20}); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > 10*time.Millisecond {
			t.Errorf("to open the log again took %v", took)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
