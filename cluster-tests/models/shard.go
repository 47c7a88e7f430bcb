package models

import (
	"container/heap"
	"fmt"
	"time"

	"github.com/holdfastdb/holdfast/cluster-tests/history"
	"github.com/holdfastdb/holdfast/fsm"
)

// Shard is the reference of one shard: exactly-once, expiry and time, around the models of the data types. It holds all
// that ever happened, so that any operation of a history can be looked up.
type Shard struct {
	ID     uint32
	Models map[uint8]Model
	named  map[string]Model // by the name of the data type

	Index uint64
	Now   fsm.Time
	// Told is when the next entry was decided, on the clock of the history.
	Told time.Duration

	clients map[[16]byte]*window
	due     dueRows
	listed  map[dueRow]bool
	done    map[FrameID][]Execution
	broken  []string
}

// FrameID names a frame.
type FrameID struct {
	Client [16]byte
	Seq    uint64
}

// window is what the shard remembers of a client: the last frame in each of its slots.
type window [fsm.MaxWindow]fsm.Frame

// NewShard begins with an empty shard.
func NewShard(types []Type, id uint32) *Shard {
	s := &Shard{
		ID: id, Models: make(map[uint8]Model), named: make(map[string]Model), clients: make(map[[16]byte]*window), listed: make(map[dueRow]bool),
		done: make(map[FrameID][]Execution),
	}
	for _, t := range types {
		if t.Model != nil {
			m := t.Model()
			s.Models[t.ID], s.named[t.Name] = m, m
		}
	}
	return s
}

// Of finds the model that knows an operation, nil if there is none.
func (s *Shard) Of(op *history.Op) Model { return s.named[op.Input.DataType()] }

// Done returns the commands of a frame that was executed, nil if it was not.
func (s *Shard) Done(id FrameID) []Execution { return s.done[id] }

// Rows counts what the shard remembers, by data type.
func (s *Shard) Rows() map[uint8]int {
	rows := make(map[uint8]int)
	for id, m := range s.Models {
		rows[id] = m.Rows()
	}
	return rows
}

// Broken lists the broken invariants of the shard and its models.
func (s *Shard) Broken() []string {
	all := s.broken
	for _, m := range s.Models {
		all = append(all, m.Broken()...)
	}
	return all
}

// Apply executes the next entry that holds frames; data is empty for an entry of Raft's own.
func (s *Shard) Apply(index uint64, data []byte) error {
	if index != s.Index+1 {
		return fmt.Errorf("entry %d comes after entry %d: the log has a gap", index, s.Index)
	}
	s.Index = index
	if len(data) == 0 {
		return nil
	}
	e, err := fsm.DecodeEntry(data)
	if err != nil {
		return fmt.Errorf("entry %d: %w", index, err)
	}
	s.Now = max(s.Now, e.Time)
	if e.Kind == fsm.Sweep {
		s.sweep()
		return nil
	}
	executed, place := 0, 0
	for i := range e.Frames {
		f := &e.Frames[i]
		if s.admit(f) {
			if err := s.execute(f, executed, place); err != nil {
				return fmt.Errorf("entry %d: %w", index, err)
			}
			executed += len(f.Calls)
		}
		place += len(f.Calls)
	}
	return nil
}

// admit tells whether a frame is executed, rather than answered from its record or refused.
func (s *Shard) admit(f *fsm.Frame) bool {
	if f.Client == [16]byte{} {
		return f.Deadline == 0 || s.Now <= f.Deadline
	}
	w, known := s.clients[f.Client]
	if !known {
		return s.Now <= f.Deadline && len(s.clients) < fsm.MaxClients
	}
	var acked uint64
	for i := range w {
		acked = max(acked, w[i].AckUpTo)
	}
	before := w[f.Seq%fsm.MaxWindow].Seq // the frame whose place this one takes
	return f.Seq > acked && before < f.Seq && s.Now <= f.Deadline && before <= max(acked, f.AckUpTo)
}

