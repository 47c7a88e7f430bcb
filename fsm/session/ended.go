package session

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage/kv"
	"github.com/holdfastdb/holdfast/storage/plant"
	"github.com/holdfastdb/holdfast/storage/wire"
)

// ended is what stays of a session that ended, stored under its Key, for its user's history.
type ended struct {
	kind          Kind
	reason        Reason
	created, seen fsm.Time
	at            fsm.Time
	proof         [8]byte // of the newest access token: who holds it is told the reason
	profile       []byte
}

// keepEnded is how long an ended session stays in its user's history, in milliseconds: 30 days.
const keepEnded fsm.Time = 30 * 24 * 3600 * 1000

func (e *ended) append(dst []byte) []byte {
	dst = append(dst, byte(e.kind), byte(e.reason))
	dst = binary.AppendVarint(dst, int64(e.created))
	dst = appendTime(dst, e.seen, e.created)
	dst = appendTime(dst, e.at, e.created)
	dst = append(dst, e.proof[:]...)
	return appendSealed(dst, e.profile)
}

func decodeEnded(b []byte) (e ended, err error) {
	d := wire.NewDecoder(b)
	e.kind, e.reason = Kind(d.Byte()), Reason(d.Byte())
	e.created = fsm.Time(d.Varint())
	e.seen, e.at = decodeTime(&d, e.created), decodeTime(&d, e.created)
	copy(e.proof[:], d.Bytes(len(e.proof)))
	e.profile = decodeSealed(&d, MaxProfile)
	if e.kind < Web || e.kind > kinds || e.reason < LoggedOut || e.reason > reasons {
		d.Fail()
	}
	return e, d.End("ended session")
}

// finish ends a session: its row goes, and what stays of it is written. The user's record is u, which the caller stores.
func finish(tx *fsm.Tx, u *user, k Key, r *row, reason Reason) error {
	tx.DeleteRow(k.under(prefixSession))
	if r.attributes {
		tx.DeleteRow(k.under(prefixAttributes))
	}
	u.drop(k.Number)
	if err := changeCounts(tx, func(c *counts) {
		c.active[r.kind]--
		c.ended[reason]++
	}); err != nil {
		return err
	}
	tx.Emit(Event{Kind: EventEnded, Session: k, Reason: reason}.append(nil))
	if reason == Erased {
		return nil
	}
	e := ended{kind: r.kind, reason: reason, created: r.created, seen: r.seen, at: tx.Now(), profile: r.profile}
	if reason == Evicted && plant.On(plant.WrongReason) {
		e.reason = Revoked
	}
	if n := len(r.access.now); n > 0 {
		copy(e.proof[:], r.access.now[n-1][:])
	}
	key := k.under(prefixEnded)
	tx.Set(key, e.append(nil))
	tx.ExpireAt(key, look(tx, tx.Now()+keepEnded))
	if len(u.ended) >= maxEnded {
		tx.Delete(Key{k.User, u.ended[0]}.under(prefixEnded))
		u.ended = u.ended[1:]
	}
	u.ended = append(u.ended, k.Number)
	return nil
}

// lookEvery is how often a row is looked at in any case, in milliseconds: what went before its time would stay in the expiry
// index until then, and logins that follow each other would fill it.
const lookEvery fsm.Time = 24 * 3600 * 1000

// look is when to look at a row that ends at a time.
func look(tx *fsm.Tx, end fsm.Time) fsm.Time { return min(end, tx.Now()+lookEvery) }

// sweep ends what is over, and forgets what ended long ago; see fsm.Type.
func sweep(tx *fsm.Tx, key []byte) error {
	switch {
	case len(key) == 1+KeyBytes && key[0] == prefixSession:
		return sweepSession(tx, DecodeKey(key[1:]))
	case len(key) == 1+KeyBytes && key[0] == prefixEnded:
		return sweepEnded(tx, key)
	case len(key) == 1+len(Hash{}) && key[0] == prefixSaved:
		return sweepSaved(tx, key)
	}
	return fmt.Errorf("%w: session key %x in the expiry index", fsm.ErrCorrupt, key)
}

func sweepSession(tx *fsm.Tx, k Key) error {
	stored, err := tx.Row(k.under(prefixSession), decodeRow)
	if err != nil || stored == nil {
		return err
	}
	r := stored.(*row)
	reason := r.over(tx.Now())
	if reason == 0 {
		tx.ExpireAt(k.under(prefixSession), look(tx, r.end()))
		return nil
	}
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

func sweepEnded(tx *fsm.Tx, key []byte) error {
	b, err := tx.Get(key)
	if errors.Is(err, kv.ErrNotFound) {
		return nil // pushed out by newer ones, or erased
	}
	if err != nil {
		return err
	}
	e, err := decodeEnded(b)
	if err != nil {
		return err
	}
	if end := e.at + keepEnded; end > tx.Now() {
		tx.ExpireAt(key, look(tx, end))
		return nil
	}
	k := DecodeKey(key[1:])
	tx.Delete(key)
	u, err := loadUser(tx, k.User)
	if err != nil {
		return err
	}
	u.forget(k.Number)
	u.put(tx, k.User)
	return nil
}
