package session

import (
	"encoding/binary"
	"fmt"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage/plant"
	"github.com/holdfastdb/holdfast/storage/wire"
)

// end ends one session.
func end(tx *fsm.Tx, k Key, r *row, reason Reason) error {
	u, err := loadUser(tx, k.User)
	if err != nil {
		return err
	}
	if err := finish(tx, u, k, r, reason); err != nil {
		return err
	}
	u.put(tx, k.User)
	return nil
}

// RevokeRequest ends sessions, of any users of the shard. Those that are not there, or over, are left alone.
type RevokeRequest struct {
	Reason   Reason
	Sessions []Key
}

// MaxRevoke bounds the sessions of one RevokeRequest.
const MaxRevoke = 1000

// Append appends the encoding.
func (q *RevokeRequest) Append(dst []byte) []byte {
	dst = binary.AppendUvarint(append(dst, byte(q.Reason)), uint64(len(q.Sessions)))
	for _, k := range q.Sessions {
		dst = k.Append(dst)
	}
	return dst
}

// Decode implements the requests of package fsm.
func (q *RevokeRequest) Decode(b []byte) error {
	d := wire.NewDecoder(b)
	q.Reason = decodeReason(&d)
	n := d.Count(KeyBytes)
	if n > MaxRevoke {
		d.Fail()
		n = 0
	}
	q.Sessions = make([]Key, n)
	for i := range q.Sessions {
		q.Sessions[i] = decodeKey(&d)
	}
	return d.End("revoke sessions")
}

func decodeReason(d *wire.Decoder) Reason {
	r := Reason(d.Byte())
	if r < LoggedOut || r > reasons {
		d.Fail()
	}
	return r
}

// Count is the answer of commands on many sessions: how many it ended.
type Count struct{ N uint32 }

// Append appends the encoding.
func (r *Count) Append(dst []byte) []byte { return binary.AppendUvarint(dst, uint64(r.N)) }

// Decode parses the encoding.
func (r *Count) Decode(b []byte) error {
	d := wire.NewDecoder(b)
	r.N = d.Uint32()
	return d.End("number of sessions")
}

func revoke(tx *fsm.Tx, q *RevokeRequest) (*Count, error) {
	var c Count
	for _, k := range q.Sessions {
		r, err := load(tx, k)
		if err != nil {
			return nil, err
		}
		if r == nil {
			continue
		}
		c.N++
		if plant.On(plant.KeepRevoked) {
			continue
		}
		if err := end(tx, k, r, q.Reason); err != nil {
			return nil, err
		}
	}
	return &c, nil
}

// RevokeUserRequest ends all sessions of a user, but for one, or those of one login.
type RevokeUserRequest struct {
	User   UserKey
	Reason Reason
	Except uint64 // the number of a session that stays, 0 for none
	Group  uint64 // only those of this login, 0 for all
}

// Append appends the encoding.
func (q *RevokeUserRequest) Append(dst []byte) []byte {
	dst = append(append(dst, q.User[:]...), byte(q.Reason))
	dst = binary.AppendUvarint(dst, q.Except)
	return binary.LittleEndian.AppendUint64(dst, q.Group)
}

// Decode implements the requests of package fsm.
func (q *RevokeUserRequest) Decode(b []byte) error {
	d := wire.NewDecoder(b)
	q.User, q.Reason, q.Except, q.Group = decodeUser(&d), decodeReason(&d), d.Uvarint(), d.Uint64()
	return d.End("revoke sessions of a user")
}

func revokeUser(tx *fsm.Tx, q *RevokeUserRequest) (*Count, error) {
	u, err := loadUser(tx, q.User)
	if err != nil {
		return nil, err
	}
	var c Count
	for _, e := range append([]entry(nil), u.live...) {
		k := Key{q.User, e.number}
		r, err := listed(tx, k)
		if err != nil {
			return nil, err
		}
		if e.number == q.Except && !plant.On(plant.SpareNone) || q.Group != 0 && r.group != q.Group {
			continue
		}
		reason := r.over(tx.Now())
		if reason == 0 {
			reason = q.Reason
			c.N++
		}
		if err := finish(tx, u, k, r, reason); err != nil {
			return nil, err
		}
	}
	u.put(tx, q.User)
	return &c, nil
}

// PurgeUserRequest deletes all that is known of a user: the sessions end, and nothing of them stays but their numbers in
// the expiry index, which go when they come due.
type PurgeUserRequest struct{ User UserKey }

// Append appends the encoding.
func (q *PurgeUserRequest) Append(dst []byte) []byte { return append(dst, q.User[:]...) }

// Decode implements the requests of package fsm.
func (q *PurgeUserRequest) Decode(b []byte) error {
	d := wire.NewDecoder(b)
	q.User = decodeUser(&d)
	return d.End("purge a user")
}

func purgeUser(tx *fsm.Tx, q *PurgeUserRequest) (*Count, error) {
	u, err := loadUser(tx, q.User)
	if err != nil {
		return nil, err
	}
	var c Count
	for _, e := range append([]entry(nil), u.live...) {
		k := Key{q.User, e.number}
		r, err := listed(tx, k)
		if err != nil {
			return nil, err
		}
		if r.over(tx.Now()) == 0 {
			c.N++
		}
		if err := finish(tx, u, k, r, Erased); err != nil {
			return nil, fmt.Errorf("purge: %w", err)
		}
	}
	for _, number := range u.ended {
		if plant.On(plant.KeepHistory) {
			break
		}
		tx.Delete(Key{q.User, number}.under(prefixEnded))
	}
	u.ended = nil
	u.put(tx, q.User)
	return &c, nil
}
