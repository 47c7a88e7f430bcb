package raftlog

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"
)

// What hangs must be seen wherever it does, and what is only slow must not look as if it hung.
func TestHowLongAWriteHasBeenPending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := Open(Options{FS: vfs.NewMem(), Dir: "log", BeforeSync: func() { time.Sleep(time.Second) }, OnFatal: func(err error) { t.Error(err) }})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		l, err := s.Open(1)
		if err != nil {
			t.Fatal(err)
		}
		l.Defer()
		expect := func(want time.Duration, when string) {
			t.Helper()
			synctest.Wait()
			if got := s.SyncPending(); got != want {
				t.Errorf("%s: pending for %v, want %v", when, got, want)
			}
		}
		store := func(index uint64) {
			t.Helper()
			if err := l.StoreLog(&raft.Log{Index: index, Term: 1}); err != nil {
				t.Fatal(err)
			}
		}
		expect(0, "nothing was written")
		store(1)
		synctest.Wait()
		time.Sleep(900 * time.Millisecond)
		store(2)
		expect(900*time.Millisecond, "the first sync is under way")
		time.Sleep(600 * time.Millisecond)
		expect(600*time.Millisecond, "the second one is, for a write that came late in the first")
		time.Sleep(time.Second)
		expect(0, "all is on disk")
		id := s.sync.begin() // and the write-ahead log does not take it
		time.Sleep(time.Minute)
		expect(time.Minute, "a write hangs before any sync")
		s.sync.wrote(id)
	})
}
