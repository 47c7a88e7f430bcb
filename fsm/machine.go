package fsm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/holdfastdb/holdfast/storage/kv"
	"github.com/holdfastdb/holdfast/storage/plant"
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
	// Clients counts the clients with a record, OneShots those of ids that OneShot made.
	Clients, OneShots uint64
	// ConfigIndex and Configuration are those of the last configuration entry.
	ConfigIndex   uint64
	Configuration []byte
}

// Machine is the replicated state machine of one shard. Apply, Flush and Reload are called by one goroutine at a time;
// Applied and NextExpiry by any.
//
// The log is the durable copy of what Apply did, so Apply need not write: changes gather in memory and go to the store
// together with the position they belong to (I3), when there are many of them or when somebody calls Flush. A counter
// that is hit a thousand times a second is so written once in seconds. To encode all of them takes ten milliseconds, so Apply
// does a little of it each time, first of the rows that are about to change.
type Machine struct {
	reg   *Registry
	store Store

	// Owned by Apply.
	batch       kv.Batch // changes that are not in the store yet, apart from those in rows and windows
	sealed      kv.Batch // the one before, which waits for rows to be encoded, or nil
	direct      int      // writes in batch
	unflushed   int      // bytes of the log whose effects are not in the store yet
	applied     Applied
	rows        *rowCache
	clients     map[[16]byte]*client
	windows     []changedWindow
	swept       Time // no expiry row is earlier
	next        Time // earliest time in the expiry index, 0 if empty; may be earlier than what is really there
	key         []byte
	value       []byte
	request     any     // the last that was reusable
	events      []Event // of the entry being applied
	onSum       func(index uint64, e *Entry, view kv.View)
	resultBytes int   // size of the results in clients
	failed      error // why the machine has stopped: its position may include half of an entry, which must not reach the store

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
	// What waits to be written belongs to the old content, and so does a file that the batch may hold on to.
	m.sealed, m.failed = nil, errors.New("the store was not read")
	if m.batch != nil {
		if err := m.batch.Close(); err != nil {
			return err
		}
	}
	view := m.store.View()
	defer view.Close()
	applied, err := ReadApplied(view)
	if err != nil {
		return err
	}
	if plant.On(plant.ApplyTwice) {
		applied.Index -= min(applied.Index, 3)
	}
	m.applied, m.swept = applied, 0
	m.rows, m.clients, m.windows = newRowCache(m.reg.memory), make(map[[16]byte]*client), nil
	m.resultBytes, m.events = 0, nil
	m.batch, m.direct, m.unflushed = m.store.NewBatch(), 0, 0
	if m.next, err = firstExpiry(view, 0); err != nil {
		return err
	}
	m.failed = nil
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

// When Apply writes to the store without being asked. The first bounds what a restart executes again, twice as much while what
// was there before is still being encoded, and with it the memory that changes take; the second what is committed at once. Both
// are large because each write takes all rows that were changed since the one before: thousands, if some expire or begin while
// others are busy.
const (
	maxUnflushed = 16 << 20 // bytes of the log
	maxDirect    = 2048
)

// MaxMemory is about what a machine keeps in memory at most: two generations of rows, windows, and what is not flushed.
const MaxMemory = 2*rowCacheBytes + clientCacheBytes + 2*maxUnflushed

// share is the part of a bound that a machine with so much memory has.
func share(bound, memory int) int { return max(bound*memory/MaxMemory, 1) }

// Apply executes committed entries in order and makes the new position visible. It returns one outcome for each entry;
// an entry that was applied before has an outcome without frames. After an error the replica must stop: the entry
// cannot be executed here.
func (m *Machine) Apply(entries []LogEntry) ([]Outcome, error) {
	if m.failed != nil {
		return nil, m.failed
	}
	changed := len(m.rows.dirty)
	outcomes := make([]Outcome, len(entries))
	for i := range entries {
		e := &entries[i]
		outcomes[i].Index = e.Index
		if e.Index <= m.applied.Index {
			continue // I3: replayed after a restart
		}
		if err := m.applyEntry(e, &outcomes[i]); err != nil {
			m.failed = fmt.Errorf("apply entry %d: %w", e.Index, err)
			return nil, m.failed
		}
		outcomes[i].Events, m.events = m.events, nil
		m.unflushed += 1 + len(e.Data)
	}
	m.settle(max(share(settleRows, m.reg.memory), 2*(len(m.rows.dirty)-changed)))
	if m.unflushed >= share(maxUnflushed, m.reg.memory) || m.direct >= share(maxDirect, m.reg.memory) || m.rows.full() {
		if err := m.beginFlush(); err != nil {
			return nil, err
		}
	}
	m.publish()
	return outcomes, nil
}

// Flush writes all changes and the position to the store, in one batch (I3). Who reads the store calls it before.
func (m *Machine) Flush() error {
	if err := m.beginFlush(); err != nil {
		return err
	}
	m.settle(-1)
	return m.Wait()
}

// Wait returns when no write to the store is under way. What has not begun does not count.
func (m *Machine) Wait() error {
	if err := m.batch.Wait(); err != nil {
		return fmt.Errorf("commit applied entries: %w", err)
	}
	return nil
}

// beginFlush is Flush without the work and the wait: settle encodes the changes, and commands go on while the store takes
// them in.
func (m *Machine) beginFlush() error {
	if m.failed != nil {
		return m.failed
	}
	if m.unflushed == 0 {
		return nil
	}
	m.settle(-1)
	m.flushWindows()
	m.value = appendApplied(m.value[:0], &m.applied)
	m.batch.Set([]byte(keyApplied), m.value)
	next, err := m.batch.Next()
	if err != nil {
		return fmt.Errorf("commit applied entries: %w", err)
	}
	m.rows.freeze(m.batch)
	m.batch, m.sealed, m.direct, m.unflushed = next, m.batch, 0, 0
	return nil
}

// settleRows is what Apply encodes at least of the rows that changed before, in a fraction of a millisecond. It encodes two for
// each row that it changes itself, so that it is through before there are as many again.
const settleRows = 256

// settle encodes some of the rows that wait for it, all if most is negative, and has them committed after the last one.
func (m *Machine) settle(most int) {
	if m.sealed != nil && m.rows.settle(most) {
		m.sealed.Commit()
		m.sealed = nil
	}
}

// Close releases what the machine holds. What was not flushed is in the log.
func (m *Machine) Close() error { return m.batch.Close() }

func (m *Machine) applyEntry(e *LogEntry, out *Outcome) error {
	if e.Configuration != nil {
		m.applied.Index, m.applied.Term, m.applied.ConfigIndex = e.Index, e.Term, e.Index
		m.applied.Configuration = append([]byte(nil), e.Configuration...)
		m.set([]byte(keyConfiguration), appendConfiguration(nil, &m.applied))
		return nil
	}
	entry, err := DecodeEntry(e.Data)
	if err != nil {
		return err
	}
	m.applied.Index, m.applied.Term = e.Index, e.Term
	m.applied.Time = max(m.applied.Time, entry.Time) // I2
	out.Time = m.applied.Time
	switch entry.Kind {
	case Sweep:
		return m.sweep()
	case Checksum:
		return m.checksum(&entry)
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

// set and del change the batch.
func (m *Machine) set(key, value []byte) {
	m.batch.Set(key, value)
	m.direct++
}

func (m *Machine) del(key []byte) {
	m.batch.Delete(key)
	m.direct++
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
		if refused := m.admit(c, f); refused != nil && !(refused.Replayed && (plant.On(plant.SkipDedup) || plant.On(plant.ApplyTwice) && refused.Index == m.applied.Index)) {
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

// execute runs the calls and returns their results, once in their stored encoding and once decoded, pointing into it.
func (m *Machine) execute(tx *Tx, calls []Call) ([]byte, []Result, error) {
	stored := make([]byte, 0, 8+24*len(calls))
	stored = binary.AppendUvarint(stored, uint64(len(calls)))
	for _, call := range calls {
		code, err := m.executeOne(tx, call)
		if err != nil {
			return nil, nil, err
		}
		stored = append(stored, byte(code))
		stored = binary.AppendUvarint(stored, uint64(len(m.value)))
		stored = append(stored, m.value...)
		tx.op++
	}
	results, err := DecodeResults(stored)
	return stored, results, err
}

// executeOne runs one call and leaves the body of its result in m.value.
func (m *Machine) executeOne(tx *Tx, call Call) (Code, error) {
	m.value = m.value[:0]
	if call.Type == 0 && call.Op == 0 {
		return Skipped, nil
	}
	op, ok := m.reg.Lookup(call.Type, call.Op)
	if !ok || op.Query {
		return 0, fmt.Errorf("%w: no command %d of type %d: upgrade this node", ErrCorrupt, call.Op, call.Type)
	}
	tx.typeID = call.Type
	body, err := op.apply(tx, call.Body, m.value)
	if err == nil {
		m.value = body
		return OK, nil
	}
	var refusal *Error
	if errors.As(err, &refusal) {
		m.value = append(m.value[:0], refusal.Message...)
		return refusal.Code, nil
	}
	return 0, fmt.Errorf("command %d of type %d: %w", call.Op, call.Type, err)
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
	if len(d.Rest()) > 0 {
		a.OneShots = d.Uvarint()
	}
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
	dst = binary.AppendUvarint(dst, a.Clients)
	if a.OneShots == 0 { // as it was before they were counted
		return dst
	}
	return binary.AppendUvarint(dst, a.OneShots)
}

func appendConfiguration(dst []byte, a *Applied) []byte {
	return append(binary.AppendUvarint(dst, a.ConfigIndex), a.Configuration...)
}
