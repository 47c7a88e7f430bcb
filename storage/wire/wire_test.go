package wire

import (
	"encoding/binary"
	"errors"
	"math"
	"testing"

	"pgregory.net/rapid"
)

func TestWhatWasAppendedIsRead(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		u, v, w := rapid.Uint64().Draw(t, "u"), rapid.Int64().Draw(t, "v"), rapid.Uint32().Draw(t, "w")
		text := rapid.String().Draw(t, "text")
		b := binary.AppendUvarint(nil, u)
		b = binary.AppendVarint(b, v)
		b = binary.AppendUvarint(b, uint64(w))
		b = binary.LittleEndian.AppendUint64(b, u)
		b = append(AppendText(b, text), 7, 8, 9)
		d := NewDecoder(b)
		if got := d.Uvarint(); got != u {
			t.Errorf("Uvarint: %d, want %d", got, u)
		}
		if got := d.Varint(); got != v {
			t.Errorf("Varint: %d, want %d", got, v)
		}
		if got := d.Uint32(); got != w {
			t.Errorf("Uint32: %d, want %d", got, w)
		}
		if got := d.Uint64(); got != u {
			t.Errorf("Uint64: %d, want %d", got, u)
		}
		if got := d.Text(); got != text {
			t.Errorf("Text: %q, want %q", got, text)
		}
		if d.Byte() != 7 || string(d.Rest()) != "\x08\x09" {
			t.Errorf("then %v", d.Rest())
		}
		if err := d.End("it"); !errors.Is(err, ErrCorrupt) {
			t.Errorf("with two bytes left: %v", err)
		}
		if string(d.Bytes(2)) != "\x08\x09" || d.Bad() || d.End("it") != nil {
			t.Errorf("at the end: %v", d.End("it"))
		}
	})
}

// A failure stays: whatever is read after it is zero, and nothing is allocated for what is not there.
func TestWhatIsMissingFailsForGood(t *testing.T) {
	for name, tt := range map[string]struct {
		input string
		read  func(d *Decoder) any
		zero  any
	}{
		"byte":               {"", func(d *Decoder) any { return d.Byte() }, byte(0)},
		"bytes":              {"ab", func(d *Decoder) any { return len(d.Bytes(3)) }, 0},
		"negative":           {"ab", func(d *Decoder) any { return len(d.Bytes(-1)) }, 0},
		"fixed":              {"1234567", func(d *Decoder) any { return d.Uint64() }, uint64(0)},
		"endless varint":     {"\xff\xff\xff", func(d *Decoder) any { return d.Uvarint() }, uint64(0)},
		"varint too long":    {"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", func(d *Decoder) any { return d.Uvarint() }, uint64(0)},
		"signed":             {"\x80", func(d *Decoder) any { return d.Varint() }, int64(0)},
		"more than 32 bits":  {string(binary.AppendUvarint(nil, math.MaxUint32+1)), func(d *Decoder) any { return d.Uint32() }, uint32(0)},
		"text":               {"\x05abc", func(d *Decoder) any { return d.Text() }, ""},
		"count":              {"\x03" + "aabb", func(d *Decoder) any { return d.Count(2) }, 0},
		"a count beyond all": {string(binary.AppendUvarint(nil, math.MaxUint64)), func(d *Decoder) any { return d.Count(1) }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			d := NewDecoder([]byte(tt.input))
			if got := tt.read(&d); got != tt.zero || !d.Bad() {
				t.Errorf("read %v, bad %v", got, d.Bad())
			}
			d.Skip([]byte("\x01more")) // another decoder cannot heal it
			if err := d.End("it"); !errors.Is(err, ErrCorrupt) {
				t.Errorf("the end: %v", err)
			}
		})
	}
}
