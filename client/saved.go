package client

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// Saved keeps the sessions of frameworks that make their tokens themselves and save a session whole; packages scsstore
// and gorillastore are written on it. What is dropped stays dropped: a request that loaded a session before its logout
// and saves it afterwards gets an ErrConflict, until the session would have ended by itself.
type Saved struct{ c *Client }

// SavedKey names a saved session: it is the SHA-256 of its token, which is all that the cluster keeps of it. With a key, a
// session can be ended and overwritten, but not read: only who has the token is let in.
type SavedKey [sha256.Size]byte

// KeyOf is the key of a token.
func KeyOf(token string) SavedKey { return sha256.Sum256([]byte(token)) }

const savedPrefix = "sha256:"

// String is the form that ParseSavedKey reads.
func (k SavedKey) String() string { return savedPrefix + hex.EncodeToString(k[:]) }

// ParseSavedKey reads what String wrote; false if it is anything else.
func ParseSavedKey(text string) (k SavedKey, ok bool) {
	digits, ok := strings.CutPrefix(text, savedPrefix)
	if !ok || len(digits) != hex.EncodedLen(len(k)) {
		return SavedKey{}, false
	}
	if _, err := hex.Decode(k[:], []byte(digits)); err != nil {
		return SavedKey{}, false
	}
	return k, true
}

// SavedSession is a saved session.
type SavedSession struct {
	Key       SavedKey
	Data      []byte
	ExpiresAt time.Time
}

func (s *Saved) call(ctx context.Context, k SavedKey, method uint32, q *pb.SavedSession) (*pb.SavedSession, error) {
	q.TokenHash = k[:]
	r := &pb.SavedSession{}
	shard := s.c.routes.Load().shardAt(binary.BigEndian.Uint16(k[:]))
	return r, s.c.callIn(ctx, shard, typeSessions, method, method >= methodValidate, q, r)
}

// Save stores a session until a time, in the place of what was there.
func (s *Saved) Save(ctx context.Context, key SavedKey, data []byte, expires time.Time) error {
	_, err := s.call(ctx, key, methodSave, &pb.SavedSession{Data: data, ExpiresAtMs: expires.UnixMilli()})
	return err
}

// Find reads the session of a token; false if there is none.
func (s *Saved) Find(ctx context.Context, token string) (data []byte, found bool, err error) {
	r, err := s.call(ctx, KeyOf(token), methodFindSaved, &pb.SavedSession{})
	if err != nil || !r.Found {
		return nil, false, err
	}
	return slices.Clone(r.Data), true, nil // not the frame that it came in
}

// Drop ends a session for good, and tells whether there was one.
func (s *Saved) Drop(ctx context.Context, key SavedKey) (bool, error) {
	r, err := s.call(ctx, key, methodDrop, &pb.SavedSession{})
	return err == nil && r.Found, err
}

// Scan yields all sessions, in the order of their keys. It is not a picture of one moment: of sessions that are saved or
// dropped meanwhile, it may yield some. An error is the last that it yields.
func (s *Saved) Scan(ctx context.Context) iter.Seq2[SavedSession, error] {
	return func(yield func(SavedSession, error) bool) {
		for _, shard := range s.c.routes.Load().shards {
			q := &pb.ScanSavedRequest{Shard: shard.Shard}
			for more := true; more; more = len(q.After) > 0 {
				var r pb.ScanSavedResponse
				if err := s.c.callIn(ctx, shard.Shard, typeSessions, methodScanSaved, true, q, &r); err != nil {
					yield(SavedSession{}, fmt.Errorf("scan saved sessions: %w", err))
					return
				}
				for _, m := range r.Sessions {
					if !yield(savedSession(m), nil) {
						return
					}
				}
				q.After = r.Next
			}
		}
	}
}

func savedSession(m *pb.SavedSession) (s SavedSession) {
	copy(s.Key[:], m.TokenHash)
	s.Data, s.ExpiresAt = slices.Clone(m.Data), time.UnixMilli(m.ExpiresAtMs)
	return s
}
