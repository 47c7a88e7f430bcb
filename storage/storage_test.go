package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"pgregory.net/rapid"

	"github.com/holdfastdb/holdfast/storage/kv"
)

func open(t testing.TB, fs vfs.FS) *Engine {
	t.Helper()
	e, err := Open(Options{FS: fs, Dir: "state", OnFatal: func(err error) { t.Errorf("fatal: %v", err) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return e
}

// set commits keys as one batch; an empty value deletes.
func set(t testing.TB, s *Shard, pairs ...string) {
	t.Helper()
	b := s.NewBatch()
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] == "" {
			b.Delete([]byte(pairs[i]))
		} else {
			b.Set([]byte(pairs[i]), []byte(pairs[i+1]))
		}
	}
	if err := written(b); err != nil {
		t.Fatal(err)
	}
}

// written commits a batch and waits until it is written.
func written(b kv.Batch) error {
	next, err := b.Next()
	if err != nil {
		return err
	}
	b.Commit()
	return next.Close()
}

// content reads everything in a reader.
func content(t testing.TB, r kv.Reader) map[string]string {
	t.Helper()
	return between(t, r, nil, nil)
}

func between(t testing.TB, r kv.Reader, lower, upper []byte) map[string]string {
	t.Helper()
	it, err := r.Iter(lower, upper)
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	all, last := map[string]string{}, ""
	for it.Next() {
		key := string(it.Key())
		if len(all) > 0 && key <= last {
			t.Fatalf("key %q after %q", key, last)
		}
		all[key], last = string(it.Value()), key
	}
	if err := it.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

func contentOf(t testing.TB, s *Shard) map[string]string {
	t.Helper()
	v := s.View()
	defer v.Close()
	return content(t, v)
}

func want(t testing.TB, s *Shard, expected map[string]string) {
	t.Helper()
	if got := contentOf(t, s); !maps.Equal(got, expected) {
		t.Errorf("group %d holds %v, want %v", s.group, got, expected)
	}
}

// A batch behaves like a map laid over the stored one, whatever is done in whatever order.
func TestBatchReadsItsOwnWritesLikeAMap(t *testing.T) {
	e := open(t, vfs.NewMem())
	group := uint32(0)
	rapid.Check(t, func(rt *rapid.T) {
		group++
		s, model := e.Shard(group), map[string]string{}
		key := rapid.StringMatching(`[a-c]{0,2}`)
		for range rapid.IntRange(1, 4).Draw(rt, "batches") {
			b := s.NewBatch()
			inBatch := maps.Clone(model)
			for range rapid.IntRange(0, 12).Draw(rt, "ops") {
				k := key.Draw(rt, "key")
				switch rapid.IntRange(0, 4).Draw(rt, "op") {
				case 0:
					v := rapid.StringMatching(`[x-z]{1,3}`).Draw(rt, "value")
					b.Set([]byte(k), []byte(v))
					inBatch[k] = v
				case 1:
					b.Delete([]byte(k))
					delete(inBatch, k)
				case 2:
					got, err := b.Get([]byte(k))
					if v, ok := inBatch[k]; ok != (err == nil) || (ok && v != string(got)) || (!ok && !errors.Is(err, kv.ErrNotFound)) {
						rt.Fatalf("get %q: %q, %v; want %q %v", k, got, err, v, ok)
					}
				case 3:
					upper := key.Draw(rt, "upper")
					part := maps.Clone(inBatch)
					maps.DeleteFunc(part, func(q, _ string) bool { return q < k || q >= upper })
					if got := between(t, b, []byte(k), []byte(upper)); k <= upper && !maps.Equal(got, part) {
						rt.Fatalf("iterate [%q, %q): %v, want %v", k, upper, got, part)
					}
				case 4:
					next, err := b.Next()
					if err != nil {
						rt.Fatal(err)
					}
					if late := key.Draw(rt, "late key"); rapid.Bool().Draw(rt, "late") {
						b.Set([]byte(late), []byte("late"))
						inBatch[late] = "late"
					}
					if !maps.Equal(content(t, next), inBatch) {
						rt.Fatalf("before the commit the next batch holds %v, want %v", content(t, next), inBatch)
					}
					b.Commit()
					b, model = next, maps.Clone(inBatch)
				}
			}
			if !maps.Equal(content(t, b), inBatch) {
				rt.Fatalf("batch holds %v, want %v", content(t, b), inBatch)
			}
			if rapid.Bool().Draw(rt, "commit") {
				if err := written(b); err != nil {
					rt.Fatal(err)
				}
				model = inBatch
			} else if err := b.Close(); err != nil {
				rt.Fatal(err)
			}
			want(t, s, model)
		}
	})
}

// Commands go on while the changes before them are still being collected and written: they must read those as if they were
// there.
func TestABatchReadsWhatIsNotCommittedBeforeIt(t *testing.T) {
	e := open(t, vfs.NewMem())
	s := e.Shard(1)
	set(t, s, "changed", "old", "deleted", "old", "kept", "old")
	first := s.NewBatch().(*batch)
	first.Set([]byte("changed"), []byte("new"))
	first.Set([]byte("both"), []byte("first"))
	next, err := first.Next()
	if err != nil {
		t.Fatal(err)
	}
	b := next.(*batch)
	b.Set([]byte("both"), []byte("second"))
	expected := map[string]string{"changed": "new", "deleted": "old", "both": "second", "kept": "old"}
	look := func(when string) {
		t.Helper()
		for _, key := range []string{"changed", "deleted", "both", "kept", "never"} {
			got, err := b.Get([]byte(key))
			if v, ok := expected[key]; ok != (err == nil) || string(got) != v || !ok && !errors.Is(err, kv.ErrNotFound) {
				t.Errorf("%s: %s is %q, %v; want %q", when, key, got, err, v)
			}
		}
		if got := content(t, b); !maps.Equal(got, expected) {
			t.Errorf("%s: iterates over %v", when, got)
		}
	}
	look("not committed")
	first.Delete([]byte("deleted"))
	delete(expected, "deleted")
	look("changed late")
	// What Commit does, step by step.
	first.committing = true
	look("under way")
	first.err = first.write()
	look("written")
	close(first.committed)
	look("committed")
	if err := written(b); err != nil {
		t.Fatal(err)
	}
	want(t, s, expected)
}

// An iterator shows the moment of its making.
func TestAnIteratorDoesNotSeeLaterChanges(t *testing.T) {
	e := open(t, vfs.NewMem())
	first := e.Shard(1).NewBatch()
	first.Set([]byte("a"), []byte("1"))
	b, err := first.Next()
	if err != nil {
		t.Fatal(err)
	}
	b.Set([]byte("c"), []byte("1"))
	it, err := b.Iter(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	first.Set([]byte("b"), []byte("2"))
	b.Set([]byte("c"), []byte("2"))
	b.Set([]byte("d"), []byte("2"))
	seen := ""
	for it.Next() {
		seen += string(it.Key()) + string(it.Value()) + " "
	}
	if err := it.Err(); err != nil || seen != "a1 c1 " {
		t.Errorf("saw %s, %v", seen, err)
	}
}

// What was never committed is not there, nor can anything come after it.
func TestOneCommitComesAfterTheOther(t *testing.T) {
	e := open(t, vfs.NewMem())
	s := e.Shard(1)
	first := s.NewBatch()
	first.Set([]byte("k"), []byte("v"))
	b, err := first.Next()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Next(); err == nil {
		t.Error("a batch ended while the one before it was not committed")
	}
	if _, err := first.Next(); err == nil {
		t.Error("a batch ended twice")
	}
	if err := errors.Join(b.Wait(), b.Close()); err != nil {
		t.Error(err)
	}
	want(t, s, map[string]string{})
}

// What comes after a commit that failed must not be written: it would stand on nothing.
func TestAFailedCommitFailsTheBatchAfterIt(t *testing.T) {
	e := open(t, vfs.NewMem())
	s := e.Shard(1)
	after := func() *batch {
		failed := s.batchAfter(nil)
		failed.committing, failed.err = true, errors.New("the disk is gone")
		close(failed.committed)
		b := s.batchAfter(failed)
		b.Set([]byte("k"), []byte("v"))
		return b
	}
	for name, do := range map[string]func(b *batch) error{
		"get":   func(b *batch) error { _, err := b.Get([]byte("x")); return err },
		"iter":  func(b *batch) error { _, err := b.Iter(nil, nil); return err },
		"next":  func(b *batch) error { _, err := b.Next(); return err },
		"wait":  (*batch).Wait,
		"close": (*batch).Close,
	} {
		if err := do(after()); err == nil || err.Error() != "the disk is gone" {
			t.Errorf("%s: %v", name, err)
		}
	}
	want(t, s, map[string]string{})
}

func TestShardsDoNotSeeEachOther(t *testing.T) {
	e := open(t, vfs.NewMem())
	a, b := e.Shard(1), e.Shard(2)
	set(t, a, "k", "a", "\xff\xff\xff\xff", "last")
	set(t, b, "k", "b", "", "")
	want(t, a, map[string]string{"k": "a", "\xff\xff\xff\xff": "last"})
	want(t, b, map[string]string{"k": "b"})
	if err := a.Destroy(); err != nil {
		t.Fatal(err)
	}
	want(t, a, map[string]string{})
	want(t, b, map[string]string{"k": "b"})
}

func TestViewStaysAtItsMoment(t *testing.T) {
	e := open(t, vfs.NewMem())
	s := e.Shard(1)
	set(t, s, "k", "1")
	v := s.View()
	defer v.Close()
	set(t, s, "k", "2", "l", "3")
	if got := content(t, v); !maps.Equal(got, map[string]string{"k": "1"}) {
		t.Errorf("view shows %v", got)
	}
}

// After a power cut the state is a prefix of the commits, and holds everything from before the last fence.
func TestAPowerCutLeavesAPrefixThatHoldsTheFence(t *testing.T) {
	for _, survives := range []int{0, 50, 100} {
		for cut := range 12 {
			fs := vfs.NewCrashableMem()
			e := open(t, fs)
			s := e.Shard(1)
			const fenceAt = 6
			for i := range cut {
				set(t, s, fmt.Sprintf("k%02d", i), "v", "count", fmt.Sprint(i+1))
				if i+1 == fenceAt {
					if err := e.Sync(); err != nil {
						t.Fatal(err)
					}
				}
			}
			clone := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: survives, RNG: testRNG(uint64(cut))})
			again := open(t, clone)
			got := contentOf(t, again.Shard(1))
			n := max(len(got)-1, 0)
			if cut >= fenceAt && n < fenceAt {
				t.Errorf("cut after %d commits, %d%% survive: only %d are there", cut, survives, n)
			}
			for i := range n {
				if _, ok := got[fmt.Sprintf("k%02d", i)]; !ok || got["count"] != fmt.Sprint(n) {
					t.Fatalf("cut after %d: not a prefix: %v", cut, got)
				}
			}
		}
	}
}

func exported(t testing.TB, s *Shard) []byte {
	t.Helper()
	x, err := s.Export(context.Background(), func(kv.Reader) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	b, err := io.ReadAll(x)
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(b)) != x.Size {
		t.Errorf("stream of %d bytes, announced %d", len(b), x.Size)
	}
	return b
}

func install(t testing.TB, s *Shard, stream []byte) error {
	t.Helper()
	in, err := s.NewInstall()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := in.Discard(); err != nil {
			t.Error(err)
		}
	}()
	for chunk := range slices.Chunk(stream, 777) {
		if _, err := in.Write(chunk); err != nil {
			t.Fatal(err)
		}
	}
	if err := in.Finish(); err != nil {
		return err
	}
	return in.Apply()
}

