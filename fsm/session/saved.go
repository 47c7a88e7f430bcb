package session

import (
	"encoding/binary"
	"fmt"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage/plant"
	"github.com/holdfastdb/holdfast/storage/wire"
)

// Frameworks that have session stores make their tokens themselves and save a session whole, at the end of each request:
// a request that began before a logout and ends after it would bring the session back. So what is dropped leaves a
// tombstone until the session would have ended by itself, and saving it is refused.

// keepDropped is how long a tombstone stays at least, in milliseconds: longer than any request takes that was under way
// when the session was dropped.
const keepDropped fsm.Time = 3600 * 1000

// saved is a framework's session, stored under the hash of its token. It is dead when it was dropped.
type saved struct {
	dead   bool
	until  fsm.Time
	sealed []byte
}

// Append implements fsm.Row.
func (s *saved) Append(dst []byte) []byte {
	dst = binary.AppendVarint(append(dst, bit(s.dead, 1)), int64(s.until))
	return appendSealed(dst, s.sealed)
}

func decodeSaved(b []byte) (fsm.Row, error) {
	d := wire.NewDecoder(b)
	s := &saved{dead: d.Byte() == 1, until: fsm.Time(d.Varint())}
	s.sealed = append([]byte(nil), decodeSealed(&d, MaxSaved)...)
	if err := d.End("saved session"); err != nil {
		return nil, err
	}
	return s, nil
}

func (h *Hash) under(prefix byte) []byte {
	return append(append(make([]byte, 0, 1+len(h)), prefix), h[:]...)
}

// SaveRequest saves a framework's session until a time.
type SaveRequest struct {
	Token  Hash
	Until  fsm.Time
	Sealed []byte
}

// Append appends the encoding.
func (q *SaveRequest) Append(dst []byte) []byte {
	dst = binary.AppendVarint(append(dst, q.Token[:]...), int64(q.Until))
	return appendSealed(dst, q.Sealed)
}

// Decode implements the requests of package fsm.
func (q *SaveRequest) Decode(b []byte) error {
	d := wire.NewDecoder(b)
	q.Token, q.Until, q.Sealed = decodeHash(&d), fsm.Time(d.Varint()), decodeSealed(&d, MaxSaved)
	return d.End("save session")
}

// ErrDropped is what saving a dropped session gives.
var ErrDropped = fsm.Errorf(fsm.Conflict, "the session was ended: it cannot be saved again")

func save(tx *fsm.Tx, q *SaveRequest) (*Done, error) {
	key := q.Token.under(prefixSaved)
	stored, err := tx.Row(key, decodeSaved)
	if err != nil {
		return nil, fmt.Errorf("read saved session: %w", err)
	}
	if stored != nil && stored.(*saved).dead {
		return nil, ErrDropped
	}
	before, _ := stored.(*saved)
	until := min(q.Until, tx.Now()+fsm.Time(MaxLife))
	// It is in the expiry index already, within a day and not after its end of before.
	if before == nil || until < min(before.until, tx.Now()+lookEvery) {
		tx.ExpireAt(key, look(tx, until))
	}
	tx.PutRow(key, &saved{until: until, sealed: append([]byte(nil), q.Sealed...)})
	return &Done{before != nil && before.until > tx.Now()}, nil
}

// DropRequest ends a framework's session.
type DropRequest struct{ Token Hash }

// Append appends the encoding.
func (q *DropRequest) Append(dst []byte) []byte { return append(dst, q.Token[:]...) }

// Decode implements the requests of package fsm.
func (q *DropRequest) Decode(b []byte) error {
	d := wire.NewDecoder(b)
	q.Token = decodeHash(&d)
	return d.End("drop session")
}

func drop(tx *fsm.Tx, q *DropRequest) (*Done, error) {
	key := q.Token.under(prefixSaved)
	stored, err := tx.Row(key, decodeSaved)
	if err != nil {
		return nil, fmt.Errorf("read saved session: %w", err)
	}
	s, _ := stored.(*saved)
	if s == nil || s.dead {
		return &Done{}, nil
	}
	if plant.On(plant.NoTombstone) {
		tx.DeleteRow(key)
		return &Done{s.until > tx.Now()}, nil
	}
	tx.PutRow(key, &saved{dead: true, until: max(s.until, tx.Now()+keepDropped)})
	return &Done{s.until > tx.Now()}, nil
}

