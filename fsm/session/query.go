package session

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage/kv"
	"github.com/holdfastdb/holdfast/storage/wire"
)

// ValidateRequest asks whether an access token counts.
type ValidateRequest struct {
	Session    Key
	Token      Hash
	Attributes bool // are wanted
}

// Append appends the encoding.
func (q *ValidateRequest) Append(dst []byte) []byte {
	return append(append(q.Session.Append(dst), q.Token[:]...), bit(q.Attributes, 1))
}

// Decode implements the requests of package fsm.
func (q *ValidateRequest) Decode(b []byte) error {
	d := wire.NewDecoder(b)
	q.Session, q.Token = decodeKey(&d), decodeHash(&d)
	q.Attributes = d.Byte() == 1
	return d.End("validate session")
}

// Info tells of one session.
type Info struct {
	Session       Key
	Verdict       Verdict
	Reason        Reason // if it has ended
	Kind          Kind
	Flagged       bool
	StepUp        bool
	Created, Seen fsm.Time
	// Until is when the access token ends if it is not used again, or when the session ended.
	Until        fsm.Time
	RefreshUntil fsm.Time // 0 without refresh tokens
	Idle         fsm.Millis
	Group        uint64
	Profile      []byte
	Version      uint64 // of the attributes, 0 if there are none or they were not asked for
	Attributes   []byte
}

const (
	infoFlagged = 1
	infoStepUp  = 2
)

// Append appends the encoding.
func (i *Info) Append(dst []byte) []byte {
	dst = append(i.Session.Append(dst), byte(i.Verdict), byte(i.Reason), byte(i.Kind), bit(i.Flagged, infoFlagged)|bit(i.StepUp, infoStepUp))
	for _, t := range [...]fsm.Time{i.Created, i.Seen, i.Until, i.RefreshUntil} {
		dst = binary.AppendVarint(dst, int64(t))
	}
	dst = appendMillis(dst, i.Idle)
	dst = binary.LittleEndian.AppendUint64(dst, i.Group)
	dst = appendSealed(dst, i.Profile)
	return appendVersioned(dst, i.Version, i.Attributes)
}

// Decode parses the encoding.
func (i *Info) Decode(b []byte) error {
	d := wire.NewDecoder(b)
	i.decode(&d)
	return d.End("session")
}

func (i *Info) decode(d *wire.Decoder) {
	i.Session = decodeKey(d)
	i.Verdict, i.Reason, i.Kind = Verdict(d.Byte()), Reason(d.Byte()), Kind(d.Byte())
	bits := d.Byte()
	i.Flagged, i.StepUp = bits&infoFlagged != 0, bits&infoStepUp != 0
	for _, t := range [...]*fsm.Time{&i.Created, &i.Seen, &i.Until, &i.RefreshUntil} {
		*t = fsm.Time(d.Varint())
	}
	i.Idle = decodeMillis(d)
	i.Group = d.Uint64()
	i.Profile = decodeSealed(d, MaxProfile)
	i.Version, i.Attributes = d.Uvarint(), decodeSealed(d, MaxAttributes)
}

const minInfo = KeyBytes + 20

func (r *row) info(k Key) Info {
	return Info{
		Session: k, Kind: r.kind, Flagged: r.flagged, StepUp: r.stepUp, Created: r.created, Seen: r.seen, Until: r.accessEnd(),
		RefreshUntil: r.refreshUntil, Idle: r.idle, Group: r.group, Profile: r.profile,
	}
}

// view reads a session, nil if there is none. The caller must not change it.
func view(v *fsm.View, k Key) (*row, error) {
	stored, err := v.Row(k.under(prefixSession), decodeRow)
	if err != nil {
		return nil, fmt.Errorf("read session: %w", err)
	}
	r, _ := stored.(*row)
	return r, nil
}

// judge says what an access token is worth at t.
func (r *row) judge(token *Hash, t fsm.Time) Verdict {
	fresh, old := has(r.access.now, token), has(r.access.before, token)
	switch {
	case !fresh && !old:
		return UnknownToken
	case !fresh && !r.access.inGrace(t):
		return RotatedAway
	case t >= r.until:
		return TimeOver
	case t >= r.accessEnd():
		return IdleTooLong
	case r.stepUp:
		return StepUp
	}
	return Valid
}

// tokenEnd is when an access token ends unless it is used: one that was rotated away does with its grace. Nothing is told
// when that is over, so who remembers that the token counts must be told now.
func (r *row) tokenEnd(token *Hash) fsm.Time {
	if !has(r.access.now, token) {
		return min(r.accessEnd(), r.access.rotated+fsm.Time(Grace))
	}
	return r.accessEnd()
}

