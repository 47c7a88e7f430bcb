package rpc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/holdfastdb/holdfast/fsm"
)

// kind is one row of the error table: how a failure looks from outside.
type kind struct {
	code codes.Code
	// reason names the failure for programs.
	reason string
	// retryable: the same request may succeed later and trying again cannot do harm.
	retryable bool
}

// The error table. docs/errors.md tells the same to users.
var (
	invalid        = kind{codes.InvalidArgument, "INVALID", false}
	notFound       = kind{codes.NotFound, "NOT_FOUND", false}
	conflict       = kind{codes.Aborted, "CONFLICT", false}
	exhausted      = kind{codes.ResourceExhausted, "EXHAUSTED", true}
	expired        = kind{codes.DeadlineExceeded, "EXPIRED", true}
	overloaded     = kind{codes.ResourceExhausted, "OVERLOADED", true}
	unavailable    = kind{codes.Unavailable, "UNAVAILABLE", true}
	outcomeUnknown = kind{codes.DeadlineExceeded, "OUTCOME_UNKNOWN", false}
	tokenInvalid   = kind{codes.Unauthenticated, "TOKEN_REFUSED", false}
	internal       = kind{codes.Internal, "INTERNAL", false}
)

var kinds = map[fsm.Code]kind{
	fsm.Invalid: invalid, fsm.NotFound: notFound, fsm.Conflict: conflict, fsm.Exhausted: exhausted,
	fsm.Expired: expired, fsm.Stale: conflict, fsm.WindowFull: overloaded, fsm.Skipped: internal,
}

// kindOf classifies an error of a node or a state machine.
func kindOf(err error) kind {
	var refusal *fsm.Error
	switch {
	case errors.Is(err, fsm.ErrOutcomeUnknown): // whatever else it is: a part of the request may have been executed
		return outcomeUnknown
	case errors.As(err, &refusal):
		return kinds[refusal.Code]
	case errors.As(err, new(*tokenRefused)):
		return tokenInvalid
	case errors.Is(err, fsm.ErrOverloaded):
		return overloaded
	case errors.Is(err, fsm.ErrDiskFull):
		return exhausted
	case errors.Is(err, errNothingTaken), errors.Is(err, fsm.ErrNotLeader), errors.Is(err, fsm.ErrClosed),
		errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return unavailable
	}
	return internal
}

// kindOfStatus classifies a failure that a library found before a service saw the request: a body that does not parse, a
// path that does not exist.
func kindOfStatus(code codes.Code) kind {
	switch code {
	case codes.InvalidArgument, codes.OutOfRange:
		return invalid
	case codes.NotFound, codes.Unimplemented:
		return notFound
	case codes.ResourceExhausted:
		return overloaded
	case codes.Unavailable, codes.Canceled, codes.DeadlineExceeded:
		return unavailable
	}
	return internal
}

// errNoTopology tells that a node has just begun.
var errNoTopology = fmt.Errorf("the node does not know the cluster yet: %w", fsm.ErrClosed)

const retryAfter = 100 * time.Millisecond

// failure is an error with the gRPC status under which callers see it.
type failure struct {
	error
	status *status.Status
}

// GRPCStatus is what package status looks for.
func (f *failure) GRPCStatus() *status.Status { return f.status }

func (f *failure) Unwrap() error { return f.error }

// statusOf gives an error its gRPC status; nil stays nil.
func statusOf(err error) error {
	if err == nil {
		return nil
	}
	var own *failure
	if _, is := err.(interface{ GRPCStatus() *status.Status }); is || errors.As(err, &own) { //nolint:errorlint // what wraps a status is not one
		return err
	}
	k := kindOf(err)
	info := &errdetails.ErrorInfo{Reason: k.reason, Domain: "holdfast", Metadata: map[string]string{"retryable": "false"}}
	if k.retryable {
		info.Metadata["retryable"] = "true"
	}
	s := status.New(k.code, err.Error())
	with, detailErr := s.WithDetails(info)
	if detailErr == nil && k == overloaded {
		with, detailErr = with.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(retryAfter)})
	}
	if detailErr == nil {
		s = with
	}
	return &failure{err, s}
}

// invalidf refuses a request that makes no sense.
func invalidf(format string, args ...any) error { return fsm.Errorf(fsm.Invalid, format, args...) }