func (s *Shard) execute(f *fsm.Frame, first, place int) error {
	id := FrameID{f.Client, f.Seq}
	if s.done[id] != nil && f.Client != [16]byte{} && f.Retain == 0 {
		s.broken = append(s.broken, fmt.Sprintf("shard %d: frame %d of client %x is executed again at entry %d", s.ID, f.Seq, f.Client, s.Index))
	}
	done := make([]Execution, 0, len(f.Calls))
	for i, call := range f.Calls {
		x := Execution{Shard: s.ID, Index: s.Index, Place: place + i, Time: s.Now, Call: call, Result: fsm.Result{Code: fsm.Skipped}}
		if call.Type != 0 || call.Op != 0 {
			m := s.Models[call.Type]
			if m == nil {
				return fmt.Errorf("no model of data type %d", call.Type)
			}
			var err error
			if x.Result, err = m.Apply(s.moment(call.Type, first+i, f.Client), call); err != nil {
				return err
			}
		}
		done = append(done, x)
	}
	if f.Client == [16]byte{} {
		return nil
	}
	s.done[id] = done
	w, known := s.clients[f.Client]
	if !known {
		w = &window{}
		s.clients[f.Client] = w
	}
	w[f.Seq%fsm.MaxWindow] = fsm.Frame{Seq: f.Seq, AckUpTo: f.AckUpTo, Deadline: f.Deadline, Retain: f.Retain}
	if !known {
		s.expire(0, string(f.Client[:]), w.end())
	}
	return nil
}

// end is when the client's record may go.
func (w *window) end() (at fsm.Time) {
	for i := range w {
		switch f := &w[i]; {
		case f.Seq == 0:
		case f.Retain == 0:
			at = max(at, f.Deadline+2*fsm.MaxDeadline)
		default:
			at = max(at, f.Deadline+fsm.Time(f.Retain))
		}
	}
	return at
}

func (s *Shard) moment(typeID uint8, op int, client [16]byte) *Moment {
	return &Moment{Index: s.Index, Op: op, Now: s.Now, Client: client, Told: s.Told, expire: func(key string, at fsm.Time) { s.expire(typeID, key, at) }}
}

// dueRow says that something of a key may end at a time.
type dueRow struct {
	at     fsm.Time
	typeID uint8
	key    string
}

func (s *Shard) expire(typeID uint8, key string, at fsm.Time) {
	row := dueRow{max(at, s.Now), typeID, key}
	if !s.listed[row] {
		s.listed[row] = true
		heap.Push(&s.due, row)
	}
}

// sweep looks at what is due, earliest first, as much as one entry may.
func (s *Shard) sweep() {
	var rows []dueRow
	for len(rows) < fsm.MaxSweep && len(s.due) > 0 && s.due[0].at <= s.Now {
		row := heap.Pop(&s.due).(dueRow)
		delete(s.listed, row)
		rows = append(rows, row)
	}
	for _, row := range rows {
		if row.typeID != 0 {
			s.Models[row.typeID].Sweep(s.moment(row.typeID, 0, [16]byte{}), row.key)
			continue
		}
		id := [16]byte([]byte(row.key))
		if w := s.clients[id]; w == nil {
			continue
		} else if at := w.end(); at > s.Now {
			s.expire(0, row.key, at)
		} else {
			delete(s.clients, id)
		}
	}
}

// dueRows is a heap: by time, then type, then key.
type dueRows []dueRow

func (d dueRows) Len() int      { return len(d) }
func (d dueRows) Swap(i, j int) { d[i], d[j] = d[j], d[i] }
func (d dueRows) Less(i, j int) bool {
	a, b := &d[i], &d[j]
	switch {
	case a.at != b.at:
		return a.at < b.at
	case a.typeID != b.typeID:
		return a.typeID < b.typeID
	}
	return a.key < b.key
}
func (d *dueRows) Push(x any) { *d = append(*d, x.(dueRow)) }
func (d *dueRows) Pop() any {
	old := *d
	row := old[len(old)-1]
	*d = old[:len(old)-1]
	return row
}
