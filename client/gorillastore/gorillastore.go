// Package gorillastore keeps the sessions of github.com/gorilla/sessions in Holdfast.
//
//	store := gorillastore.New(c.Sessions().Saved(), []byte(key))
//	session, err := store.Get(r, "session")
//
// The cookie has the session's random id, signed; the values are in the cluster. A logout, which is saving the session with
// a MaxAge that is not positive, is final: a request that loaded the session before and saves it afterwards is refused.
package gorillastore

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/gorilla/securecookie"
	"github.com/gorilla/sessions"

	"github.com/holdfastdb/holdfast/client"
)

// Sessions are where sessions are saved: *client.Saved.
type Sessions interface {
	Save(ctx context.Context, key client.SavedKey, data []byte, expires time.Time) error
	Find(ctx context.Context, token string) (data []byte, found bool, err error)
	Drop(ctx context.Context, key client.SavedKey) (bool, error)
}

// Store implements sessions.Store. Change its fields before the first request.
type Store struct {
	// Options are those of new sessions. MaxAge, in seconds, is also how long a session is kept after it was saved.
	Options sessions.Options
	// Codecs sign, and encrypt if there is a key for it, the id in the cookie.
	Codecs []securecookie.Codec
	// Serializer turns a session's values into bytes; securecookie.GobEncoder by default.
	Serializer securecookie.Serializer
	// IgnoreLateSaves makes saving a session that was ended meanwhile do nothing but take the cookie away, instead of being
	// an error, a client.ErrConflict. The session stays ended either way.
	IgnoreLateSaves bool

	sessions Sessions
}

var _ sessions.Store = (*Store)(nil)

const defaultMaxAge = 30 * 24 * time.Hour

// New makes a store. The keys are pairs of one to sign and one to encrypt the cookie with, the newest pair first; see
// securecookie.CodecsFromPairs.
func New(saved Sessions, keyPairs ...[]byte) *Store {
	s := &Store{
		Options: sessions.Options{
			Path: "/", MaxAge: int(defaultMaxAge / time.Second), Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode,
		},
		Codecs: securecookie.CodecsFromPairs(keyPairs...), Serializer: securecookie.GobEncoder{}, sessions: saved,
	}
	for _, c := range s.Codecs {
		if c, ok := c.(*securecookie.SecureCookie); ok {
			c.MaxAge(0) // the cluster knows when a session ends
		}
	}
	return s
}

// Get implements sessions.Store: it is the same session for all of a request.
func (s *Store) Get(r *http.Request, name string) (*sessions.Session, error) {
	return sessions.GetRegistry(r).Get(s, name)
}

// New implements sessions.Store. The session of a cookie that names none is a new one with an id of its own: nobody can
// choose the id of another's session.
func (s *Store) New(r *http.Request, name string) (*sessions.Session, error) {
	session := sessions.NewSession(s, name)
	options := s.Options
	session.Options, session.IsNew = &options, true
	cookie, err := r.Cookie(name)
	if err != nil {
		return session, nil //nolint:nilerr // there is no cookie
	}
	var id string
	if err := securecookie.DecodeMulti(name, cookie.Value, &id, s.Codecs...); err != nil {
		return session, err
	}
	data, found, err := s.sessions.Find(r.Context(), token(name, id))
	if err != nil || !found {
		return session, err
	}
	if err := s.Serializer.Deserialize(data, &session.Values); err != nil {
		return session, fmt.Errorf("gorillastore: read the values of session %q: %w", name, err)
	}
	session.ID, session.IsNew = id, false
	return session, nil
}

// token keeps sessions of different names apart, as their cookies are.
func token(name, id string) string { return name + ":" + id }

// Save implements sessions.Store.
func (s *Store) Save(r *http.Request, w http.ResponseWriter, session *sessions.Session) error {
	if session.Options.MaxAge <= 0 {
		if session.ID != "" {
			if _, err := s.sessions.Drop(r.Context(), client.KeyOf(token(session.Name(), session.ID))); err != nil {
				return fmt.Errorf("gorillastore: end session %q: %w", session.Name(), err)
			}
		}
		discard(w, session)
		return nil
	}
	if session.ID == "" {
		session.ID = newID()
	}
	data, err := s.Serializer.Serialize(session.Values)
	if err != nil {
		return fmt.Errorf("gorillastore: write the values of session %q: %w", session.Name(), err)
	}
	expires := time.Now().Add(time.Duration(session.Options.MaxAge) * time.Second)
	err = s.sessions.Save(r.Context(), client.KeyOf(token(session.Name(), session.ID)), data, expires)
	switch {
	case s.IgnoreLateSaves && errors.Is(err, client.ErrConflict):
		discard(w, session)
		return nil
	case err != nil:
		return fmt.Errorf("gorillastore: save session %q: %w", session.Name(), err)
	}
	text, err := securecookie.EncodeMulti(session.Name(), session.ID, s.Codecs...)
	if err != nil {
		return err
	}
	http.SetCookie(w, sessions.NewCookie(session.Name(), text, session.Options))
	return nil
}

// discard takes the cookie away.
func discard(w http.ResponseWriter, session *sessions.Session) {
	gone := *session.Options
	gone.MaxAge = -1
	http.SetCookie(w, sessions.NewCookie(session.Name(), "", &gone))
}

func newID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand stops the process instead
	return base64.RawURLEncoding.EncodeToString(b[:])
}