func sweepSaved(tx *fsm.Tx, key []byte) error {
	stored, err := tx.Row(key, decodeSaved)
	if err != nil || stored == nil {
		return err
	}
	if s := stored.(*saved); s.until > tx.Now() {
		tx.ExpireAt(key, look(tx, s.until))
		return nil
	}
	tx.DeleteRow(key)
	return nil
}

// Saved is a framework's session. Found is false if there is none.
type Saved struct {
	Found  bool
	Token  Hash
	Until  fsm.Time
	Sealed []byte
}

// Append appends the encoding.
func (r *Saved) Append(dst []byte) []byte {
	dst = append(append(dst, bit(r.Found, 1)), r.Token[:]...)
	return appendSealed(binary.AppendVarint(dst, int64(r.Until)), r.Sealed)
}

// Decode parses the encoding.
func (r *Saved) Decode(b []byte) error {
	d := wire.NewDecoder(b)
	r.decode(&d)
	return d.End("saved session")
}

func (r *Saved) decode(d *wire.Decoder) {
	r.Found, r.Token, r.Until, r.Sealed = d.Byte() == 1, decodeHash(d), fsm.Time(d.Varint()), decodeSealed(d, MaxSaved)
}

func findSaved(v *fsm.View, q *DropRequest) (*Saved, error) {
	stored, err := v.Row(q.Token.under(prefixSaved), decodeSaved)
	if err != nil {
		return nil, fmt.Errorf("read saved session: %w", err)
	}
	s, _ := stored.(*saved)
	if s == nil || s.dead || s.until <= v.Now() {
		return &Saved{}, nil
	}
	return &Saved{Found: true, Token: q.Token, Until: s.until, Sealed: s.sealed}, nil
}

// ScanSavedRequest walks over the frameworks' sessions of a shard.
type ScanSavedRequest struct {
	After Hash // the zero Hash to begin
	Limit uint32
}

// Append appends the encoding.
func (q *ScanSavedRequest) Append(dst []byte) []byte {
	return binary.AppendUvarint(append(dst, q.After[:]...), uint64(q.Limit))
}

// Decode implements the requests of package fsm.
func (q *ScanSavedRequest) Decode(b []byte) error {
	d := wire.NewDecoder(b)
	q.After, q.Limit = decodeHash(&d), d.Uint32()
	if q.Limit == 0 || q.Limit > MaxScan {
		d.Fail()
	}
	return d.End("scan saved sessions")
}

// SavedList is a page of frameworks' sessions. Next, if there is more, is where it goes on.
type SavedList struct {
	List []Saved
	More bool
	Next Hash
}

const minSaved = 35

// Append appends the encoding.
func (r *SavedList) Append(dst []byte) []byte {
	dst = append(append(dst, bit(r.More, 1)), r.Next[:]...)
	dst = binary.AppendUvarint(dst, uint64(len(r.List)))
	for i := range r.List {
		dst = r.List[i].Append(dst)
	}
	return dst
}

// Decode parses the encoding.
func (r *SavedList) Decode(b []byte) error {
	d := wire.NewDecoder(b)
	r.More, r.Next = d.Byte() == 1, decodeHash(&d)
	r.List = make([]Saved, d.Count(minSaved))
	for i := range r.List {
		r.List[i].decode(&d)
	}
	return d.End("saved sessions")
}

func scanSaved(v *fsm.View, q *ScanSavedRequest) (*SavedList, error) {
	it, err := v.Iter(append(q.After.under(prefixSaved), 0), []byte{prefixSaved + 1})
	if err != nil {
		return nil, err
	}
	defer it.Close()
	var r SavedList
	size := 0
	for n := uint32(0); it.Next(); n++ {
		if n == q.Limit || size > maxPage {
			r.More = true
			break
		}
		stored, err := decodeSaved(it.Value())
		if err != nil {
			return nil, err
		}
		copy(r.Next[:], it.Key()[1:])
		if s := stored.(*saved); !s.dead && s.until > v.Now() {
			r.List = append(r.List, Saved{true, r.Next, s.until, s.sealed})
			size += len(s.sealed)
		}
	}
	return &r, it.Err()
}
