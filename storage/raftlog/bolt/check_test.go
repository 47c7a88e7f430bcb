package bolt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	"pgregory.net/rapid"

	"github.com/holdfastdb/holdfast/storage/raftlog"
)

// What is damaged is found when the log is opened, or it is not what the log reads. It is never a crash, and never believed.
func TestADamagedFileIsAnErrorAndNoCrash(t *testing.T) {
	whole := filepath.Join(t.TempDir(), "group-1.db")
	good, entries := written(t, whole)
	if !read(t, whole, "no damage", good, entries) {
		t.Fatal("the file is refused without damage")
	}
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
		if read(t, whole, name, damage(slices.Clone(good)), entries) {
			t.Errorf("%s: opened", name)
		}
	}
	for at := 0; at < len(good); at += page {
		for _, from := range []int{0, 16} { // with the page's own header, of which BoltDB checks a part, and behind it
			b := slices.Clone(good)
			noise(b[at+from:][:64])
			if taken := read(t, whole, fmt.Sprint("noise in page ", at/page), b, entries); taken && at < 2*page {
				t.Errorf("noise in page %d: opened", at/page)
			}
		}
	}
}

// Whatever a log was through, what BoltDB has made of it is taken.
func TestWhatBoltDBWritesIsNoDamage(t *testing.T) {
	dir := t.TempDir()
	group := uint32(0)
	rapid.Check(t, func(t *rapid.T) {
		group++
		p, err := Open(Options{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		l, err := p.Open(group)
		if err != nil {
			t.Fatal(err)
		}
		first, next := uint64(1), uint64(1)
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			switch rapid.IntRange(0, 5).Draw(t, "step") {
			case 0, 1:
				size := rapid.SampledFrom([]int{0, 10, 300, 2000, 5000, 20_000}).Draw(t, "size")
				var entries []*raft.Log
				for range rapid.IntRange(1, 100).Draw(t, "entries") {
					entries = append(entries, &raft.Log{Index: next, Term: 1, Data: make([]byte, size)})
					next++
				}
				err = l.StoreLogs(entries)
			case 2: // as after a snapshot
				to := rapid.Uint64Range(first, next).Draw(t, "to")
				err = l.DeleteRange(first, to-1)
				first = to
			case 3: // as after a term that lost
				from := rapid.Uint64Range(first, next).Draw(t, "from")
				err = l.DeleteRange(from, next-1)
				next = from
			case 4:
				err = errors.Join(l.SetUint64([]byte(keyTerm), next), l.SetUint64([]byte(raftlog.KeyVoteTerm), next), l.Set([]byte(raftlog.KeyVoteCandidate), make([]byte, rapid.IntRange(0, 40).Draw(t, "candidate"))))
			case 5:
				if err = l.Close(); err == nil {
					l, err = p.Open(group)
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := l.(*log).check(); err != nil { // as if the process was killed now
				t.Fatal(err)
			}
		}
		if err := l.Destroy(); err != nil {
			t.Fatal(err)
		}
	})
}

// A bit that flips in what is stored is found, wherever it is.
func TestAFlippedBitIsFound(t *testing.T) {
	whole := filepath.Join(t.TempDir(), "group-1.db")
	good, entries := written(t, whole)
	if !read(t, whole, "no damage", good, entries) {
		t.Fatal("the file is refused without damage")
	}
	for _, stored := range [][]byte{entries[3].Data, []byte("vote of node"), binary.BigEndian.AppendUint64(nil, currentTerm), []byte("Vote"), []byte(keyTerm)} {
		if !bytes.Contains(good, stored) {
			t.Fatalf("%.20q is not in the file", stored)
		}
		for _, bit := range []int{0, len(stored)*8 - 1} {
			flipped := slices.Clone(stored)
			flipped[bit/8] ^= 1 << (bit % 8)
			file := bytes.ReplaceAll(good, stored, flipped) // pages that are free have it too
			if read(t, whole, "a flipped bit", file, entries) {
				t.Errorf("bit %d of %.20q flipped: opened", bit, stored)
			}
		}
	}
}

// What BoltDB writes around keys and values is right, or the log is not opened, or it does not matter. The numbers of pages are
// not among it: one may lead to what the page was before.
func TestAFlippedBitInAPageIsFoundOrDoesNotMatter(t *testing.T) {
	const every = 53 // not all bits, or it would take minutes
	whole := filepath.Join(t.TempDir(), "group-1.db")
	good, entries := written(t, whole)
	page, flipped, refused := os.Getpagesize(), 0, 0
	for at := 2 * page; at < len(good); at += page {
		if kind := binary.NativeEndian.Uint16(good[at+8:]); kind != kindBranch && kind != kindLeaf || binary.NativeEndian.Uint64(good[at:]) != uint64(at/page) {
			continue
		}
		count := int(binary.NativeEndian.Uint16(good[at+10:]))
		for bit := at % every; bit < 8*(pageHeader+count*elementBytes); bit += every {
			if binary.NativeEndian.Uint16(good[at+8:]) == kindBranch && bit/8 >= pageHeader && bit/8%elementBytes >= 8 {
				continue
			}
			b := slices.Clone(good)
			b[at+bit/8] ^= 1 << (bit % 8)
			flipped++
			if !read(t, whole, fmt.Sprintf("bit %d of page %d", bit, at/page), b, entries) {
				refused++
			}
		}
	}
	if refused == 0 {
		t.Errorf("of %d flipped bits none was found", flipped)
	}
	t.Logf("%d of %d flipped bits were refused", refused, flipped)
}

// What BoltDB itself would find in a goroutine of its own, and end the process, is found before.
func TestAWrongTreeOfPagesIsFound(t *testing.T) {
	whole := filepath.Join(t.TempDir(), "group-1.db")
	good, _ := written(t, whole)
	page := os.Getpagesize()
	// element returns one of a page.
	element := func(page []byte, i int) []byte { return page[pageHeader+i*elementBytes:][:elementBytes] }
	swap := func(a, b []byte) {
		for i := range a {
			a[i], b[i] = b[i], a[i]
		}
	}
	const buckets = 0 // instead of a kind
	tests := []struct {
		name   string
		kind   uint16
		damage func(page []byte)
	}{
		{"no buckets", buckets, func(p []byte) { p[10] = 0; clear(p[pageHeader:]) }},
		{"one bucket", buckets, func(p []byte) {
			first, second := element(p, 0), element(p, 1)
			size := binary.NativeEndian.Uint32(second[8:]) + binary.NativeEndian.Uint32(second[12:])
			from := pageHeader + elementBytes + binary.NativeEndian.Uint32(second[4:])
			copy(first, second)
			binary.NativeEndian.PutUint32(first[4:], elementBytes)
			copy(second, p[from:][:size])
			p[10] = 1
		}},
		{"pages that change places", kindBranch, func(p []byte) { swap(element(p, 0)[8:], element(p, 1)[8:]) }},
		{"a page twice", kindBranch, func(p []byte) { copy(element(p, 0)[8:], element(p, 1)[8:]) }},
		{"a page that is not in use", kindBranch, func(p []byte) { binary.NativeEndian.PutUint64(element(p, 0)[8:], 1<<40) }},
		{"a page for metas", kindBranch, func(p []byte) { binary.NativeEndian.PutUint64(element(p, 0)[8:], 1) }},
		{"no elements", kindBranch, func(p []byte) { binary.NativeEndian.PutUint16(p[10:], 0) }},
		{"fewer elements", kindBranch, func(p []byte) { p[10]-- }},
		{"fewer elements of a leaf", kindLeaf, func(p []byte) { p[10]-- }},
		{"no elements of a leaf", kindLeaf, func(p []byte) { p[10] = 0 }},
		{"more elements than fit", kindBranch, func(p []byte) { binary.NativeEndian.PutUint16(p[10:], 1<<15) }},
		{"a page that is longer", kindLeaf, func(p []byte) { p[12]++ }},
		{"a page that goes on behind the file", kindLeaf, func(p []byte) { p[15]++ }},
		{"keys in the wrong order", kindLeaf, func(p []byte) {
			first, second := element(p, 0), element(p, 1)
			at := binary.NativeEndian.Uint32(first[4:])
			binary.NativeEndian.PutUint32(first[4:], binary.NativeEndian.Uint32(second[4:])+elementBytes)
			binary.NativeEndian.PutUint32(second[4:], at-elementBytes)
		}},
		{"a key of the next page", kindLeaf, func(p []byte) {
			last := element(p, int(p[10])-1)
			at := pageHeader + (int(p[10])-1)*elementBytes + int(binary.NativeEndian.Uint32(last[4:]))
			p[at] = 0xff
		}},
		{"a key behind the page", kindLeaf, func(p []byte) { element(p, 0)[7] = 1 }},
		{"a value behind the page", kindLeaf, func(p []byte) { element(p, 1)[15] = 1 }},
		{"another kind of page", kindLeaf, func(p []byte) { p[8] = 0x10 }},
	}
	root := binary.NativeEndian.Uint64(good[pageHeader+16:])
	if binary.NativeEndian.Uint64(good[pageHeader+48:]) < binary.NativeEndian.Uint64(good[page+pageHeader+48:]) {
		root = binary.NativeEndian.Uint64(good[page+pageHeader+16:])
	}
	top := good[root*uint64(page):][:page]
	logs := element(top, 1) // the other is conf
	value := top[pageHeader+elementBytes+binary.NativeEndian.Uint32(logs[4:])+binary.NativeEndian.Uint32(logs[8:]):]
	branch := binary.NativeEndian.Uint64(value)
	for _, test := range tests {
		b := slices.Clone(good)
		p := b[branch*uint64(page):][:page]
		switch test.kind {
		case buckets:
			p = b[root*uint64(page):][:page]
		case kindLeaf:
			p = b[binary.NativeEndian.Uint64(element(p, 2)[8:])*uint64(page):][:page]
		}
		if kind, count := binary.NativeEndian.Uint16(p[8:]), binary.NativeEndian.Uint16(p[10:]); test.kind != buckets && kind != test.kind || count < 2 {
			t.Fatalf("a page of kind %d with %d elements", kind, count)
		}
		test.damage(p)
		if err := os.WriteFile(whole, b, 0o600); err != nil {
			t.Fatal(err)
		}
		l := &log{p: &Provider{}, path: whole, group: 1}
		if _, _, err := l.check(); !errors.Is(err, raftlog.ErrCorrupt) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

// A log that was never written to may be opened, but not only to read.
func TestANewFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "group-1.db")
	db, err := bbolt.Open(path, 0o600, nil) // and then the process was killed
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ readOnly, taken bool }{{true, false}, {false, true}, {true, true}} {
		p, err := Open(Options{Dir: dir, ReadOnly: test.readOnly})
		if err != nil {
			t.Fatal(err)
		}
		l, err := p.Open(1)
		if test.taken != (err == nil) || errors.Is(err, raftlog.ErrCorrupt) {
			t.Errorf("read only %v: %v", test.readOnly, err)
		}
		if err == nil {
			if first, err := l.FirstIndex(); first != 0 || err != nil {
				t.Errorf("read only %v: the first entry is %d, %v", test.readOnly, first, err)
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// Logs of before there were checksums get them when they are opened, also if the process was killed while they did.
func TestALogWithoutChecksumsGetsThem(t *testing.T) {
	for _, done := range []int{0, 300, 700} {
		dir := t.TempDir()
		store, err := raftboltdb.New(raftboltdb.Options{Path: filepath.Join(dir, "group-1.db"), MsgpackUseNewTimeFormat: true})
		if err != nil {
			t.Fatal(err)
		}
		var entries, stored []*raft.Log
		for i := range 700 {
			e := &raft.Log{Index: uint64(i + 1), Term: 3, Data: []byte{byte(i)}, Extensions: []byte("of another layer")[:i%10]}
			entries, stored = append(entries, e), append(stored, e)
			if i < done {
				sealed := (&log{group: 1}).seal(e)
				stored[i] = &sealed
			}
		}
		vote := append(binary.BigEndian.AppendUint64(nil, 3), "n1/1"...)
		if done == len(entries) {
			vote = (&log{group: 1}).sealValue([]byte(keyVote), vote)
		}
		if err := errors.Join(store.SetUint64([]byte(keyTerm), 3), store.Set([]byte(keyVote), vote), store.StoreLogs(stored), store.Close()); err != nil {
			t.Fatal(err)
		}
		for i, readOnly := range []bool{true, false, true} {
			p, err := Open(Options{Dir: dir, ReadOnly: readOnly})
			if err != nil {
				t.Fatal(err)
			}
			l, err := p.Open(1)
			if i == 0 {
				if err == nil || !strings.Contains(err.Error(), "start the node once") {
					t.Errorf("opened only to read: %v", err)
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range entries {
				var got raft.Log
				if err := l.GetLog(want.Index, &got); err != nil || !bytes.Equal(got.Data, want.Data) || !bytes.Equal(got.Extensions, want.Extensions) {
					t.Fatalf("entry %d is %v, %v, want %v", want.Index, got, err, want)
				}
			}
			term, err1 := l.GetUint64([]byte(keyTerm))
			voted, err2 := l.GetUint64([]byte(raftlog.KeyVoteTerm))
			candidate, err3 := l.Get([]byte(raftlog.KeyVoteCandidate))
			if err := errors.Join(err1, err2, err3, l.Close()); err != nil || term != 3 || voted != 3 || string(candidate) != "n1/1" {
				t.Errorf("term %d, vote of term %d for %q, %v", term, voted, candidate, err)
			}
		}
	}
}

// A bucket where an entry should be is damage too.
func TestABucketAmongEntriesIsRefused(t *testing.T) {
	whole := filepath.Join(t.TempDir(), "group-1.db")
	written(t, whole)
	db, err := bbolt.Open(whole, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Update(func(tx *bbolt.Tx) error {
		_, err := tx.Bucket([]byte(logBucket)).CreateBucket([]byte("eight by"))
		return err
	}), db.Close()); err != nil {
		t.Fatal(err)
	}
	p, err := Open(Options{Dir: filepath.Dir(whole)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Open(1); !errors.Is(err, raftlog.ErrCorrupt) {
		t.Errorf("opened: %v", err)
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
	if err := errors.Join(l.SetUint64([]byte(keyTerm), currentTerm), l.SetUint64([]byte(raftlog.KeyVoteTerm), 1),
		l.Set([]byte(raftlog.KeyVoteCandidate), []byte("vote of node")), l.Close()); err != nil {
		t.Fatal(err)
	}
	if file, err = os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
	return file, entries
}

// read puts a file in place, opens it, and reports that it is taken. What is read from it then must be what was written.
func read(t *testing.T, path, name string, file []byte, entries []*raft.Log) bool {
	t.Helper()
	if err := errors.Join(os.Remove(path), os.WriteFile(path, file, 0o600)); err != nil { // another: a panic leaves the old one locked
		t.Fatal(err)
	}
	p, err := Open(Options{Dir: filepath.Dir(path)})
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
	if term, err := l.GetUint64([]byte(keyTerm)); err != nil || term != currentTerm {
		t.Errorf("%s: the term is %x, %v", name, term, err)
	}
	if vote, err := l.Get([]byte(raftlog.KeyVoteCandidate)); err != nil || string(vote) != "vote of node" {
		t.Errorf("%s: the vote is %q, %v", name, vote, err)
	}
	return true
}

// Whatever is in the file, to read it is no crash.
func FuzzCheck(f *testing.F) {
	path := filepath.Join(f.TempDir(), "group-1.db")
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{PageSize: 512, NoFreelistSync: true}) // small, for the fuzzer's sake
	if err != nil {
		f.Fatal(err)
	}
	if err := errors.Join(db.Update(func(tx *bbolt.Tx) error {
		entries, err := tx.CreateBucket([]byte(logBucket))
		if err != nil {
			return err
		}
		for i := range uint64(5) {
			if err := entries.Put(binary.BigEndian.AppendUint64(nil, i), make([]byte, 200)); err != nil {
				return err
			}
		}
		_, err = tx.CreateBucket([]byte(confBucket))
		return err
	}), db.Close()); err != nil {
		f.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good[:16*512])
	f.Fuzz(func(t *testing.T, file []byte) {
		for i := range 2 { // a checksum that is right leads further
			if at := i*512 + pageHeader; len(file) >= at+metaSum+8 {
				sum := fnv.New64a()
				_, _ = sum.Write(file[at:][:metaSum])
				binary.NativeEndian.PutUint64(file[at+metaSum:], sum.Sum64())
			}
		}
		path := filepath.Join(t.TempDir(), "group-1.db")
		if err := os.WriteFile(path, file, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := (&log{p: &Provider{}, path: path, group: 1}).check(); err != nil && !errors.Is(err, raftlog.ErrCorrupt) {
			t.Error(err)
		}
	})
}
