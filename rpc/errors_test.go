package rpc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/counter"
)

// Every failure has one row of the table, and says so in its details.
func TestErrorsHaveTheCodeReasonAndAdviceOfTheTable(t *testing.T) {
	for name, tt := range map[string]struct {
		err       error
		code      codes.Code
		reason    string
		retryable bool
	}{
		"invalid":         {invalidf("no"), codes.InvalidArgument, "INVALID", false},
		"not found":       {fsm.Errorf(fsm.NotFound, "no"), codes.NotFound, "NOT_FOUND", false},
		"conflict":        {fsm.Errorf(fsm.Conflict, "no"), codes.Aborted, "CONFLICT", false},
		"exhausted":       {fsm.Errorf(fsm.Exhausted, "no"), codes.ResourceExhausted, "EXHAUSTED", true},
		"expired":         {fsm.Errorf(fsm.Expired, "no"), codes.DeadlineExceeded, "EXPIRED", true},
		"window":          {fsm.Errorf(fsm.WindowFull, "no"), codes.ResourceExhausted, "OVERLOADED", true},
		"overloaded":      {fsm.ErrOverloaded, codes.ResourceExhausted, "OVERLOADED", true},
		"full disk":       {fsm.ErrDiskFull, codes.ResourceExhausted, "EXHAUSTED", true},
		"unknown outcome": {fsm.ErrOutcomeUnknown, codes.DeadlineExceeded, "OUTCOME_UNKNOWN", false},
		"no leader":       {fsm.ErrNotLeader, codes.Unavailable, "UNAVAILABLE", true},
		"closing":         {fsm.ErrClosed, codes.Unavailable, "UNAVAILABLE", true},
		"timeout":         {context.DeadlineExceeded, codes.Unavailable, "UNAVAILABLE", true},
		"refused token":   {refuse("expired"), codes.Unauthenticated, "TOKEN_REFUSED", false},
		"anything else":   {errors.New("bug"), codes.Internal, "INTERNAL", false},
		"another node's":  {status.Error(codes.DeadlineExceeded, "late"), codes.Internal, "INTERNAL", false}, // no answer to this request
	} {
		t.Run(name, func(t *testing.T) {
			s := status.Convert(statusOf(fmt.Errorf("do something: %w", tt.err)))
			if s.Code() != tt.code || !strings.HasPrefix(s.Message(), "do something: ") {
				t.Errorf("%v %q, want %v", s.Code(), s.Message(), tt.code)
			}
			var info *errdetails.ErrorInfo
			var retry *errdetails.RetryInfo
			for _, d := range s.Details() {
				switch d := d.(type) {
				case *errdetails.ErrorInfo:
					info = d
				case *errdetails.RetryInfo:
					retry = d
				}
			}
			if info == nil || info.Reason != tt.reason || info.Domain != "holdfast" || info.Metadata["retryable"] != fmt.Sprint(tt.retryable) {
				t.Errorf("details %v", info)
			}
			if (retry != nil) != (tt.reason == "OVERLOADED") || retry != nil && retry.RetryDelay.AsDuration() != retryAfter {
				t.Errorf("retry %v", retry)
			}
		})
	}
	if statusOf(nil) != nil {
		t.Error("no error becomes one")
	}
	if own := status.Error(codes.Canceled, "mine"); statusOf(own) != own { //nolint:errorlint // the same one
		t.Error("a status is not kept")
	}
}

// The table for users has a row for each reason, with the same code and advice.
func TestTheDocumentedTableIsTheOneInUse(t *testing.T) {
	text, err := os.ReadFile("../docs/errors.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []kind{invalid, notFound, conflict, exhausted, expired, overloaded, unavailable, outcomeUnknown, tokenInvalid, internal} {
		row := ""
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(line, "| `"+k.reason+"`") {
				row = line
			}
		}
		screaming := strings.ToUpper(k.code.String())
		if row == "" || !strings.Contains(strings.ReplaceAll(strings.ToUpper(row), "_", ""), screaming) {
			t.Errorf("%s %v: the documented row is %q", k.reason, k.code, row)
		}
	}
}

func TestTokensName(t *testing.T) {
	holds := []held{{group: 3, id: 7, keys: []counter.Key{{1}, {2}}}, {group: 4, id: 1 << 60, keys: []counter.Key{{3}}}}
	got, err := decodeToken(slots, encodeToken(slots, holds))
	if err != nil || fmt.Sprint(got) != fmt.Sprint(holds) {
		t.Errorf("%v, %v; want %v", got, err, holds)
	}
	for kind, other := range map[tokenKind]tokenKind{slots: reservation, reservation: slots} {
		if _, err := decodeToken(other, encodeToken(kind, holds)); kindOf(err) != invalid || !errors.Is(err, errKind[kind]) {
			t.Errorf("a token of kind %d for one of kind %d: %v", kind, other, err)
		}
	}
	if encodeToken(slots, nil) != "" {
		t.Error("nothing held has a token")
	}
}

func FuzzToken(f *testing.F) {
	f.Add(encodeToken(slots, []held{{group: 3, id: 7, keys: []counter.Key{{1}, {2}}}}))
	f.Add("")
	f.Add("AAAA")
	f.Fuzz(func(t *testing.T, token string) {
		holds, err := decodeToken(slots, token)
		if err != nil {
			if kindOf(err) != invalid {
				t.Errorf("a bad token is %v", kindOf(err))
			}
			return
		}
		for i := range holds {
			h := &holds[i]
			if h.group == 0 || len(h.keys) == 0 || len(h.keys) > counter.MaxLimits {
				t.Errorf("accepted %+v", h)
			}
			// What is made of it is well-formed for the state machine.
			if err := new(counter.SettleRequest).Decode(h.settle(counter.Charge, 1).Body); err != nil {
				t.Errorf("the command of %+v: %v", h, err)
			}
		}
	})
}
