// Package wire reads the primitives that Holdfast's own encodings are made of, in the log, on disk and between nodes. It is
// a leaf and knows nothing of what they mean.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrCorrupt is returned, wrapped, for bytes that are not what Holdfast wrote.
var ErrCorrupt = errors.New("corrupt data")

// Decoder reads the primitives of Holdfast's encodings, which all start from encoding/binary's Append functions. After
// a failure every read gives zero, so a caller checks once, with End or Bad.
type Decoder struct {
	b   []byte
	bad bool
}

// NewDecoder reads from b. What Bytes returns aliases b.
func NewDecoder(b []byte) Decoder { return Decoder{b: b} }

// Fail marks the input as malformed.
func (d *Decoder) Fail() { d.bad, d.b = true, nil }

// Bad reports whether something was malformed or missing.
func (d *Decoder) Bad() bool { return d.bad }

// Rest returns what was not read yet.
func (d *Decoder) Rest() []byte { return d.b }

// Skip goes on at rest, which somebody else's decoder left of Rest.
func (d *Decoder) Skip(rest []byte) { d.b = rest }

// Byte reads one byte.
func (d *Decoder) Byte() byte {
	if len(d.b) == 0 {
		d.Fail()
		return 0
	}
	v := d.b[0]
	d.b = d.b[1:]
	return v
}

// Bytes reads n bytes.
func (d *Decoder) Bytes(n int) []byte {
	if n < 0 || n > len(d.b) {
		d.Fail()
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}

// Uint64 reads eight bytes, little-endian.
func (d *Decoder) Uint64() uint64 {
	b := d.Bytes(8)
	if b == nil {
		return 0
	}
	return binary.LittleEndian.Uint64(b)
}

// Uvarint reads an unsigned varint.
func (d *Decoder) Uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.Fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

// Uint32 reads an unsigned varint that must fit 32 bits.
func (d *Decoder) Uint32() uint32 {
	v := d.Uvarint()
	if v > 1<<32-1 {
		d.Fail()
		return 0
	}
	return uint32(v)
}

// Varint reads a signed varint.
func (d *Decoder) Varint() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.Fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

// Text reads a length and so many bytes, and copies them into a string.
func (d *Decoder) Text() string { return string(d.Bytes(d.Count(1))) }

// Count reads a number of things of at least size bytes each, so that a forged count cannot make the caller allocate
// more than the input could hold.
func (d *Decoder) Count(size int) int {
	n := d.Uvarint()
	if n > uint64(len(d.b)/size) {
		d.Fail()
		return 0
	}
	return int(n)
}

// End reports, as an error that wraps ErrCorrupt, that something was malformed or is left over.
func (d *Decoder) End(what string) error {
	if d.bad || len(d.b) != 0 {
		return fmt.Errorf("%w: %s", ErrCorrupt, what)
	}
	return nil
}

// AppendText appends what Text reads.
func AppendText(dst []byte, s string) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}
