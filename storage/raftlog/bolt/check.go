package bolt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
	"runtime/debug"

	"github.com/holdfastdb/holdfast/storage/raftlog"
)

// BoltDB maps its file into memory and believes it: behind the end of one that was cut off the process gets SIGBUS, a wrong
// page number leads out of the map, and what Open itself finds when it looks for free pages is a panic, or two, one of them in a
// goroutine where nobody can catch it. So the file is read before BoltDB does, by its format, version 2:
//
//	page     number (8 bytes), kind (2), elements (2), further pages (4), elements, keys and values
//	leaf     kind of the element (4), where the key is, from the element on (4), sizes of key (4) and value (4)
//	branch   where the key is (4), its size (4), page (8)
//	meta     magic, version, size of a page, flags (4 each), root page (8), 16 more, pages in use (8), commit (8), FNV-1a (8)
//
// All in the byte order of the machine. The value of a bucket is its root page (8), 8 more, and if that page is 0 itself a page.
const (
	pageHeader   = 16
	elementBytes = 16
	metaSum      = 56 // bytes of a meta before its checksum
	bucketHeader = 16
	kindBranch   = 0x01
	kindLeaf     = 0x02
	kindBucket   = 0x01 // of an element
)

// The buckets of raft-boltdb: entries by their indexes, and values.
const (
	logBucket  = "logs"
	confBucket = "conf"
)

// maxRun bounds the bytes of a page with those that belong to it: more than the largest entry.
const maxRun = 1 << 30

// pages reads a file's tree of pages.
type pages struct {
	l    *log
	f    io.ReaderAt
	size int64 // of a page
	used uint64
	seen map[uint64]bool
}