func TestInstallReplacesTheWholeShardAndNothingElse(t *testing.T) {
	from, to := open(t, vfs.NewMem()), open(t, vfs.NewMem())
	model := map[string]string{}
	for i := range 5000 {
		k, v := fmt.Sprintf("key%05d", i*7%5000), fmt.Sprint("value", i)
		set(t, from.Shard(3), k, v)
		model[k] = v
	}
	set(t, to.Shard(3), "key00001", "old", "other", "old")
	set(t, to.Shard(2), "k", "2")
	set(t, to.Shard(4), "k", "4")
	if err := install(t, to.Shard(3), exported(t, from.Shard(3))); err != nil {
		t.Fatal(err)
	}
	want(t, to.Shard(3), model)
	want(t, to.Shard(2), map[string]string{"k": "2"})
	want(t, to.Shard(4), map[string]string{"k": "4"})
	set(t, to.Shard(3), "key00001", "", "new", "1")
	delete(model, "key00001")
	model["new"] = "1"
	want(t, to.Shard(3), model)

	if err := install(t, to.Shard(3), exported(t, from.Shard(9))); !errors.Is(err, ErrCorrupt) {
		t.Errorf("content of another group: %v", err)
	}
	if err := install(t, to.Shard(2), exported(t, open(t, vfs.NewMem()).Shard(2))); err != nil {
		t.Errorf("empty content: %v", err)
	}
	want(t, to.Shard(2), map[string]string{})
	left, err := to.files.List(to.spool())
	if err != nil || len(left) != 0 {
		t.Errorf("left in the spool: %v, %v", left, err)
	}
}

