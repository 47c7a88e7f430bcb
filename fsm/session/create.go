package session

import (
	"encoding/binary"
	"fmt"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage/wire"
)

// CreateRequest begins a session. The tokens' secrets are made by whoever proposes it, and do not come here.
type CreateRequest struct {
	User       UserKey
	Kind       Kind
	Idle, Life fsm.Millis
	Access     Hash
	Device     uint64
	Group      uint64
	Profile    []byte
	Attributes []byte // sealed, may be empty
	// RefreshLife is how long refresh tokens count; 0 for a session without.
	RefreshLife     fsm.Millis
	Family, Refresh Hash
	// Sessions and Devices are how many the user may have with this one, 0 for no limit of its own. Evict ends the
	// oldest ones when it would be more; without it the session is refused.
	Sessions, Devices uint32
	Evict             bool
}

const (
	createRefresh = 1
	createEvict   = 2
)

// Append appends the encoding.
func (q *CreateRequest) Append(dst []byte) []byte {
	var bits byte
	if q.RefreshLife > 0 {
		bits |= createRefresh
	}
	if q.Evict {
		bits |= createEvict
	}
	dst = append(dst, bits, byte(q.Kind))
	dst = append(dst, q.User[:]...)
	dst = appendMillis(appendMillis(dst, q.Idle), q.Life)
	dst = append(dst, q.Access[:]...)
	dst = binary.LittleEndian.AppendUint64(dst, q.Device)
	dst = binary.LittleEndian.AppendUint64(dst, q.Group)
	dst = appendSealed(appendSealed(dst, q.Profile), q.Attributes)
	dst = binary.AppendUvarint(binary.AppendUvarint(dst, uint64(q.Sessions)), uint64(q.Devices))
	if q.RefreshLife > 0 {
		dst = appendMillis(dst, q.RefreshLife)
		dst = append(append(dst, q.Family[:]...), q.Refresh[:]...)
	}
	return dst
}

// Decode implements the requests of package fsm.
func (q *CreateRequest) Decode(b []byte) error {
	d := wire.NewDecoder(b)
	bits := d.Byte()
	q.Evict = bits&createEvict != 0
	q.Kind = Kind(d.Byte())
	q.User = decodeUser(&d)
	q.Idle, q.Life = decodeMillis(&d), decodeMillis(&d)
	q.Access = decodeHash(&d)
	q.Device, q.Group = d.Uint64(), d.Uint64()
	q.Profile, q.Attributes = decodeSealed(&d, MaxProfile), decodeSealed(&d, MaxAttributes)
	q.Sessions, q.Devices = d.Uint32(), d.Uint32()
	if bits&createRefresh != 0 {
		q.RefreshLife = decodeMillis(&d)
		q.Family, q.Refresh = decodeHash(&d), decodeHash(&d)
		if q.RefreshLife == 0 {
			d.Fail()
		}
	}
	if bits > createRefresh|createEvict || q.Kind < Web || q.Kind > kinds || q.Life == 0 {
		d.Fail()
	}
	return d.End("create session")
}

// CreateResult names the session.
type CreateResult struct {
	Session      Key
	Until        fsm.Time // its access token ends then at the latest
	RefreshUntil fsm.Time // 0 without refresh token
	Evicted      uint32   // sessions that ended for it
}

// Append appends the encoding.
func (r *CreateResult) Append(dst []byte) []byte {
	dst = r.Session.Append(dst)
	dst = binary.AppendVarint(binary.AppendVarint(dst, int64(r.Until)), int64(r.RefreshUntil))
	return binary.AppendUvarint(dst, uint64(r.Evicted))
}

// Decode parses the encoding.
func (r *CreateResult) Decode(b []byte) error {
	d := wire.NewDecoder(b)
	r.Session = decodeKey(&d)
	r.Until, r.RefreshUntil, r.Evicted = fsm.Time(d.Varint()), fsm.Time(d.Varint()), d.Uint32()
	return d.End("created session")
}

