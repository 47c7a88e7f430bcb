package session

import (
	"crypto/sha256"
	"encoding/binary"

	"github.com/holdfastdb/holdfast/storage/wire"
)

// UserKey names a user: the slot of the user's id, then the first 112 bits of its SHA-256. The shard never sees the id.
type UserKey [16]byte

// NewUserKey makes the key of a user whose id is in a slot.
func NewUserKey(slot uint16, user string) UserKey {
	var k UserKey
	sum := sha256.Sum256([]byte(user))
	binary.BigEndian.PutUint16(k[:], slot)
	copy(k[2:], sum[:])
	return k
}

// Slot is where the user's sessions are.
func (k UserKey) Slot() uint16 { return binary.BigEndian.Uint16(k[:]) }

// Key names a session. Numbers are unique in a shard for ever, and those of a user's sessions ascend.
type Key struct {
	User   UserKey
	Number uint64
}

// KeyBytes is the size of a Key's encoding.
const KeyBytes = 24

// Append appends the encoding, which sorts by user and number.
func (k Key) Append(dst []byte) []byte {
	return binary.BigEndian.AppendUint64(append(dst, k.User[:]...), k.Number)
}

// DecodeKey parses what Append wrote. b has KeyBytes bytes.
func DecodeKey(b []byte) (k Key) {
	copy(k.User[:], b)
	k.Number = binary.BigEndian.Uint64(b[len(k.User):])
	return k
}

// Hash is the SHA-256 of a token's secret.
type Hash [sha256.Size]byte

// The first byte of a stored key tells what follows.
const (
	prefixSession    = 's' // Key: a session
	prefixUser       = 'u' // UserKey: the numbers of the user's sessions
	prefixAttributes = 'a' // Key: version and sealed attributes
	prefixEnded      = 'e' // Key: what stays of it
	prefixSaved      = 'x' // Hash: a framework's session
	keyCounts        = "c"
)

func (k Key) under(prefix byte) []byte { return k.Append(append(make([]byte, 0, 1+KeyBytes), prefix)) }

func (k UserKey) under(prefix byte) []byte {
	return append(append(make([]byte, 0, 1+KeyBytes), prefix), k[:]...)
}

// after is the first key that does not begin with prefix; the keys of this type begin with letters.
func after(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	for i := len(end) - 1; ; i-- {
		end[i]++
		if end[i] != 0 {
			return end[:i+1]
		}
	}
}

func decodeKey(d *wire.Decoder) (k Key) {
	if b := d.Bytes(KeyBytes); b != nil {
		k = DecodeKey(b)
	}
	return k
}

func decodeUser(d *wire.Decoder) (k UserKey) {
	copy(k[:], d.Bytes(len(k)))
	return k
}

func decodeHash(d *wire.Decoder) (h Hash) {
	copy(h[:], d.Bytes(len(h)))
	return h
}

// decodeSealed reads bytes of at most so many; they alias the input.
func decodeSealed(d *wire.Decoder, most int) []byte {
	n := d.Count(1)
	if n > most {
		d.Fail()
		return nil
	}
	return d.Bytes(n)
}

func appendSealed(dst, b []byte) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(b))), b...)
}
