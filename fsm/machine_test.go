package fsm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"github.com/holdfastdb/holdfast/fsm/fsmtest"
	"github.com/holdfastdb/holdfast/storage/kv"
	"github.com/holdfastdb/holdfast/storage/wire"
)

// The tests' data type keeps a list of numbers for each key: what was appended, in order. It shows an effect that comes
// twice, is missing, or comes in another order.
const (
	listType    = 7
	opAppend    = 1 // key, number, lifetime: appends the number
	opRefuse    = 2 // refused without effect
	opBreak     = 3 // cannot be executed
	opAppendRow = 4 // as opAppend, through the machine's cache of rows
	opCount     = 5 // answers how many keys there are, by iterating
	opRead      = 64
)

// appendRequest is a request; its encoding is the key's length, the key, the number and the lifetime.
type appendRequest struct {
	key    string
	number uint64
	life   uint64
}

func (q *appendRequest) Append(dst []byte) []byte {
	dst = wire.AppendText(dst, q.key)
	return binary.AppendUvarint(binary.AppendUvarint(dst, q.number), q.life)
}

func (q *appendRequest) Decode(b []byte) error {
	d := wire.NewDecoder(b)
	q.key, q.number, q.life = d.Text(), d.Uvarint(), d.Uvarint()
	return d.End("append")
}

// numbers is a stored list, an answer and a row.
type numbers []uint64

func (n *numbers) Append(dst []byte) []byte {
	for _, v := range *n {
		dst = binary.AppendUvarint(dst, v)
	}
	return dst
}

func decodeNumbers(b []byte) (Row, error) {
	d := wire.NewDecoder(b)
	n := numbers{}
	for len(d.Rest()) > 0 {
		n = append(n, d.Uvarint())
	}
	return &n, d.End("list")
}

func lists() Type {
	grow := func(tx *Tx, q *appendRequest) (*numbers, error) {
		old, err := tx.Get([]byte(q.key))
		if err != nil && !errors.Is(err, kv.ErrNotFound) {
			return nil, err
		}
		if len(old) == 0 && q.life > 0 {
			tx.ExpireAt([]byte(q.key), tx.Now()+Time(q.life))
		}
		tx.Set([]byte(q.key), binary.AppendUvarint(bytes.Clone(old), q.number))
		return &numbers{uint64(len(old)) + 1}, nil
	}
	growRow := func(tx *Tx, q *appendRequest) (*numbers, error) {
		row, err := tx.Row([]byte("r"+q.key), decodeNumbers)
		if err != nil {
			return nil, err
		}
		n, _ := row.(*numbers)
		if n == nil {
			n = &numbers{}
		}
		*n = append(*n, q.number)
		tx.PutRow([]byte("r"+q.key), n)
		return &numbers{uint64(len(*n))}, nil
	}
	count := func(tx *Tx, _ *appendRequest) (*numbers, error) {
		it, err := tx.Iter(nil, nil)
		if err != nil {
			return nil, err
		}
		defer it.Close()
		n := uint64(0)
		for it.Next() {
			n++
		}
		return &numbers{n}, it.Err()
	}
	return Type{
		ID: listType, Name: "list",
		Ops: []Op{
			Command(opAppend, "append", grow),
			Command(opRefuse, "refuse", func(*Tx, *appendRequest) (*numbers, error) {
				return nil, Errorf(Conflict, "refused")
			}),
			Command(opBreak, "break", func(*Tx, *appendRequest) (*numbers, error) {
				return nil, errors.New("broken")
			}),
			Command(opAppendRow, "append_row", growRow),
			Command(opCount, "count", count),
			QueryOp(opRead, "read", func(v *View, q *appendRequest) (*numbers, error) {
				value, err := v.Get([]byte(q.key))
				if errors.Is(err, kv.ErrNotFound) {
					return nil, Errorf(NotFound, "no list %q", q.key)
				}
				if err != nil {
					return nil, err
				}
				row, err := decodeNumbers(value)
				n, _ := row.(*numbers)
				return n, err
			}),
		},
		Sweep: func(tx *Tx, key []byte) error {
			tx.Delete(key)
			return nil
		},
	}
}

func call(op uint8, key string, number uint64) Call {
	q := appendRequest{key: key, number: number}
	return Call{Type: listType, Op: op, Body: q.Append(nil)}
}

func expiring(key string, number, life uint64) Call {
	q := appendRequest{key: key, number: number, life: life}
	return Call{Type: listType, Op: opAppend, Body: q.Append(nil)}
}

// rig is a machine with its log.
type rig struct {
	t     testing.TB
	reg   *Registry
	store *fsmtest.Memory
	m     *Machine
	log   []LogEntry
	now   Time
}

