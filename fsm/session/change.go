package session

import (
	"encoding/binary"
	"fmt"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage/wire"
)

// TouchRequest tells when sessions were used. Those that are over stay so.
type TouchRequest struct{ Uses []Use }

// Use is one session and when it was used.
type Use struct {
	Session Key
	At      fsm.Time
}

// MaxTouch bounds the uses of one request.
const MaxTouch = 4096

// Append appends the encoding.
func (q *TouchRequest) Append(dst []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(q.Uses)))
	for _, u := range q.Uses {
		dst = binary.AppendVarint(u.Session.Append(dst), int64(u.At))
	}
	return dst
}

// Decode implements the requests of package fsm.
func (q *TouchRequest) Decode(b []byte) error {
	d := wire.NewDecoder(b)
	n := d.Count(KeyBytes + 1)
	if n > MaxTouch {
		d.Fail()
		n = 0
	}
	q.Uses = make([]Use, n)
	for i := range q.Uses {
		q.Uses[i] = Use{decodeKey(&d), fsm.Time(d.Varint())}
	}
	return d.End("touch sessions")
}

func touch(tx *fsm.Tx, q *TouchRequest) (*Count, error) {
	var c Count
	for _, u := range q.Uses {
		r, err := load(tx, u.Session)
		if err != nil {
			return nil, err
		}
		at := min(u.At, tx.Now())
		if r == nil || at <= r.seen || tx.Now() >= r.accessEnd() {
			continue
		}
		r.seen = at
		r.access.forget(tx.Now())
		r.refresh.forget(tx.Now())
		r.put(tx, u.Session)
		c.N++
	}
	return &c, nil
}

// RotateRequest gives a session a new access token, for instance when its user's privileges change. The old one counts
// for nothing at once.
type RotateRequest struct {
	Session Key
	Token   Hash // presented
	Access  Hash // to come
	Proved  bool // the user has proved again who they are: a required step-up is done
}

// Append appends the encoding.
func (q *RotateRequest) Append(dst []byte) []byte {
	dst = append(append(q.Session.Append(dst), q.Token[:]...), q.Access[:]...)
	return append(dst, bit(q.Proved, 1))
}

// Decode implements the requests of package fsm.
func (q *RotateRequest) Decode(b []byte) error {
	d := wire.NewDecoder(b)
	q.Session, q.Token, q.Access = decodeKey(&d), decodeHash(&d), decodeHash(&d)
	q.Proved = d.Byte() == 1
	return d.End("rotate session")
}

func rotate(tx *fsm.Tx, q *RotateRequest) (*RefreshResult, error) {
	r, err := load(tx, q.Session)
	if err != nil {
		return nil, err
	}
	now := tx.Now()
	if r == nil {
		return &RefreshResult{Verdict: UnknownToken}, nil
	}
	switch verdict := r.judge(&q.Token, now); {
	case verdict != Valid && verdict != StepUp:
		return &RefreshResult{Verdict: verdict}, nil
	case !has(r.access.now, &q.Token): // the grace is for requests that were under way, not for exchanges
		return &RefreshResult{Verdict: RotatedAway}, nil
	}
	r.access.replace(q.Access)
	r.stepUp, r.seen, r.issued = r.stepUp && !q.Proved, now, now
	r.put(tx, q.Session)
	tx.Emit(Event{Kind: EventChanged, Session: q.Session}.append(nil))
	return &RefreshResult{Verdict: Valid, Until: r.until, RefreshUntil: r.refreshUntil}, nil
}

// SetAttributesRequest replaces a session's attributes if they have not changed since Version was read.
type SetAttributesRequest struct {
	Session Key
	Version uint64 // 0 if there were none
	Sealed  []byte
}

// Append appends the encoding.
func (q *SetAttributesRequest) Append(dst []byte) []byte {
	return appendVersioned(q.Session.Append(dst), q.Version, q.Sealed)
}

// Decode implements the requests of package fsm.
func (q *SetAttributesRequest) Decode(b []byte) error {
	d := wire.NewDecoder(b)
	q.Session, q.Version, q.Sealed = decodeKey(&d), d.Uvarint(), decodeSealed(&d, MaxAttributes)
	return d.End("set attributes")
}

func appendVersioned(dst []byte, version uint64, sealed []byte) []byte {
	return appendSealed(binary.AppendUvarint(dst, version), sealed)
}

// Version is the answer of SetAttributes: the version that was made.
type Version struct{ V uint64 }

// Append appends the encoding.
func (r *Version) Append(dst []byte) []byte { return binary.AppendUvarint(dst, r.V) }