// check reads the file as a whole, entries but for their checksums, and returns their indexes. No other process writes it: a
// node has its state open by then, which is locked.
func (l *log) check() (entries []uint64, err error) {
	f, err := os.Open(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() == 0 { // a new one
		return nil, err
	}
	p := &pages{l: l, f: f, seen: make(map[uint64]bool)}
	root, err := p.meta(info.Size())
	if err != nil {
		return nil, err
	}
	err = p.walk(root, bounds{}, func(name, bucket []byte, kind uint32) error {
		if kind != kindBucket || string(name) != logBucket && string(name) != confBucket {
			return l.corrupt("%q of kind %d beside the buckets", name, kind)
		}
		return p.bucket(bucket, func(key, value []byte, kind uint32) error {
			switch {
			case kind != 0:
				return l.corrupt("key %x of kind %d", key, kind)
			case string(name) == confBucket:
				_, err := l.openValue(key, value)
				return err
			case len(key) != 8:
				return l.corrupt("entry %x", key)
			}
			entries = append(entries, binary.BigEndian.Uint64(key))
			return nil
		})
	})
	return entries, err
}

// meta returns the root of the newest commit. Both metas must be right. Each commit writes one, in turns; with one that is
// damaged BoltDB goes back to the other, and what was stored last, maybe a vote, is gone. A power cut does not do that: a meta
// fits into a sector of the disk.
func (p *pages) meta(size int64) (root uint64, err error) {
	commit := uint64(0)
	for i := range int64(2) {
		var meta [metaSum + 8]byte
		if _, err := p.f.ReadAt(meta[:], i*p.size+pageHeader); err != nil {
			return 0, p.l.corrupt("page %d: %v", i, err)
		}
		sum := fnv.New64a()
		_, _ = sum.Write(meta[:metaSum])
		if sum.Sum64() != binary.NativeEndian.Uint64(meta[metaSum:]) {
			return 0, p.l.corrupt("page %d", i)
		}
		if i == 0 {
			p.size = int64(binary.NativeEndian.Uint32(meta[8:]))
		}
		if n := binary.NativeEndian.Uint64(meta[48:]); i == 0 || n > commit {
			commit, root, p.used = n, binary.NativeEndian.Uint64(meta[16:]), binary.NativeEndian.Uint64(meta[40:])
		}
	}
	if p.size < pageHeader+metaSum+8 || uint64(size/p.size) < p.used {
		return 0, p.l.corrupt("%d bytes, %d pages of %d are in use", size, p.used, p.size)
	}
	return root, nil
}

// bounds are those of the keys of a page, none where nil.
type bounds struct{ from, to []byte }

// visit is told of a leaf's elements.
type visit func(key, value []byte, kind uint32) error

// walk reads a page and what is under it.
func (p *pages) walk(id uint64, within bounds, f visit) error {
	head := make([]byte, pageHeader)
	if id < 2 || id >= p.used {
		return p.l.corrupt("page %d of %d", id, p.used)
	}
	if _, err := p.f.ReadAt(head, int64(id)*p.size); err != nil {
		return err
	}
	more := uint64(binary.NativeEndian.Uint32(head[12:]))
	if binary.NativeEndian.Uint64(head) != id || id+more >= p.used || (more+1)*uint64(p.size) > maxRun {
		return p.l.corrupt("page %d", id)
	}
	for i := id; i <= id+more; i++ {
		if p.seen[i] {
			return p.l.corrupt("two ways to page %d", i)
		}
		p.seen[i] = true
	}
	page := make([]byte, int64(more+1)*p.size)
	if _, err := p.f.ReadAt(page, int64(id)*p.size); err != nil {
		return err
	}
	return p.elements(page, within, f)
}

// bucket reads what belongs to a bucket.
func (p *pages) bucket(value []byte, f visit) error {
	if len(value) < bucketHeader {
		return p.l.corrupt("a bucket of %d bytes", len(value))
	}
	if root := binary.NativeEndian.Uint64(value); root != 0 {
		return p.walk(root, bounds{}, f)
	}
	if len(value) < bucketHeader+pageHeader {
		return p.l.corrupt("a bucket of %d bytes", len(value))
	}
	return p.elements(value[bucketHeader:], bounds{}, f)
}

func (p *pages) elements(page []byte, within bounds, f visit) error {
	kind, count := binary.NativeEndian.Uint16(page[8:]), int(binary.NativeEndian.Uint16(page[10:]))
	if kind != kindBranch && kind != kindLeaf || pageHeader+count*elementBytes > len(page) || kind == kindBranch && count == 0 {
		return p.l.corrupt("a page of kind %d with %d elements", kind, count)
	}
	// part returns what begins at an element and a distance from it.
	part := func(i int, from, size uint64) ([]byte, error) {
		from += uint64(pageHeader + i*elementBytes)
		if from+size > uint64(len(page)) {
			return nil, p.l.corrupt("element %d of a page is not in it", i)
		}
		return page[from:][:size], nil
	}
	field := func(i, at int) uint64 {
		return uint64(binary.NativeEndian.Uint32(page[pageHeader+i*elementBytes+at:]))
	}
	keys := make([][]byte, count)
	for i := range keys {
		at, size := field(i, 4), field(i, 8)
		if kind == kindBranch {
			at, size = field(i, 0), field(i, 4)
		}
		key, err := part(i, at, size)
		if err != nil {
			return err
		}
		if i > 0 && bytes.Compare(keys[i-1], key) >= 0 || bytes.Compare(key, within.from) < 0 || within.to != nil && bytes.Compare(key, within.to) >= 0 {
			return p.l.corrupt("key %x is not where it would be looked for", key)
		}
		keys[i] = key
	}
	for i, key := range keys {
		if kind == kindBranch {
			under := bounds{key, within.to}
			if i+1 < count {
				under.to = keys[i+1]
			}
			if err := p.walk(binary.NativeEndian.Uint64(page[pageHeader+i*elementBytes+8:]), under, f); err != nil {
				return err
			}
			continue
		}
		value, err := part(i, field(i, 4)+field(i, 8), field(i, 12))
		if err == nil {
			err = f(key, value, uint32(field(i, 0)))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// caught turns a panic of BoltDB, and a fault in its map, into an error about the file.
func (l *log) caught(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = l.corrupt("%v", r)
		}
	}()
	return f()
}

func (l *log) corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s: %s", raftlog.ErrCorrupt, l.path, fmt.Sprintf(format, args...))
}
