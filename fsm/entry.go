package fsm

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/holdfastdb/holdfast/storage/wire"
)

// Bounds of what one frame and one client may hold. They are part of the log's meaning: every replica refuses alike.
const (
	MaxOps        = 512       // operations in a frame, and in an entry
	MaxFrameBytes = 256 << 10 // encoded size of a frame, and of an entry's frames together
	MaxWindow     = 16        // frames of one client in one shard that may be unacknowledged
	MaxDeadline   = 60_000    // milliseconds from a frame's first receipt to its deadline, at most
	MaxClients    = 65_536    // clients with a record in one shard
	MaxOneShots   = 1 << 20   // clients of one request with a record in one shard
	MaxRetain     = 24 * 3600 * 1000
)

// EntryKind tells what an entry does. Stored: never reorder.
type EntryKind uint8

// The kinds of entries.
const (
	Commands  EntryKind = 0 // frames of clients
	TermStart EntryKind = 1 // the first entry of a leader: it proves that the leader's term can commit
	Sweep     EntryKind = 2 // removes a bounded number of rows whose expiry is due
	Nudge     EntryKind = 3 // only moves shard time forward
	Checksum  EntryKind = 4 // has every replica hash its state here; see checksum.go
)

// Frame is the unit of exactly-once: the commands of one client for one shard, in order.
type Frame struct {
	// Client is the client instance's random id. Zero means that the frame is executed without a record.
	Client [16]byte
	// Seq counts the client's frames for this shard from 1.
	Seq uint64
	// AckUpTo: the client has the results of all frames up to this one.
	AckUpTo uint64
	// Deadline is the shard time after which the frame is refused. Every retry carries the same.
	Deadline Time
	// Retain is how long after the deadline the record is kept; 0 means twice MaxDeadline. Idempotency keys use 24 h.
	Retain Millis
	// Fingerprint is a hash of the request as its sender wrote it, so that an idempotency key that is used for another
	// request is refused; 0 when there is nothing to compare. It is not the hash of Calls: those also depend on the
	// policies of the moment, and a retry must find its results even if a policy changed in between.
	Fingerprint uint64
	Calls       []Call
}

// Entry is the content of one Raft log entry.
type Entry struct {
	Kind EntryKind
	// Time is the leader's stamp.
	Time   Time
	Frames []Frame
	// Agreed is, in a Checksum entry, what most replicas had at an earlier one; zero if that is not known.
	Agreed Sum
	// Differ is, in a Checksum entry, how many replicas were found to have had something else.
	Differ uint64
}

// ErrCorrupt is returned, wrapped, for bytes that are not what this code wrote.
var ErrCorrupt = wire.ErrCorrupt

