package session

import (
	"fmt"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage/plant"
	"github.com/holdfastdb/holdfast/storage/wire"
)

// LogoutRequest ends the session of an access token. The token is judged by the command that ends the session: a logout
// that is sent again, because its answer was lost, is answered as the first time.
type LogoutRequest struct {
	Session Key
	Token   Hash // presented
	Scope   Scope
}

// Scope is what else a logout ends. Stored: never reorder.
type Scope uint8

// The scopes.
const (
	ThisSession Scope = 0
	WholeLogin  Scope = 1 // and the sessions of the same login
	Everywhere  Scope = 2 // and all others of the user
)

// Append appends the encoding.
func (q *LogoutRequest) Append(dst []byte) []byte {
	return append(append(q.Session.Append(dst), q.Token[:]...), byte(q.Scope))
}

// Decode implements the requests of package fsm.
func (q *LogoutRequest) Decode(b []byte) error {
	d := wire.NewDecoder(b)
	q.Session, q.Token, q.Scope = decodeKey(&d), decodeHash(&d), Scope(d.Byte())
	if q.Scope > Everywhere {
		d.Fail()
	}
	return d.End("log out")
}

// LogoutResult tells what the token was worth, and how many sessions ended.
type LogoutResult struct {
	Verdict Verdict
	Ended   Count
}

// Append appends the encoding.
func (r *LogoutResult) Append(dst []byte) []byte {
	return r.Ended.Append(append(dst, byte(r.Verdict)))
}

// Decode parses the encoding.
func (r *LogoutResult) Decode(b []byte) error {
	d := wire.NewDecoder(b)
	r.Verdict, r.Ended.N = Verdict(d.Byte()), d.Uint32()
	return d.End("logged out")
}

// logout ends sessions for who holds a token, whatever else stands against its use.
func logout(tx *fsm.Tx, q *LogoutRequest) (*LogoutResult, error) {
	stored, err := tx.Row(q.Session.under(prefixSession), decodeRow)
	if err != nil {
		return nil, fmt.Errorf("read session: %w", err)
	}
	if stored == nil {
		i, err := past(tx, &ValidateRequest{Session: q.Session, Token: q.Token})
		if err != nil {
			return nil, err
		}
		return &LogoutResult{Verdict: i.Verdict}, nil
	}
	r := stored.(*row)
	result := &LogoutResult{Verdict: r.judge(&q.Token, tx.Now())}
	var ended *Count
	switch {
	case result.Verdict == UnknownToken || result.Verdict == RotatedAway:
		return result, nil
	case q.Scope == Everywhere:
		ended, err = revokeUser(tx, &RevokeUserRequest{User: q.Session.User, Reason: LoggedOut})
	case q.Scope == WholeLogin && r.group != 0 && !plant.On(plant.LoginApart):
		ended, err = revokeUser(tx, &RevokeUserRequest{User: q.Session.User, Reason: LoggedOut, Group: r.group})
	default:
		ended, err = revoke(tx, &RevokeRequest{Reason: LoggedOut, Sessions: []Key{q.Session}})
	}
	if err != nil {
		return nil, err
	}
	result.Ended = *ended
	return result, nil
}
