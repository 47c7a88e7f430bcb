package raftlog

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/hashicorp/raft"
)

// A stored entry is a version, a CRC-32C of the group, the index and all that follows, then the type, the term, the time
// of the append in nanoseconds (0 for none), the extensions with their length, and the data.
const (
	entryVersion = 1
	entryHeader  = 5
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(group uint32, index uint64, rest []byte) uint32 {
	var where [12]byte
	binary.BigEndian.PutUint32(where[:], group)
	binary.BigEndian.PutUint64(where[4:], index)
	return crc32.Update(crc32.Checksum(where[:], castagnoli), castagnoli, rest)
}

func appendEntry(dst []byte, group uint32, l *raft.Log) []byte {
	start := len(dst)
	dst = append(dst, entryVersion, 0, 0, 0, 0, byte(l.Type))
	dst = binary.AppendUvarint(dst, l.Term)
	var at int64
	if !l.AppendedAt.IsZero() {
		at = l.AppendedAt.UnixNano()
	}
	dst = binary.AppendVarint(dst, at)
	dst = binary.AppendUvarint(dst, uint64(len(l.Extensions)))
	dst = append(dst, l.Extensions...)
	dst = append(dst, l.Data...)
	binary.LittleEndian.PutUint32(dst[start+1:], checksum(group, l.Index, dst[start+entryHeader:]))
	return dst
}

// decodeEntry parses a stored entry into out, whose slices alias b.
func decodeEntry(b []byte, group uint32, index uint64, out *raft.Log) error {
	if len(b) <= entryHeader {
		return fmt.Errorf("%w: %d bytes", ErrCorrupt, len(b))
	}
	if b[0] != entryVersion {
		return fmt.Errorf("%w: format %d, this version reads %d", ErrCorrupt, b[0], entryVersion)
	}
	rest := b[entryHeader:]
	if binary.LittleEndian.Uint32(b[1:]) != checksum(group, index, rest) {
		return fmt.Errorf("%w: checksum", ErrCorrupt)
	}
	l := raft.Log{Index: index, Type: raft.LogType(rest[0])}
	rest = rest[1:]
	var n int
	if l.Term, n = binary.Uvarint(rest); n <= 0 {
		return fmt.Errorf("%w: term", ErrCorrupt)
	}
	rest = rest[n:]
	at, n := binary.Varint(rest)
	if n <= 0 {
		return fmt.Errorf("%w: time", ErrCorrupt)
	}
	rest = rest[n:]
	size, n := binary.Uvarint(rest)
	if n <= 0 || size > uint64(len(rest)-n) {
		return fmt.Errorf("%w: extensions", ErrCorrupt)
	}
	rest = rest[n:]
	if at != 0 {
		l.AppendedAt = time.Unix(0, at)
	}
	if size > 0 {
		l.Extensions = rest[:size:size]
	}
	l.Data = rest[size:]
	*out = l
	return nil
}
