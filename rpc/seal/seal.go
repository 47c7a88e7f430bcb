// Package seal encrypts what sessions say of their users before it goes into the log, so that log, state, snapshots and
// backups hold ciphertext alone. Each sealed text begins with a byte that tells how it was sealed; texts that were sealed
// before keys were configured stay readable.
package seal

import "errors"

// The first byte. Stored: never reorder.
const (
	plain     = 0
	encrypted = 1
)

// ErrUnreadable is returned for what this node has no key for, or what was changed.
var ErrUnreadable = errors.New("sealed with a key that this node does not have: give all nodes the same keys")

// AEAD is authenticated encryption with associated data.
type AEAD interface {
	Encrypt(plaintext, associated []byte) ([]byte, error)
	Decrypt(ciphertext, associated []byte) ([]byte, error)
}

// Sealer seals with the newest of its keys, and opens with any. Without keys it does not encrypt.
type Sealer struct{ aead AEAD }

// New makes a Sealer; aead may be nil.
func New(aead AEAD) *Sealer { return &Sealer{aead} }

// Encrypts tells whether there are keys.
func (s *Sealer) Encrypts() bool { return s.aead != nil }

// Seal seals a text for a place, which Open must name.
func (s *Sealer) Seal(text, place []byte) ([]byte, error) {
	if s.aead == nil {
		return append([]byte{plain}, text...), nil
	}
	c, err := s.aead.Encrypt(text, place)
	if err != nil {
		return nil, err
	}
	return append([]byte{encrypted}, c...), nil
}

// Open is the inverse of Seal.
func (s *Sealer) Open(sealed, place []byte) ([]byte, error) {
	switch {
	case len(sealed) > 0 && sealed[0] == plain:
		return sealed[1:], nil
	case len(sealed) > 0 && sealed[0] == encrypted && s.aead != nil:
		text, err := s.aead.Decrypt(sealed[1:], place)
		if err == nil {
			return text, nil
		}
	}
	return nil, ErrUnreadable
}
