package catalogtest

import (
	"bytes"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage/kv"
)

// Failer is what tests, benchmarks and properties have in common.
type Failer interface {
	Helper()
	Fatalf(format string, args ...any)
}

// Shard drives two machines with the same log. One stays open, the other is opened again before each entry: whatever
// the first remembers beyond what it stored makes them differ. After each entry it also verifies that a refused
// command wrote nothing.
type Shard struct {
	T   Failer
	Now fsm.Time
	// OpenOnce leaves the second machine out, for tests of many steps whose subject is something else.
	OpenOnce bool

	reg          *fsm.Registry
	kept, stored *Memory
	machine      *fsm.Machine
	index        uint64
}

// Start is the shard time at which a Shard begins.
const Start fsm.Time = 1_700_000_000_123

// New starts an empty shard of one type.
func New(t Failer, typ fsm.Type) *Shard {
	t.Helper()
	reg, err := fsm.New(typ)
	if err != nil {
		t.Fatalf("registry: %v", err)
	}
	s := &Shard{T: t, Now: Start, reg: reg, kept: new(Memory), stored: new(Memory)}
	s.machine = s.open(s.kept)
	return s
}

func (s *Shard) open(store *Memory) *fsm.Machine {
	m, err := fsm.Open(s.reg, store)
	if err != nil {
		s.T.Fatalf("open: %v", err)
	}
	return m
}

func (s *Shard) apply(m *fsm.Machine, log []fsm.LogEntry) []fsm.Outcome {
	s.T.Helper()
	outs, err := m.Apply(log)
	if err == nil {
		err = m.Flush()
	}
	if err != nil {
		s.T.Fatalf("apply: %v", err)
	}
	return outs
}

// View is a view of the whole shard.
func (s *Shard) View() kv.View { return s.kept.View() }

// Do applies one command and returns its result.
func (s *Shard) Do(call fsm.Call) fsm.Result {
	s.T.Helper()
	s.index++
	e := fsm.Entry{Time: s.Now, Frames: []fsm.Frame{{Calls: []fsm.Call{call}}}}
	log := []fsm.LogEntry{{Index: s.index, Term: 1, Data: e.Append(nil)}}
	before := s.kept.Writes
	outs := s.apply(s.machine, log)
	frame := &outs[0].Frames[0]
	if r := frame.Results[0]; r.Code != fsm.OK && s.kept.Writes != before {
		s.T.Fatalf("command %d wrote %d times and was refused: %v %s", call.Op, s.kept.Writes-before, r.Code, r.Body)
	}
	if s.OpenOnce {
		return frame.Results[0]
	}
	again := s.apply(s.open(s.stored), log)
	if !bytes.Equal(fsm.AppendFrameOutcome(nil, frame), fsm.AppendFrameOutcome(nil, &again[0].Frames[0])) {
		s.T.Fatalf("entry %d: the results differ\n%+v\n%+v", s.index, frame, again[0].Frames[0])
	}
	if !s.kept.Equal(s.stored) {
		s.T.Fatalf("entry %d: the stores differ", s.index)
	}
	return frame.Results[0]
}

// Query asks the state as it is now.
func (s *Shard) Query(call fsm.Call) fsm.Result {
	s.T.Helper()
	results, _, err := s.reg.Query(s.kept.View(), []fsm.Call{call})
	if err != nil {
		s.T.Fatalf("query: %v", err)
	}
	return results[0]
}

// Check verifies the invariants of the shard's type.
func (s *Shard) Check() {
	s.T.Helper()
	for _, t := range s.reg.Types() {
		if err := t.Check(s.kept.View(), s.Now); err != nil {
			s.T.Fatalf("check: %v", err)
		}
	}
}

// Put stores a key in both stores without a command.
func (s *Shard) Put(key, value []byte) {
	s.T.Helper()
	for _, store := range []*Memory{s.kept, s.stored} {
		b := store.NewBatch()
		b.Set(key, value)
		if _, err := b.Next(); err != nil {
			s.T.Fatalf("put: %v", err)
		}
		b.Commit()
	}
	s.machine = s.open(s.kept)
}
