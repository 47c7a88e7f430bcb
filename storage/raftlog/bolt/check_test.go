package bolt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/storage/raftlog"
)

// What is damaged is found when the log is opened, or it is not what the log reads. It is never a crash, and never believed.
func TestADamagedFileIsAnErrorAndNoCrash(t *testing.T) {
	whole := filepath.Join(t.TempDir(), "group-1.db")
	good, entries := written(t, whole)
	page := os.Getpagesize()
	random := rand.New(rand.NewPCG(1, 1))
	noise := func(b []byte) {
		for i := range b {
			b[i] = byte(random.Uint32())
		}
	}
	for name, damage := range map[string]func(b []byte) []byte{
		"cut in half":       func(b []byte) []byte { return b[:len(b)/2] },
		"cut to three":      func(b []byte) []byte { return b[:3*page] },
		"only meta":         func(b []byte) []byte { return b[:2*page] },
		"cut in a page":     func(b []byte) []byte { return b[:page+7] },
		"no meta":           func(b []byte) []byte { noise(b[:2*page]); return b },
		"zeroes after meta": func(b []byte) []byte { clear(b[2*page:]); return b },
		"noise after meta":  func(b []byte) []byte { noise(b[2*page:]); return b },
	} {
		if read(t, name, damage(slices.Clone(good)), entries) {
			t.Errorf("%s: opened", name)
		}
	}
	refused := 0
	for at := 2 * page; at < len(good); at += page {
		for _, from := range []int{0, 16} { // with the page's own header, of which BoltDB checks a part, and behind it
			b := slices.Clone(good)
			noise(b[at+from:][:64])
			if !read(t, fmt.Sprint("noise in page ", at/page), b, entries) {
				refused++
			}
		}
	}
	if refused == 0 {
		t.Error("no page with noise was found")
	}
}

// A bit that flips in what is stored is found, wherever it is.
func TestAFlippedBitIsFound(t *testing.T) {
	whole := filepath.Join(t.TempDir(), "group-1.db")
	good, entries := written(t, whole)
	for _, stored := range [][]byte{entries[3].Data, []byte("vote of node"), binary.BigEndian.AppendUint64(nil, currentTerm)} {
		if !bytes.Contains(good, stored) {
			t.Fatalf("%.20q is not in the file", stored)
		}
		for _, bit := range []int{0, len(stored)*8 - 1} {
			flipped := slices.Clone(stored)
			flipped[bit/8] ^= 1 << (bit % 8)
			file := bytes.ReplaceAll(good, stored, flipped) // pages that are free have it too
			if read(t, "a flipped bit", file, entries) {
				t.Errorf("bit %d of %.20q flipped: opened", bit, stored)
			}
		}
	}
}

const currentTerm = 0x5a17_c0de_9e3b_7712 // is nowhere else in the file

// written makes a log and returns its file and what is in it.
func written(t *testing.T, path string) (file []byte, entries []*raft.Log) {
	t.Helper()
	p, err := Open(Options{Dir: filepath.Dir(path)})
	if err != nil {
		t.Fatal(err)
	}
	l, err := p.Open(1)
	if err != nil {
		t.Fatal(err)
	}
	random := rand.NewChaCha8([32]byte{1})
	for i := range uint64(60) {
		small, large := make([]byte, 900), make([]byte, 9000)
		_, _ = random.Read(small)
		_, _ = random.Read(large)
		two := []*raft.Log{{Index: 2*i + 1, Term: 1, Data: small, Extensions: []byte("of another layer")}, {Index: 2*i + 2, Term: 1, Data: large}}
		if err := l.StoreLogs(two); err != nil {
			t.Fatal(err)
		}
		entries = append(entries, two...)
	}
	if err := errors.Join(l.SetUint64([]byte(keyCurrentTerm), currentTerm), l.SetUint64([]byte(raftlog.KeyVoteTerm), 1),
		l.Set([]byte(raftlog.KeyVoteCandidate), []byte("vote of node")), l.Close()); err != nil {
		t.Fatal(err)
	}
	if file, err = os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
	return file, entries
}

// read opens a file and reports that it is taken. What is read from it then must be what was written.
func read(t *testing.T, name string, file []byte, entries []*raft.Log) bool {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "group-1.db"), file, 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	l, err := p.Open(1)
	if err != nil {
		if !errors.Is(err, raftlog.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
		return false
	}
	defer l.Close()
	for _, want := range entries {
		var got raft.Log
		if err := l.GetLog(want.Index, &got); err != nil {
			t.Errorf("%s: entry %d: %v", name, want.Index, err)
		} else if !bytes.Equal(got.Data, want.Data) || !bytes.Equal(got.Extensions, want.Extensions) || got.Term != want.Term {
			t.Errorf("%s: entry %d is another one", name, want.Index)
		}
	}
	if term, err := l.GetUint64([]byte(keyCurrentTerm)); err != nil || term != currentTerm {
		t.Errorf("%s: the term is %x, %v", name, term, err)
	}
	if vote, err := l.Get([]byte(raftlog.KeyVoteCandidate)); err != nil || string(vote) != "vote of node" {
		t.Errorf("%s: the vote is %q, %v", name, vote, err)
	}
	return true
}