func TestADamagedStreamIsRefusedAndChangesNothing(t *testing.T) {
	from, to := open(t, vfs.NewMem()), open(t, vfs.NewMem())
	for i := range 100 {
		set(t, from.Shard(1), fmt.Sprint("k", i), fmt.Sprint(i))
	}
	set(t, to.Shard(1), "k", "old")
	stream := exported(t, from.Shard(1))
	for at := range stream {
		if at > 64 && at%13 != 0 && at < len(stream)-16 {
			continue // the header byte by byte, the tables sampled
		}
		damaged := bytes.Clone(stream)
		damaged[at] ^= 0x40
		if err := install(t, to.Shard(1), damaged); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("byte %d changed: %v", at, err)
		}
		if err := install(t, to.Shard(1), stream[:at]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut at %d: %v", at, err)
		}
	}
	if err := install(t, to.Shard(1), append(bytes.Clone(stream), 0)); !errors.Is(err, ErrCorrupt) {
		t.Error("a byte too many was accepted")
	}
	want(t, to.Shard(1), map[string]string{"k": "old"})
}

// Whenever the power goes in the middle of an install, the shard holds the old content or the new one.
func TestAPowerCutDuringInstallLeavesOldOrNew(t *testing.T) {
	source := open(t, vfs.NewMem())
	newContent := map[string]string{}
	for i := range 50 {
		k := fmt.Sprint("new", i)
		newContent[k] = "1"
		set(t, source.Shard(1), k, "1")
	}
	stream := exported(t, source.Shard(1))
	fs := vfs.NewCrashableMem()
	e := open(t, fs)
	set(t, e.Shard(1), "old", "1")
	if err := e.Sync(); err != nil {
		t.Fatal(err)
	}
	var clones []*vfs.MemFS
	snap := func() {
		for p := range 3 {
			clones = append(clones, fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: p * 50, RNG: testRNG(uint64(len(clones)))}))
		}
	}
	in, err := e.Shard(1).NewInstall()
	if err != nil {
		t.Fatal(err)
	}
	snap()
	if _, err := in.Write(stream); err != nil {
		t.Fatal(err)
	}
	if err := in.Finish(); err != nil {
		t.Fatal(err)
	}
	snap()
	if err := in.Apply(); err != nil {
		t.Fatal(err)
	}
	applied := len(clones)
	snap()
	for i, clone := range clones {
		got := contentOf(t, open(t, clone).Shard(1))
		isNew, isOld := maps.Equal(got, newContent), maps.Equal(got, map[string]string{"old": "1"})
		if i >= applied && !isNew {
			t.Errorf("after Apply returned: %v", got)
		}
		if !isNew && !isOld {
			t.Errorf("neither old nor new: %v", got)
		}
	}
}

