package fsm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/holdfastdb/holdfast/storage/kv"
	"github.com/holdfastdb/holdfast/storage/wire"
)

// Store is one shard's part of the state database.
type Store interface {
	NewBatch() kv.Batch
	View() kv.View
}

// LogEntry is one committed Raft log entry, a command or a configuration.
type LogEntry struct {
	Index, Term uint64
	// Data is the encoded Entry of a command.
	Data []byte
	// Configuration is the encoded Raft configuration of a configuration entry; Data is nil then.
	Configuration []byte
}

// Applied is the machine's position.
type Applied struct {
	Index, Term uint64
	Time        Time
	// Clients counts the clients with a record.
	Clients uint64
	// ConfigIndex and Configuration are those of the last configuration entry.
	ConfigIndex   uint64
	Configuration []byte
}

// Machine is the replicated state machine of one shard. Apply and Reload are called by one goroutine; Applied and
// NextExpiry by any.
type Machine struct {
	reg   *Registry
	store Store

	// Owned by Apply.
	batch   kv.Batch
	applied Applied
	rows    *rowCache
	clients map[[16]byte]*client
	swept   Time // no expiry row is earlier
	next    Time // earliest time in the expiry index, 0 if empty; may be earlier than what is really there
	key     []byte
	value   []byte

	published  atomic.Pointer[Applied]
	nextExpiry atomic.Int64
}

// Open reads the machine's position from the store.
func Open(reg *Registry, store Store) (*Machine, error) {
	m := &Machine{reg: reg, store: store}
	if err := m.Reload(); err != nil {
		return nil, fmt.Errorf("open state machine: %w", err)
	}
	return m, nil
}

// Reload forgets all that is in memory and reads the store again, after a snapshot replaced its content.
func (m *Machine) Reload() error {
	view := m.store.View()
	defer view.Close()
	applied, err := ReadApplied(view)
	if err != nil {
		return err
	}
	m.applied, m.swept = applied, 0
	m.rows, m.clients = newRowCache(), make(map[[16]byte]*client)
	if m.next, err = firstExpiry(view, 0); err != nil {
		return err
	}
	m.publish()
	return nil
}

// Applied returns the position after the last Apply.
func (m *Machine) Applied() Applied { return *m.published.Load() }

// NextExpiry returns the shard time from which on a Sweep entry has something to do, 0 if nothing expires.
func (m *Machine) NextExpiry() Time { return Time(m.nextExpiry.Load()) }

func (m *Machine) publish() {
	applied := m.applied
	m.published.Store(&applied)
	m.nextExpiry.Store(int64(m.next))
}

// Apply executes committed entries in order and makes their effects and the new position visible as one (I3). It
// returns one outcome for each entry; an entry that was applied before has an outcome without frames. After an error
// the state is unchanged and the replica must stop: the entry cannot be executed here.
func (m *Machine) Apply(entries []LogEntry) ([]Outcome, error) {
	outcomes := make([]Outcome, len(entries))
	m.batch = m.store.NewBatch()
	defer func() {
		_ = m.batch.Close() // nothing to do after Commit; after a failure the replica stops
		m.batch = nil
	}()
	changed := false
	for i := range entries {
		e := &entries[i]
		outcomes[i].Index = e.Index
		if e.Index <= m.applied.Index {
			continue // I3: replayed after a restart
		}
		m.applied.Index, m.applied.Term = e.Index, e.Term
		changed = true
		if e.Configuration != nil {
			m.applied.ConfigIndex = e.Index
			m.applied.Configuration = append([]byte(nil), e.Configuration...)
			m.batch.Set([]byte(keyConfiguration), appendConfiguration(nil, &m.applied))
			continue
		}
		if err := m.applyEntry(e.Data, &outcomes[i]); err != nil {
			return nil, fmt.Errorf("apply entry %d: %w", e.Index, err)
		}
	}
	if !changed {
		return outcomes, nil
	}
	m.rows.flush(m.batch)
	m.value = appendApplied(m.value[:0], &m.applied)
	m.batch.Set([]byte(keyApplied), m.value)
	if err := m.batch.Commit(); err != nil {
		return nil, fmt.Errorf("commit applied entries: %w", err)
	}
	m.rows.age()
	m.publish()
	return outcomes, nil
}

