package client

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/zeebo/xxh3"
	"google.golang.org/protobuf/proto"

	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
	"github.com/holdfastdb/holdfast/rpc/sessiontoken"
)

// Sessions tells who is logged in. Once a call that ends a session has returned, no validation succeeds anywhere, except
// those that ask to see less than the newest; see MaxStale. Its methods are safe for any number of goroutines.
type Sessions struct {
	c     *Client
	cache *sessionCache
	saved *Saved
}

func newSessions(c *Client) *Sessions {
	return &Sessions{c: c, cache: newSessionCache(c), saved: &Saved{c: c}}
}

// The type and the methods of sessions in data frames, see holdfast.v1.Op.
const (
	typeSessions         = 3
	methodCreateSession  = 1
	methodRefreshSession = 2
	methodRotateSession  = 3
	methodLogout         = 4
	methodRevokeSession  = 5
	methodSetAttributes  = 6
	methodRevokeUser     = 7
	methodEraseUser      = 8
	methodSave           = 9
	methodDrop           = 10
	methodValidate       = 64
	methodGetSession     = 65
	methodListSessions   = 66
	methodHistory        = 67
	methodFindSaved      = 68
	methodScanSaved      = 69
)

// userKey is how the names of a user's sessions begin.
type userKey [16]byte

// keyOfUser is the slot of a user's id, and the beginning of its SHA-256.
func keyOfUser(userID string) (k userKey) {
	sum := sha256.Sum256([]byte(userID))
	binary.BigEndian.PutUint16(k[:], uint16(xxh3.HashString(userID)>>48))
	copy(k[2:], sum[:])
	return k
}

func userOf(id sessiontoken.ID) userKey { return userKey(id[:len(userKey{})]) }

// call executes an operation in the shard of a slot.
func (s *Sessions) call(ctx context.Context, slot uint16, method uint32, q, r proto.Message) error {
	return s.c.callIn(ctx, s.c.routes.Load().shardAt(slot), typeSessions, method, method >= methodValidate, q, r)
}

// end executes an operation that ends sessions of a user. What is remembered of them is forgotten, whatever comes of it.
func (s *Sessions) end(ctx context.Context, user userKey, method uint32, q proto.Message) (int, error) {
	defer s.cache.forgetUser(user)
	var r pb.RevokedSessions
	if err := s.call(ctx, binary.BigEndian.Uint16(user[:]), method, q, &r); err != nil {
		return 0, err
	}
	return int(r.Revoked), nil
}

// parse reads a token. One that cannot be of this cluster needs no round trip. The time that this takes depends on what
// everybody can see of a token, its length, its checksum and its cluster's mark, and not on its secret.
func (s *Sessions) parse(token string, kind sessiontoken.Kind) (sessiontoken.Token, Reason) {
	t, err := sessiontoken.Parse(token, kind, s.c.routes.Load().cluster)
	switch {
	case errors.Is(err, sessiontoken.ErrForeign):
		return t, ReasonForeign
	case err != nil:
		return t, ReasonMalformed
	}
	return t, ""
}

// token reads a token that must be one.
func (s *Sessions) token(token string, kind sessiontoken.Kind) (sessiontoken.Token, error) {
	t, reason := s.parse(token, kind)
	if reason != "" {
		return t, fmt.Errorf("%w: %s", ErrToken, reason)
	}
	return t, nil
}

func sessionID(text string) (sessiontoken.ID, error) {
	id, err := sessiontoken.ParseID(text)
	if err != nil {
		return id, fmt.Errorf("%w: the session id is not one that a login gave", ErrInvalid)
	}
	return id, nil
}

// Create begins a session. Its tokens are told this once.
func (s *Sessions) Create(ctx context.Context, login Login) (Tokens, error) {
	q, err := login.message()
	if err != nil {
		return Tokens{}, err
	}
	var r pb.SessionTokens
	if err := s.c.call(ctx, login.UserID, typeSessions, methodCreateSession, false, q, &r); err != nil {
		return Tokens{}, err
	}
	return tokens(&r), nil
}

// Refresh exchanges a refresh token for a new pair of tokens. A refresh token that was exchanged a while ago has been
// stolen: it ends the session, and the error is an ErrToken.
func (s *Sessions) Refresh(ctx context.Context, refreshToken string) (Tokens, error) {
	t, err := s.token(refreshToken, sessiontoken.Refresh)
	if err != nil {
		return Tokens{}, err
	}
	defer s.cache.forgetUser(userOf(t.Session))
	var r pb.SessionTokens
	if err := s.call(ctx, t.Session.Slot(), methodRefreshSession, &pb.RefreshSessionRequest{RefreshToken: refreshToken}, &r); err != nil {
		return Tokens{}, err
	}
	return tokens(&r), nil
}

// Rotate exchanges an access token for a new one, and the old one counts no longer. Do it whenever what the user may do
// changes: a token that somebody knew before is then worth nothing.
func (s *Sessions) Rotate(ctx context.Context, token string) (Tokens, error) {
	t, err := s.token(token, sessiontoken.Access)
	if err != nil {
		return Tokens{}, err
	}
	defer s.cache.forgetUser(userOf(t.Session))
	var r pb.SessionTokens
	if err := s.call(ctx, t.Session.Slot(), methodRotateSession, &pb.RotateSessionRequest{Token: token}, &r); err != nil {
		return Tokens{}, err
	}
	return tokens(&r), nil
}

