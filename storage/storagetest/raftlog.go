// Package storagetest holds the behaviour that every implementation of a storage interface must show.
package storagetest

import (
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"pgregory.net/rapid"

	"github.com/holdfastdb/holdfast/storage/raftlog"
)

// entry makes a log entry that is recognisable by its index and term.
func entry(index, term uint64) *raft.Log {
	return &raft.Log{
		Index: index, Term: term, Type: raft.LogCommand, Data: fmt.Appendf(nil, "data-%d-%d", index, term),
		Extensions: []byte("ext"), AppendedAt: time.Unix(0, int64(index)+1).UTC(),
	}
}

// TestLog runs the suite. open opens logs on fresh storage; reopen opens the same storage again after Close.
func TestLog(t *testing.T, open func(t *testing.T) (p raftlog.Provider, reopen func() raftlog.Provider)) {
	group := func(t *testing.T, p raftlog.Provider, n uint32) raftlog.Log {
		t.Helper()
		l, err := p.Open(n)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	bounds := func(t *testing.T, l raftlog.Log, first, last uint64) {
		t.Helper()
		f, err1 := l.FirstIndex()
		n, err2 := l.LastIndex()
		if must(t, errors.Join(err1, err2)); f != first || n != last {
			t.Fatalf("log is [%d, %d], want [%d, %d]", f, n, first, last)
		}
	}
	has := func(t *testing.T, l raftlog.Log, index, term uint64) {
		t.Helper()
		var got raft.Log
		must(t, l.GetLog(index, &got))
		want := entry(index, term)
		if got.Index != index || got.Term != term || string(got.Data) != string(want.Data) ||
			string(got.Extensions) != "ext" || !got.AppendedAt.Equal(want.AppendedAt) {
			t.Fatalf("entry %d is %+v, want %+v", index, got, want)
		}
	}
	lacks := func(t *testing.T, l raftlog.Log, index uint64) {
		t.Helper()
		var got raft.Log
		if err := l.GetLog(index, &got); err != raft.ErrLogNotFound { //nolint:errorlint // Raft compares it like this
			t.Fatalf("entry %d: error %v, want raft.ErrLogNotFound itself", index, err)
		}
	}
	fill := func(t *testing.T, l raftlog.Log, from, to, term uint64) {
		t.Helper()
		var logs []*raft.Log
		for i := from; i <= to; i++ {
			logs = append(logs, entry(i, term))
		}
		must(t, l.StoreLogs(logs))
	}

	t.Run("entries survive a restart and both ends can be cut", func(t *testing.T) {
		p, reopen := open(t)
		l := group(t, p, 1)
		bounds(t, l, 0, 0)
		lacks(t, l, 1)
		fill(t, l, 1, 100, 3)
		must(t, l.DeleteRange(1, 10))
		bounds(t, l, 11, 100)
		lacks(t, l, 10)
		must(t, l.DeleteRange(91, 100))
		bounds(t, l, 11, 90)
		lacks(t, l, 91)
		fill(t, l, 91, 95, 4)
		has(t, l, 91, 4)
		has(t, l, 11, 3)
		must(t, errors.Join(l.Close(), p.Close()))
		p = reopen()
		l = group(t, p, 1)
		bounds(t, l, 11, 95)
		has(t, l, 90, 3)
		has(t, l, 95, 4)
		lacks(t, l, 96)
		must(t, l.DeleteRange(11, 95))
		bounds(t, l, 0, 0)
		must(t, errors.Join(l.Close(), p.Close()))
	})
	t.Run("a snapshot may leave a gap", func(t *testing.T) {
		p, _ := open(t)
		l := group(t, p, 1)
		fill(t, l, 1, 5, 1)
		fill(t, l, 50, 60, 2)
		bounds(t, l, 1, 60)
		lacks(t, l, 30)
		must(t, l.DeleteRange(1, 40))
		bounds(t, l, 50, 60)
		has(t, l, 50, 2)
		must(t, errors.Join(l.Close(), p.Close()))
	})
	t.Run("groups do not see each other", func(t *testing.T) {
		p, _ := open(t)
		a, b := group(t, p, 1), group(t, p, 2)
		fill(t, a, 1, 3, 1)
		must(t, a.Set([]byte("k"), []byte("a")))
		bounds(t, b, 0, 0)
		if _, err := b.Get([]byte("k")); err == nil {
			t.Fatal("group 2 has group 1's value")
		}
		fill(t, b, 7, 8, 1)
		must(t, a.Destroy())
		bounds(t, b, 7, 8)
		a = group(t, p, 1)
		bounds(t, a, 0, 0)
		if _, err := a.Get([]byte("k")); err == nil || err.Error() != "not found" {
			t.Fatalf("error %v after Destroy, want not found", err)
		}
		must(t, errors.Join(a.Close(), b.Close(), p.Close()))
	})
	t.Run("values and the vote", func(t *testing.T) {
		p, reopen := open(t)
		l := group(t, p, 1)
		if _, err := l.Get([]byte("nothing")); err == nil || err.Error() != "not found" {
			t.Fatalf("error %v, want the text that Raft compares", err)
		}
		if n, err := l.GetUint64([]byte("nothing")); n != 0 || err != nil {
			t.Fatalf("%d, %v for a number that was never set", n, err)
		}
		must(t, l.SetUint64([]byte("CurrentTerm"), 7))
		must(t, l.SetUint64([]byte(raftlog.KeyVoteTerm), 7))
		if n, _ := l.GetUint64([]byte(raftlog.KeyVoteTerm)); n != 0 {
			t.Fatalf("half a vote is visible: term %d", n)
		}
		must(t, l.Set([]byte(raftlog.KeyVoteCandidate), []byte("n1/1")))
		must(t, l.SetUint64([]byte(raftlog.KeyVoteTerm), 8)) // and the candidate never comes
		must(t, errors.Join(l.Close(), p.Close()))
		p = reopen()
		l = group(t, p, 1)
		term, err1 := l.GetUint64([]byte(raftlog.KeyVoteTerm))
		who, err2 := l.Get([]byte(raftlog.KeyVoteCandidate))
		current, err3 := l.GetUint64([]byte("CurrentTerm"))
		if must(t, errors.Join(err1, err2, err3)); term != 7 || string(who) != "n1/1" || current != 7 {
			t.Fatalf("vote is %q in term %d, current term %d", who, term, current)
		}
		must(t, errors.Join(l.Close(), p.Close()))
	})
	t.Run("raft 661: between the halves of a vote the one before stands", func(t *testing.T) {
		p, reopen := open(t)
		l := group(t, p, 1)
		stands := func(want string) {
			t.Helper()
			term, err1 := l.GetUint64([]byte(raftlog.KeyVoteTerm))
			who, err2 := l.Get([]byte(raftlog.KeyVoteCandidate))
			must(t, errors.Join(err1, err2))
			if vote := fmt.Sprintf("%s in %d", who, term); vote != want {
				t.Errorf("the vote is %s, want %s", vote, want)
			}
		}
		must(t, l.SetUint64([]byte(raftlog.KeyVoteTerm), 4))
		must(t, l.Set([]byte(raftlog.KeyVoteCandidate), []byte("n1/1")))
		must(t, l.SetUint64([]byte(raftlog.KeyVoteTerm), 5)) // for whom is not known yet
		stands("n1/1 in 4")
		must(t, errors.Join(l.Close(), p.Close()))
		p = reopen()
		l = group(t, p, 1)
		stands("n1/1 in 4") // it may still vote for another one in term 5
		must(t, l.SetUint64([]byte(raftlog.KeyVoteTerm), 5))
		must(t, l.Set([]byte(raftlog.KeyVoteCandidate), []byte("n2/1")))
		stands("n2/1 in 5")
		must(t, errors.Join(l.Close(), p.Close()))
	})
	t.Run("behaves like a map", func(t *testing.T) {
		p, _ := open(t)
		n := uint32(0)
		rapid.Check(t, func(t *rapid.T) {
			n++
			l, err := p.Open(n)
			if err != nil {
				t.Fatal(err)
			}
			model := map[uint64]uint64{}
			first, last := uint64(0), uint64(0)
			for range rapid.IntRange(1, 12).Draw(t, "steps") {
				switch {
				case last == 0 || rapid.Bool().Draw(t, "store"):
					from := last + 1
					if last > first && rapid.Bool().Draw(t, "conflict") { // as a follower does it
						from = rapid.Uint64Range(first, last).Draw(t, "from")
						if err := l.DeleteRange(from, last); err != nil {
							t.Fatal(err)
						}
						for i := from; i <= last; i++ {
							delete(model, i)
						}
					}
					to := from + rapid.Uint64Range(0, 9).Draw(t, "more")
					term := rapid.Uint64Range(1, 1<<40).Draw(t, "term")
					var logs []*raft.Log
					for i := from; i <= to; i++ {
						logs = append(logs, entry(i, term))
						model[i] = term
					}
					if err := l.StoreLogs(logs); err != nil {
						t.Fatal(err)
					}
				default:
					to := rapid.Uint64Range(first, last).Draw(t, "compact")
					if err := l.DeleteRange(first, to); err != nil {
						t.Fatal(err)
					}
					for i := first; i <= to; i++ {
						delete(model, i)
					}
				}
				first, last = 0, 0
				for i := range model {
					if first == 0 || i < first {
						first = i
					}
					last = max(last, i)
				}
				f, _ := l.FirstIndex()
				e, _ := l.LastIndex()
				if f != first || e != last {
					t.Fatalf("log is [%d, %d], want [%d, %d]", f, e, first, last)
				}
				got := map[uint64]uint64{}
				for i := uint64(1); i <= last+2; i++ {
					var entry raft.Log
					if err := l.GetLog(i, &entry); err == nil {
						got[i] = entry.Term
					}
				}
				if !reflect.DeepEqual(got, model) {
					t.Fatalf("log holds %v, want %v", got, model)
				}
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		})
		must(t, p.Close())
	})
}
