package raftlog_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/storage/raftlog"
	"github.com/holdfastdb/holdfast/storage/storagetest"
)

// A manifest that was cut anywhere, or damaged, is refused, or it takes nothing away. Without the seal Pebble opens it as one
// that a crash cut off: entries are gone, and the term is one of before, in which the node could vote again.
func TestADamagedManifestOfTheLogIsRefusedOrLosesNothing(t *testing.T) {
	const entries, inTerm = 160, 20
	open := func(fs vfs.FS) (*raftlog.Store, raftlog.Log, error) {
		s, err := raftlog.Open(raftlog.Options{FS: fs, Dir: "log", LogBytes: 64 << 10, OnFatal: func(err error) { panic(fmt.Sprint(err)) }})
		if err != nil {
			return nil, nil, err
		}
		l, err := s.Open(1)
		if err != nil {
			return nil, nil, errors.Join(err, s.Close())
		}
		return s, l, nil
	}
	disk := vfs.NewMem()
	s, l, err := open(disk)
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint64(entries) {
		if i%inTerm == 0 {
			if err := l.SetUint64([]byte("CurrentTerm"), 1+i/inTerm); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.StoreLog(&raft.Log{Index: 1 + i, Term: 1 + i/inTerm, Data: make([]byte, 1500)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	storagetest.SpoilManifests(t, disk, "log", 5, func(fs vfs.FS) (refused, lost error) {
		s, l, err := open(fs)
		if err != nil {
			return err, nil
		}
		defer s.Close()
		switch term, err := l.GetUint64([]byte("CurrentTerm")); {
		case err != nil:
			return nil, fmt.Errorf("term: %w", err)
		case term != entries/inTerm:
			return nil, fmt.Errorf("term %d", term)
		}
		for i := range uint64(entries) {
			if err := l.GetLog(1+i, &raft.Log{}); err != nil {
				return nil, fmt.Errorf("entry %d: %w", 1+i, err)
			}
		}
		return nil, nil
	})
}