func validate(v *fsm.View, q *ValidateRequest) (*Info, error) {
	r, err := view(v, q.Session)
	if err != nil {
		return nil, err
	}
	if r == nil {
		return past(v, q)
	}
	verdict := r.judge(&q.Token, v.Now())
	if verdict == UnknownToken || verdict == RotatedAway {
		return &Info{Verdict: verdict}, nil
	}
	i := r.info(q.Session)
	i.Verdict, i.Until = verdict, r.tokenEnd(&q.Token)
	if q.Attributes && verdict == Valid {
		a, err := attributesOf(v, q.Session, r.attributes)
		if err != nil {
			return nil, err
		}
		i.Version, i.Attributes = a.version, a.sealed
	}
	return &i, nil
}

// reader is what commands and questions read plain values from.
type reader interface{ Get([]byte) ([]byte, error) }

// past tells who holds the last token of a session that ended why it did.
func past(v reader, q *ValidateRequest) (*Info, error) {
	e, err := viewEnded(v, q.Session)
	if err != nil || e == nil {
		return &Info{Verdict: UnknownToken}, err
	}
	var proof Hash
	copy(proof[:], e.proof[:])
	var token Hash
	copy(token[:len(e.proof)], q.Token[:])
	if !has([]Hash{proof}, &token) {
		return &Info{Verdict: UnknownToken}, nil
	}
	i := e.info(q.Session)
	i.Verdict = Ended
	return &i, nil
}

func viewEnded(v reader, k Key) (*ended, error) {
	b, err := v.Get(k.under(prefixEnded))
	if errors.Is(err, kv.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read ended session: %w", err)
	}
	e, err := decodeEnded(b)
	return &e, err
}

func (e *ended) info(k Key) Info {
	return Info{
		Session: k, Verdict: Ended, Reason: e.reason, Kind: e.kind, Created: e.created, Seen: e.seen, Until: e.at,
		Profile: append([]byte(nil), e.profile...),
	}
}

// GetRequest asks for one session by its name.
type GetRequest struct{ Session Key }

// Append appends the encoding.
func (q *GetRequest) Append(dst []byte) []byte { return q.Session.Append(dst) }

// Decode implements the requests of package fsm.
func (q *GetRequest) Decode(b []byte) error {
	d := wire.NewDecoder(b)
	q.Session = decodeKey(&d)
	return d.End("get session")
}

// get tells of a session, with its attributes, or of what stays of it.
func get(v *fsm.View, q *GetRequest) (*Info, error) {
	r, err := view(v, q.Session)
	if err != nil {
		return nil, err
	}
	if r != nil && r.over(v.Now()) == 0 {
		i := r.info(q.Session)
		i.Verdict = Valid
		a, err := attributesOf(v, q.Session, r.attributes)
		if err != nil {
			return nil, err
		}
		i.Version, i.Attributes = a.version, a.sealed
		return &i, nil
	}
	if r != nil {
		i := r.info(q.Session)
		i.Verdict, i.Reason, i.Until = Ended, r.over(v.Now()), r.end()
		return &i, nil
	}
	e, err := viewEnded(v, q.Session)
	if err != nil {
		return nil, err
	}
	if e == nil {
		return nil, errEnded
	}
	i := e.info(q.Session)
	return &i, nil
}

// ListRequest asks for the sessions of a user.
type ListRequest struct{ User UserKey }

// Append appends the encoding.
func (q *ListRequest) Append(dst []byte) []byte { return append(dst, q.User[:]...) }

// Decode implements the requests of package fsm.
func (q *ListRequest) Decode(b []byte) error {
	d := wire.NewDecoder(b)
	q.User = decodeUser(&d)
	return d.End("list sessions")
}

// Infos is a list of sessions. Next, if there is more, is where it goes on.
type Infos struct {
	List []Info
	More bool
	Next Key
}

// Append appends the encoding.
func (r *Infos) Append(dst []byte) []byte {
	dst = r.Next.Append(append(dst, bit(r.More, 1)))
	dst = binary.AppendUvarint(dst, uint64(len(r.List)))
	for i := range r.List {
		dst = r.List[i].Append(dst)
	}
	return dst
}

// Decode parses the encoding.
func (r *Infos) Decode(b []byte) error {
	d := wire.NewDecoder(b)
	r.More = d.Byte() == 1
	r.Next = decodeKey(&d)
	r.List = make([]Info, d.Count(minInfo))
	for i := range r.List {
		r.List[i].decode(&d)
	}
	return d.End("sessions")
}

func list(v *fsm.View, q *ListRequest) (*Infos, error) {
	var r Infos
	err := sessionsOf(v, q.User, func(k Key, row *row) {
		if row.over(v.Now()) == 0 {
			i := row.info(k)
			i.Verdict = Valid
			r.List = append(r.List, i)
		}
	})
	return &r, err
}

