package session

import (
	"encoding/binary"
	"fmt"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage/wire"
)

// row is a live session, stored under its Key.
type row struct {
	kind          Kind
	flagged       bool // somebody should look at it
	stepUp        bool // it counts for nothing until its user has proved again who they are
	created, seen fsm.Time
	idle          fsm.Millis // without use, 0 for no such timeout
	life          fsm.Millis // of an access token
	until         fsm.Time   // the access token counts until then at most
	issued        fsm.Time   // when its tokens were last exchanged, or made
	access        ring
	device        uint64 // hash of the device's fingerprint, 0 if unknown
	group         uint64 // hash of the name of the login it belongs to, 0 if none
	profile       []byte // sealed: who, which device, from where

	refreshUntil fsm.Time // refresh tokens count until then; 0 if it has none
	family       Hash     // of the part that all its refresh tokens share
	refresh      ring
}

// accessEnd is when the access token ends unless it is used.
func (r *row) accessEnd() fsm.Time {
	if r.idle > 0 {
		return min(r.until, r.seen+fsm.Time(r.idle))
	}
	return r.until
}

// end is when nothing keeps the session alive.
func (r *row) end() fsm.Time { return max(r.accessEnd(), r.refreshUntil) }

// over tells why the session is over at t, 0 if it is not.
func (r *row) over(t fsm.Time) Reason {
	switch {
	case t < r.end():
		return 0
	case r.refreshUntil == 0 && r.accessEnd() < r.until:
		return Idle
	}
	return Expired
}

// The bits of a row's first byte, above its kind.
const (
	rowKind    = 0x07
	rowFlagged = 0x08
	rowStepUp  = 0x10
	rowRefresh = 0x20
	rowDevice  = 0x40
	rowGroup   = 0x80
)

// Append implements fsm.Row. Times are relative to created.
func (r *row) Append(dst []byte) []byte {
	head := byte(r.kind)
	if r.flagged {
		head |= rowFlagged
	}
	if r.stepUp {
		head |= rowStepUp
	}
	if r.refreshUntil != 0 {
		head |= rowRefresh
	}
	if r.device != 0 {
		head |= rowDevice
	}
	if r.group != 0 {
		head |= rowGroup
	}
	dst = append(dst, head)
	dst = binary.AppendVarint(dst, int64(r.created))
	dst = appendTime(dst, r.seen, r.created)
	dst = binary.AppendUvarint(dst, uint64(r.idle))
	dst = binary.AppendUvarint(dst, uint64(r.life))
	dst = appendTime(dst, r.until, r.created)
	dst = appendTime(dst, r.issued, r.created)
	dst = r.access.append(dst, r.created)
	if r.device != 0 {
		dst = binary.LittleEndian.AppendUint64(dst, r.device)
	}
	if r.group != 0 {
		dst = binary.LittleEndian.AppendUint64(dst, r.group)
	}
	dst = appendSealed(dst, r.profile)
	if r.refreshUntil != 0 {
		dst = appendTime(dst, r.refreshUntil, r.created)
		dst = append(dst, r.family[:]...)
		dst = r.refresh.append(dst, r.created)
	}
	return dst
}

func appendTime(dst []byte, t, base fsm.Time) []byte { return binary.AppendVarint(dst, int64(t-base)) }

func decodeTime(d *wire.Decoder, base fsm.Time) fsm.Time { return base + fsm.Time(d.Varint()) }

func decodeRow(b []byte) (fsm.Row, error) {
	d := wire.NewDecoder(b)
	head := d.Byte()
	r := &row{kind: Kind(head & rowKind), flagged: head&rowFlagged != 0, stepUp: head&rowStepUp != 0}
	r.created = fsm.Time(d.Varint())
	r.seen = decodeTime(&d, r.created)
	r.idle, r.life = fsm.Millis(d.Uvarint()), fsm.Millis(d.Uvarint())
	r.until, r.issued = decodeTime(&d, r.created), decodeTime(&d, r.created)
	r.access = decodeRing(&d, r.created)
	if head&rowDevice != 0 {
		r.device = d.Uint64()
	}
	if head&rowGroup != 0 {
		r.group = d.Uint64()
	}
	r.profile = append([]byte(nil), decodeSealed(&d, MaxProfile)...)
	if head&rowRefresh != 0 {
		r.refreshUntil = decodeTime(&d, r.created)
		r.family = decodeHash(&d)
		r.refresh = decodeRing(&d, r.created)
	}
	if r.kind < Web || r.kind > kinds || r.idle < 0 || r.life < 0 {
		d.Fail()
	}
	if err := d.End("session"); err != nil {
		return nil, err
	}
	return r, nil
}

// load returns a session that is not over, nil if there is none.
func load(tx *fsm.Tx, k Key) (*row, error) {
	stored, err := tx.Row(k.under(prefixSession), decodeRow)
	if err != nil {
		return nil, fmt.Errorf("read session: %w", err)
	}
	if stored == nil {
		return nil, nil
	}
	r := stored.(*row)
	if r.over(tx.Now()) != 0 {
		return nil, nil // the sweep ends it
	}
	return r, nil
}

func (r *row) put(tx *fsm.Tx, k Key) { tx.PutRow(k.under(prefixSession), r) }
