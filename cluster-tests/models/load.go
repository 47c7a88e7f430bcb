package models

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/cluster-tests/history"
	"github.com/holdfastdb/holdfast/fsm"
)

// Load is what clients do with one data type in one history, and the checks that only this data type has. Where it is given
// operations, those of others are among them.
type Load interface {
	// Begin readies the cluster, before anything strikes.
	Begin(ctx context.Context, by *Process) error
	// Callers are those who then work side by side until the history ends. What the first one does succeeds as long as a
	// majority is there.
	Callers() []Caller
	// Press does one operation that the history does not have, on the one key of a shard that all want who press.
	Press(ctx context.Context, cl *client.Client, shard uint32)
	// MayFail tells of an operation that may be refused though a majority is there and its client is patient.
	MayFail(op *history.Op) bool
	// End asks the cluster for what it has in the end, when it is well again and nobody else calls.
	End(ctx context.Context, by *Process) Judged
	// Judge looks at what callers were told, and at nothing else.
	Judge(ops []history.Op, at ShardTimes) Judged
	// Unclear counts, of the questions that the model could not judge, those that it should have.
	Unclear(ops []history.Op, unclear []*history.Op) int
	// Sequences says what porcupine can judge.
	Sequences() Sequences
}

// Caller does one step after the other.
type Caller struct {
	// Reads says that it changes nothing.
	Reads bool
	// Step is one operation or some that belong together. It returns what became of the last one.
	Step func(by *Process) error
}

// ShardTimes gives the earliest and the latest shard time at a moment of the history. It is nil if nobody knows.
type ShardTimes func(time.Duration) (earliest, latest fsm.Time)

// Process is who calls: one operation after the other, which the history gets.
type Process struct {
	Name    string
	Client  *client.Client
	Rand    *rand.Rand
	History *history.History
	// Patience draws how long it waits for an answer; nil leaves that to the SDK.
	Patience func(*rand.Rand) time.Duration
}

// Do has the cluster do one operation.
func (p *Process) Do(in history.Input, call func(ctx context.Context) (any, error)) error {
	var trace client.Trace
	ctx := client.WithTrace(context.Background(), &trace)
	if p.Patience != nil {
		patient, cancel := context.WithTimeout(ctx, p.Patience(p.Rand))
		defer cancel()
		ctx = patient
	}
	pending := p.History.Begin(p.Name, in)
	out, err := call(ctx)
	pending.End(out, trace, err)
	return err
}

// Sequences says how porcupine can judge the operations on single keys, by nothing but what clients saw.
type Sequences struct {
	// Key names the part that an operation belongs to: those of different keys have nothing to do with each other.
	Key func(op *history.Op) (key string, ok bool)
	// Model judges the operations of a key, which are the inputs; ok is false if it does not understand them.
	Model func(key string, ops []*history.Op) (m porcupine.Model, ok bool)
	// Until tells of an operation after which nothing can be judged, if set: only what surely came before it is looked at.
	Until func(op *history.Op) bool
}

// Judged is what a check found, and how much it had to look at, by what that is. Where that is nothing, it proves nothing.
type Judged struct {
	Violations []Violation
	Looked     map[string]int
}

// Add adds what another check found.
func (j *Judged) Add(other Judged) {
	j.Violations = append(j.Violations, other.Violations...)
	if j.Looked == nil {
		j.Looked = make(map[string]int)
	}
	for what, n := range other.Looked {
		j.Looked[what] += n
	}
}

// Idle lists what there was nothing of.
func (j *Judged) Idle() (what []string) {
	for _, name := range slices.Sorted(maps.Keys(j.Looked)) {
		if j.Looked[name] == 0 {
			what = append(what, name)
		}
	}
	return what
}

// Violation is a promise that was broken.
type Violation struct {
	Kind   string // which one: see package check
	Detail string
	Op     *history.Op // nil if it is not about one
}

func (v Violation) String() string {
	if v.Op == nil {
		return v.Kind + ": " + v.Detail
	}
	return fmt.Sprintf("%s: %s (%s, called at %s, %s, input %+v, output %+v, trace %+v)",
		v.Kind, v.Detail, v.Op.Process, v.Op.Call, v.Op.Outcome, v.Op.Input, v.Op.Output, v.Op.Trace)
}

// The kinds of violations that loads find; package check has the others.
const (
	BrokenSum     = "sum"     // a counter does not have what was acknowledged
	BrokenPromise = "promise" // more was allowed than the rules promise, by what callers were told alone
	BrokenPolicy  = "policy"  // a change of a policy was acknowledged and is not there
	BrokenSession = "session" // who was logged out is let in, or the reverse, by what callers were told alone
	BrokenLease   = "lease"   // holders spent what they had not been lent, or not any more
	BrokenWatch   = "watch"   // who watches missed a change of a policy or what happened to a session, or saw another one
)

func violation(kind, format string, args ...any) Violation {
	return Violation{Kind: kind, Detail: fmt.Sprintf(format, args...)}
}