func FuzzReadStream(f *testing.F) {
	e := open(f, vfs.NewMem())
	set(f, e.Shard(1), "a", "1", "b", "2")
	f.Add(exported(f, e.Shard(1)))
	f.Add([]byte(streamMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		_, tables, err := readStreamHeader(r)
		if err != nil {
			return
		}
		for range min(tables, 10) {
			if err := readTable(r, io.Discard); err != nil {
				if !errors.Is(err, ErrCorrupt) {
					t.Errorf("untyped: %v", err)
				}
				return
			}
		}
	})
}

// BenchmarkCommit writes what an entry of 32 rate-limit checks does: 34 small rows, some of them more than once.
func BenchmarkCommit(b *testing.B) {
	e, err := Open(Options{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer e.Close()
	s := e.Shard(1)
	key, value := make([]byte, 17), make([]byte, 16)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		batch := s.NewBatch()
		for j := range 34 {
			n := (i*34 + j) * 7919 % 10_000
			key[0], key[8], key[9] = 1, byte(n), byte(n>>8)
			if _, err := batch.Get(key); err != nil && !errors.Is(err, kv.ErrNotFound) {
				b.Fatal(err)
			}
			batch.Set(key, value)
		}
		if err := written(batch); err != nil {
			b.Fatal(err)
		}
	}
}

func testRNG(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 1)) }

// What keeps a processor busy is told, from its begin to its end, and what does not is not.
func TestOnWork(t *testing.T) {
	var begun, ended atomic.Int64
	e, err := Open(Options{FS: vfs.NewMem(), Dir: "state", OnWork: func(begins bool) {
		if begins {
			begun.Add(1)
		} else {
			ended.Add(1)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	s := e.Shard(1)
	told := int64(0)
	after := func(what string, least, most int64) {
		t.Helper()
		n := begun.Load() - told
		told += n
		if n < least || n > most {
			t.Errorf("%s: told of %d pieces of work, want %d to %d", what, n, least, most)
		}
	}
	after("open", 0, 0)
	rows := func(n int) {
		t.Helper()
		b := s.NewBatch()
		for i := range n {
			b.Set(fmt.Appendf(nil, "row %d", i), []byte("v"))
		}
		if err := written(b); err != nil {
			t.Fatal(err)
		}
	}
	rows(10)
	after("few rows", 0, 0)
	rows(manyWrites + 1)
	after("many rows", 1, 1)
	if err := s.Compact(t.Context()); err != nil {
		t.Fatal(err)
	}
	after("compactions", 1, 20)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if b, e := begun.Load(), ended.Load(); b != e {
		t.Errorf("%d pieces of work have begun and %d ended", b, e)
	}
}
