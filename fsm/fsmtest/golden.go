package fsmtest

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/holdfastdb/holdfast/storage/wire"
)

var update = flag.Bool("update", false, "write the golden files again")

// Encoder is what has an encoding.
type Encoder interface{ Append(dst []byte) []byte }

// Codec is an encoding: what a state machine reads from the log, answers, tells or stores. E is the machine's own name for
// Encoder.
type Codec[E Encoder] struct {
	Decode  func([]byte) (E, error)
	Samples map[string]E
}

// Golden compares encodings with files, which hold what this version writes. A log or a store has to be readable for ever:
// when a golden file changes, the format has.
func Golden[E Encoder](t *testing.T, codecs map[string]Codec[E]) {
	for kind, c := range codecs {
		for name, sample := range c.Samples {
			name = kind + "_" + name
			b := sample.Append(nil)
			GoldenFile(t, name+".hex", hex.EncodeToString(b)+"\n")
			back, err := c.Decode(b)
			if err != nil {
				t.Errorf("%s: %v", name, err)
			} else if !reflect.DeepEqual(back, sample) {
				t.Errorf("%s is read as %+v, want %+v", name, back, sample)
			}
		}
	}
}

// GoldenFile compares a text with a file, or writes the file with -update.
func GoldenFile(t *testing.T, name, text string) {
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
	} else if string(want) != text {
		t.Errorf("%s is written as\n%sand the file has\n%s", name, text, want)
	}
}

// Truncated checks that every beginning of an encoding, and anything after its end, is refused as corrupt.
func Truncated[E Encoder](t *testing.T, codecs map[string]Codec[E]) {
	for kind, c := range codecs {
		for name, sample := range c.Samples {
			whole := sample.Append(nil)
			for n := range whole {
				if _, err := c.Decode(whole[:n]); !errors.Is(err, wire.ErrCorrupt) {
					t.Errorf("%s_%s cut to %d of %d bytes: %v", kind, name, n, len(whole), err)
				}
			}
			if _, err := c.Decode(append(whole, 0)); !errors.Is(err, wire.ErrCorrupt) {
				t.Errorf("%s_%s and a byte more: %v", kind, name, err)
			}
		}
	}
}

// Fuzz feeds any bytes. What can be decoded is written and read again: both times the same must come out. Then use does
// with it what the state machine would; nothing may panic.
func Fuzz[E Encoder](f *testing.F, c Codec[E], use func(E)) {
	for _, sample := range c.Samples {
		f.Add(sample.Append(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		first, err := c.Decode(b)
		if err != nil {
			if !errors.Is(err, wire.ErrCorrupt) {
				t.Fatalf("not marked as corrupt: %v", err)
			}
			return
		}
		once := first.Append(nil)
		second, err := c.Decode(once)
		if err != nil {
			t.Fatalf("%x was read, and written as %x: %v", b, once, err)
		}
		if twice := second.Append(nil); !bytes.Equal(once, twice) {
			t.Fatalf("%x, then %x", once, twice)
		}
		use(first)
	})
}
