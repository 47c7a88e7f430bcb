package check

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/cluster-tests/history"
	"github.com/holdfastdb/holdfast/cluster-tests/models"
	"github.com/holdfastdb/holdfast/fsm/counter"
)

// byClient samples the counters of single clients.
func byClient(rules counter.Params) Sampling {
	return Sampling{Sequences: models.Sequences{
		Key: func(op *history.Op) (string, bool) {
			in, ok := op.Input.(models.LimitOp)
			return in.Request.Client, ok
		},
		Model: func(_ string, ops []*history.Op) (porcupine.Model, bool) {
			return models.LimitSequence(rules), models.CanJudge(rules, ops)
		},
	}}
}

func TestPorcupineAcceptsAHistoryWithoutFaults(t *testing.T) {
	w := mixed(t)
	r := Porcupine(w.ops[:len(w.ops)-1], byClient(rules))
	if len(r.Violations) > 0 || r.Keys != 3 || r.Operations != len(w.ops)-1 || r.Skipped != 0 {
		t.Errorf("%+v", r)
	}
	// One operation is answered from nowhere: its key is not understood.
	if r := Porcupine(w.ops, byClient(rules)); r.Skipped != 1 || len(r.Violations) > 0 {
		t.Errorf("%+v", r)
	}
}

// Nobody can tell when the first operations of a counter took effect if their outcome is unknown: they count in the window
// that is the first one known.
func TestWhatIsUnknownMayComeFirst(t *testing.T) {
	w := mixed(t)
	lost := []*history.Op{w.check("new"), w.check("new")}
	w.check("new")
	for _, op := range lost {
		op.Outcome, op.Output, op.Return = history.Unknown, nil, time.Hour
	}
	ops := w.ops[len(w.ops)-3:]
	if r := Porcupine(ops, byClient(rules)); len(r.Violations) > 0 || r.Operations != 3 {
		t.Errorf("%+v", r)
	}
	// But not more of them than there were.
	if r := Porcupine(ops[1:], byClient(rules)); len(r.Violations) != 1 {
		t.Errorf("%+v", r)
	}
}

// Indexes may say what they like: what clients saw decides.
func TestPorcupineFinds(t *testing.T) {
	for name, breaks := range map[string]func(w *world){
		"a token given twice": func(w *world) { w.ops[5].Output = w.ops[1].Output },
		"a stale question":    func(w *world) { w.ops[11].Output = w.ops[3].Output },
		"time that goes back": func(w *world) { w.ops[5].Trace.Time = w.ops[5].Trace.Time.Add(-time.Second) },
		"an unknown one that counts twice": func(w *world) {
			for _, op := range []*history.Op{w.check("x"), w.check("x")} {
				op.Outcome, op.Return = history.Unknown, time.Hour
			}
			w.check("x")
			w.ops = append(w.ops[:len(w.ops)-2], w.ops[len(w.ops)-1])
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := mixed(t)
			breaks(w)
			for i := range w.ops {
				w.ops[i].Trace.Index = uint64(i)
			}
			s := byClient(rules)
			s.Dir = filepath.Join(t.TempDir(), "artefacts")
			finds(t, Porcupine(w.ops, s).Violations, "linearizability")
			if drawn, err := filepath.Glob(filepath.Join(s.Dir, "*.html")); err != nil || len(drawn) != 1 {
				t.Errorf("drawn: %v, %v", drawn, err)
			}
		})
	}
}

// What follows an operation that cannot be judged is left out, and what went on at the same time.
func TestWhatIsLeftOutIsCounted(t *testing.T) {
	w := mixed(t)
	ops := w.ops[:len(w.ops)-1]
	s := byClient(rules)
	if r := Porcupine(ops, s); r.Left != 0 || r.Enough() != nil {
		t.Errorf("%+v, %v", r, r.Enough())
	}
	s.Until = func(op *history.Op) bool { return op == &ops[9] } // the fifth of b
	r := Porcupine(ops, s)
	if judged := len(ops) - r.Left; r.Operations != judged || r.Enough() == nil || len(r.Violations) > 0 {
		t.Errorf("%+v, %v", r, r.Enough())
	}
	var keys []*history.Op
	for i := range ops {
		if k, _ := s.Key(&ops[i]); k == "b" {
			keys = append(keys, &ops[i])
		}
	}
	at := slices.Index(keys, &ops[9])
	if part := before(keys, s.Until); len(part) != at {
		t.Errorf("%d operations come before the %d. one", len(part), at)
	}
	keys[at-1].Return = ops[9].Call // under way when it begins
	if part := before(keys, s.Until); len(part) != at-1 {
		t.Errorf("%d operations come surely before the %d. one", len(part), at)
	}
}

