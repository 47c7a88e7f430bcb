package check

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/holdfastdb/holdfast/cluster-tests/history"
	"github.com/holdfastdb/holdfast/cluster-tests/models"
)

// Sampling says which parts of a history porcupine looks at, and how.
type Sampling struct {
	models.Sequences
	// Keys bounds how many keys are looked at; 0 means all.
	Keys int
	// Timeout is for one key; default a minute.
	Timeout time.Duration
	// Dir is where histories that are not linearizable are drawn; with Draw all are.
	Dir  string
	Draw bool
}

// The bounds of a part. The problem is exponential in what goes on at the same time, and an unknown outcome goes on until
// the end.
const (
	maxClients  = 10
	maxKeyOps   = 1000
	maxUnknowns = 5
	atOnce      = 2
)

// Sampled is what porcupine found.
type Sampled struct {
	Violations []Violation
	// Keys and Operations were checked; Skipped keys were too large, or not understood. Left are the operations that were
	// not looked at: all of those, what was cut off, and what follows one after which nothing can be judged.
	Keys, Operations, Skipped, Left int
}

// mostLeft is how many of 100 operations may be left out.
const mostLeft = 5

// Enough tells whether so much was left out that the rest proves little.
func (r *Sampled) Enough() error {
	if all := r.Operations + r.Left; r.Left*100 > all*mostLeft || r.Operations == 0 {
		return fmt.Errorf("%d of %d operations and %d keys were not judged, at most %d %% may be", r.Left, all, r.Skipped, mostLeft)
	}
	return nil
}

// Porcupine checks whether samples of a history are linearizable, by nothing but what clients called and were told. It
// runs outside of virtual time, or its time-outs mean nothing.
func Porcupine(ops []history.Op, s Sampling) Sampled {
	var r Sampled
	byKey := make(map[string][]*history.Op)
	for i := range ops {
		if key, ok := s.Key(&ops[i]); ok {
			byKey[key] = append(byKey[key], &ops[i])
		}
	}
	var mu sync.Mutex
	var running sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	for _, key := range sortedNames(byKey) {
		if s.Keys > 0 && r.Keys == s.Keys {
			break
		}
		part, last := cut(before(byKey[key], s.Until))
		r.Left += len(byKey[key]) - len(part)
		if len(part) == 0 {
			r.Skipped++
			continue
		}
		model, ok := s.Model(key, part)
		if !ok || tooLarge(part) {
			r.Skipped++
			r.Left += len(part)
			continue
		}
		r.Keys++
		r.Operations += len(part)
		slots <- struct{}{}
		running.Go(func() {
			defer func() { <-slots }()
			if v := s.check(key, model, part, last); v != nil {
				mu.Lock()
				r.Violations = append(r.Violations, *v)
				mu.Unlock()
			}
		})
	}
	running.Wait()
	return r
}

// before takes the operations of a key, in the order of their calls, up to the last moment before an operation after which
// nothing can be judged in which nothing was under way: what follows cannot have been seen before.
func before(ops []*history.Op, until func(op *history.Op) bool) []*history.Op {
	sorted := slices.SortedStableFunc(slices.Values(ops), func(a, b *history.Op) int { return cmp.Compare(a.Call, b.Call) })
	if until == nil {
		return sorted
	}
	quiet := 0
	var last time.Duration
	for i, op := range sorted {
		if last < op.Call {
			quiet = i
		}
		if until(op) {
			return sorted[:quiet]
		}
		last = max(last, op.Return)
	}
	return sorted
}

// cut takes the first operations of a key, in the order of their calls. What had not returned when the first of the others
// was called may have seen some of them: of those, only that they may have taken effect is left.
func cut(ops []*history.Op) ([]*history.Op, time.Duration) {
	part := before(ops, nil)
	var last time.Duration
	for _, op := range part {
		last = max(last, op.Return)
	}
	if len(part) <= maxKeyOps {
		return part, last
	}
	until := part[maxKeyOps].Call
	part = part[:maxKeyOps]
	for i, op := range part {
		if op.Return >= until && op.Outcome == history.Definite {
			open := *op
			open.Outcome, open.Output = history.Unknown, nil
			part[i] = &open
		}
	}
	return part, last
}

func tooLarge(ops []*history.Op) bool {
	clients, unknown := make(map[string]bool), 0
	for _, op := range ops {
		clients[op.Process] = true
		if op.Outcome == history.Unknown {
			unknown++
		}
	}
	return len(clients) > maxClients || unknown > maxUnknowns+maxClients // cut leaves at most one more for each client
}

func (s *Sampling) check(key string, model porcupine.Model, ops []*history.Op, last time.Duration) *Violation {
	clients := make(map[string]int)
	list := make([]porcupine.Operation, 0, len(ops))
	for _, op := range ops {
		id, ok := clients[op.Process]
		if !ok {
			id = len(clients)
			clients[op.Process] = id
		}
		one := porcupine.Operation{ClientId: id, Input: op, Call: int64(op.Call), Return: int64(op.Return)}
		if op.Outcome == history.Unknown {
			one.Return = int64(last)
		}
		list = append(list, one)
	}
	timeout := s.Timeout
	if timeout == 0 {
		timeout = time.Minute
	}
	result, info := porcupine.CheckOperationsVerbose(model, list, timeout)
	drawn := ""
	if s.Dir != "" && (s.Draw || result != porcupine.Ok) {
		drawn = s.draw(key, model, info)
	}
	switch result {
	case porcupine.Ok:
		return nil
	case porcupine.Unknown:
		return &Violation{Kind: KindSequence, Detail: fmt.Sprintf("%s: not decided within %s, which counts as a failure%s", key, timeout, drawn)}
	default:
		return &Violation{Kind: KindSequence, Detail: fmt.Sprintf("%s: %d operations have no order that explains them%s", key, len(ops), drawn)}
	}
}

// draw writes a page that shows the history, and returns where as a remark.
func (s *Sampling) draw(key string, model porcupine.Model, info porcupine.LinearizationInfo) string {
	name := strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' || r == '-' {
			return r
		}
		return '_'
	}, key)
	path := filepath.Join(s.Dir, "linearizability-"+name+".html")
	if err := os.MkdirAll(s.Dir, 0o755); err != nil {
		return "; it could not be drawn: " + err.Error()
	}
	if err := porcupine.VisualizePath(model, info, path); err != nil {
		return "; it could not be drawn: " + err.Error()
	}
	return "; see " + path
}
