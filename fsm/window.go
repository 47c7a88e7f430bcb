package fsm

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/holdfastdb/holdfast/storage/wire"
)

// The exactly-once window (after Ongaro, "Consensus: Bridging Theory and Practice", section 6.3, with expiry by shard
// time instead of registration). Each client has MaxWindow slots; frame seq uses slot seq mod MaxWindow. A slot is
// overwritten in place, so a busy client costs at most one small write for each frame and leaves no tombstones.

// windowSlot is one stored frame result.
type windowSlot struct {
	seq, ackUpTo uint64
	deadline     Time
	retain       Millis
	fingerprint  uint64 // Frame.Fingerprint
	index        uint64
	time         Time
	results      []byte // as AppendResults wrote them
	dirty        bool   // not in the batch yet
}

// client is the decoded window of one client.
type client struct {
	known bool
	slots [MaxWindow]windowSlot
}

// acked is the highest acknowledgement that the client sent with any frame still in the window.
func (c *client) acked() uint64 {
	var acked uint64
	for i := range c.slots {
		acked = max(acked, c.slots[i].ackUpTo)
	}
	return acked
}

// expiry is the time from which on no duplicate of a recorded frame can have an effect (I5).
func (c *client) expiry() Time {
	var at Time
	for i := range c.slots {
		s := &c.slots[i]
		if s.seq == 0 {
			continue
		}
		retain := s.retain
		if retain == 0 {
			retain = 2 * MaxDeadline
		}
		at = max(at, s.deadline+Time(retain))
	}
	return at
}

// OneShot makes a client's id of a hash. Such an id serves one request, an idempotency key or an operation that a frame
// carries into other groups, and is not used again; so there are far more of them than of clients that stay. They are
// counted apart, or they would keep those out.
func OneShot(hash [16]byte) (id [16]byte) {
	copy(id[len(oneShot):], hash[len(oneShot):])
	id[len(id)-1] |= 1 // never the id of nobody
	return id
}

// oneShot is what these ids begin with. Of random ids one in four billion does too, and is counted with them.
var oneShot = [4]byte{}

func isOneShot(id *[16]byte) bool { return [4]byte(id[:4]) == oneShot }

// remembered is the count to which a client belongs, and its bound.
func (m *Machine) remembered(id *[16]byte) (n *uint64, most uint64) {
	if isOneShot(id) {
		return &m.applied.OneShots, MaxOneShots
	}
	return &m.applied.Clients, MaxClients
}

func (s *windowSlot) append(dst []byte) []byte {
	dst = binary.AppendUvarint(dst, s.seq)
	dst = binary.AppendUvarint(dst, s.ackUpTo)
	dst = binary.AppendVarint(dst, int64(s.deadline))
	dst = binary.AppendUvarint(dst, uint64(s.retain))
	dst = binary.LittleEndian.AppendUint64(dst, s.fingerprint)
	dst = binary.AppendUvarint(dst, s.index)
	dst = binary.AppendVarint(dst, int64(s.time))
	return append(dst, s.results...)
}

func decodeWindowSlot(b []byte) (windowSlot, error) {
	d := wire.NewDecoder(b)
	s := windowSlot{seq: d.Uvarint(), ackUpTo: d.Uvarint(), deadline: Time(d.Varint()), retain: Millis(d.Uvarint())}
	s.fingerprint = d.Uint64()
	s.index, s.time = d.Uvarint(), Time(d.Varint())
	if d.Bad() || s.seq == 0 {
		return windowSlot{}, fmt.Errorf("%w: window slot", ErrCorrupt)
	}
	s.results = append([]byte(nil), d.Rest()...)
	if _, err := DecodeResults(s.results); err != nil {
		return windowSlot{}, err
	}
	return s, nil
}

func appendWindowKey(dst []byte, id [16]byte, slot int) []byte {
	dst = append(dst, prefixWindow...)
	dst = append(dst, id[:]...)
	return append(dst, byte(slot))
}

// These bound the decoded windows kept in memory: their number, and the size of the results in them.
const (
	clientCacheSize  = 4096
	clientCacheBytes = 32 << 20
)

// changedWindow names a slot of a client's window that is not in the batch yet.
type changedWindow struct {
	id   [16]byte
	slot int
}

// flushWindows writes the changed slots into the batch.
func (m *Machine) flushWindows() {
	for _, w := range m.windows {
		s := &m.clients[w.id].slots[w.slot]
		s.dirty = false
		m.key = appendWindowKey(m.key[:0], w.id, w.slot)
		m.value = s.append(m.value[:0])
		m.batch.Set(m.key, m.value)
	}
	m.windows = m.windows[:0]
}

