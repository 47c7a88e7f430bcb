package models

import (
	"fmt"

	"github.com/holdfastdb/holdfast/client"
)

// limitsName names the operations on rate limits.
const limitsName = "limits"

// LimitOp is the Input of an operation on rate limits. The Output of a check, a peek and a reservation is a
// client.Decision, of a status a []client.LimitState, of a reset an int; that of the others is not looked at.
type LimitOp struct {
	Kind    string         `json:"kind"`
	Request client.Request `json:"request"`
	Actual  uint32         `json:"actual,omitempty"` // of a commit
	// Limited says that a limit applies to the request, as the workload knows: an answer without one is wrong.
	Limited bool `json:"limited,omitempty"`
}

// DataType implements history.Input.
func (LimitOp) DataType() string { return limitsName }

// Describe implements history.Input.
func (o LimitOp) Describe() string {
	return fmt.Sprintf("%s %s %s", o.Kind, o.Request.Resource, o.Request.Client)
}

// The kinds of LimitOp.
const (
	KindCheck   = "check"
	KindPeek    = "peek"
	KindStatus  = "status"
	KindReset   = "reset"
	KindReserve = "reserve"
	KindCommit  = "commit"
	KindRefund  = "refund"
	KindRelease = "release"
	// KindLease is a decision from tokens taken in bulk. No shard makes it.
	KindLease = "lease"
)

// rowsOf are the limits that an answer tells of.
func rowsOf(output any) []client.LimitState {
	switch o := output.(type) {
	case client.Decision:
		return o.Limits
	case []client.LimitState:
		return o
	}
	return nil
}