func (m *Machine) applyEntry(data []byte, out *Outcome) error {
	entry, err := DecodeEntry(data)
	if err != nil {
		return err
	}
	m.applied.Time = max(m.applied.Time, entry.Time) // I2
	out.Time = m.applied.Time
	if entry.Kind == Sweep {
		return m.sweep()
	}
	if len(entry.Frames) == 0 {
		return nil
	}
	out.Frames = make([]FrameOutcome, len(entry.Frames))
	tx := Tx{m: m, index: m.applied.Index}
	for i := range entry.Frames {
		if err := m.applyFrame(&tx, &entry.Frames[i], &out.Frames[i]); err != nil {
			return err
		}
	}
	return nil
}

func (m *Machine) applyFrame(tx *Tx, f *Frame, out *FrameOutcome) error {
	anonymous := f.Client == [16]byte{}
	var c *client
	if anonymous {
		if f.Deadline != 0 && m.applied.Time > f.Deadline {
			*out = FrameOutcome{Code: Expired, Message: "deadline passed", Index: m.applied.Index, Time: m.applied.Time}
			return nil
		}
	} else {
		var err error
		if c, err = m.loadClient(f.Client); err != nil {
			return err
		}
		if refused := m.admit(c, f); refused != nil {
			*out = *refused
			return nil
		}
	}
	stored, results, err := m.execute(tx, f.Calls)
	if err != nil {
		return err
	}
	*out = FrameOutcome{Index: m.applied.Index, Time: m.applied.Time, Results: results}
	if !anonymous {
		m.record(c, f, stored)
	}
	return nil
}

// execute runs the calls and returns their results, once in their stored encoding and once decoded.
func (m *Machine) execute(tx *Tx, calls []Call) ([]byte, []Result, error) {
	results := make([]Result, len(calls))
	body := make([]byte, 0, 32*len(calls)) // bodies one after the other; results point into it
	type span struct{ from, to int }
	spans := make([]span, len(calls))
	for i, call := range calls {
		from := len(body)
		if call.Type == 0 && call.Op == 0 {
			results[i].Code = Skipped
			spans[i] = span{from, from}
			tx.op++
			continue
		}
		op, ok := m.reg.Lookup(call.Type, call.Op)
		if !ok || op.Query {
			return nil, nil, fmt.Errorf("%w: no command %d of type %d: upgrade this node", ErrCorrupt, call.Op, call.Type)
		}
		tx.typeID = call.Type
		next, err := op.apply(tx, call.Body, body)
		var refusal *Error
		switch {
		case err == nil:
			body = next
		case errors.As(err, &refusal):
			results[i].Code = refusal.Code
			body = append(body[:from], refusal.Message...)
		default:
			return nil, nil, fmt.Errorf("command %d of type %d: %w", call.Op, call.Type, err)
		}
		spans[i] = span{from, len(body)}
		tx.op++
	}
	for i, s := range spans {
		results[i].Body = body[s.from:s.to:s.to]
	}
	return AppendResults(nil, results), results, nil
}

// ReadApplied reads the position from any consistent view of a shard. A shard without one is at the zero position.
func ReadApplied(r kv.Reader) (Applied, error) {
	var a Applied
	value, err := r.Get([]byte(keyApplied))
	if errors.Is(err, kv.ErrNotFound) {
		return a, nil
	}
	if err != nil {
		return a, fmt.Errorf("read applied index: %w", err)
	}
	d := wire.NewDecoder(value)
	a.Index, a.Term, a.Time, a.Clients = d.Uvarint(), d.Uvarint(), Time(d.Varint()), d.Uvarint()
	if err := d.End("applied index"); err != nil {
		return Applied{}, err
	}
	value, err = r.Get([]byte(keyConfiguration))
	if errors.Is(err, kv.ErrNotFound) {
		return a, nil
	}
	if err != nil {
		return Applied{}, fmt.Errorf("read configuration: %w", err)
	}
	d = wire.NewDecoder(value)
	a.ConfigIndex = d.Uvarint()
	a.Configuration = append([]byte(nil), d.Rest()...)
	if d.Bad() {
		return Applied{}, fmt.Errorf("%w: configuration", ErrCorrupt)
	}
	return a, nil
}

func appendApplied(dst []byte, a *Applied) []byte {
	dst = binary.AppendUvarint(dst, a.Index)
	dst = binary.AppendUvarint(dst, a.Term)
	dst = binary.AppendVarint(dst, int64(a.Time))
	return binary.AppendUvarint(dst, a.Clients)
}

func appendConfiguration(dst []byte, a *Applied) []byte {
	return append(binary.AppendUvarint(dst, a.ConfigIndex), a.Configuration...)
}
