package raftlog_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/storage/raftlog"
)

// A manifest that was cut anywhere, or damaged, is refused, or it takes nothing away. Without the seal Pebble opens it as one
// that a crash cut off: entries are gone, and the term is one of before, in which the node could vote again.
func TestADamagedManifestOfTheLogIsRefusedOrLosesNothing(t *testing.T) {
	const entries, inTerm = 160, 20
	disk := vfs.NewMem()
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
	found, err := pebble.Peek("log", disk)
	if err != nil || !found.Exists {
		t.Fatal(found, err)
	}
	f, err := disk.Open(found.ManifestFilename)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	whole, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}

	// check opens a copy with another manifest, and fails if what is there is not all.
	check := func(text []byte) (refused, lost error) {
		own := vfs.NewMem()
		if _, err := vfs.Clone(disk, own, "log", "log"); err != nil {
			t.Fatal(err)
		}
		w, err := own.Create(found.ManifestFilename, vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(text); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		s, l, err := open(own)
		if err != nil {
			return err, nil
		}
		defer s.Close()
		if term, err := l.GetUint64([]byte("CurrentTerm")); term != entries/inTerm || err != nil {
			return nil, fmt.Errorf("term %d, %v", term, err)
		}
		for i := range uint64(entries) {
			if err := l.GetLog(1+i, &raft.Log{}); err != nil {
				return nil, fmt.Errorf("entry %d: %w", 1+i, err)
			}
		}
		return nil, nil
	}
	if refused, lost := check(whole); refused != nil || lost != nil {
		t.Fatalf("as it was: %v, %v", refused, lost)
	}
	count := 0
	for at := range whole { // the ends of records among them
		flipped := bytes.Clone(whole)
		flipped[at] ^= 0x40
		for what, text := range map[string][]byte{"cut": whole[:at], "damaged": flipped} {
			refused, lost := check(text)
			if lost != nil {
				t.Errorf("%s at %d of %d: %v", what, at, len(whole), lost)
			}
			if refused != nil {
				count++
			}
		}
	}
	if count < len(whole) {
		t.Errorf("of %d manifests only %d were refused", 2*len(whole), count)
	}
}