// An answer without the limit that applies is no order's.
func TestPorcupineFindsAnAnswerWithoutALimit(t *testing.T) {
	w := mixed(t)
	w.ops = w.ops[:len(w.ops)-1]
	w.ops[4].Output = client.Decision{Allowed: true}
	if r := Porcupine(w.ops, byClient(rules)); r.Skipped != 1 || r.Left == 0 {
		t.Errorf("not known to be limited: %+v", r)
	}
	w.limited()
	finds(t, Porcupine(w.ops, byClient(rules)).Violations, KindSequence)
}

// No verdict is no success.
func TestAnUndecidedHistoryIsAViolation(t *testing.T) {
	w := mixed(t)
	s := byClient(rules)
	s.Timeout = time.Millisecond
	model := s.Model
	s.Model = func(key string, ops []*history.Op) (porcupine.Model, bool) {
		m, ok := model(key, ops)
		step := m.Step
		m.Step = func(state, in, out any) (bool, any) {
			time.Sleep(2 * time.Millisecond)
			return step(state, in, out)
		}
		return m, ok
	}
	finds(t, Porcupine(w.ops, s).Violations, "linearizability")
}

func TestDrawingOnRequest(t *testing.T) {
	w := mixed(t)
	s := byClient(rules)
	s.Dir, s.Draw, s.Keys = t.TempDir(), true, 2
	if r := Porcupine(w.ops[:len(w.ops)-1], s); r.Keys != 2 || len(r.Violations) > 0 {
		t.Errorf("%+v", r)
	}
	if _, err := os.Stat(filepath.Join(s.Dir, "linearizability-b.html")); err != nil {
		t.Error(err)
	}
}

// What is concurrent with what was cut off may have seen it.
func TestALongHistoryIsCutWhereNothingIsLost(t *testing.T) {
	var ops []history.Op
	for i := range maxKeyOps + 5 {
		at := time.Duration(i) * time.Millisecond
		ops = append(ops, history.Op{Call: at, Return: at + 1500*time.Microsecond, Outcome: history.Definite, Output: i})
	}
	var all []*history.Op
	for i := range ops {
		all = append(all, &ops[len(ops)-1-i])
	}
	part, last := cut(all)
	if len(part) != maxKeyOps || part[0].Output != 0 || last != ops[len(ops)-1].Return {
		t.Fatalf("%d operations from %v to %s", len(part), part[0].Output, last)
	}
	for i, op := range part {
		if want := i >= maxKeyOps-1; (op.Outcome == history.Unknown) != want {
			t.Errorf("operation %d is %s", i, op.Outcome)
		}
	}
	if ops[maxKeyOps-1].Outcome != history.Definite {
		t.Error("the history itself was changed")
	}
}

// A real node under two algorithms, seen from outside.
func TestARealNodeIsLinearizable(t *testing.T) {
	h := history.New()
	runOne(t, func(ctx context.Context, c *client.Client) {
		var running sync.WaitGroup
		for i := range 6 {
			running.Go(func() {
				w := &caller{h: h, c: c, name: fmt.Sprint("p", i), rng: rand.New(rand.NewPCG(2, uint64(i)))}
				for range 250 {
					q := client.Request{Client: fmt.Sprint("client-", w.rng.IntN(5)), Resource: []string{"token", "fixed"}[w.rng.IntN(2)]}
					in := models.LimitOp{Kind: models.KindCheck, Request: q}
					if w.rng.IntN(4) == 0 {
						in.Kind = models.KindPeek
						w.do(ctx, in, func(ctx context.Context) (any, error) { return c.Limits().Peek(ctx, q) })
						continue
					}
					w.do(ctx, in, func(ctx context.Context) (any, error) { return c.Limits().Check(ctx, q) })
				}
			})
		}
		running.Wait()
	})
	for resource, rules := range map[string]counter.Params{
		"token": {Algorithm: counter.TokenBucket, Rate: 50, Window: 1000, Burst: 20},
		"fixed": {Algorithm: counter.FixedWindow, Rate: 500, Window: counter.Year.Window(), Calendar: counter.Year},
	} {
		s := byClient(rules)
		key := s.Key
		s.Key = func(op *history.Op) (string, bool) {
			k, ok := key(op)
			return k, ok && op.Input.(models.LimitOp).Request.Resource == resource
		}
		r := Porcupine(h.Ops(), s)
		if len(r.Violations) > 0 || r.Keys != 5 || r.Operations < 500 {
			t.Errorf("%s: %+v", resource, r)
		}
	}
}
