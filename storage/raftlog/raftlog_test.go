package raftlog_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/storage/raftlog"
	"github.com/holdfastdb/holdfast/storage/raftlog/bolt"
	"github.com/holdfastdb/holdfast/storage/storagetest"
)

func open(t testing.TB, fs vfs.FS, dir string) *raftlog.Store {
	t.Helper()
	s, err := raftlog.Open(raftlog.Options{FS: fs, Dir: dir, CacheBytes: 4096, OnFatal: func(err error) { t.Error(err) }})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestPebble(t *testing.T) {
	storagetest.TestLog(t, func(t *testing.T) (raftlog.Provider, func() raftlog.Provider) {
		fs := vfs.NewMem()
		return open(t, fs, "log"), func() raftlog.Provider { return open(t, fs, "log") }
	})
}

func TestBolt(t *testing.T) {
	storagetest.TestLog(t, func(t *testing.T) (raftlog.Provider, func() raftlog.Provider) {
		dir := t.TempDir()
		start := func() raftlog.Provider {
			p, err := bolt.Open(bolt.Options{Dir: dir})
			if err != nil {
				t.Fatal(err)
			}
			return p
		}
		return start(), start
	})
}

// hashicorp/raft #661. A power cut may come at any moment: what StoreLogs and a whole vote wrote is there after it, and a vote is never half
// of one and half of another.
func TestRaft661APowerCutLosesNothingThatWasStored(t *testing.T) {
	for seed := range uint64(30) {
		fs := vfs.NewCrashableMem()
		s := open(t, fs, "log")
		l, err := s.Open(1)
		if err != nil {
			t.Fatal(err)
		}
		rng := rand.New(rand.NewPCG(seed, 1))
		stored := uint64(0)
		for term := uint64(1); term <= 10; term++ {
			if err := errors.Join(l.SetUint64([]byte(raftlog.KeyVoteTerm), term),
				l.Set([]byte(raftlog.KeyVoteCandidate), fmt.Appendf(nil, "n%d", term))); err != nil {
				t.Fatal(err)
			}
			for range rng.IntN(5) {
				stored++
				if err := l.StoreLog(&raft.Log{Index: stored, Term: term, Data: []byte("x")}); err != nil {
					t.Fatal(err)
				}
			}
			if rng.IntN(2) == 0 { // the first half of the next vote, which must not count
				if err := l.SetUint64([]byte(raftlog.KeyVoteTerm), term+1); err != nil {
					t.Fatal(err)
				}
			}
			crashed := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
			again := open(t, crashed, "log")
			got, err := again.Open(1)
			if err != nil {
				t.Fatal(err)
			}
			last, _ := got.LastIndex()
			votedTerm, err1 := got.GetUint64([]byte(raftlog.KeyVoteTerm))
			candidate, err2 := got.Get([]byte(raftlog.KeyVoteCandidate))
			if err := errors.Join(err1, err2); err != nil {
				t.Fatal(err)
			}
			if last != stored || votedTerm != term || string(candidate) != fmt.Sprintf("n%d", term) {
				t.Fatalf("seed %d: %d entries and a vote for %s in term %d; want %d and term %d", seed, last, candidate, votedTerm, stored, term)
			}
			if err := again.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// BenchmarkAppend measures what a node with so many groups can append: each group stores batches of 16 entries of 100
// bytes, all groups at the same time, on a real disk.
func BenchmarkAppend(b *testing.B) {
	stores := map[string]func(b *testing.B) raftlog.Provider{
		"pebble": func(b *testing.B) raftlog.Provider { return open(b, nil, b.TempDir()) },
		"boltdb": func(b *testing.B) raftlog.Provider {
			p, err := bolt.Open(bolt.Options{Dir: b.TempDir()})
			if err != nil {
				b.Fatal(err)
			}
			return p
		},
	}
	for _, name := range []string{"pebble", "boltdb"} {
		for _, groups := range []int{1, 8, 32} {
			b.Run(fmt.Sprintf("%s/groups=%d", name, groups), func(b *testing.B) {
				p := stores[name](b)
				logs := make([]raftlog.Log, groups)
				for i := range logs {
					l, err := p.Open(uint32(i))
					if err != nil {
						b.Fatal(err)
					}
					logs[i] = l
				}
				const batch = 16
				data := make([]byte, 100)
				b.ResetTimer()
				var all sync.WaitGroup
				for g, l := range logs {
					all.Go(func() {
						index := uint64(0)
						for range b.N/groups + 1 {
							entries := make([]*raft.Log, batch)
							for i := range entries {
								index++
								entries[i] = &raft.Log{Index: index, Term: 1, Data: data}
							}
							if err := l.StoreLogs(entries); err != nil {
								b.Errorf("group %d: %v", g, err)
								return
							}
						}
					})
				}
				all.Wait()
				b.ReportMetric(float64(b.N*batch)/b.Elapsed().Seconds(), "entries/s")
				for _, l := range logs {
					if err := l.Close(); err != nil {
						b.Fatal(err)
					}
				}
				if err := p.Close(); err != nil {
					b.Fatal(err)
				}
			})
		}
	}
}

// Compactions keep a processor busy, which is told from their begin to their end.
func TestOnWork(t *testing.T) {
	var begun, ended atomic.Int64
	s, err := raftlog.Open(raftlog.Options{FS: vfs.NewMem(), Dir: "log", LogBytes: 64 << 10, OnWork: func(begins bool) {
		if begins {
			begun.Add(1)
		} else {
			ended.Add(1)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	var logs [2]raftlog.Log
	for i := range logs {
		if logs[i], err = s.Open(uint32(1 + i)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range uint64(100) {
		for _, l := range logs { // of which each table has some
			if err := l.StoreLog(&raft.Log{Index: 1 + i, Term: 1, Data: make([]byte, 10<<10)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(logs[0].Close(), logs[1].Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	if b, e := begun.Load(), ended.Load(); b == 0 || b != e {
		t.Errorf("%d pieces of work have begun and %d ended", b, e)
	}
}
