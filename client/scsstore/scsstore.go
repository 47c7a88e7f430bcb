// Package scsstore keeps the sessions of github.com/alexedwards/scs in Holdfast.
//
//	manager := scs.New()
//	manager.Store = scsstore.New(c.Sessions().Saved())
//
// A logout is final. scs saves a session whole when a request ends, so with other stores a request that began before a
// logout and ends after it brings the session back. Here its commit is refused.
//
// The cluster keeps the SHA-256 of a token and not the token: leave scs.SessionManager.HashTokenInStore off.
package scsstore

import (
	"context"
	"errors"
	"iter"
	"time"

	"github.com/alexedwards/scs/v2"

	"github.com/holdfastdb/holdfast/client"
)

// Sessions are where sessions are saved: *client.Saved.
type Sessions interface {
	Save(ctx context.Context, key client.SavedKey, data []byte, expires time.Time) error
	Find(ctx context.Context, token string) (data []byte, found bool, err error)
	Drop(ctx context.Context, key client.SavedKey) (bool, error)
	Scan(ctx context.Context) iter.Seq2[client.SavedSession, error]
}

// Store implements all interfaces of scs. Those without a context wait for as long as the client's timeout allows.
type Store struct {
	sessions Sessions
	ignore   bool
}

var (
	_ scs.CtxStore         = (*Store)(nil)
	_ scs.IterableStore    = (*Store)(nil)
	_ scs.IterableCtxStore = (*Store)(nil)
)

// Option changes a Store.
type Option func(*Store)

// IgnoreLateCommits makes the commit of a session that was ended meanwhile do nothing, instead of being an error: a
// client.ErrConflict, which scs gives to its ErrorFunc. The session stays ended either way.
func IgnoreLateCommits() Option { return func(s *Store) { s.ignore = true } }

// New makes a store.
func New(sessions Sessions, options ...Option) *Store {
	s := &Store{sessions: sessions}
	for _, o := range options {
		o(s)
	}
	return s
}

// keyOf takes a token, or a key as All gives them, for scs uses these as tokens. That somebody presents a key as a token
// does no harm: what they can do with it, end and overwrite a session, scs does only after it has found one.
func keyOf(token string) client.SavedKey {
	if k, ok := client.ParseSavedKey(token); ok {
		return k
	}
	return client.KeyOf(token)
}

// FindCtx implements scs.CtxStore. It finds nothing by a key.
func (s *Store) FindCtx(ctx context.Context, token string) ([]byte, bool, error) {
	if _, isKey := client.ParseSavedKey(token); isKey {
		return nil, false, nil
	}
	return s.sessions.Find(ctx, token)
}

// CommitCtx implements scs.CtxStore.
func (s *Store) CommitCtx(ctx context.Context, token string, b []byte, expiry time.Time) error {
	err := s.sessions.Save(ctx, keyOf(token), b, expiry)
	if s.ignore && errors.Is(err, client.ErrConflict) {
		return nil
	}
	return err
}

// DeleteCtx implements scs.CtxStore.
func (s *Store) DeleteCtx(ctx context.Context, token string) error {
	_, err := s.sessions.Drop(ctx, keyOf(token))
	return err
}

// AllCtx implements scs.IterableCtxStore. The cluster does not know the tokens, so they are keys, which begin with
// "sha256:": scs can end and change these sessions, and nobody can log in with one.
func (s *Store) AllCtx(ctx context.Context) (map[string][]byte, error) {
	all := make(map[string][]byte)
	for one, err := range s.sessions.Scan(ctx) {
		if err != nil {
			return nil, err
		}
		all[one.Key.String()] = one.Data
	}
	return all, nil
}

// Find implements scs.Store.
func (s *Store) Find(token string) ([]byte, bool, error) {
	return s.FindCtx(context.Background(), token)
}

// Commit implements scs.Store.
func (s *Store) Commit(token string, b []byte, expiry time.Time) error {
	return s.CommitCtx(context.Background(), token, b, expiry)
}

// Delete implements scs.Store.
func (s *Store) Delete(token string) error { return s.DeleteCtx(context.Background(), token) }

// All implements scs.IterableStore.
func (s *Store) All() (map[string][]byte, error) { return s.AllCtx(context.Background()) }
