package storage

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/holdfastdb/holdfast/storage/kv"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var goldenContent = map[string]string{"": "of the empty key", "a": "1", "\xff\x00": "bytes", "long": strings.Repeat("0123456789", 50)}

func goldenShard(t *testing.T) (*Engine, *Shard) {
	t.Helper()
	e := open(t, vfs.NewMem())
	var pairs []string
	for k, v := range goldenContent {
		pairs = append(pairs, k, v)
	}
	set(t, e.Shard(0x010207), pairs...)
	set(t, e.Shard(0x010208), "a", "of the next group")
	return e, e.Shard(0x010207)
}

// A node must find the state that an older version left: the keys in the database are pinned.
func TestTheLayoutOfTheStateIsPinned(t *testing.T) {
	e, _ := goldenShard(t)
	it, err := e.db.NewIter(&pebble.IterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	var lines strings.Builder
	for ok := it.First(); ok; ok = it.Next() {
		fmt.Fprintf(&lines, "%x %x\n", it.Key(), it.Value())
	}
	const path = "testdata/state.golden"
	if *update {
		if err := os.WriteFile(path, []byte(lines.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if lines.String() != string(want) {
		t.Errorf("the state is stored as\n%swant\n%s", lines.String(), want)
	}
}

// A node must take in the state that an older version sends. The tables in the stream are Pebble's and may change with it;
// what is around them may not, and a stream of the first version must be read for ever: do not write the file again.
func TestTheStreamOfAStateIsPinned(t *testing.T) {
	e, s := goldenShard(t)
	x, err := s.Export(t.Context(), func(kv.Reader) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	stream, err := io.ReadAll(x)
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(stream[:streamHeaderBytes]); got != "48465331"+"07020100"+"01000000" {
		t.Errorf("the stream begins with %s", got)
	}
	const path = "testdata/stream.golden"
	if *update {
		if err := os.WriteFile(path, stream, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	golden, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, sent := range map[string][]byte{"this version": stream, "the first version": golden} {
		set(t, s, "old", "content", "a", "2")
		in, err := s.NewInstall()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(in, bytes.NewReader(sent)); err != nil {
			t.Fatal(err)
		}
		if err := in.Finish(); err != nil {
			t.Fatalf("a stream of %s: %v", name, err)
		}
		if err := in.Apply(); err != nil {
			t.Fatalf("a stream of %s: %v", name, err)
		}
		want(t, s, goldenContent)
		want(t, e.Shard(0x010208), map[string]string{"a": "of the next group"})
	}
}
