package session

import (
	"errors"
	"fmt"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage/kv"
)

// check verifies that users' records, sessions, what stays of those that ended, and counts agree; see fsm.Type.
func check(r kv.Reader, now fsm.Time) error {
	v := fsm.ViewOf(r, TypeID, now)
	var active [kinds + 1]uint64
	err := each(v, prefixSession, func(_, value []byte) error {
		stored, err := decodeRow(value)
		if err != nil {
			return err
		}
		active[stored.(*row).kind]++
		return nil
	})
	if err != nil {
		return err
	}
	stored, err := v.Row([]byte(keyCounts), decodeCounts)
	if err != nil {
		return err
	}
	if c, _ := stored.(*counts); c != nil && c.active != active || c == nil && active != [kinds + 1]uint64{} {
		return fmt.Errorf("%v sessions are stored, and %v counted", active, stored)
	}
	isLive, isEnded := make(map[Key]bool), make(map[Key]bool)
	err = each(v, prefixUser, func(key, value []byte) error {
		var k UserKey
		copy(k[:], key)
		return checkUser(k, value, isLive, isEnded)
	})
	if err != nil {
		return err
	}
	for _, part := range [...]struct {
		prefix byte
		listed map[Key]bool
		all    bool // what is listed is there
	}{{prefixSession, isLive, true}, {prefixEnded, isEnded, true}, {prefixAttributes, isLive, false}} {
		if err := checkListed(v, part.prefix, part.listed, part.all); err != nil {
			return err
		}
	}
	return nil
}

// checkUser verifies a user's record and collects what it lists.
func checkUser(k UserKey, value []byte, isLive, isEnded map[Key]bool) error {
	stored, err := decodeUserRow(value)
	if err != nil {
		return err
	}
	u := stored.(*user)
	if n := len(u.live); n > MaxSessions || n+len(u.ended) == 0 || len(u.ended) > maxEnded {
		return fmt.Errorf("%d live and %d ended sessions are listed", n, len(u.ended))
	}
	for i, e := range u.live {
		if i > 0 && e.number <= u.live[i-1].number {
			return fmt.Errorf("session %d is listed after %d", e.number, u.live[i-1].number)
		}
		isLive[Key{k, e.number}] = true
	}
	for _, number := range u.ended {
		isEnded[Key{k, number}] = true
	}
	return nil
}

// checkListed verifies that what is stored under a prefix is in its user's record, and the other way round if all are.
func checkListed(v *fsm.View, prefix byte, listed map[Key]bool, all bool) error {
	n := 0
	err := each(v, prefix, func(key, _ []byte) error {
		n++
		if !listed[DecodeKey(key)] {
			return errors.New("it is not in its user's record")
		}
		return nil
	})
	if err == nil && all && n != len(listed) {
		err = fmt.Errorf("%d keys are stored under %c, and users' records list %d", n, prefix, len(listed))
	}
	return err
}

// each walks over what is stored under a prefix; keys come without it.
func each(v *fsm.View, prefix byte, do func(key, value []byte) error) error {
	it, err := v.Iter([]byte{prefix}, []byte{prefix + 1})
	if err != nil {
		return err
	}
	defer it.Close()
	for it.Next() {
		if err := do(it.Key()[1:], it.Value()); err != nil {
			return fmt.Errorf("%c %x: %w", prefix, it.Key()[1:], err)
		}
	}
	return it.Err()
}
