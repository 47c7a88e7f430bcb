package raftlog

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var sample = raft.Log{
	Index: 300, Term: 7, Type: raft.LogConfiguration, Data: []byte("data"), Extensions: []byte("ext"),
	AppendedAt: time.Unix(1_700_000_000, 5),
}

// The encoding on disk must not change: a node must read what an older version wrote.
func TestEntryEncodingIsPinned(t *testing.T) {
	got := hex.EncodeToString(appendEntry(nil, 9, &sample)) + "\n"
	const path = "testdata/entry.golden"
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Fatalf("an entry is stored as\n%swant\n%s", got, want)
	}
	b, err := hex.DecodeString(strings.TrimSpace(string(want)))
	if err != nil {
		t.Fatal(err)
	}
	var l raft.Log
	if err := decodeEntry(b, 9, 300, &l); err != nil {
		t.Fatal(err)
	}
	if l.Term != 7 || l.Type != raft.LogConfiguration || string(l.Data) != "data" || string(l.Extensions) != "ext" || !l.AppendedAt.Equal(sample.AppendedAt) {
		t.Fatalf("read %+v", l)
	}
}

func TestDamagedEntriesAreNotServed(t *testing.T) {
	good := appendEntry(nil, 9, &sample)
	var l raft.Log
	for bit := range len(good) * 8 {
		bad := bytes.Clone(good)
		bad[bit/8] ^= 1 << (bit % 8)
		if err := decodeEntry(bad, 9, 300, &l); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("bit %d flipped: error %v", bit, err)
		}
	}
	for _, place := range []struct {
		group uint32
		index uint64
	}{{8, 300}, {9, 301}} {
		if err := decodeEntry(good, place.group, place.index, &l); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("an entry of group 9 at 300 is accepted for group %d at %d: %v", place.group, place.index, err)
		}
	}

	s, err := Open(Options{FS: vfs.NewMem(), Dir: "log", OnFatal: func(err error) { t.Error(err) }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	opened, err := s.Open(9)
	if err != nil {
		t.Fatal(err)
	}
	if err := opened.StoreLog(&sample); err != nil {
		t.Fatal(err)
	}
	good[len(good)-1]++
	if err := s.db.Set(opened.(*group).entryKey(300), good, pebble.Sync); err != nil {
		t.Fatal(err)
	}
	again, err := s.Open(9) // without what the first has in memory
	if err != nil {
		t.Fatal(err)
	}
	if err := again.GetLog(300, &l); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("a damaged entry was served: %v", err)
	}
}

func TestCacheIsBoundedAndFollowsTheLog(t *testing.T) {
	c := cache{limit: 1000}
	for i := uint64(1); i <= 100; i++ {
		c.add(&raft.Log{Index: i, Term: 1, Data: make([]byte, 100)})
	}
	if c.size > 1000 || c.get(100) == nil || c.get(1) != nil {
		t.Fatalf("%d bytes cached", c.size)
	}
	c.add(&raft.Log{Index: 99, Term: 2})
	if c.get(100) != nil || c.get(99).Term != 2 || c.get(98).Term != 1 {
		t.Fatal("entries after an overwritten one are still cached")
	}
	c.add(&raft.Log{Index: 200, Term: 3})
	if c.get(99) != nil || c.get(200) == nil {
		t.Fatal("the cache bridges a gap")
	}
	c.cut(150)
	if c.get(200) != nil || c.size != 0 {
		t.Fatal("a cut entry is still cached")
	}
}

// What a node keeps does not grow with the number of its groups, and what a group had is for the others when it is closed.
func TestTheCachesOfAllGroupsAreBoundedTogether(t *testing.T) {
	const all, count = 64 << 10, 4
	s, err := Open(Options{FS: vfs.NewMem(), Dir: "log", CacheBytes: all})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var groups [count]*group
	for i := range groups {
		l, err := s.Open(uint32(i))
		if err != nil {
			t.Fatal(err)
		}
		groups[i] = l.(*group)
	}
	store := func(g *group, from uint64) {
		for i := from; i < from+100; i++ {
			if err := g.StoreLogs([]*raft.Log{{Index: i, Term: 1, Data: make([]byte, 1<<10)}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	size := 0
	for _, g := range groups {
		store(g, 1)
		size += g.cache.size
	}
	if size > all || size < all/2 {
		t.Errorf("%d groups keep %d bytes, of %d that are for all", count, size, all)
	}
	for _, g := range groups[1:] {
		if err := g.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if store(groups[0], 101); groups[0].cache.size > all || groups[0].cache.size < all/2 {
		t.Errorf("the last group keeps %d bytes of %d", groups[0].cache.size, all)
	}
}

func FuzzDecodeEntry(f *testing.F) {
	f.Add(appendEntry(nil, 9, &sample))
	f.Fuzz(func(t *testing.T, b []byte) {
		var l raft.Log
		if err := decodeEntry(b, 9, 300, &l); err != nil {
			return
		}
		again := appendEntry(nil, 9, &l)
		var l2 raft.Log
		if err := decodeEntry(again, 9, 300, &l2); err != nil || l2.Term != l.Term || !bytes.Equal(l2.Data, l.Data) {
			t.Fatalf("%x decodes to %+v, which encodes to %x: %v", b, l, again, err)
		}
	})
}
