package fsm

import (
	"errors"
	"fmt"
	"testing"

	"github.com/holdfastdb/holdfast/fsm/fsmtest"
)

// The tests' second data type keeps its lists in rows, tells of each change, and is asked for single keys.
const (
	toldType  = 9
	opTell    = 1
	opForget  = 2
	opRefused = 3
	opBroken  = 4
	opAsk     = 64
)

func told() Type {
	tell := func(tx *Tx, q *appendRequest) (*numbers, error) {
		row, err := tx.Row([]byte(q.key), decodeNumbers)
		if err != nil {
			return nil, err
		}
		n, _ := row.(*numbers)
		if n == nil {
			n = &numbers{}
		}
		*n = append(*n, q.number)
		tx.PutRow([]byte(q.key), n)
		tx.Emit(fmt.Append(nil, q.key, q.number))
		return &numbers{}, nil
	}
	return Type{
		ID: toldType, Name: "told",
		Ops: []Op{
			Command(opTell, "tell", tell),
			Command(opForget, "forget", func(tx *Tx, q *appendRequest) (*numbers, error) {
				tx.DeleteRow([]byte(q.key))
				return &numbers{}, nil
			}),
			Command(opRefused, "refused", func(*Tx, *appendRequest) (*numbers, error) {
				return nil, Errorf(Conflict, "refused")
			}),
			Command(opBroken, "broken", func(tx *Tx, _ *appendRequest) (*numbers, error) {
				tx.Emit([]byte("half"))
				return nil, errors.New("broken")
			}),
			PointOp(opAsk, "ask", func(v *View, q *appendRequest) (*numbers, error) {
				row, err := v.Row([]byte(q.key), decodeNumbers)
				if err != nil {
					return nil, err
				}
				if row == nil {
					return nil, Errorf(NotFound, "no list %q", q.key)
				}
				return row.(*numbers), nil
			}),
		},
	}
}

func tell(op uint8, key string, number uint64) Call {
	q := appendRequest{key: key, number: number}
	return Call{Type: toldType, Op: op, Body: q.Append(nil)}
}

// newTold makes a rig of both types whose machine keeps about so much in memory.
func newTold(t *testing.T, memory int) *rig {
	t.Helper()
	reg, err := New(lists(), told())
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, reg: reg.Within(memory), store: fsmtest.NewMemory(), now: epoch}
	r.reopen()
	return r
}

