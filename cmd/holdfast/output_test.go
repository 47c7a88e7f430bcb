package main

import (
	"strings"
	"testing"

	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// A number is what a program makes of it, in each format: a whole one is written as one.
func TestNumbersAreWrittenAsTheyAre(t *testing.T) {
	for format, want := range map[string][]string{
		"yaml": {"rate_limit: 1000000000\n", "time_window: 0.5\n", "priority: -1000000\n"},
		"json": {`"rate_limit": 1000000000,`, `"time_window": 0.5,`, `"priority": -1000000,`},
	} {
		var out strings.Builder
		p := &printer{format: format, out: &out}
		if err := p.message(&pb.Policy{RateLimit: 1_000_000_000, TimeWindow: 0.5, Priority: -1_000_000}, nil); err != nil {
			t.Fatal(err)
		}
		for _, line := range want {
			if !strings.Contains(out.String(), line) {
				t.Errorf("%s has no %q:\n%s", format, line, out.String())
			}
		}
	}
}