const epoch Time = 1_700_000_000_000

func newRig(t testing.TB) *rig {
	t.Helper()
	reg, err := New(lists())
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, reg: reg, store: fsmtest.NewMemory(), now: epoch}
	r.reopen()
	return r
}

// reopen starts a machine from the store, as a process does after a crash, and gives it the log again.
func (r *rig) reopen() {
	r.t.Helper()
	m, err := Open(r.reg, r.store)
	if err != nil {
		r.t.Fatal(err)
	}
	r.m = m
	if _, err := m.Apply(r.log); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) append(e Entry) {
	e.Time = r.now
	r.log = append(r.log, LogEntry{Index: uint64(len(r.log) + 1), Term: 1, Data: e.Append(nil)})
}

func (r *rig) apply(e Entry) Outcome {
	r.t.Helper()
	r.append(e)
	outs, err := r.m.Apply(r.log[len(r.log)-1:])
	if err != nil {
		r.t.Fatal(err)
	}
	return outs[0]
}

func (r *rig) frame(f Frame) FrameOutcome {
	r.t.Helper()
	return r.apply(Entry{Frames: []Frame{f}}).Frames[0]
}

func (r *rig) flush() {
	r.t.Helper()
	if err := r.m.Flush(); err != nil {
		r.t.Fatal(err)
	}
}

// list reads what is stored.
func (r *rig) list(key string) string {
	r.t.Helper()
	r.flush()
	q := appendRequest{key: key}
	results, _, err := r.reg.Query(r.store.View(), []Call{{Type: listType, Op: opRead, Body: q.Append(nil)}})
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

func TestACommandThatIsRefusedLeavesTheOthersOfItsFrame(t *testing.T) {
	r := newRig(t)
	out := r.frame(Frame{Calls: []Call{call(opAppend, "a", 1), call(opRefuse, "a", 2), Noop(), call(opAppend, "a", 3)}})
	var codes []Code
	for _, result := range out.Results {
		codes = append(codes, result.Code)
	}
	if got := fmt.Sprint(codes); got != "[ok conflict skipped ok]" {
		t.Errorf("codes %s", got)
	}
	if text := string(out.Results[1].Body); text != "refused" {
		t.Errorf("the refusal says %q", text)
	}
	if got := r.list("a"); got != "[1 3]" {
		t.Errorf("list %s", got)
	}
}

func TestEntriesThatCannotBeExecutedStopTheReplica(t *testing.T) {
	valid := (&Entry{Frames: []Frame{{Calls: []Call{call(opAppend, "a", 1)}}}}).Append(nil)
	flipped := bytes.Clone(valid)
	flipped[len(flipped)-1] ^= 1
	newer := bytes.Clone(valid)
	newer[0]++
	entry := func(c Call) []byte { return (&Entry{Frames: []Frame{{Calls: []Call{c}}}}).Append(nil) }
	for _, test := range []struct {
		name    string
		data    []byte
		corrupt bool
	}{
		{"empty", nil, true},
		{"a flipped bit", flipped, true},
		{"a newer format", newer, true},
		{"cut short", valid[:len(valid)-1], true},
		{"an unknown type", entry(Call{Type: 99, Op: 1}), true},
		{"an unknown command", entry(Call{Type: listType, Op: 63}), true},
		{"a query in the log", entry(Call{Type: listType, Op: opRead}), true},
		{"a malformed request", entry(Call{Type: listType, Op: opAppend, Body: []byte{200}}), true},
		{"a command that fails", entry(call(opBreak, "a", 1)), false},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newRig(t)
			_, err := r.m.Apply([]LogEntry{{Index: 1, Term: 1, Data: test.data}})
			if err == nil {
				t.Fatal("no error")
			}
			if got := errors.Is(err, ErrCorrupt); got != test.corrupt {
				t.Errorf("corrupt: %v, want %v: %v", got, test.corrupt, err)
			}
			// Nor does anything after it: the entry would be missing for good.
			if _, again := r.m.Apply([]LogEntry{{Index: 2, Term: 1, Data: valid}}); again == nil {
				t.Error("the next entry was applied")
			}
			if err := r.m.Flush(); err == nil || len(r.store.Keys) != 0 {
				t.Errorf("the store has %d keys after the failure, %v", len(r.store.Keys), err)
			}
		})
	}
}

