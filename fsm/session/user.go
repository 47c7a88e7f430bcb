package session

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage/plant"
	"github.com/holdfastdb/holdfast/storage/wire"
)

// user is the record of a user, stored under its UserKey: the sessions it has, oldest first, and those that ended, in the
// order in which they did.
type user struct {
	live  []entry
	ended []uint64
}

// entry is a session in its user's record, with what limits need to know of it.
type entry struct {
	number uint64
	device uint64 // as in the session
}

// maxEnded is how many ended sessions of a user are remembered.
const maxEnded = 100

// Append implements fsm.Row.
func (u *user) Append(dst []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(u.live)))
	for _, e := range u.live {
		dst = binary.AppendUvarint(dst, e.number)
		dst = binary.LittleEndian.AppendUint64(dst, e.device)
	}
	dst = binary.AppendUvarint(dst, uint64(len(u.ended)))
	for _, number := range u.ended {
		dst = binary.AppendUvarint(dst, number)
	}
	return dst
}

func decodeUserRow(b []byte) (fsm.Row, error) {
	d := wire.NewDecoder(b)
	u := &user{live: make([]entry, d.Count(9))}
	for i := range u.live {
		u.live[i] = entry{number: d.Uvarint(), device: d.Uint64()}
	}
	u.ended = make([]uint64, d.Count(1))
	for i := range u.ended {
		u.ended[i] = d.Uvarint()
	}
	if err := d.End("user of sessions"); err != nil {
		return nil, err
	}
	return u, nil
}

func loadUser(tx *fsm.Tx, k UserKey) (*user, error) {
	stored, err := tx.Row(k.under(prefixUser), decodeUserRow)
	if err != nil {
		return nil, fmt.Errorf("read user of sessions: %w", err)
	}
	if stored == nil {
		return &user{}, nil
	}
	return stored.(*user), nil
}

func (u *user) put(tx *fsm.Tx, k UserKey) {
	if len(u.live)+len(u.ended) == 0 {
		tx.DeleteRow(k.under(prefixUser))
		return
	}
	tx.PutRow(k.under(prefixUser), u)
}

// drop forgets a live session.
func (u *user) drop(number uint64) {
	u.live = slices.DeleteFunc(u.live, func(e entry) bool { return e.number == number })
}

// forget drops an ended session.
func (u *user) forget(number uint64) {
	u.ended = slices.DeleteFunc(u.ended, func(n uint64) bool { return n == number })
}

// excess lists the sessions that must end so that one more, on a device, keeps to the limits; 0 means no limit. Oldest
// first; a device goes with all its sessions. An unknown device is none, but does not lift the limit of the others.
func (u *user) excess(device uint64, sessions, devices int) []uint64 {
	var out []uint64
	leaves := make(map[uint64]bool)
	if devices > 0 {
		var order []uint64
		seen := map[uint64]bool{device: true, 0: true}
		for _, e := range u.live {
			if !seen[e.device] {
				seen[e.device] = true
				order = append(order, e.device)
			}
		}
		others := devices
		if device != 0 && !plant.On(plant.DeviceMore) {
			others--
		}
		for i := range max(len(order)-others, 0) {
			leaves[order[i]] = true
		}
	}
	left := 0
	for _, e := range u.live {
		if leaves[e.device] {
			out = append(out, e.number)
		} else {
			left++
		}
	}
	for _, e := range u.live {
		if sessions == 0 || left < sessions || plant.On(plant.OneTooMany) && left == sessions {
			break
		}
		if !leaves[e.device] {
			out = append(out, e.number)
			left--
		}
	}
	return out
}