// sessionsOf calls f with the sessions of a user that no sweep has ended yet.
func sessionsOf(v *fsm.View, of UserKey, f func(Key, *row)) error {
	record, err := v.Row(of.under(prefixUser), decodeUserRow)
	if err != nil {
		return fmt.Errorf("read user of sessions: %w", err)
	}
	u, _ := record.(*user)
	if u == nil {
		return nil
	}
	for _, e := range u.live {
		k := Key{of, e.number}
		row, err := view(v, k)
		if err != nil {
			return err
		}
		if row == nil {
			return fmt.Errorf("%w: session %x is in its user's record and not stored", fsm.ErrCorrupt, k.Append(nil))
		}
		f(k, row)
	}
	return nil
}

// history lists what stays of a user's ended sessions, in the order in which they began. Those that time has ended are among
// them, whether a sweep has come by or not: a list has them no longer.
func history(v *fsm.View, q *ListRequest) (*Infos, error) {
	from := q.User.under(prefixEnded)
	it, err := v.Iter(from, after(from))
	if err != nil {
		return nil, err
	}
	defer it.Close()
	var r Infos
	for it.Next() {
		e, err := decodeEnded(it.Value())
		if err != nil {
			return nil, err
		}
		r.List = append(r.List, e.info(DecodeKey(it.Key()[1:])))
	}
	if err := it.Err(); err != nil {
		return nil, err
	}
	err = sessionsOf(v, q.User, func(k Key, row *row) {
		if why := row.over(v.Now()); why != 0 {
			e := ended{kind: row.kind, reason: why, created: row.created, seen: row.seen, at: row.end(), profile: row.profile}
			r.List = append(r.List, e.info(k))
		}
	})
	slices.SortFunc(r.List, func(a, b Info) int { return cmp.Compare(a.Session.Number, b.Session.Number) })
	return &r, err
}

// ScanRequest walks over all live sessions of a shard, so many at a time.
type ScanRequest struct {
	After Key // the zero Key to begin
	Limit uint32
}

// MaxScan bounds the sessions of one answer.
const MaxScan = 1000

// maxPage is how many bytes of profiles, or of frameworks' sessions, make an answer full.
const maxPage = 1 << 20

// Append appends the encoding.
func (q *ScanRequest) Append(dst []byte) []byte {
	return binary.AppendUvarint(q.After.Append(dst), uint64(q.Limit))
}

// Decode implements the requests of package fsm.
func (q *ScanRequest) Decode(b []byte) error {
	d := wire.NewDecoder(b)
	q.After, q.Limit = decodeKey(&d), d.Uint32()
	if q.Limit == 0 || q.Limit > MaxScan {
		d.Fail()
	}
	return d.End("scan sessions")
}

func scan(v *fsm.View, q *ScanRequest) (*Infos, error) {
	from := append(q.After.under(prefixSession), 0)
	it, err := v.Iter(from, []byte{prefixSession + 1})
	if err != nil {
		return nil, err
	}
	defer it.Close()
	var r Infos
	size := 0
	for n := uint32(0); it.Next(); n++ {
		if n == q.Limit || size > maxPage {
			r.More = true
			break
		}
		k := DecodeKey(it.Key()[1:])
		stored, err := decodeRow(it.Value())
		if err != nil {
			return nil, err
		}
		r.Next = k
		if row := stored.(*row); row.over(v.Now()) == 0 {
			i := row.info(k)
			i.Verdict = Valid
			r.List = append(r.List, i)
			size += len(i.Profile)
		}
	}
	return &r, it.Err()
}

// CountsRequest asks for the analytics of a shard.
type CountsRequest struct{}

// Append appends the encoding.
func (q *CountsRequest) Append(dst []byte) []byte { return dst }

// Decode implements the requests of package fsm.
func (q *CountsRequest) Decode(b []byte) error {
	d := wire.NewDecoder(b)
	return d.End("counts")
}

// Counts are the analytics of a shard: by Kind, and by Reason.
type Counts struct {
	Active, Created map[Kind]uint64
	Ended           map[Reason]uint64
}

func counted(v *fsm.View, _ *CountsRequest) (fsm.Row, error) {
	stored, err := v.Row([]byte(keyCounts), decodeCounts)
	if stored == nil {
		stored = new(counts)
	}
	return stored, err
}

// Decode parses the answer to a CountsRequest.
func (r *Counts) Decode(b []byte) error {
	stored, err := decodeCounts(b)
	if err != nil {
		return err
	}
	c := stored.(*counts)
	r.Active, r.Created, r.Ended = make(map[Kind]uint64), make(map[Kind]uint64), make(map[Reason]uint64)
	for k := Web; k <= kinds; k++ {
		r.Active[k], r.Created[k] = c.active[k], c.created[k]
	}
	for x := LoggedOut; x <= reasons; x++ {
		r.Ended[x] = c.ended[x]
	}
	return nil
}
