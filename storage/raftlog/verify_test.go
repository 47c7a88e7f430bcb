package raftlog_test

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/storage/raftlog"
)

// copyDir copies a directory of files, and lets one of them change.
func copyDir(t *testing.T, from vfs.FS, dir, name string, change func([]byte)) *vfs.MemFS {
	t.Helper()
	to := vfs.NewMem()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(to.MkdirAll(dir, 0o755))
	names, err := from.List(dir)
	must(err)
	for _, each := range names {
		f, err := from.Open(from.PathJoin(dir, each))
		must(err)
		b, err := io.ReadAll(f)
		must(errors.Join(err, f.Close()))
		if each == name {
			change(b)
		}
		w, err := to.Create(to.PathJoin(dir, each), "test")
		must(err)
		_, err = w.Write(b)
		must(errors.Join(err, w.Close()))
	}
	return to
}

// newestLog is the write-ahead log with the highest number.
func newestLog(t *testing.T, fs vfs.FS, dir string) string {
	t.Helper()
	names, err := fs.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	names = slices.DeleteFunc(names, func(n string) bool { return !strings.HasSuffix(n, ".log") })
	return slices.Max(names)
}

// Whatever byte of the newest log is not what it was: what was acknowledged is there, or the log is refused. After a crash
// the last syncs are excepted, where damage cannot be told from what the crash left.
func TestDamageOfTheNewestLogIsNotTakenForItsEnd(t *testing.T) {
	for _, test := range []struct {
		name   string
		lives  int // the log of a first life of a database has another format
		crash  bool
		except uint64 // entries that may be missing
	}{
		{"after a shutdown", 1, false, 0},
		{"after a crash", 1, true, 2},
		{"after a shutdown of a later life", 2, false, 0},
		{"after a crash of a later life", 2, true, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			fs := vfs.NewCrashableMem()
			var disk vfs.FS = fs
			stored := uint64(0)
			rng := rand.New(rand.NewPCG(1, 1))
			for life := range test.lives {
				s := open(t, fs, "log")
				l, err := s.Open(1)
				if err != nil {
					t.Fatal(err)
				}
				for range 150 {
					stored++
					// Some records go over several blocks.
					if err := l.StoreLog(&raft.Log{Index: stored, Term: 1, Data: make([]byte, rng.IntN(20)*rng.IntN(200))}); err != nil {
						t.Fatal(err)
					}
				}
				if test.crash && life == test.lives-1 {
					disk = fs.CrashClone(vfs.CrashCloneCfg{})
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			}
			name := newestLog(t, disk, "log")
			size := 0
			copyDir(t, disk, "log", name, func(b []byte) { size = len(b) })
			refused, intact := 0, 0
			for range 100 {
				at := rng.IntN(size)
				damaged := copyDir(t, disk, "log", name, func(b []byte) { b[at] ^= 1 << rng.IntN(8) })
				last, err := reopened(damaged)
				switch {
				case err != nil:
					if !errors.Is(err, raftlog.ErrCorrupt) && !strings.Contains(err.Error(), "corrupt") {
						t.Errorf("byte %d of %d: %v", at, size, err)
					}
					refused++
				case last+test.except < stored:
					t.Errorf("byte %d of %d: %d of %d entries, and no word about it", at, size, last, stored)
				default:
					intact++
				}
			}
			t.Logf("refused %d, intact %d", refused, intact)
			if refused == 0 {
				t.Error("nothing was ever refused")
			}
		})
	}
}

// reopened is the last entry that a log has after a restart.
func reopened(fs vfs.FS) (uint64, error) {
	s, err := raftlog.Open(raftlog.Options{FS: fs, Dir: "log", CacheBytes: 4096, OnFatal: func(err error) { panic(fmt.Sprint(err)) }})
	if err != nil {
		return 0, err
	}
	l, err := s.Open(1)
	if err != nil {
		return 0, errors.Join(err, s.Close())
	}
	last, err := l.LastIndex()
	return last, errors.Join(err, s.Close())
}

// A crash may leave any part of what was not synced, in any order of the disk's blocks: that is no damage.
func TestWhatACrashLeavesIsNoDamage(t *testing.T) {
	for seed := range uint64(100) {
		rng := rand.New(rand.NewPCG(seed, 3))
		fs := vfs.NewCrashableMem()
		for range 3 {
			s := open(t, fs, "log")
			l, err := s.Open(1)
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			l.Defer()
			last, _ := l.LastIndex()
			for i := range uint64(rng.IntN(60)) {
				if err := l.StoreLogs([]*raft.Log{{Index: last + 1 + i, Term: 1, Data: make([]byte, rng.IntN(3000))}}); err != nil {
					t.Fatal(err)
				}
			}
			crashed := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			fs = crashed
		}
	}
}