// Decode parses the encoding.
func (r *Version) Decode(b []byte) error {
	d := wire.NewDecoder(b)
	r.V = d.Uvarint()
	return d.End("version")
}

// attributes are those of a session, stored under its Key.
type attributes struct {
	version uint64
	sealed  []byte
}

// Append implements fsm.Row.
func (a *attributes) Append(dst []byte) []byte { return appendVersioned(dst, a.version, a.sealed) }

func decodeAttributes(b []byte) (fsm.Row, error) {
	d := wire.NewDecoder(b)
	a := &attributes{version: d.Uvarint()}
	a.sealed = append([]byte(nil), decodeSealed(&d, MaxAttributes)...)
	if err := d.End("attributes"); err != nil {
		return nil, err
	}
	return a, nil
}

// attributesOf reads a session's attributes; version 0 if it has none. The caller must not change them.
func attributesOf(r interface {
	Row(key []byte, decode func([]byte) (fsm.Row, error)) (fsm.Row, error)
}, k Key, has bool) (attributes, error) {
	if !has {
		return attributes{}, nil
	}
	stored, err := r.Row(k.under(prefixAttributes), decodeAttributes)
	if err != nil {
		return attributes{}, fmt.Errorf("read attributes: %w", err)
	}
	a, _ := stored.(*attributes)
	if a == nil {
		return attributes{}, fmt.Errorf("%w: the attributes of session %x are not stored", fsm.ErrCorrupt, k.Append(nil))
	}
	return *a, nil
}

func setAttributes(tx *fsm.Tx, q *SetAttributesRequest) (*Version, error) {
	r, err := load(tx, q.Session)
	if err != nil {
		return nil, err
	}
	if r == nil {
		return nil, errEnded
	}
	old, err := attributesOf(tx, q.Session, r.attributes)
	if err != nil {
		return nil, err
	}
	if old.version != q.Version {
		return nil, fsm.Errorf(fsm.Conflict, "the attributes are at version %d, not %d", old.version, q.Version)
	}
	tx.PutRow(q.Session.under(prefixAttributes), &attributes{old.version + 1, append([]byte(nil), q.Sealed...)})
	if !r.attributes {
		r.attributes = true
		r.put(tx, q.Session)
	}
	tx.Emit(Event{Kind: EventChanged, Session: q.Session}.append(nil))
	return &Version{old.version + 1}, nil
}

var errEnded = fsm.Errorf(fsm.NotFound, "there is no such session, or it has ended")

// MarkRequest notes that something about a session is suspicious, and acts on it.
type MarkRequest struct {
	Session Key
	Sign    Sign
	Act     Act
	// Profile replaces what the session says of its user, if it is not empty: the next request from the same place is
	// no news.
	Profile []byte
}

// Act is what a sign leads to. Stored: never reorder.
type Act uint8

// The acts.
const (
	Flag       Act = 1 // the session is flagged and goes on
	AskAgain   Act = 2 // it counts for nothing until it is rotated
	EndSession Act = 3
)

// Append appends the encoding.
func (q *MarkRequest) Append(dst []byte) []byte {
	return appendSealed(append(q.Session.Append(dst), byte(q.Sign), byte(q.Act)), q.Profile)
}

// Decode implements the requests of package fsm.
func (q *MarkRequest) Decode(b []byte) error {
	d := wire.NewDecoder(b)
	q.Session, q.Sign, q.Act = decodeKey(&d), Sign(d.Byte()), Act(d.Byte())
	q.Profile = decodeSealed(&d, MaxProfile)
	if q.Sign < NetworkChanged || q.Sign > TwoNetworks || q.Act < Flag || q.Act > EndSession {
		d.Fail()
	}
	return d.End("mark session")
}

func mark(tx *fsm.Tx, q *MarkRequest) (*Done, error) {
	r, err := load(tx, q.Session)
	if err != nil || r == nil {
		return &Done{}, err
	}
	tx.Emit(Event{Kind: EventMarked, Session: q.Session, Mark: q.Sign}.append(nil))
	if q.Act == EndSession {
		return &Done{true}, end(tx, q.Session, r, Suspicious)
	}
	r.flagged = true
	r.stepUp = r.stepUp || q.Act == AskAgain
	if len(q.Profile) > 0 {
		r.profile = append([]byte(nil), q.Profile...)
	}
	r.put(tx, q.Session)
	tx.Emit(Event{Kind: EventChanged, Session: q.Session}.append(nil))
	return &Done{true}, nil
}
