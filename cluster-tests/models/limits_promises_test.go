package models

import (
	"testing"
	"time"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/cluster-tests/history"
	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/counter"
)

// told is an operation on a resource of the same name as its algorithm, at a shard time and about then by the clock.
func told(resource, kind string, at fsm.Time, allowed bool) history.Op {
	clock := time.Duration(at) * time.Millisecond
	return history.Op{
		Process: "p", Call: clock, Return: clock, Outcome: history.Definite, Output: client.Decision{Allowed: allowed},
		Input: LimitOp{Kind: kind, Request: client.Request{Client: "a", Resource: resource}},
		Trace: client.Trace{Shard: 1, Index: 1, Time: time.UnixMilli(int64(at))},
	}
}

// It takes no log: what callers were told is enough.
func TestCallersWhoWereAllowedTooMuchAreFound(t *testing.T) {
	rules := map[string]counter.Params{
		"bucket": {Algorithm: counter.TokenBucket, Rate: 1, Window: 1000, Burst: 2},
		"log":    {Algorithm: counter.SlidingLog, Rate: 2, Window: 1000},
		"slots":  {Algorithm: counter.Concurrency, Rate: 1, Window: 1000},
	}
	check := func(resource string, at fsm.Time) history.Op { return told(resource, KindCheck, at, true) }
	lease := func(from, to time.Duration) history.Op {
		op := told("bucket", KindLease, 0, true)
		op.Trace, op.Call, op.Return = client.Trace{}, from*time.Millisecond, to*time.Millisecond
		return op
	}
	release := func(at fsm.Time) history.Op { return told("slots", KindRelease, at, false) }
	unknown := func(op history.Op) history.Op {
		op.Outcome, op.Output = history.Unknown, nil
		return op
	}
	for _, test := range []struct {
		name   string
		ops    []history.Op
		broken bool
	}{
		{"a burst", []history.Op{check("bucket", 100), check("bucket", 100)}, false},
		{"a burst and one more", []history.Op{check("bucket", 100), check("bucket", 100), check("bucket", 1099)}, true},
		{"one that was denied", []history.Op{check("bucket", 100), check("bucket", 100), told("bucket", KindCheck, 200, false)}, false},
		{"one of unknown outcome", []history.Op{check("bucket", 100), check("bucket", 100), unknown(check("bucket", 1000))}, false},
		{"after a reset", []history.Op{check("bucket", 100), check("bucket", 100), told("bucket", KindReset, 500, false), check("bucket", 600)}, false},
		{"too many after a reset", []history.Op{told("bucket", KindReset, 500, false), check("bucket", 600), check("bucket", 600), check("bucket", 600)}, true},
		{"of a lease", []history.Op{check("bucket", 100), check("bucket", 120), lease(105, 110)}, true},
		{"of a lease, maybe later", []history.Op{check("bucket", 100), check("bucket", 100), lease(105, 1105)}, false},
		{"too many while one of a lease may come any time", []history.Op{lease(5, 2005), check("bucket", 100), check("bucket", 100), check("bucket", 1099)}, true},
		{"a log", []history.Op{check("log", 100), check("log", 1099), check("log", 1099)}, true},
		{"a slot", []history.Op{check("slots", 100), release(500), check("slots", 500)}, false},
		{"a slot that is in use", []history.Op{check("slots", 100), release(500), check("slots", 499)}, true},
		{"a slot that is kept", []history.Op{check("slots", 100), check("slots", 1099)}, true},
		{"a slot that ends", []history.Op{check("slots", 100), check("slots", 1100)}, false},
		{"a slot, maybe released", []history.Op{check("slots", 100), unknown(release(200)), check("slots", 300)}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			at := func(d time.Duration) (fsm.Time, fsm.Time) { ms := fsm.Time(d.Milliseconds()); return ms, ms }
			j := judgePromises(test.ops, rules, at)
			if idle := j.Idle(); len(idle) > 0 {
				t.Errorf("there were no %s", idle)
			}
			if (len(j.Violations) > 0) != test.broken {
				t.Errorf("want %v: %v", test.broken, j.Violations)
			}
		})
	}
}