// loadClient returns the client's window, decoded from the state if it is not in memory.
func (m *Machine) loadClient(id [16]byte) (*client, error) {
	if c, ok := m.clients[id]; ok {
		return c, nil
	}
	c, size := &client{}, 0
	it, err := m.batch.Iter(appendWindowKey(nil, id, 0), appendWindowKey(nil, id, MaxWindow))
	if err != nil {
		return nil, err
	}
	defer it.Close()
	for it.Next() {
		slot := int(it.Key()[len(it.Key())-1])
		s, err := decodeWindowSlot(it.Value())
		if err != nil {
			return nil, err
		}
		c.slots[slot] = s
		c.known = true
		size += len(s.results)
	}
	if err := it.Err(); err != nil {
		return nil, err
	}
	if memory := m.reg.memory; len(m.clients) >= share(clientCacheSize, memory) || m.resultBytes >= share(clientCacheBytes, memory) {
		m.flushWindows()
		clear(m.clients) // rare, and cheap to read again
		m.resultBytes = 0
	}
	m.clients[id] = c
	m.resultBytes += size
	return c, nil
}

// admit decides what happens to a frame (I4): it is answered from the window, refused, or, with a nil outcome,
// executed. The window comes before the deadline, so that a late duplicate of an executed frame gets its results.
func (m *Machine) admit(c *client, f *Frame) *FrameOutcome {
	refuse := func(code Code, format string, args ...any) *FrameOutcome {
		return &FrameOutcome{Code: code, Message: fmt.Sprintf(format, args...), Index: m.applied.Index, Time: m.applied.Time}
	}
	s := &c.slots[f.Seq%MaxWindow]
	if s.seq == f.Seq {
		if s.fingerprint != f.Fingerprint {
			return refuse(Conflict, "frame %d was used before for another request", f.Seq)
		}
		results, err := DecodeResults(s.results)
		if err != nil { // decodeWindowSlot and execute made sure of it
			return refuse(Conflict, "stored results are unreadable")
		}
		return &FrameOutcome{Replayed: true, Index: s.index, Time: s.time, Results: results}
	}
	acked := c.acked()
	clients, most := m.remembered(&f.Client)
	switch {
	case f.Seq <= acked || s.seq > f.Seq:
		return refuse(Stale, "frame %d was acknowledged before", f.Seq)
	case m.applied.Time > f.Deadline:
		return refuse(Expired, "deadline %d passed at shard time %d", f.Deadline, m.applied.Time)
	case s.seq > max(acked, f.AckUpTo):
		return refuse(WindowFull, "frame %d is still unacknowledged", s.seq)
	case !c.known && *clients >= most:
		return refuse(Exhausted, "the shard remembers %d clients already", most)
	}
	return nil
}

// record stores a frame's results in the client's window, with the frame's effects.
func (m *Machine) record(c *client, f *Frame, results []byte) {
	if !c.known {
		c.known = true
		clients, _ := m.remembered(&f.Client)
		*clients++
		defer func() { m.expireAt(0, f.Client[:], c.expiry()) }()
	}
	slot := int(f.Seq % MaxWindow)
	if !c.slots[slot].dirty {
		m.windows = append(m.windows, changedWindow{f.Client, slot})
	}
	m.resultBytes += len(results) - len(c.slots[slot].results)
	c.slots[slot] = windowSlot{
		seq: f.Seq, ackUpTo: f.AckUpTo, deadline: f.Deadline, retain: f.Retain, fingerprint: f.Fingerprint,
		index: m.applied.Index, time: m.applied.Time, results: results, dirty: true,
	}
}

// sweepClient forgets a client whose record is due, or waits for its newer frames.
func (m *Machine) sweepClient(key []byte) error {
	if len(key) != 16 {
		return fmt.Errorf("%w: client in the expiry index", ErrCorrupt)
	}
	id := [16]byte(key)
	c, err := m.loadClient(id)
	if err != nil {
		return err
	}
	if !c.known {
		return nil
	}
	if at := c.expiry(); at > m.applied.Time {
		m.expireAt(0, key, at)
		return nil
	}
	if slices.ContainsFunc(c.slots[:], func(s windowSlot) bool { return s.dirty }) {
		m.flushWindows() // which finds them in the client
	}
	for i := range c.slots {
		m.resultBytes -= len(c.slots[i].results)
		if c.slots[i].seq != 0 {
			m.del(appendWindowKey(nil, id, i))
		}
	}
	delete(m.clients, id)
	clients, _ := m.remembered(&id)
	*clients--
	return nil
}
