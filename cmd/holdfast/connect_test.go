package main

import (
	"errors"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/holdfastdb/holdfast/client"
)

// A script must not take a request that may have been executed for one that was refused, as a denied one is.
func TestTheExitCodeOfWhatAServiceAnswers(t *testing.T) {
	for name, tt := range map[string]struct {
		err  error
		code int
	}{
		"refused":              {status.Error(codes.NotFound, "no such policy"), exitRefused},
		"invalid":              {status.Error(codes.InvalidArgument, "no"), exitUsage},
		"unavailable":          {status.Error(codes.Unavailable, "no leader"), exitUnreachable},
		"unknown outcome":      {status.Error(codes.DeadlineExceeded, "outcome unknown"), exitUnreachable},
		"the same, by the SDK": {client.ErrOutcomeUnknown, exitUnreachable},
		"another failure":      {errors.New("full"), exitRefused},
	} {
		if code := exitCode(plain(fmt.Errorf("check: %w", tt.err))); code != tt.code {
			t.Errorf("%s: exit code %d, want %d", name, code, tt.code)
		}
	}
}
