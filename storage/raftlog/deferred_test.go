package raftlog_test

import (
	"math"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/storage/raftlog"
)

func commands(term, first, last uint64) []*raft.Log {
	var logs []*raft.Log
	for i := first; i <= last; i++ {
		logs = append(logs, &raft.Log{Index: i, Term: term, Data: []byte("x")})
	}
	return logs
}

// deferredLog opens a log that does not wait, on a disk of which each sync takes a second.
func deferredLog(t *testing.T, fs vfs.FS) (raftlog.Log, raftlog.Durability) {
	t.Helper()
	s, err := raftlog.Open(raftlog.Options{FS: fs, Dir: "log", BeforeSync: func() { time.Sleep(time.Second) }, OnFatal: func(err error) { t.Error(err) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	l, err := s.Open(1)
	if err != nil {
		t.Fatal(err)
	}
	return l, l.Defer()
}

func TestADeferredLogTellsWhenEntriesAreOnDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, d := deferredLog(t, vfs.NewMem())
		begin := time.Now()
		at := func(want time.Duration, what string) {
			t.Helper()
			if got := time.Since(begin); got != want {
				t.Errorf("%s after %v, want %v", what, got, want)
			}
		}
		store := func(logs []*raft.Log) {
			t.Helper()
			if err := l.StoreLogs(logs); err != nil {
				t.Fatal(err)
			}
		}
		on := make(map[uint64]time.Duration)
		when := func(index uint64) {
			d.When(index, func(err error) {
				if err != nil {
					t.Error(err)
				}
				on[index] = time.Since(begin)
			})
		}
		if d.Durable() != math.MaxUint64 {
			t.Errorf("an empty log is durable up to %d", d.Durable())
		}
		store(commands(1, 1, 3))
		at(0, "stored")
		synctest.Wait() // the first sync has begun: what comes now is in the second
		store(commands(1, 4, 5))
		when(2)
		when(5)
		if got := d.Durable(); got != 0 {
			t.Errorf("durable up to %d before any sync", got)
		}
		if last, _ := l.LastIndex(); last != 5 {
			t.Errorf("the log ends at %d", last)
		}
		time.Sleep(1500 * time.Millisecond)
		if got := d.Durable(); got != 3 {
			t.Errorf("durable up to %d after the first sync, want 3", got)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if on[2] != time.Second || on[5] != 2*time.Second || d.Durable() != math.MaxUint64 {
			t.Errorf("told at %v, durable up to %d", on, d.Durable())
		}
		when(5)
		if on[5] != 2500*time.Millisecond {
			t.Errorf("not told at once of what is on disk: %v", on[5])
		}
		// What Raft acts on by itself is waited for, and all before it.
		begin = time.Now()
		store(commands(1, 6, 6))
		synctest.Wait()
		store([]*raft.Log{{Index: 7, Term: 1, Type: raft.LogConfiguration}})
		at(2*time.Second, "a configuration is stored")
		if d.Durable() != math.MaxUint64 {
			t.Errorf("durable up to %d after a configuration", d.Durable())
		}
	})
}

// An entry that replaces another is not on disk because the other was about to be.
func TestAReplacedEntryWaitsForItsOwnSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, d := deferredLog(t, vfs.NewMem())
		if err := l.StoreLogs(commands(1, 1, 9)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if err := l.DeleteRange(5, 9); err != nil {
			t.Fatal(err)
		}
		if err := l.StoreLogs(commands(2, 5, 6)); err != nil {
			t.Fatal(err)
		}
		begin, told := time.Now(), make(map[uint64]time.Duration)
		for _, index := range []uint64{4, 5, 6} {
			d.When(index, func(error) { told[index] = time.Since(begin) })
		}
		time.Sleep(1500 * time.Millisecond)
		if got := d.Durable(); got != 4 {
			t.Errorf("durable up to %d, want 4", got)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if told[4] != time.Second || told[5] != 2*time.Second || told[6] != 2*time.Second {
			t.Errorf("told at %v", told)
		}
	})
}

// A power cut may come at any moment: what was said to be on disk is there after it, and what was not may be missing.
func TestAPowerCutLosesOnlyWhatWasNotSaidToBeOnDisk(t *testing.T) {
	missing := 0
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 2))
		fs := vfs.NewCrashableMem()
		s := open(t, fs, "log")
		l, err := s.Open(1)
		if err != nil {
			t.Fatal(err)
		}
		d := l.Defer()
		promised := make(chan uint64, 1000)
		written := uint64(0)
		for range 1 + rng.IntN(100) {
			written++
			if err := l.StoreLogs(commands(1, written, written)); err != nil {
				t.Fatal(err)
			}
			index := written
			d.When(index, func(err error) {
				if err == nil {
					promised <- index
				}
			})
		}
		sure := uint64(0)
		for len(promised) > 0 {
			sure = max(sure, <-promised)
		}
		crashed := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 0, RNG: rng})
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		again := open(t, crashed, "log")
		got, err := again.Open(1)
		if err != nil {
			t.Fatal(err)
		}
		last, _ := got.LastIndex()
		if last < sure {
			t.Errorf("seed %d: %d entries after the cut, %d were said to be on disk", seed, last, sure)
		}
		missing += int(written - last)
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if missing == 0 {
		t.Error("no entry was ever written and not on disk: nothing was tested")
	}
}

func TestWhoWaitsHearsThatTheLogWasClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := raftlog.Open(raftlog.Options{FS: vfs.NewMem(), Dir: "log", BeforeSync: func() { time.Sleep(time.Second) }})
		if err != nil {
			t.Fatal(err)
		}
		l, err := s.Open(1)
		if err != nil {
			t.Fatal(err)
		}
		d := l.Defer()
		if err := l.StoreLogs(commands(1, 1, 1)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if err := l.StoreLogs(commands(1, 2, 2)); err != nil {
			t.Fatal(err)
		}
		told := make(map[uint64]error)
		for _, index := range []uint64{1, 2} {
			d.When(index, func(err error) { told[index] = err })
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err, ok := told[1]; !ok || err != nil {
			t.Errorf("the entry of the sync under way: %v, %v", err, ok)
		}
		if _, ok := told[2]; !ok {
			t.Error("nobody told of the entry after it")
		}
	})
}