// I2.
func TestShardTimeNeverGoesBack(t *testing.T) {
	r := newRig(t)
	for _, stamp := range []Time{epoch, epoch + 10, epoch + 3, epoch + 10, epoch + 11} {
		r.now = stamp
		before := r.m.Applied().Time
		out := r.apply(Entry{Kind: Nudge})
		if want := max(before, stamp); out.Time != want || r.m.Applied().Time != want {
			t.Errorf("stamp %d after %d: time %d in the outcome and %d in the position, want %d", stamp, before, out.Time, r.m.Applied().Time, want)
		}
	}
}

// I3.
func TestEntriesThatWereAppliedAreSkipped(t *testing.T) {
	r := newRig(t)
	for i := range 5 {
		r.apply(Entry{Frames: []Frame{{Calls: []Call{call(opAppend, "a", uint64(i)), call(opAppendRow, "a", uint64(i))}}}})
	}
	r.flush()
	for range 2 { // once on the machine that applied them, once on a new one
		outs, err := r.m.Apply(r.log)
		if err != nil {
			t.Fatal(err)
		}
		for i := range outs {
			if outs[i].Index != r.log[i].Index || outs[i].Frames != nil {
				t.Errorf("entry %d was executed again: %+v", i+1, outs[i])
			}
		}
		r.reopen()
	}
	if got := r.list("a") + r.list("ra"); got != "[0 1 2 3 4][0 1 2 3 4]" {
		t.Errorf("lists %s", got)
	}
}

// The log is the durable copy: what was not flushed comes back from it, what was flushed does not come twice.
func TestACrashLosesNothingThatTheLogHas(t *testing.T) {
	for flushAt := range 6 {
		r := newRig(t)
		for i := range 5 {
			if i == flushAt {
				r.flush()
			}
			r.frame(Frame{
				Client: [16]byte{1}, Seq: uint64(i + 1), Deadline: r.now + 1000,
				Calls: []Call{call(opAppend, "a", uint64(i)), call(opAppendRow, "b", uint64(i))},
			})
		}
		r.reopen()
		if got := r.list("a") + r.list("rb"); got != "[0 1 2 3 4][0 1 2 3 4]" {
			t.Errorf("flushed before entry %d: lists %s", flushAt+1, got)
		}
		if again := r.frame(Frame{Client: [16]byte{1}, Seq: 5, Deadline: r.now + 1000, Calls: []Call{call(opAppend, "a", 9)}}); !again.Replayed {
			t.Errorf("flushed before entry %d: a repeated frame was executed: %+v", flushAt+1, again)
		}
	}
}

func TestManyChangesAreWrittenWithoutBeingAsked(t *testing.T) {
	big := string(bytes.Repeat([]byte("x"), 64<<10))
	for _, test := range []struct {
		name    string
		entries int
		call    func(i int) Call
	}{
		{"bytes of the log", maxUnflushed/(64<<10) + 1, func(int) Call { return call(opAppendRow, big, 1) }},
		{"direct writes", maxDirect + 1, func(i int) Call { return call(opAppend, "k", uint64(i)) }},
		{"rows", rowCacheSize + 1, func(i int) Call { return call(opAppendRow, fmt.Sprint(i), 1) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newRig(t)
			for i := range test.entries {
				r.append(Entry{Frames: []Frame{{Calls: []Call{test.call(i)}}}})
				if _, err := r.m.Apply(r.log[len(r.log)-1:]); err != nil {
					t.Fatal(err)
				}
				begun := r.m.sealed != nil || len(r.store.Keys) > 0
				if begun && i < test.entries-2 {
					t.Fatalf("written after %d of %d entries", i+1, test.entries)
				}
				if begun {
					return
				}
			}
			t.Error("nothing was written")
		})
	}
}

func TestIterationInACommandSeesRowsThatAreNotWritten(t *testing.T) {
	r := newRig(t)
	r.frame(Frame{Calls: []Call{call(opAppend, "a", 1), call(opAppendRow, "b", 1)}})
	out := r.frame(Frame{Calls: []Call{call(opAppendRow, "c", 1), call(opCount, "", 0)}})
	if got := out.Results[1].Body; len(got) != 1 || got[0] != 3 {
		t.Errorf("the command saw %v keys, want 3", got)
	}
}

func TestConfigurationsAreKept(t *testing.T) {
	r := newRig(t)
	r.apply(Entry{Kind: TermStart})
	r.log = append(r.log, LogEntry{Index: 2, Term: 3, Configuration: []byte("who votes")})
	if _, err := r.m.Apply(r.log[1:]); err != nil {
		t.Fatal(err)
	}
	r.flush()
	r.reopen()
	a := r.m.Applied()
	if a.Index != 2 || a.Term != 3 || a.ConfigIndex != 2 || string(a.Configuration) != "who votes" {
		t.Errorf("position %+v", a)
	}
}
