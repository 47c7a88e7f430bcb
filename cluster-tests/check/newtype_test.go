package check

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/cluster-tests/history"
	"github.com/holdfastdb/holdfast/cluster-tests/models"
	"github.com/holdfastdb/holdfast/fsm"
)

// The smallest data type: a register for each shard. Its state machine comes first, then all that the tests of whole
// clusters need to know of it, as a file of package models would have it.

const (
	registerID  = 200
	registerSet = 1
	registerGet = 64
)

type number byte

func (n *number) Decode(b []byte) error {
	if len(b) != 1 {
		return errors.New("not a number")
	}
	*n = number(b[0])
	return nil
}

func (n number) Append(dst []byte) []byte { return append(dst, byte(n)) }

var registerKey = []byte("r")

func registerMachine() fsm.Type {
	return fsm.Type{ID: registerID, Name: "register", Ops: []fsm.Op{
		fsm.Command(registerSet, "set", func(tx *fsm.Tx, n *number) (number, error) {
			tx.Set(registerKey, n.Append(nil))
			return *n, nil
		}),
		fsm.QueryOp(registerGet, "get", func(v *fsm.View, _ *number) (number, error) {
			b, err := v.Get(registerKey)
			if err != nil || len(b) == 0 {
				return 0, err
			}
			return number(b[0]), nil
		}),
	}}
}

// registerOp is the Input of an operation on a register. Its Output is the number that the register then has.
type registerOp struct {
	Set    bool   `json:"set"`
	Number number `json:"number"`
}

func (registerOp) DataType() string   { return "register" }
func (o registerOp) Describe() string { return fmt.Sprintf("set %v, %d", o.Set, o.Number) }

// registerModel is the reference of one shard's register.
type registerModel struct{ value, written number }

func (m *registerModel) Apply(_ *models.Moment, call fsm.Call) (fsm.Result, error) {
	if err := m.value.Decode(call.Body); err != nil {
		return fsm.Result{}, err
	}
	m.written = 1
	return fsm.Result{Body: call.Body}, nil
}

func (m *registerModel) Query(fsm.Time, *history.Op) (fsm.Result, bool) {
	return fsm.Result{Body: m.value.Append(nil)}, true
}

func (m *registerModel) Compare(op *history.Op, done []models.Execution) error {
	if want := number(done[0].Result.Body[0]); op.Output != want {
		return fmt.Errorf("it has %v, the model says %d", op.Output, want)
	}
	return nil
}

func (m *registerModel) Local(uint32, []*history.Op, func(*history.Op) ([16]byte, bool)) (int, []models.Violation) {
	return 0, nil
}
func (m *registerModel) Sweep(*models.Moment, string)          {}
func (m *registerModel) Alone(*history.Op) error               { return nil }
func (m *registerModel) Unasked(*history.Op) bool              { return false }
func (m *registerModel) Learn(*history.Op, []models.Execution) {}
func (m *registerModel) Rows() int                             { return int(m.written) }
func (m *registerModel) Broken() []string                      { return nil }

// registerLoad is what clients do with a register, here one that is no cluster's.
type registerLoad struct{ fake number }

func (l *registerLoad) Begin(context.Context, *models.Process) error { return nil }

func (l *registerLoad) Callers() []models.Caller {
	return []models.Caller{{Step: func(by *models.Process) error {
		in := registerOp{Set: true, Number: number(by.Rand.IntN(100))}
		return by.Do(in, func(context.Context) (any, error) {
			l.fake = in.Number
			return l.fake, nil
		})
	}}}
}

func (l *registerLoad) Press(context.Context, *client.Client, uint32)      {}
func (l *registerLoad) MayFail(*history.Op) bool                           { return false }
func (l *registerLoad) Unclear([]history.Op, []*history.Op) int            { return 0 }
func (l *registerLoad) End(context.Context, *models.Process) models.Judged { return models.Judged{} }

func (l *registerLoad) Judge(ops []history.Op, _ models.ShardTimes) models.Judged {
	n := 0
	for _, op := range ops {
		if _, ok := op.Input.(registerOp); ok {
			n++
		}
	}
	return models.Judged{Looked: map[string]int{"operations on registers": n}}
}

func (l *registerLoad) Sequences() models.Sequences {
	return models.Sequences{
		Key: func(op *history.Op) (string, bool) {
			_, ok := op.Input.(registerOp)
			return fmt.Sprint("shard ", op.Trace.Shard), ok
		},
		Model: func(string, []*history.Op) (porcupine.Model, bool) {
			return porcupine.Model{
				Init: func() any { return number(0) },
				Step: func(state, input, _ any) (bool, any) {
					op := input.(*history.Op)
					if in := op.Input.(registerOp); in.Set {
						return op.Output == in.Number, in.Number
					}
					return op.Output == state, state
				},
			}, true
		},
	}
}

