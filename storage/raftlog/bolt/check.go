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
// All in the byte order of the machine, keys and values in the order of their elements without anything between them. The
// value of a bucket is its root page (8), 8 more, and if that page is 0 itself a page.
const (
	magic        = 0xed0cdaed
	version      = 2
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

// maxDepth is far above what a tree of pages has that fits on a disk.
const maxDepth = 64

// maxRun bounds the bytes of a page with those that belong to it: more than the largest entry.
const maxRun = 1 << 30

// pages reads a file's tree of pages.
type pages struct {
	l    *log
	f    io.ReaderAt
	size int64 // of a page
	used uint64
	seen map[uint64]bool
	deep int
}

// check reads the file as a whole, entries but for their checksums, and returns their indexes. old tells that they have no
// checksums, nor values. No other process writes the file: a node has its state open by then, which is locked.
func (l *log) check() (entries []uint64, old bool, err error) {
	f, err := os.Open(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() == 0 { // a new one
		return nil, false, err
	}
	p := &pages{l: l, f: f, seen: make(map[uint64]bool)}
	root, commit, err := p.meta(info.Size())
	if err != nil {
		return nil, false, err
	}
	buckets := 0
	err = p.walk(root, bounds{}, func(name, bucket []byte, kind uint32) error {
		if kind != kindBucket || string(name) != logBucket && string(name) != confBucket {
			return l.corrupt("%.16q of kind %d beside the buckets", name, kind)
		}
		buckets++
		return p.bucket(bucket, func(key, value []byte, kind uint32) error {
			switch {
			case kind != 0:
				return l.corrupt("key %.16x of kind %d", key, kind)
			case string(name) == confBucket:
				if old = old || plain(key, value); old {
					return nil
				}
				_, err := l.openValue(key, value)
				return err
			case len(key) != 8:
				return l.corrupt("entry %.16x", key)
			}
			entries = append(entries, binary.BigEndian.Uint64(key))
			return nil
		})
	})
	switch {
	case err != nil:
		return nil, false, err
	case buckets < 2 && commit >= firstCommit:
		return nil, false, l.corrupt("%d buckets of 2", buckets)
	case buckets < 2 && l.p.opts.ReadOnly: // raft-boltdb would take them for there
		return nil, false, errors.New("the log is new, nothing was ever written to it")
	}
	return entries, old, nil
}

// firstCommit makes the buckets.
const firstCommit = 2

// meta returns the root of the newest commit, and its number. Both metas must be right. Each commit writes one, in turns; with
// one that is damaged BoltDB goes back to the other, and what was stored last, maybe a vote, is gone. A power cut does not do
// that, but to a file that is just being made: a meta fits into a sector of the disk.
func (p *pages) meta(size int64) (root, commit uint64, err error) {
	for i := range int64(2) {
		var meta [metaSum + 8]byte
		if _, err := p.f.ReadAt(meta[:], i*p.size+pageHeader); err != nil {
			return 0, 0, p.l.corrupt("page %d: %v", i, err)
		}
		sum := fnv.New64a()
		_, _ = sum.Write(meta[:metaSum])
		if sum.Sum64() != binary.NativeEndian.Uint64(meta[metaSum:]) || binary.NativeEndian.Uint32(meta[:]) != magic || binary.NativeEndian.Uint32(meta[4:]) != version {
			return 0, 0, p.l.corrupt("page %d", i)
		}
		if i == 0 {
			p.size = int64(binary.NativeEndian.Uint32(meta[8:]))
		}
		if n := binary.NativeEndian.Uint64(meta[48:]); i == 0 || n > commit {
			commit, root, p.used = n, binary.NativeEndian.Uint64(meta[16:]), binary.NativeEndian.Uint64(meta[40:])
		}
	}
	if p.size < pageHeader+metaSum+8 || uint64(size/p.size) < p.used {
		return 0, 0, p.l.corrupt("%d bytes, %d pages of %d are in use", size, p.used, p.size)
	}
	return root, commit, nil
}

// bounds are the first key of a page and that of the next one, none where nil.
type bounds struct{ first, next []byte }

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
	if p.deep++; p.deep > maxDepth {
		return p.l.corrupt("more than %d pages above page %d", maxDepth, id)
	}
	end, err := p.elements(page, within, f)
	p.deep--
	if err == nil && end == pageHeader && len(bytes.TrimLeft(page[end:], "\x00")) > 0 {
		err = p.l.corrupt("page %d has something and no elements", id)
	}
	return err
}

// bucket reads what belongs to a bucket.
func (p *pages) bucket(value []byte, f visit) error {
	if len(value) < bucketHeader {
		return p.l.corrupt("a bucket of %d bytes", len(value))
	}
	if root := binary.NativeEndian.Uint64(value); root != 0 {
		if len(value) > bucketHeader {
			return p.l.corrupt("a bucket of %d bytes with a page of its own", len(value))
		}
		return p.walk(root, bounds{}, f)
	}
	page := value[bucketHeader:]
	if len(page) < pageHeader {
		return p.l.corrupt("a bucket of %d bytes", len(value))
	}
	end, err := p.elements(page, bounds{}, f)
	if err == nil && end != len(page) {
		err = p.l.corrupt("a bucket has %d bytes, its elements take %d", len(page), end)
	}
	return err
}

// elements reads a page, and returns where the last of its elements ends.
func (p *pages) elements(page []byte, within bounds, f visit) (end int, err error) {
	kind, count := binary.NativeEndian.Uint16(page[8:]), int(binary.NativeEndian.Uint16(page[10:]))
	end = pageHeader + count*elementBytes
	if kind != kindBranch && kind != kindLeaf || end > len(page) || count == 0 && (kind == kindBranch || within.first != nil) {
		return 0, p.l.corrupt("a page of kind %d with %d elements", kind, count)
	}
	// next returns the key or value that comes next.
	next := func(size uint32) ([]byte, error) {
		if uint64(end)+uint64(size) > uint64(len(page)) {
			return nil, p.l.corrupt("an element of %d bytes is not in its page", size)
		}
		b := page[end:][:size]
		end += int(size)
		return b, nil
	}
	keys, values := make([][]byte, count), make([][]byte, count)
	for i := range count {
		field := func(at int) uint32 {
			return binary.NativeEndian.Uint32(page[pageHeader+i*elementBytes+at:])
		}
		at, size := field(4), field(8)
		if kind == kindBranch {
			at, size = field(0), field(4)
		}
		if uint64(at) != uint64(end-pageHeader-i*elementBytes) {
			return 0, p.l.corrupt("element %d of a page is not where the one before ends", i)
		}
		if keys[i], err = next(size); err != nil {
			return 0, err
		}
		first := i == 0 && within.first != nil && !bytes.Equal(keys[i], within.first)
		order := i > 0 && bytes.Compare(keys[i-1], keys[i]) >= 0
		if size == 0 || first || order || within.next != nil && bytes.Compare(keys[i], within.next) >= 0 {
			return 0, p.l.corrupt("key %.16x is not where it would be looked for", keys[i])
		}
		if kind == kindLeaf {
			if values[i], err = next(field(12)); err != nil {
				return 0, err
			}
		}
	}
	for i, key := range keys {
		element := page[pageHeader+i*elementBytes:]
		if kind == kindLeaf {
			err = f(key, values[i], binary.NativeEndian.Uint32(element))
		} else {
			under := bounds{key, within.next}
			if i+1 < count {
				under.next = keys[i+1]
			}
			err = p.walk(binary.NativeEndian.Uint64(element[8:]), under, f)
		}
		if err != nil {
			return 0, err
		}
	}
	return end, nil
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
