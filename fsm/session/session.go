// Package session is the state machine of user sessions: who is logged in, by which tokens, until when.
//
// All sessions of one user live in one shard, next to the user's record, so that logging out everywhere and keeping to a
// number of sessions are single commands. The shard knows tokens by their SHA-256 alone, users by a UserKey, and what a
// session says about its user as sealed bytes that it never opens.
//
// # Files
//
// session.go has the table of operations, key.go the names of sessions, ring.go the tokens that a session accepts, row.go
// a stored session, user.go the record of a user, ended.go what stays of a session that ended, counts.go the analytics.
// create.go, refresh.go, revoke.go, logout.go and change.go hold the commands, query.go the questions; saved.go keeps the sessions of
// frameworks that choose their tokens themselves.
//
// # Invariants
//
//   - A session that ended never comes back: numbers are used once, commands change sessions and make none but create does,
//     and a saved session that was dropped leaves a tombstone until it would have ended by itself.
//   - A user never has more sessions, nor more devices, than the create that was last admitted allowed.
//   - A refresh token that was used before the last rotation, or before the grace of that, ends its session.
package session

import "github.com/holdfastdb/holdfast/fsm"

// TypeID is the number of the data type.
const TypeID = 3

// The numbers of the operations, as in the log.
const (
	OpCreate        = 1
	OpReissue       = 2
	OpTouch         = 3
	OpRefresh       = 4
	OpRotate        = 5
	OpRevoke        = 6
	OpRevokeUser    = 7
	OpPurgeUser     = 8
	OpSetAttributes = 9
	OpMark          = 10
	OpSave          = 11
	OpDrop          = 12
	OpLogout        = 13

	OpValidate  = 64
	OpGet       = 65
	OpList      = 66
	OpHistory   = 67
	OpScan      = 68
	OpCounts    = 69
	OpFindSaved = 70
	OpScanSaved = 71
)

// Type returns the table of the data type.
func Type() fsm.Type {
	return fsm.Type{
		ID:   TypeID,
		Name: "session",
		Ops: []fsm.Op{
			fsm.Command(OpCreate, "create", create),
			fsm.Command(OpReissue, "reissue", reissue),
			fsm.Command(OpTouch, "touch", touch),
			fsm.Command(OpRefresh, "refresh", refresh),
			fsm.Command(OpRotate, "rotate", rotate),
			fsm.Command(OpRevoke, "revoke", revoke),
			fsm.Command(OpRevokeUser, "revoke_user", revokeUser),
			fsm.Command(OpPurgeUser, "purge_user", purgeUser),
			fsm.Command(OpSetAttributes, "set_attributes", setAttributes),
			fsm.Command(OpMark, "mark", mark),
			fsm.Command(OpSave, "save", save),
			fsm.Command(OpDrop, "drop", drop),
			fsm.Command(OpLogout, "logout", logout),
			fsm.PointOp(OpValidate, "validate", validate),
			fsm.PointOp(OpGet, "get", get),
			fsm.QueryOp(OpList, "list", list),
			fsm.QueryOp(OpHistory, "history", history),
			fsm.QueryOp(OpScan, "scan", scan),
			fsm.PointOp(OpCounts, "counts", counted),
			fsm.PointOp(OpFindSaved, "find_saved", findSaved),
			fsm.QueryOp(OpScanSaved, "scan_saved", scanSaved),
		},
		Sweep: sweep,
		Check: check,
	}
}

// Kind is what a session is for. Stored: never reorder.
type Kind uint8

// The kinds.
const (
	Web    Kind = 1
	Mobile Kind = 2
	API    Kind = 3
)

const kinds = 3

// Reason is why a session ended. Stored: never reorder.
type Reason uint8

// The reasons.
const (
	LoggedOut  Reason = 1 // by its user
	Revoked    Reason = 2 // by somebody else
	Idle       Reason = 3 // not used for its idle timeout
	Expired    Reason = 4 // its time was over
	Evicted    Reason = 5 // by a newer one: the user had too many
	Reused     Reason = 6 // a refresh token was used twice
	Suspicious Reason = 7 // the policy ended it for what it did
	Erased     Reason = 8 // its user's data was deleted
)

const reasons = 8

var reasonNames = [...]string{"", "logged_out", "revoked", "idle", "expired", "evicted", "refresh_reuse", "suspicious", "erased"}

func (r Reason) String() string {
	if int(r) < len(reasonNames) {
		return reasonNames[r]
	}
	return "unknown"
}

// The bounds of a session.
const (
	MaxSessions   = 1000    // of one user
	MaxProfile    = 4 << 10 // bytes
	MaxAttributes = 64 << 10
	MaxSaved      = 64 << 10
	// MaxLife is the longest time until a session ends whatever happens, in milliseconds: 400 days, as browsers keep cookies.
	MaxLife fsm.Millis = 400 * 24 * 3600 * 1000
	// Grace is how long a token that was rotated away still counts, in milliseconds: for the request that was under way.
	Grace fsm.Millis = 10_000
)
