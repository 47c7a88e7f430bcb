package storagetest

import (
	"bytes"
	"io"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// SpoilManifests tries copies of the database in dir of disk whose manifest was cut, or damaged, at one byte: at each in turn, or
// at every so many, counted from its end. Try opens one; refused is why that failed, lost what is not there though it did
// not. Nothing may be lost, and of a database whose manifest is sealed many copies must be refused.
func SpoilManifests(t *testing.T, disk vfs.FS, dir string, every int, try func(vfs.FS) (refused, lost error)) {
	t.Helper()
	found, err := pebble.Peek(dir, disk)
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
	with := func(text []byte) (refused, lost error) {
		own := vfs.NewMem()
		if _, err := vfs.Clone(disk, own, dir, dir); err != nil {
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
		return try(own)
	}
	if refused, lost := with(whole); refused != nil || lost != nil {
		t.Fatalf("as it was: refused %v, lost %v", refused, lost)
	}
	count, tried := 0, 0
	for at := len(whole) - 1; at >= 0; at -= every {
		flipped := bytes.Clone(whole)
		flipped[at] ^= 0x40
		for what, text := range map[string][]byte{"cut": whole[:at], "damaged": flipped} {
			refused, lost := with(text)
			tried++
			if lost != nil {
				t.Errorf("%s at %d of %d: %v", what, at, len(whole), lost)
			}
			if refused != nil {
				count++
			}
		}
	}
	if count < tried/2 {
		t.Errorf("of %d manifests only %d were refused", tried, count)
	}
}
