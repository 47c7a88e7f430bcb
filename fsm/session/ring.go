package session

import (
	"crypto/subtle"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage/wire"
)

// ring holds the hashes of the tokens of one use, access or refresh, that a session accepts: those of now, and those that
// the last rotation replaced, for the grace after it. There are several of now when an answer was lost and its token was
// issued again, or when requests raced for the next one: each caller may hold another.
type ring struct {
	now     []Hash
	before  []Hash
	rotated fsm.Time
}

// maxTokens bounds each half of a ring.
const maxTokens = 4

// has tells whether h is one of list, in a time that does not depend on which.
func has(list []Hash, h *Hash) bool {
	found := 0
	for i := range list {
		found |= subtle.ConstantTimeCompare(list[i][:], h[:])
	}
	return found == 1
}

// inGrace tells whether what was rotated away still counts.
func (r *ring) inGrace(t fsm.Time) bool { return t < r.rotated+fsm.Time(Grace) }

// accepts tells whether a token with this hash counts at t.
func (r *ring) accepts(h *Hash, t fsm.Time) bool {
	fresh, old := has(r.now, h), has(r.before, h)
	return fresh || old && r.inGrace(t)
}

// rotate makes h the only one of now.
func (r *ring) rotate(h Hash, t fsm.Time) { r.before, r.now, r.rotated = r.now, []Hash{h}, t }

// replace makes h the only one, without grace for the others.
func (r *ring) replace(h Hash) { r.before, r.now = nil, []Hash{h} }

// full tells that there are as many of now as there may be.
func (r *ring) full() bool { return len(r.now) >= maxTokens }

// add makes h another one of now. The ring is not full.
func (r *ring) add(h Hash) { r.now = append(r.now, h) }

// forget drops what was rotated away and counts no more.
func (r *ring) forget(t fsm.Time) {
	if !r.inGrace(t) {
		r.before = nil
	}
}

// append writes lengths, hashes, and when they were rotated, relative to base.
func (r *ring) append(dst []byte, base fsm.Time) []byte {
	dst = append(dst, byte(len(r.now)<<4|len(r.before)))
	for _, half := range [...][]Hash{r.now, r.before} {
		for i := range half {
			dst = append(dst, half[i][:]...)
		}
	}
	if len(r.before) > 0 {
		dst = appendTime(dst, r.rotated, base)
	}
	return dst
}

func decodeRing(d *wire.Decoder, base fsm.Time) (r ring) {
	n := d.Byte()
	r.now, r.before = decodeHashes(d, int(n>>4)), decodeHashes(d, int(n&15))
	if len(r.before) > 0 {
		r.rotated = decodeTime(d, base)
	}
	return r
}

func decodeHashes(d *wire.Decoder, n int) []Hash {
	if n > maxTokens {
		d.Fail()
	}
	if d.Bad() || n == 0 {
		return nil
	}
	list := make([]Hash, n)
	for i := range list {
		list[i] = decodeHash(d)
	}
	return list
}
