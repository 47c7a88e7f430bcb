package raftlog_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/storage/raftlog"
)

// What a node left is read without changing it, also the spare file of a node that was killed.
func TestReadingChangesNothing(t *testing.T) {
	fs := vfs.NewMem()
	for _, reading := range []bool{false, true} {
		s, err := raftlog.Open(raftlog.Options{FS: fs, Dir: "log", ReadOnly: reading, OnFatal: func(err error) { t.Error(err) }})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if reading {
			break
		}
		f, err := fs.Create("log/spare", "pebble-wal")
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := fs.Stat("log/spare"); err != nil {
		t.Errorf("the spare: %v", err)
	}
}

// Write-ahead logs made of spare and of used files hold what was stored, also when the power goes while one is being
// prepared, and soon all of them have their blocks from the start.
func TestLogsOfPreparedFilesSurvivePowerCuts(t *testing.T) {
	const logBytes = 512 << 10
	body := bytes.Repeat([]byte("entry "), 300)
	for seed := range uint64(2) {
		rng := rand.New(rand.NewPCG(seed, 3))
		fs := vfs.NewCrashableMem()
		stored := uint64(0)
		for life := range 4 {
			s, err := raftlog.Open(raftlog.Options{FS: fs, Dir: "log", LogBytes: logBytes, OnFatal: func(err error) { t.Error(err) }})
			if err != nil {
				t.Fatalf("seed %d, life %d: %v", seed, life, err)
			}
			l, err := s.Open(1)
			if err != nil {
				t.Fatal(err)
			}
			if last, err := l.LastIndex(); err != nil || last != stored {
				t.Fatalf("seed %d, life %d: last entry %d, %v; stored %d", seed, life, last, err, stored)
			}
			for index := uint64(1); index <= stored; index++ {
				var e raft.Log
				if err := l.GetLog(index, &e); err != nil || !bytes.Equal(e.Data, fmt.Appendf(nil, "%d %s", index, body)) {
					t.Fatalf("seed %d, life %d: entry %d: %v", seed, life, index, err)
				}
			}
			for range 1000 + rng.IntN(1000) {
				stored++
				if err := l.StoreLog(&raft.Log{Index: stored, Term: 1, Data: fmt.Appendf(nil, "%d %s", stored, body)}); err != nil {
					t.Fatal(err)
				}
			}
			if life == 0 && prepared(t, fs, logBytes) == 0 {
				t.Errorf("seed %d: no log is a prepared file after %d entries", seed, stored)
			}
			crashed := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			fs = crashed
		}
	}
}

// prepared counts the write-ahead logs of full size.
func prepared(t *testing.T, fs vfs.FS, size int64) (n int) {
	t.Helper()
	names, err := fs.List("log")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if info, err := fs.Stat(fs.PathJoin("log", name)); err == nil && strings.HasSuffix(name, ".log") && info.Size() >= size {
			n++
		}
	}
	return n
}
