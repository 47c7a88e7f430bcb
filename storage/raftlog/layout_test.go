package raftlog

import (
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"
)

// A node must find the entries, the term and the vote that an older version stored, where that stored them.
func TestTheLayoutOfTheLogIsPinned(t *testing.T) {
	start := func() *Store {
		s, err := Open(Options{FS: vfs.NewMem(), Dir: "log", OnFatal: func(err error) { t.Error(err) }})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := start()
	l, err := s.Open(0x010209)
	if err != nil {
		t.Fatal(err)
	}
	first := sample
	first.Index--
	for _, err := range []error{
		l.StoreLogs([]*raft.Log{&first, &sample}),
		l.SetUint64([]byte("CurrentTerm"), 7), l.SetUint64([]byte(KeyVoteTerm), 6), l.Set([]byte(KeyVoteCandidate), []byte("n1/1")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	it, err := s.db.NewIter(&pebble.IterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var lines strings.Builder
	for ok := it.First(); ok; ok = it.Next() {
		fmt.Fprintf(&lines, "%x %x\n", it.Key(), it.Value())
	}
	if err := it.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	const path = "testdata/layout.golden"
	if *update {
		if err := os.WriteFile(path, []byte(lines.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	golden, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if lines.String() != string(golden) {
		t.Errorf("the log is stored as\n%swant\n%s", lines.String(), golden)
	}

	s = start()
	defer s.Close()
	for line := range strings.Lines(string(golden)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		k, keyErr := hex.DecodeString(key)
		v, valueErr := hex.DecodeString(value)
		if keyErr != nil || valueErr != nil {
			t.Fatalf("%q: %v, %v", line, keyErr, valueErr)
		}
		if err := s.db.Set(k, v, pebble.Sync); err != nil {
			t.Fatal(err)
		}
	}
	if l, err = s.Open(0x010209); err != nil {
		t.Fatal(err)
	}
	lowest, _ := l.FirstIndex()
	highest, _ := l.LastIndex()
	term, termErr := l.GetUint64([]byte("CurrentTerm"))
	vote, voteErr := l.GetUint64([]byte(KeyVoteTerm))
	candidate, candidateErr := l.Get([]byte(KeyVoteCandidate))
	var entry raft.Log
	if err := l.GetLog(sample.Index, &entry); err != nil || string(entry.Data) != string(sample.Data) || entry.Term != sample.Term {
		t.Errorf("the entry is %+v, %v", entry, err)
	}
	if lowest != sample.Index-1 || highest != sample.Index || term != 7 || vote != 6 || string(candidate) != "n1/1" {
		t.Errorf("entries %d to %d, term %d, %v, vote for %s in %d, %v, %v", lowest, highest, term, termErr, candidate, vote, voteErr, candidateErr)
	}
}
