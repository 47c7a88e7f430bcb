// Package models has the data types as the tests of whole clusters know them: for each a plain reference of what a shard
// must answer, without storage, caches or encodings of state, and what clients do with it.
//
// A model shares with the state machine it judges only how requests and results are written. A new data type is a file
// here, with a row in Types: the layers plug in whatever the rows are.
package models

import (
	"fmt"
	"time"

	"github.com/holdfastdb/holdfast/cluster-tests/history"
	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/counter"
	"github.com/holdfastdb/holdfast/fsm/session"
)

// Type is a data type.
type Type struct {
	// Name is that of its operations in a history; see history.Input.
	Name string
	// ID is the number of its commands and of what a shard stores of it, and Model makes its reference in a shard. Without
	// a model no shard executes it, and only its load judges it.
	ID    uint8
	Model func() Model
	// Sim and Chaos make what its clients do in a simulated cluster and in one of processes; nil if nothing. They may do the
	// same: but in the one time costs nothing, and in the other a history is over in a minute.
	Sim, Chaos func() Load
}

// Types are all data types.
func Types() []Type {
	return []Type{
		{Name: limitsName, ID: counter.TypeID, Model: func() Model { return newLimits() }, Sim: newSimLimits, Chaos: newChaosLimits},
		{Name: policiesName},
		{Name: sessionsName, ID: session.TypeID, Model: func() Model { return newSessions() }, Sim: newSimSessions, Chaos: newChaosSessions},
	}
}

// Moment is where and when a command is executed.
type Moment struct {
	Index  uint64
	Op     int // its place in the entry
	Now    fsm.Time
	Client [16]byte      // who sent it
	Told   time.Duration // when it was decided, on the clock of the history
	expire func(key string, at fsm.Time)
}

// Expire has Model.Sweep called for key at or after at.
func (m *Moment) Expire(key string, at fsm.Time) { m.expire(key, at) }

// Model is the reference of one data type, in one shard. It is asked about operations of its data type only.
type Model interface {
	// Apply executes a command.
	Apply(m *Moment, call fsm.Call) (fsm.Result, error)
	// Sweep is told that a key's expiry is due.
	Sweep(m *Moment, key string)
	// Query answers what the client asked, in the state as it is; ok is false if the model cannot tell what the question
	// meant to the server.
	Query(now fsm.Time, op *history.Op) (r fsm.Result, ok bool)
	// Compare tells how a client's answer differs from the results of its commands or of its query.
	Compare(op *history.Op, done []Execution) error
	// Alone judges a client's answer by itself, whatever the state is.
	Alone(op *history.Op) error
	// Unasked tells that a client may have had this answer without asking a shard. Any other answer has its place in a log.
	Unasked(op *history.Op) bool
	// Local judges, at the end of a shard's log, answers that no shard gave but that follow from what shards lent, and tells
	// how many it could judge. holder is the client whose loans an operation may use; ok is false if nobody knows. It also
	// judges what shards told unasked.
	Local(shard uint32, ops []*history.Op, holder func(op *history.Op) (client [16]byte, ok bool)) (judged int, broken []Violation)
	// Learn is told which commands an operation became, in the order of the log.
	Learn(op *history.Op, done []Execution)
	// Rows counts what the shard remembers.
	Rows() int
	// Broken lists broken invariants.
	Broken() []string
}

// Execution is a command that was executed, and the result that it must have given.
type Execution struct {
	Shard  uint32
	Index  uint64
	Place  int // of the command among all of the entry, repeated frames included
	Time   fsm.Time
	Call   fsm.Call
	Result fsm.Result
}

// errUnread is for what a log must not hold.
func errUnread(what string, err error) error {
	return fmt.Errorf("unreadable %s in the log: %w", what, err)
}