// withRegister is every data type and the new one: the row is all that is added.
func withRegister() []models.Type {
	load := func() models.Load { return &registerLoad{} }
	return append(models.Types(), models.Type{
		Name: "register", ID: registerID, Model: func() models.Model { return &registerModel{} }, Sim: load, Chaos: load,
	})
}

// register is one operation on the register of the world's shard, executed by the real state machine.
func (w *world) register(in registerOp) {
	w.t.Helper()
	op := w.begin("", "")
	op.Input = in
	if in.Set {
		f := w.frame(fsm.Call{Type: registerID, Op: registerSet, Body: in.Number.Append(nil)})
		out := w.entry(fsm.Entry{Frames: []fsm.Frame{f}}).Frames[0]
		op.Trace, op.Output = trace(out.Index, out.Time), number(out.Results[0].Body[0])
		op.Trace.Seq = f.Seq
	} else {
		results, at, err := w.reg.Query(w.store.View(), []fsm.Call{{Type: registerID, Op: registerGet, Body: []byte{0}}})
		if err != nil {
			w.t.Fatal(err)
		}
		op.Trace, op.Output = trace(at.Index, at.Time), number(results[0].Body[0])
		op.Trace.Query = true
	}
	w.ops = append(w.ops, op)
}

// both is a history with operations of two data types, in the same log.
func both(t *testing.T) *world {
	w := newWorld(t, registerMachine())
	for i := range number(4) {
		w.register(registerOp{Set: true, Number: i})
		w.check("a")
		w.register(registerOp{})
		w.peek("a")
	}
	return w
}

// A data type that no layer knows is judged by all of them as soon as it has its row, beside the others.
func TestADataTypePlugsIntoEveryLayer(t *testing.T) {
	w, load := both(t), withRegister()[len(models.Types())].Sim()
	r := Replay(withRegister(), map[uint32][]Entry{theShard: w.log}, w.ops)
	if len(r.Violations) > 0 || r.Checked != 16 || r.Queries != 8 || r.Unclear != 0 || r.Rows[theShard][registerID] != 1 {
		t.Errorf("%+v", r)
	}
	s := Porcupine(w.ops, Sampling{Sequences: load.Sequences()})
	if len(s.Violations) > 0 || s.Operations != 8 || s.Keys != 1 {
		t.Errorf("%+v", s)
	}
	if j := load.Judge(w.ops, nil); j.Looked["operations on registers"] != 8 {
		t.Errorf("%+v", j)
	}
	for _, test := range []struct {
		name, kind string
		breaks     func(w *world)
		sequence   bool // porcupine finds it, too
	}{
		{"a stale answer", KindResult, func(w *world) { w.ops[10].Output = number(0) }, true},
		{"an acknowledged operation that is nowhere", KindLost, func(w *world) { w.ops[8].Trace.Seq = 500 }, false},
		{"an order that is not that of time", KindOrder, func(w *world) { w.ops[8].Return = w.ops[4].Call - 1; w.ops[8].Call = w.ops[4].Call - 2 }, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := both(t)
			test.breaks(w)
			finds(t, Replay(withRegister(), map[uint32][]Entry{theShard: w.log}, w.ops).Violations, test.kind)
			if s := Porcupine(w.ops, Sampling{Sequences: load.Sequences()}); (len(s.Violations) > 0) != test.sequence {
				t.Errorf("porcupine: %v", s.Violations)
			}
		})
	}
}

// What no row names is not passed over in silence.
func TestADataTypeWithoutARowIsFound(t *testing.T) {
	w := newWorld(t)
	w.check("a")
	op := w.begin("", "")
	op.Input = registerOp{}
	w.ops = append(w.ops, op)
	finds(t, w.replay().Violations, KindLog)
}

// A history has the operations of any data type as its load made them, and says of which it is.
func TestAHistoryHasOperationsOfAnyDataType(t *testing.T) {
	h, dir := history.New(), t.TempDir()
	load := withRegister()[len(models.Types())].Chaos()
	if err := load.Callers()[0].Step(&models.Process{Name: "p", Rand: rand.New(rand.NewPCG(1, 1)), History: h}); err != nil {
		t.Fatal(err)
	}
	impatient := &models.Process{Name: "q", History: h, Patience: func(*rand.Rand) time.Duration { return 0 }}
	if err := impatient.Do(registerOp{}, func(ctx context.Context) (any, error) { return nil, ctx.Err() }); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("who has no patience: %v", err)
	}
	if ops := h.Ops(); len(ops) != 2 || ops[0].Outcome != history.Definite || ops[1].Outcome != history.Failed {
		t.Errorf("%+v", ops)
	}
	if err := history.Save(dir, h.Ops()); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, history.File))
	if err != nil {
		t.Fatal(err)
	}
	if want := `"type":"register","input":{"set":true,`; strings.Count(string(text), "\n") != 2 || !strings.Contains(string(text), want) {
		t.Errorf("no %s in %s", want, text)
	}
}