func create(tx *fsm.Tx, q *CreateRequest) (*CreateResult, error) {
	u, err := loadUser(tx, q.User)
	if err != nil {
		return nil, err
	}
	leaving, err := admit(tx, u, q)
	if err != nil {
		return nil, err
	}
	for _, l := range leaving {
		if err := finish(tx, u, l.key, l.row, l.reason); err != nil {
			return nil, err
		}
	}
	now := tx.Now()
	k := Key{q.User, number(tx)}
	r := &row{
		kind: q.Kind, created: now, seen: now, idle: q.Idle, life: q.Life, until: now + fsm.Time(q.Life), issued: now,
		device: q.Device, group: q.Group, profile: append([]byte(nil), q.Profile...),
	}
	r.access.replace(q.Access)
	if q.RefreshLife > 0 {
		r.refreshUntil, r.family = now+fsm.Time(q.RefreshLife), q.Family
		r.refresh.replace(q.Refresh)
	}
	r.put(tx, k)
	tx.ExpireAt(k.under(prefixSession), look(tx, r.end()))
	if len(q.Attributes) > 0 {
		tx.Set(k.under(prefixAttributes), appendVersioned(nil, 1, q.Attributes))
	}
	u.live = append(u.live, entry{k.Number, q.Device})
	u.put(tx, q.User)
	if err := changeCounts(tx, func(c *counts) {
		c.active[q.Kind]++
		c.created[q.Kind]++
	}); err != nil {
		return nil, err
	}
	tx.Emit(Event{Kind: EventCreated, Session: k}.append(nil))
	evicted := 0
	for _, l := range leaving {
		if l.reason == Evicted {
			evicted++
		}
	}
	return &CreateResult{Session: k, Until: r.until, RefreshUntil: r.refreshUntil, Evicted: uint32(evicted)}, nil
}

// number makes the number of a session: no other of the shard has it, and later ones are greater.
func number(tx *fsm.Tx) uint64 { return tx.Index()*fsm.MaxOps + uint64(tx.Op()) }

// leaver is a session that ends so that another can begin.
type leaver struct {
	key    Key
	row    *row
	reason Reason
}

// admit lists who leaves for a new session: those beyond the limits, after those that are over though not swept yet. It
// changes nothing, and looks at the user's sessions only if there may be too many.
func admit(tx *fsm.Tx, u *user, q *CreateRequest) ([]leaver, error) {
	sessions, devices := int(q.Sessions), int(q.Devices)
	if sessions == 0 || sessions > MaxSessions {
		sessions = MaxSessions
	}
	if len(u.excess(q.Device, sessions, devices)) == 0 {
		return nil, nil
	}
	var leaving []leaver
	var alive user
	rows := make(map[uint64]*row, len(u.live))
	for _, e := range u.live {
		k := Key{q.User, e.number}
		r, err := listed(tx, k)
		if err != nil {
			return nil, err
		}
		if reason := r.over(tx.Now()); reason != 0 {
			leaving = append(leaving, leaver{k, r, reason})
			continue
		}
		rows[e.number] = r
		alive.live = append(alive.live, e)
	}
	excess := alive.excess(q.Device, sessions, devices)
	if len(excess) > 0 && !q.Evict {
		return nil, fsm.Errorf(fsm.Exhausted, "the user has %d sessions, and these or their devices are as many as allowed: end one first", len(alive.live))
	}
	for _, n := range excess {
		leaving = append(leaving, leaver{Key{q.User, n}, rows[n], Evicted})
	}
	return leaving, nil
}

// listed returns a session that its user's record lists, over or not.
func listed(tx *fsm.Tx, k Key) (*row, error) {
	stored, err := tx.Row(k.under(prefixSession), decodeRow)
	if err != nil {
		return nil, fmt.Errorf("read session: %w", err)
	}
	if stored == nil {
		return nil, fmt.Errorf("%w: session %x is in its user's record and not stored", fsm.ErrCorrupt, k.Append(nil))
	}
	return stored.(*row), nil
}
