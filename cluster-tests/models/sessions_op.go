package models

import (
	"fmt"
	"time"
)

// sessionsName names the operations on sessions.
const sessionsName = "sessions"

// SessionOp is the Input of an operation on sessions. Its Output is a SessionAnswer, but for KindWatch.
type SessionOp struct {
	Kind string `json:"kind"`
	User string `json:"user,omitempty"`
	// Session is the id of the session that it is about, as its caller knows.
	Session string `json:"session,omitempty"`
	// Token is what is presented: an access token, a refresh token, or a framework's own.
	Token string `json:"token,omitempty"`
	// Login is the name of the login with which a new session begins, or of which sessions end; Device the id of its device.
	Login  string `json:"login,omitempty"`
	Device string `json:"device,omitempty"`
	// Most is how many sessions the user may have with a new one, MostDevices on how many devices; 0 for any number.
	Most        int `json:"most,omitempty"`
	MostDevices int `json:"most_devices,omitempty"`
	// Evict has the oldest ones end for the new one.
	Evict bool `json:"evict,omitempty"`
	// Brief says that a new session ends by itself while the history lasts.
	Brief bool `json:"brief,omitempty"`
	// Forged says that nobody gave the token out.
	Forged bool `json:"forged,omitempty"`
	// Stale is how old the answer may be.
	Stale time.Duration `json:"stale,omitempty"`
	// Except is the id of a session that is spared; Everywhere has a logout end all sessions of the user, WholeLogin those
	// of the same login.
	Except     string `json:"except,omitempty"`
	Everywhere bool   `json:"everywhere,omitempty"`
	WholeLogin bool   `json:"whole_login,omitempty"`
	// Version is the one from which Value is set, nil for any.
	Version *uint32 `json:"version,omitempty"`
	Value   string  `json:"value,omitempty"` // unique
}

// DataType implements history.Input.
func (SessionOp) DataType() string { return sessionsName }

// Describe implements history.Input.
func (o SessionOp) Describe() string { return fmt.Sprintf("%s %s %.16s", o.Kind, o.User, o.Session) }

// The kinds of SessionOp.
const (
	KindLogin      = "login"
	KindValidate   = "validate"
	KindRefresh    = "refresh"
	KindRotate     = "rotate"
	KindLogout     = "logout"
	KindRevoke     = "revoke"
	KindRevokeUser = "revoke_user"
	KindSet        = "set_attributes"
	KindErase      = "erase_user"
	KindGet        = "get"
	KindList       = "list"
	KindHistory    = "history"
	KindSave       = "save"
	KindDrop       = "drop"
	KindFind       = "find"
	KindWatch      = "watch" // what a watch told of all sessions since the history began; its Output is []WatchedEvent
)

// SessionAnswer is what came of an operation on sessions. Reason is why a token did not count: that is an answer, too.
type SessionAnswer struct {
	Session string        `json:"session,omitempty"`
	Token   string        `json:"token,omitempty"`
	Refresh string        `json:"refresh,omitempty"`
	Until   int64         `json:"until,omitempty"` // in milliseconds
	Valid   bool          `json:"valid,omitempty"`
	Reason  string        `json:"reason,omitempty"`
	Age     time.Duration `json:"age,omitempty"`
	N       int           `json:"n,omitempty"` // sessions that ended
	Version uint32        `json:"version,omitempty"`
	Value   string        `json:"value,omitempty"`
	Found   bool          `json:"found,omitempty"`
	// Ended is why the session has ended, and Device the one that it began on.
	Ended  string `json:"ended,omitempty"`
	Device string `json:"device,omitempty"`
	// List has ids of sessions, Devices and Ends what Device and Ended are, of each.
	List    []string `json:"list,omitempty"`
	Devices []string `json:"devices,omitempty"`
	Ends    []string `json:"ends,omitempty"`
}

// lives tells whether the answer to a KindGet is a session that has not ended.
func (a SessionAnswer) lives() bool { return a.Found && a.Ended == "" }

// The reasons that the checks know.
const (
	reasonEnded  = "ended"
	reasonReused = "refresh_reuse"
)