// LogoutScope tells what else a logout ends.
type LogoutScope uint8

const (
	// WholeLogin ends the sessions at other services that began with the same login.
	WholeLogin LogoutScope = 1
	// Everywhere ends all sessions of the user.
	Everywhere LogoutScope = 2
)

// Logout ends the session of an access token, and tells how many sessions ended. That it has ended before is no error.
func (s *Sessions) Logout(ctx context.Context, token string, also ...LogoutScope) (int, error) {
	t, err := s.token(token, sessiontoken.Access)
	if err != nil {
		return 0, err
	}
	q := &pb.LogoutRequest{Token: token}
	for _, a := range also {
		q.WholeLogin = q.WholeLogin || a == WholeLogin
		q.Everywhere = q.Everywhere || a == Everywhere
	}
	return s.end(ctx, userOf(t.Session), methodLogout, q)
}

// Revoke ends a session that is known by its id, and tells whether it was there to end.
func (s *Sessions) Revoke(ctx context.Context, id string) (bool, error) {
	name, err := sessionID(id)
	if err != nil {
		return false, err
	}
	n, err := s.end(ctx, userOf(name), methodRevokeSession, &pb.RevokeSessionRequest{SessionId: id})
	return n > 0, err
}

// RevokeOption narrows RevokeUser.
type RevokeOption struct{ except, login string }

// Except spares one session, such as the one in which a user logs out everywhere else.
func Except(sessionID string) RevokeOption { return RevokeOption{except: sessionID} }

// OfLogin ends the sessions of one login only.
func OfLogin(login string) RevokeOption { return RevokeOption{login: login} }

// RevokeUser ends the sessions of a user, all at one moment, and tells how many.
func (s *Sessions) RevokeUser(ctx context.Context, userID string, options ...RevokeOption) (int, error) {
	q := &pb.RevokeUserRequest{UserId: userID}
	for _, o := range options {
		if o.except != "" {
			q.Except = o.except
		}
		if o.login != "" {
			q.Login = o.login
		}
	}
	return s.end(ctx, keyOfUser(userID), methodRevokeUser, q)
}

// EraseUser ends the sessions of a user and deletes all that is known of them, also their history.
func (s *Sessions) EraseUser(ctx context.Context, userID string) (int, error) {
	return s.end(ctx, keyOfUser(userID), methodEraseUser, &pb.EraseUserRequest{UserId: userID})
}

// Get tells of a session that is known by its id, also for a while after it ended.
func (s *Sessions) Get(ctx context.Context, id string) (*Session, error) {
	name, err := sessionID(id)
	if err != nil {
		return nil, err
	}
	var r pb.HeldSession
	if err := s.call(ctx, name.Slot(), methodGetSession, &pb.GetSessionRequest{SessionId: id}, &r); err != nil {
		return nil, err
	}
	return session(&r)
}

// List tells of the sessions that a user has, the oldest first.
func (s *Sessions) List(ctx context.Context, userID string) ([]*Session, error) {
	return s.list(ctx, userID, methodListSessions)
}

// History tells of the sessions that a user had, and why each ended: of the last 30 days, 100 at most.
func (s *Sessions) History(ctx context.Context, userID string) ([]*Session, error) {
	return s.list(ctx, userID, methodHistory)
}

func (s *Sessions) list(ctx context.Context, userID string, method uint32) ([]*Session, error) {
	var r pb.HeldSessions
	if err := s.c.call(ctx, userID, typeSessions, method, true, &pb.ListSessionsRequest{UserId: userID}, &r); err != nil {
		return nil, err
	}
	list := make([]*Session, len(r.Sessions))
	for i, m := range r.Sessions {
		var err error
		if list[i], err = session(m); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// AttributeChange says what to change of a session's attributes; what it does not name stays.
type AttributeChange struct {
	// Set has values as in JSON.
	Set    map[string]any
	Remove []string
	// IfVersion, if there is one, is the version from which the change was made: if somebody made another change since,
	// the error is an ErrConflict and nothing changes. Without it the change is made to whatever is there, so changes of
	// different attributes at the same time all count.
	IfVersion *uint32
}

// Attributes are those of a session, and their version.
type Attributes struct {
	Values  map[string]any
	Version uint32
}

// SetAttributes changes the attributes of a session in one step, and tells what they are then.
func (s *Sessions) SetAttributes(ctx context.Context, id string, change AttributeChange) (Attributes, error) {
	name, err := sessionID(id)
	if err != nil {
		return Attributes{}, err
	}
	set, err := object("attributes", change.Set)
	if err != nil {
		return Attributes{}, err
	}
	defer s.cache.forgetUser(userOf(name))
	q := &pb.SetAttributesRequest{SessionId: id, Set: set, Remove: change.Remove, Version: change.IfVersion}
	var r pb.SetAttributesResponse
	if err := s.call(ctx, name.Slot(), methodSetAttributes, q, &r); err != nil {
		return Attributes{}, err
	}
	return Attributes{Values: values(r.Attributes), Version: r.Version}, nil
}

// Saved are the sessions of frameworks that make their tokens themselves.
func (s *Sessions) Saved() *Saved { return s.saved }

func seconds(d time.Duration) *float64 {
	if d == 0 {
		return nil
	}
	n := max(d, 0).Seconds()
	return &n
}
