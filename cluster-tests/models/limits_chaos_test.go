package models

import (
	"strings"
	"testing"
	"time"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/cluster-tests/history"
)

// counterOp is an operation on a counter from call to end, in milliseconds.
func counterOp(kind string, call, end int, outcome history.Outcome, count uint32) history.Op {
	op := history.Op{
		Call: time.Duration(call) * time.Millisecond, Return: time.Duration(end) * time.Millisecond, Outcome: outcome,
		Input: LimitOp{Kind: kind, Request: client.Request{Client: "k", Resource: counted}},
	}
	if outcome == history.Definite {
		op.Output = client.Decision{Allowed: true, Limits: []client.LimitState{{Used: count}}}
	}
	return op
}

// What is checked about counters can be broken, and what clients cannot know is not held against the cluster.
func TestCheckCounters(t *testing.T) {
	const write, read, ok, unknown, failed = KindCheck, KindPeek, history.Definite, history.Unknown, history.Failed
	for _, tt := range []struct {
		name  string
		ops   []history.Op
		wrong string
	}{
		{"in order", []history.Op{counterOp(write, 0, 1, ok, 1), counterOp(write, 2, 3, ok, 2), counterOp(read, 4, 5, ok, 2)}, ""},
		{"at the same time", []history.Op{counterOp(write, 0, 9, ok, 2), counterOp(write, 1, 9, ok, 1), counterOp(read, 2, 3, ok, 0), counterOp(read, 4, 5, ok, 1)}, ""},
		{"unknown, executed or not", []history.Op{counterOp(write, 0, 99, unknown, 0), counterOp(read, 1, 2, ok, 0), counterOp(read, 3, 4, ok, 1)}, ""},
		{"failed", []history.Op{counterOp(write, 0, 1, failed, 0), counterOp(read, 2, 3, ok, 1)}, "at most 0"},
		{"lost", []history.Op{counterOp(write, 0, 1, ok, 1), counterOp(read, 2, 3, ok, 0)}, "at least 1"},
		{"doubled", []history.Op{counterOp(write, 0, 1, ok, 1), counterOp(read, 2, 3, ok, 2)}, "at most 1"},
		{"stale", []history.Op{counterOp(write, 0, 99, unknown, 0), counterOp(read, 1, 2, ok, 1), counterOp(read, 3, 4, ok, 0)}, "at least 1"},
		{"the same count twice", []history.Op{counterOp(write, 0, 9, ok, 1), counterOp(write, 1, 9, ok, 1)}, "two writes"},
	} {
		var told []string
		for _, v := range checkCounters(tt.ops).Violations {
			told = append(told, v.Detail)
		}
		violations := strings.Join(told, "; ")
		if !strings.Contains(violations, tt.wrong) || tt.wrong == "" && violations != "" {
			t.Errorf("%s: got %q, want %q", tt.name, violations, tt.wrong)
		}
	}
}

// A check over two shards that was denied counts in neither, and one of unknown outcome may count.
func TestChecksOverTwoShards(t *testing.T) {
	check := func(outcome history.Outcome, allowed bool) history.Op {
		op := history.Op{Outcome: outcome, Input: LimitOp{Kind: KindCheck, Request: client.Request{Client: "k", IP: "10.1.0.1", Resource: crossed}}}
		if outcome == history.Definite {
			op.Output = client.Decision{Allowed: allowed}
		}
		return op
	}
	ops := []history.Op{
		check(history.Definite, true), check(history.Definite, true), check(history.Definite, false), check(history.Unknown, false), check(history.Failed, false),
		counterOp(KindCheck, 0, 1, history.Definite, 1),
	}
	b := crossedChecks(ops)["10.1.0.1"]
	if b != (bounds{2, 3}) || b.allow(1) || !b.allow(2) || !b.allow(3) || b.allow(4) {
		t.Errorf("got %+v", b)
	}
}

// Questions are early if they come before the first check in the log, or if there is none.
func TestEarly(t *testing.T) {
	at := func(kind, key string, index uint64, outcome history.Outcome) history.Op {
		op := counterOp(kind, 0, 1, outcome, 1)
		op.Input = LimitOp{Kind: kind, Request: client.Request{Client: key, Resource: counted}}
		op.Trace.Index = index
		return op
	}
	const write, read, ok, unknown = KindCheck, KindPeek, history.Definite, history.Unknown
	ops := []history.Op{
		at(read, "a", 4, ok), at(write, "a", 9, ok), at(write, "a", 5, ok), at(read, "a", 5, ok), at(read, "a", 8, ok), // one
		at(write, "b", 0, unknown), at(read, "b", 7, ok), at(read, "b", 0, unknown), // one more
	}
	if n := early(ops); n != 2 {
		t.Errorf("got %d", n)
	}
}
