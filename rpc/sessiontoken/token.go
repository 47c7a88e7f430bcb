// Package sessiontoken is the form of the tokens and ids of sessions. It is a leaf, shared by SDK and server: whoever has a
// token can tell which shard to ask, and whether it can be one of this cluster, without asking.
//
// A token is a prefix that tells its kind and URL-safe base64 of
//
//	cluster (4 bytes) | user key (16) | number (8) | secret (32) | family (32, refresh tokens alone) | CRC-32C (4)
//
// The user key and the number name the session, and the first two bytes of the user key are its slot; the secret is what
// counts, and comes from the operating system's random numbers. The checksum tells a token that was cut off or mistyped
// from one that is unknown; it protects nothing.
package sessiontoken

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"strings"
)

// Kind tells what a token is for.
type Kind uint8

// The kinds.
const (
	Access  Kind = 1
	Refresh Kind = 2
)

// The prefixes make tokens easy to find where they should not be, as in logs and repositories.
const (
	prefixAccess  = "hfs_"
	prefixRefresh = "hfr_"
	prefixID      = "ses_"
)

const (
	clusterBytes = 4
	// IDBytes is the size of a session's name: the user key and the number.
	IDBytes = 16 + 8
	// SecretBytes is the size of a secret.
	SecretBytes = 32
	sumBytes    = 4
)

// MaxText bounds the length of tokens and ids.
const MaxText = 160

// ID names a session: its user key, which begins with its slot, and its number.
type ID [IDBytes]byte

// Slot is where the session is.
func (id ID) Slot() uint16 { return binary.BigEndian.Uint16(id[:]) }

// String is the form in which users see it.
func (id ID) String() string { return prefixID + base64.RawURLEncoding.EncodeToString(id[:]) }

// Cluster is the mark of a cluster in its tokens.
type Cluster [clusterBytes]byte

// ClusterOf is the mark of the cluster with an id.
func ClusterOf(id string) (c Cluster) {
	sum := sha256.Sum256([]byte("holdfast cluster " + id))
	copy(c[:], sum[:])
	return c
}

// Secret is a part of a token that only its holder knows.
type Secret [SecretBytes]byte

// Hash is what the cluster keeps of it.
func (s *Secret) Hash() [sha256.Size]byte { return sha256.Sum256(s[:]) }

// Token is a token in parts.
type Token struct {
	Kind    Kind
	Cluster Cluster
	Session ID
	Secret  Secret
	// Family is the same in all refresh tokens of a session.
	Family Secret
}

// The errors of Parse.
var (
	// ErrMalformed: it is no token, or not a whole one.
	ErrMalformed = errors.New("not a token, or not a whole one")
	// ErrForeign: it is of another cluster.
	ErrForeign = errors.New("a token of another cluster")
	// ErrKind: it is an access token where a refresh token is needed, or the other way round.
	ErrKind = errors.New("a token of the other kind")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// String is the form in which users see it.
func (t *Token) String() string {
	b := make([]byte, 0, clusterBytes+IDBytes+2*SecretBytes+sumBytes)
	b = append(append(append(b, t.Cluster[:]...), t.Session[:]...), t.Secret[:]...)
	prefix := prefixAccess
	if t.Kind == Refresh {
		prefix = prefixRefresh
		b = append(b, t.Family[:]...)
	}
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli)^uint32(t.Kind))
	return prefix + base64.RawURLEncoding.EncodeToString(b)
}

// Parse reads a token of a kind. A zero cluster accepts those of any.
func Parse(text string, kind Kind, cluster Cluster) (Token, error) {
	t := Token{Kind: kind}
	prefix, other, size := prefixAccess, prefixRefresh, clusterBytes+IDBytes+SecretBytes+sumBytes
	if kind == Refresh {
		prefix, other, size = prefixRefresh, prefixAccess, size+SecretBytes
	}
	if len(text) > MaxText {
		return Token{}, ErrMalformed
	}
	rest, ok := strings.CutPrefix(text, prefix)
	if !ok {
		if strings.HasPrefix(text, other) {
			return Token{}, ErrKind
		}
		return Token{}, ErrMalformed
	}
	var room [MaxText]byte
	b := room[:size]
	if !decode(b, rest) {
		return Token{}, ErrMalformed
	}
	body, sum := b[:size-sumBytes], binary.BigEndian.Uint32(b[size-sumBytes:])
	if crc32.Checksum(body, castagnoli)^uint32(kind) != sum {
		return Token{}, ErrMalformed
	}
	copy(t.Cluster[:], body)
	copy(t.Session[:], body[clusterBytes:])
	copy(t.Secret[:], body[clusterBytes+IDBytes:])
	if kind == Refresh {
		copy(t.Family[:], body[clusterBytes+IDBytes+SecretBytes:])
	}
	if cluster != (Cluster{}) && t.Cluster != cluster {
		return Token{}, ErrForeign
	}
	return t, nil
}

// strict knows one text for some bytes, but for line breaks, which it skips.
var strict = base64.RawURLEncoding.Strict()

// decode fills b from base64. No text of the right length has line breaks and is enough. It makes no garbage, as every
// validation comes through here.
func decode(b []byte, text string) bool {
	if len(text) != strict.EncodedLen(len(b)) {
		return false
	}
	var room [MaxText]byte
	n, err := strict.Decode(b, room[:copy(room[:], text)])
	return err == nil && n == len(b)
}

// ParseID reads the id of a session.
func ParseID(text string) (id ID, err error) {
	rest, ok := strings.CutPrefix(text, prefixID)
	if !ok || len(text) > MaxText {
		return ID{}, ErrMalformed
	}
	if !decode(id[:], rest) {
		return ID{}, ErrMalformed
	}
	return id, nil
}
