package fsm

import (
	"errors"
	"fmt"
)

// Code classifies the outcome of an operation. Codes are stored with the results in the exactly-once window: new ones
// go at the end and none is ever reordered or removed.
type Code uint8

// The codes. Each says whether the operation had an effect; none of the failures has one.
const (
	OK         Code = 0
	Invalid    Code = 1 // the request makes no sense; retrying does not help
	NotFound   Code = 2 // what it names does not exist
	Conflict   Code = 3 // it contradicts the state: wrong revision, name taken, key reused with another request
	Exhausted  Code = 4 // a limit of the system is reached; retry later
	Expired    Code = 5 // the frame's deadline passed before it was applied; no effect, safe to send as a new one
	Stale      Code = 6 // the frame was acknowledged by its client before; its results are gone
	WindowFull Code = 7 // too many frames of this client are unacknowledged; no effect
	Skipped    Code = 8 // a placeholder in the frame, without effect: see Noop
)

var codeNames = [...]string{"ok", "invalid", "not_found", "conflict", "exhausted", "expired", "stale", "window_full", "skipped"}

func (c Code) String() string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return fmt.Sprintf("code(%d)", uint8(c))
}

// Error is a refusal by a state machine: part of its deterministic output, the same on every replica.
type Error struct {
	Code    Code
	Message string
}

func (e *Error) Error() string { return e.Message }

// Errorf builds an *Error. The message must be deterministic.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// Err returns the result as an error: nil when the code is OK.
func (r Result) Err() error {
	if r.Code == OK {
		return nil
	}
	return &Error{Code: r.Code, Message: string(r.Body)}
}

// The errors of proposing a frame to a group. After all but the last nothing happened and nothing will: trying again is
// safe, there or elsewhere.
var (
	// ErrNotLeader: the node asked does not lead the group.
	ErrNotLeader = errors.New("this node does not lead the shard")
	// ErrOverloaded: the group's queue is full; wait before trying again.
	ErrOverloaded = errors.New("the shard's queue is full")
	// ErrDiskFull: the leader keeps the space that is left for what must be written.
	ErrDiskFull = errors.New("the disk of the shard's leader is nearly full: free some space or add a larger one")
	// ErrClosed: the group is stopping on this node.
	ErrClosed = errors.New("the shard is closed on this node")
	// ErrOutcomeUnknown: the frame may have been executed, or may be later. The same frame may be sent again.
	ErrOutcomeUnknown = errors.New("outcome unknown: the command may have been executed")
)

// Safe reports that err tells of a frame that had no effect and will have none. An error that wraps ErrOutcomeUnknown is
// not safe, whatever else it wraps.
func Safe(err error) bool {
	if errors.Is(err, ErrOutcomeUnknown) {
		return false
	}
	return errors.Is(err, ErrNotLeader) || errors.Is(err, ErrOverloaded) || errors.Is(err, ErrDiskFull) || errors.Is(err, ErrClosed)
}
