package raftlog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/cockroachdb/pebble/v2/record"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// What a crash leaves at the end of the newest write-ahead log is incomplete, and Pebble takes what it cannot read there for
// that. Damage to what was durable looks the same, and entries that were acknowledged would be gone without a word. So each
// sync begins with a mark in the log. A mark is written when the sync before it has ended: where two marks can be read behind
// what cannot, what cannot was on disk once. Damage behind the last mark but one stays unknown, after a crash; the end of an
// orderly shutdown is marked twice.

// markName begins a mark; the number of the sync follows.
const markName = "holdfast sync mark"

func appendMark(b []byte, n uint64) []byte {
	return binary.LittleEndian.AppendUint64(append(b, markName...), n)
}

// batchHeader is what begins each record of Pebble's: a sequence number and a count.
const batchHeader = 8 + 4

// logDataKind is how Pebble's batches call what is for the log alone.
const logDataKind = 3

// readMark returns a mark's number from a record, 0 if it is none.
func readMark(b []byte) uint64 {
	const size = len(markName) + 8
	if len(b) != batchHeader+2+size || b[batchHeader] != logDataKind || int(b[batchHeader+1]) != size {
		return 0
	}
	name, number := b[batchHeader+2:][:len(markName)], b[batchHeader+2+len(markName):]
	if string(name) != markName {
		return 0
	}
	return binary.LittleEndian.Uint64(number)
}

// verify looks for damage in the newest write-ahead log of dir, which Pebble would not find.
func verify(fs vfs.FS, dir string) error {
	names, err := fs.List(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	newest := uint64(0)
	for _, name := range names {
		if number, err := strconv.ParseUint(strings.TrimSuffix(name, ".log"), 10, 64); err == nil && isLog(name) {
			newest = max(newest, number)
		}
	}
	if newest == 0 {
		return nil
	}
	path := fs.PathJoin(dir, fmt.Sprintf("%06d.log", newest))
	f, err := fs.Open(path)
	if err != nil {
		return err
	}
	b, err := io.ReadAll(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	if behind := marksBehind(b, uint32(newest), lastMark(newReader(record.NewReader, bytes.NewReader(b), newest))); behind > 1 {
		return fmt.Errorf("%w: %s is damaged: it cannot be read to its end, and what cannot be read was on disk once", ErrCorrupt, path)
	}
	return nil
}

// newReader is record.NewReader for a log of that number, of a type that has no name outside of Pebble.
func newReader[N ~uint64](reader func(io.Reader, N) *record.Reader, r io.Reader, number uint64) *record.Reader {
	return reader(r, N(number))
}

// lastMark reads records as Pebble does at a start, and returns the last mark that it gets to, 0 if there is none.
func lastMark(r *record.Reader) uint64 {
	last := uint64(0)
	for {
		next, err := r.Next()
		if err != nil {
			return last
		}
		b, err := io.ReadAll(next)
		if err != nil {
			return last
		}
		if mark := readMark(b); mark > 0 {
			last = mark
		}
	}
}

// marksBehind counts the marks of a log after one. It looks at every byte for the beginning of one, as where the next record
// begins cannot be told behind damage. A log may be written over an older one: the number in each record tells them apart.
func marksBehind(b []byte, number uint32, last uint64) int {
	const checksum, length, kind, log = 0, 4, 6, 7 // where a record's header has them
	marks := 0
	for i := 0; i+log+4 <= len(b); i++ {
		var header int
		switch b[i+kind] {
		case 5: // a whole record
			header = log + 4
		case 9: // and how far the log was synced
			header = log + 4 + 8
		default:
			continue
		}
		end := i + header + int(binary.LittleEndian.Uint16(b[i+length:]))
		if binary.LittleEndian.Uint32(b[i+log:]) != number || i+header > len(b) || end > len(b) {
			continue
		}
		mark := readMark(b[i+header : end])
		if mark > last && binary.LittleEndian.Uint32(b[i+checksum:]) == sum(b[i+kind:end]) {
			marks++
		}
	}
	return marks
}

// sum is the checksum of a record, masked as LevelDB's log format has it.
func sum(b []byte) uint32 {
	c := crc32.Checksum(b, castagnoli)
	return (c>>15 | c<<17) + 0xa282ead8
}
