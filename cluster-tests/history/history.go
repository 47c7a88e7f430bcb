// Package history records what clients of a cluster did and were told, for the checks to judge.
package history

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/holdfastdb/holdfast/client"
)

// Outcome is what the caller knows of its operation.
type Outcome uint8

const (
	// Unknown: it may have been executed, once; also that of an operation that has not returned.
	Unknown Outcome = iota
	// Definite: it was executed, once, and Output is its answer.
	Definite
	// Failed: it had no effect and will have none.
	Failed
)

var outcomeNames = [...]string{"unknown", "definite", "failed"}

func (o Outcome) String() string { return outcomeNames[o] }

// Input is what a client asked for, as the operation's data type defines it. It is saved as JSON.
type Input interface {
	// DataType names the data type, of which a history may have several.
	DataType() string
	// Describe says in few words what was asked for, for people.
	Describe() string
}

// Op is one operation of one client.
type Op struct {
	// Process names who called; a process calls one operation after the other.
	Process string
	// Call and Return are on one monotonic clock, from the history's begin. Return of an unknown outcome is the history's
	// end: it may take effect until then.
	Call, Return time.Duration
	// Ended is when the caller went on, whatever it was told; 0 if it did not.
	Ended   time.Duration
	Outcome Outcome
	Trace   client.Trace
	Input   Input
	Output  any // what the data type's model expects; nil unless the outcome is definite
	Error   string
}

// History collects operations. Its methods are safe for any number of goroutines.
type History struct {
	begin time.Time

	mu  sync.Mutex
	ops []*Op
}

// New begins a history now.
func New() *History { return &History{begin: time.Now()} }

// Start is when the history began, from which its operations count.
func (h *History) Start() time.Time { return h.begin }

// Pending is an operation that has been called.
type Pending struct {
	h  *History
	op *Op
}

// Begin notes a call. An operation that never ends counts as one of unknown outcome.
func (h *History) Begin(process string, input Input) *Pending {
	h.mu.Lock()
	defer h.mu.Unlock()
	op := &Op{Process: process, Call: time.Since(h.begin), Input: input}
	h.ops = append(h.ops, op)
	return &Pending{h, op}
}

// End notes the answer, as the SDK gave it.
func (p *Pending) End(output any, trace client.Trace, err error) {
	p.h.mu.Lock()
	defer p.h.mu.Unlock()
	p.op.Return, p.op.Trace = time.Since(p.h.begin), trace
	p.op.Ended = p.op.Return
	switch {
	case err == nil:
		p.op.Outcome, p.op.Output = Definite, output
	case errors.Is(err, client.ErrOutcomeUnknown):
		p.op.Outcome, p.op.Error = Unknown, err.Error()
	default:
		p.op.Outcome, p.op.Error = Failed, err.Error()
	}
}

// Ops lists the operations in the order of their calls, as of now.
func (h *History) Ops() []Op {
	h.mu.Lock()
	defer h.mu.Unlock()
	end := time.Since(h.begin)
	ops := make([]Op, len(h.ops))
	for i, op := range h.ops {
		ops[i] = *op
		if op.Outcome == Unknown {
			ops[i].Return = end
		}
	}
	return ops
}

// File is the name of the file that Save writes.
const File = "history.jsonl"

// line is an operation as it is saved: one JSON object in one line.
type line struct {
	Process string     `json:"process"`
	CallNS  int64      `json:"call_ns"`
	EndNS   int64      `json:"return_ns"`
	Outcome string     `json:"outcome"`
	Shard   uint32     `json:"shard,omitempty"`
	Client  string     `json:"client,omitempty"`
	Seq     uint64     `json:"seq,omitempty"`
	Op      int        `json:"op,omitempty"`
	Query   bool       `json:"query,omitempty"`
	Index   uint64     `json:"index,omitempty"`
	Time    *time.Time `json:"time,omitempty"`
	Type    string     `json:"type"`
	Input   Input      `json:"input"`
	Output  any        `json:"output,omitempty"`
	Error   string     `json:"error,omitempty"`
}

// Save writes the operations into a file of the directory, for people and their tools.
func Save(dir string, ops []Op) (err error) {
	f, err := os.Create(filepath.Join(dir, File))
	if err != nil {
		return fmt.Errorf("save history: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriter(f)
	enc := json.NewEncoder(w)
	for _, op := range ops {
		l := line{
			Process: op.Process, CallNS: int64(op.Call), EndNS: int64(op.Return), Outcome: op.Outcome.String(),
			Shard: op.Trace.Shard, Seq: op.Trace.Seq, Op: op.Trace.Op, Query: op.Trace.Query, Index: op.Trace.Index,
			Type: op.Input.DataType(), Input: op.Input, Output: op.Output, Error: op.Error,
		}
		if op.Trace.Shard != 0 {
			l.Client = hex.EncodeToString(op.Trace.Client[:])
		}
		if op.Trace.Index != 0 {
			l.Time = &op.Trace.Time
		}
		if err := enc.Encode(l); err != nil {
			return fmt.Errorf("save history: operation of %s: %w", op.Process, err)
		}
	}
	return w.Flush()
}