const (
	entryVersion       = 1
	entryVersionDiffer = 2 // a Checksum with Differ
	entryHeader        = 5 // version and checksum
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Append appends the entry's encoding: version, CRC-32C of what follows, kind, time, frames, and
// the sum if it is a Checksum.
func (e *Entry) Append(dst []byte) []byte {
	start := len(dst)
	version := byte(entryVersion)
	if e.Differ != 0 {
		version = entryVersionDiffer
	}
	dst = append(dst, version, 0, 0, 0, 0, byte(e.Kind))
	dst = binary.AppendVarint(dst, int64(e.Time))
	dst = binary.AppendUvarint(dst, uint64(len(e.Frames)))
	for i := range e.Frames {
		dst = e.Frames[i].Append(dst)
	}
	if e.Kind == Checksum {
		dst = binary.AppendUvarint(dst, e.Agreed.Index)
		dst = binary.LittleEndian.AppendUint64(dst, e.Agreed.Hash)
		if e.Differ != 0 {
			dst = binary.AppendUvarint(dst, e.Differ)
		}
	}
	sum := crc32.Checksum(dst[start+entryHeader:], castagnoli)
	binary.LittleEndian.PutUint32(dst[start+1:], sum)
	return dst
}

// DecodeEntry parses one entry. The frames' bodies alias b. An error wraps ErrCorrupt.
func DecodeEntry(b []byte) (Entry, error) {
	if len(b) < entryHeader {
		return Entry{}, fmt.Errorf("%w: entry of %d bytes", ErrCorrupt, len(b))
	}
	if b[0] != entryVersion && b[0] != entryVersionDiffer {
		return Entry{}, fmt.Errorf("%w: entry format %d, this node reads %d: upgrade it", ErrCorrupt, b[0], entryVersionDiffer)
	}
	if sum := crc32.Checksum(b[entryHeader:], castagnoli); sum != binary.LittleEndian.Uint32(b[1:]) {
		return Entry{}, fmt.Errorf("%w: entry checksum", ErrCorrupt)
	}
	d := wire.NewDecoder(b[entryHeader:])
	e := Entry{Kind: EntryKind(d.Byte()), Time: Time(d.Varint())}
	n := d.Count(1)
	if e.Kind > Checksum {
		return Entry{}, fmt.Errorf("%w: entry kind %d: upgrade this node", ErrCorrupt, e.Kind)
	}
	for range n {
		f, rest, err := DecodeFrame(d.Rest())
		if err != nil {
			return Entry{}, err
		}
		d.Skip(rest)
		e.Frames = append(e.Frames, f)
	}
	if e.Kind == Checksum {
		e.Agreed = Sum{Index: d.Uvarint(), Hash: d.Uint64()}
		if b[0] == entryVersionDiffer {
			e.Differ = d.Uvarint()
		}
	}
	if (b[0] == entryVersionDiffer) != (e.Differ != 0) {
		return Entry{}, fmt.Errorf("%w: entry of kind %d in format %d", ErrCorrupt, e.Kind, b[0])
	}
	return e, d.End("entry")
}

const (
	frameAnonymous byte = 0
	frameOfClient  byte = 1
	frameOfKey     byte = 2 // with Retain and Fingerprint
)

// Append appends the frame's encoding.
func (f *Frame) Append(dst []byte) []byte {
	kind := frameOfClient
	switch {
	case f.Client == [16]byte{}:
		kind = frameAnonymous
	case f.Retain != 0 || f.Fingerprint != 0:
		kind = frameOfKey
	}
	dst = append(dst, kind)
	if kind != frameAnonymous {
		dst = append(dst, f.Client[:]...)
		dst = binary.AppendUvarint(dst, f.Seq)
		dst = binary.AppendUvarint(dst, f.AckUpTo)
	}
	if kind == frameOfKey {
		dst = binary.AppendUvarint(dst, uint64(f.Retain))
		dst = binary.LittleEndian.AppendUint64(dst, f.Fingerprint)
	}
	dst = binary.AppendVarint(dst, int64(f.Deadline))
	dst = binary.AppendUvarint(dst, uint64(len(f.Calls)))
	for _, c := range f.Calls {
		dst = append(dst, c.Type, c.Op)
		dst = binary.AppendUvarint(dst, uint64(len(c.Body)))
		dst = append(dst, c.Body...)
	}
	return dst
}

// DecodeFrame parses one frame at the start of b and returns the rest. The bodies alias b. An error wraps ErrCorrupt.
func DecodeFrame(b []byte) (Frame, []byte, error) {
	var f Frame
	d := wire.NewDecoder(b)
	kind := d.Byte()
	if kind > frameOfKey {
		d.Fail()
	}
	if kind != frameAnonymous {
		copy(f.Client[:], d.Bytes(16))
		f.Seq, f.AckUpTo = d.Uvarint(), d.Uvarint()
		if f.Client == [16]byte{} || f.Seq == 0 || f.AckUpTo >= f.Seq {
			d.Fail()
		}
	}
	if kind == frameOfKey {
		retain := d.Uvarint()
		f.Fingerprint = d.Uint64()
		if retain > MaxRetain || retain == 0 && f.Fingerprint == 0 {
			d.Fail()
		}
		f.Retain = Millis(retain)
	}
	f.Deadline = Time(d.Varint())
	n := d.Count(3)
	if n > MaxOps {
		d.Fail()
		n = 0
	}
	if n > 0 {
		f.Calls = make([]Call, n)
	}
	for i := range f.Calls {
		f.Calls[i] = Call{Type: d.Byte(), Op: d.Byte()}
		f.Calls[i].Body = d.Bytes(d.Count(1))
	}
	if d.Bad() {
		return Frame{}, nil, fmt.Errorf("%w: frame", ErrCorrupt)
	}
	return f, d.Rest(), nil
}

// Noop is a placeholder in a frame: it has no effect and answers Skipped. It keeps the numbering of a frame's
// operations when one of them is carried out elsewhere.
func Noop() Call { return Call{} }
