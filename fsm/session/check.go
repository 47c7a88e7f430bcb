package session

import (
	"fmt"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage/kv"
)

// check verifies that users' records and sessions agree; see fsm.Type.
func check(r kv.Reader, now fsm.Time) error {
	v := fsm.ViewOf(r, TypeID, now)
	var active [kinds + 1]uint64
	it, err := v.Iter([]byte{prefixSession}, []byte{prefixSession + 1})
	if err != nil {
		return err
	}
	defer it.Close()
	for it.Next() {
		k := DecodeKey(it.Key()[1:])
		stored, err := decodeRow(it.Value())
		if err != nil {
			return fmt.Errorf("session %x: %w", it.Key(), err)
		}
		active[stored.(*row).kind]++
		u, err := viewUser(v, k.User)
		if err != nil {
			return err
		}
		if !u.lists(k.Number) {
			return fmt.Errorf("session %x is not in its user's record", it.Key())
		}
	}
	if err := it.Err(); err != nil {
		return err
	}
	stored, err := v.Row([]byte(keyCounts), decodeCounts)
	if err != nil {
		return err
	}
	if c, _ := stored.(*counts); c != nil && c.active != active || c == nil && active != [kinds + 1]uint64{} {
		return fmt.Errorf("%v sessions are stored, and %v counted", active, stored)
	}
	return checkUsers(v)
}

// checkUsers verifies that what users' records list is there.
func checkUsers(v *fsm.View) error {
	it, err := v.Iter([]byte{prefixUser}, []byte{prefixUser + 1})
	if err != nil {
		return err
	}
	defer it.Close()
	for it.Next() {
		var k UserKey
		copy(k[:], it.Key()[1:])
		stored, err := decodeUserRow(it.Value())
		if err != nil {
			return fmt.Errorf("user of sessions %x: %w", it.Key(), err)
		}
		for _, e := range stored.(*user).live {
			if _, err := v.Get(Key{k, e.number}.under(prefixSession)); err != nil {
				return fmt.Errorf("session %d of user %x: %w", e.number, k, err)
			}
		}
		for _, number := range stored.(*user).ended {
			if _, err := v.Get(Key{k, number}.under(prefixEnded)); err != nil {
				return fmt.Errorf("ended session %d of user %x: %w", number, k, err)
			}
		}
	}
	return it.Err()
}

// viewUser reads a user's record, an empty one if there is none.
func viewUser(v *fsm.View, k UserKey) (*user, error) {
	stored, err := v.Row(k.under(prefixUser), decodeUserRow)
	u, _ := stored.(*user)
	if u == nil {
		u = &user{}
	}
	return u, err
}

func (u *user) lists(number uint64) bool {
	for i := range u.live {
		if u.live[i].number == number {
			return true
		}
	}
	return false
}