// answer is what a query found, in words.
func (r *rig) answer(results []Result, err error) string {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
	if results[0].Code == NotFound {
		return "-"
	}
	row, err := decodeNumbers(results[0].Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return fmt.Sprint(*row.(*numbers))
}

func (r *rig) inMemory(key string) string {
	r.t.Helper()
	results, applied, err := r.m.Query([]Call{tell(opAsk, key, 0)})
	if applied.Index != r.m.Applied().Index {
		r.t.Errorf("asked at %d, the machine is at %d", applied.Index, r.m.Applied().Index)
	}
	return r.answer(results, err)
}

func (r *rig) inStore(key string) string {
	r.t.Helper()
	results, _, err := r.reg.Query(r.store.View(), []Call{tell(opAsk, key, 0)})
	return r.answer(results, err)
}

func TestPointQueriesSeeWhatIsNotInTheStoreYet(t *testing.T) {
	r := newTold(t, MaxMemory)
	expect := func(memory, store string) {
		t.Helper()
		if m, s := r.inMemory("a"), r.inStore("a"); m != memory || s != store {
			t.Errorf("in memory %s, want %s; in the store %s, want %s", m, memory, s, store)
		}
	}
	expect("-", "-")
	r.frame(Frame{Calls: []Call{tell(opTell, "a", 1)}})
	expect("[1]", "-")
	r.flush()
	expect("[1]", "[1]")
	r.frame(Frame{Calls: []Call{tell(opTell, "a", 2)}})
	expect("[1 2]", "[1]")
	r.reopen() // and the log again
	expect("[1 2]", "[1]")
	r.frame(Frame{Calls: []Call{tell(opForget, "a", 0)}})
	expect("-", "[1]")
	r.flush()
	expect("-", "-")
	r.frame(Frame{Calls: []Call{tell(opTell, "a", 3)}})
	expect("[3]", "-")
}

func TestPointTellsWhatMemoryAnswers(t *testing.T) {
	reg := newTold(t, MaxMemory).reg
	for name, test := range map[string]struct {
		calls []Call
		want  bool
	}{
		"a point":     {[]Call{tell(opAsk, "a", 0)}, true},
		"a walk":      {[]Call{call(opRead, "a", 0)}, false},
		"both":        {[]Call{tell(opAsk, "a", 0), call(opRead, "a", 0)}, false},
		"a command":   {[]Call{tell(opTell, "a", 0)}, false},
		"an unknown":  {[]Call{{Type: toldType, Op: 99}}, false},
		"of no type":  {[]Call{{Type: 99, Op: opAsk}}, false},
		"two of them": {[]Call{tell(opAsk, "a", 0), tell(opAsk, "b", 0)}, true},
	} {
		if got := reg.Point(test.calls); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// Rows that are asked for are kept, but never more than the memory allows, not even while many changes wait to be written:
// those are not lost by it.
func TestPointQueriesKeepToTheMemory(t *testing.T) {
	r := newTold(t, MaxMemory/512)
	const keys = 500
	name := func(i int) string { return fmt.Sprint("key", i) }
	for i := range keys {
		r.frame(Frame{Calls: []Call{tell(opTell, name(i), uint64(i))}})
	}
	r.flush()
	for round := range 3 {
		for i := range keys {
			if i%100 == 0 {
				r.frame(Frame{Calls: []Call{tell(opTell, name(i), uint64(round))}})
			}
			want := fmt.Sprintf("[%d", i)
			if got := r.inMemory(name(i)); got[:len(want)] != want {
				t.Fatalf("%s is %s, want %s…", name(i), got, want)
			}
			if n, most := len(r.m.rows.young)+len(r.m.rows.old), 2*r.m.rows.most+1; n > most {
				t.Fatalf("%d rows are kept, at most %d are allowed", n, most)
			}
		}
	}
	r.flush()
	if got, want := r.inStore(name(100)), "[100 0 1 2]"; got != want {
		t.Errorf("in the store there is %s, want %s", got, want)
	}
}

// events are what an entry told, in words.
func events(out Outcome) string {
	text := ""
	for _, e := range out.Events {
		text += fmt.Sprintf("%d:%s ", e.Type, e.Body)
	}
	return text
}

func TestEventsAreToldOnceInTheOrderOfTheLog(t *testing.T) {
	r := newTold(t, MaxMemory)
	frame := Frame{Client: [16]byte{1}, Seq: 1, Deadline: epoch + 1000, Calls: []Call{tell(opTell, "a", 1), tell(opRefused, "", 0)}}
	out := r.apply(Entry{Frames: []Frame{{Calls: []Call{tell(opTell, "b", 2)}}, frame}})
	if got, want := events(out), "9:b2 9:a1 "; got != want {
		t.Errorf("told %q, want %q", got, want)
	}
	if out := r.apply(Entry{Frames: []Frame{frame}}); !out.Frames[0].Replayed || len(out.Events) != 0 {
		t.Errorf("for a frame that was sent again: %+v", out)
	}
	r.append(Entry{Frames: []Frame{{Calls: []Call{tell(opTell, "c", 3)}}}})
	r.append(Entry{Frames: []Frame{{Calls: []Call{call(opAppend, "d", 4)}}}})
	r.append(Entry{Frames: []Frame{{Calls: []Call{tell(opTell, "e", 5)}}}})
	outs, err := r.m.Apply(r.log) // the first two once more
	if err != nil {
		t.Fatal(err)
	}
	got := ""
	for _, out := range outs {
		got += events(out) + "| "
	}
	if want := "| | 9:c3 | | 9:e5 | "; got != want {
		t.Errorf("told %q, want %q", got, want)
	}
}

// What a machine told of an entry that it could not carry out is not told with the next one.
func TestReloadForgetsEvents(t *testing.T) {
	r := newTold(t, MaxMemory)
	broken := Entry{Time: epoch, Frames: []Frame{{Calls: []Call{tell(opTell, "a", 1), tell(opBroken, "", 0)}}}}
	if _, err := r.m.Apply([]LogEntry{{Index: 1, Term: 1, Data: broken.Append(nil)}}); err == nil {
		t.Fatal("a command that is broken was carried out")
	}
	if _, _, err := r.m.Query([]Call{tell(opAsk, "a", 0)}); err == nil {
		t.Error("a machine that stopped answers")
	}
	if err := r.m.Reload(); err != nil {
		t.Fatal(err)
	}
	if got, want := events(r.apply(Entry{Frames: []Frame{{Calls: []Call{tell(opTell, "b", 2)}}}})), "9:b2 "; got != want {
		t.Errorf("told %q, want %q", got, want)
	}
}
