package fsm

import (
	"encoding/binary"
	"errors"

	"github.com/holdfastdb/holdfast/storage/kv"
	"github.com/holdfastdb/holdfast/storage/plant"
)

// Row is a decoded value that the machine keeps between entries, so that a hot key is decoded once and encoded once
// for each write to the store, however many operations touch it.
type Row interface {
	// Append appends the row's stored encoding.
	Append(dst []byte) []byte
}

// Tx is what a command sees of its shard. Keys are relative to the command's data type. A key is used either through
// Row, PutRow and DeleteRow or through Get, Set and Delete, never both.
type Tx struct {
	m      *Machine
	typeID uint8
	index  uint64
	op     int
	key    []byte // scratch
}

// Now is the shard time of the entry being applied.
func (tx *Tx) Now() Time {
	if plant.On(plant.LocalClock) {
		return Time(plant.Now())
	}
	return tx.m.applied.Time
}

// Index is the log index of the entry being applied.
func (tx *Tx) Index() uint64 { return tx.index }

// Op is the position of the operation in its entry, counted from 0. Index and Op together are unique in a shard for ever.
func (tx *Tx) Op() int { return tx.op }

func (tx *Tx) full(key []byte) []byte {
	tx.key = append(append(tx.key[:0], tx.typeID), key...)
	return tx.key
}

// Get returns the value of key, or kv.ErrNotFound; see kv.Reader.
func (tx *Tx) Get(key []byte) ([]byte, error) { return tx.m.batch.Get(tx.full(key)) }

// Set stores value under key.
func (tx *Tx) Set(key, value []byte) { tx.m.set(tx.full(key), value) }

// Delete removes key.
func (tx *Tx) Delete(key []byte) { tx.m.del(tx.full(key)) }

// Iter walks the type's keys in [lower, upper), pending writes included. A nil upper means all from lower on. Keys
// that the iterator gives are relative to the type, as lower and upper are.
func (tx *Tx) Iter(lower, upper []byte) (kv.Iterator, error) {
	tx.m.settle(-1)
	tx.m.direct += tx.m.rows.flush(tx.m.batch)
	return typeIter(tx.m.batch, tx.typeID, lower, upper)
}

// Row returns the row stored under key, or nil when there is none. decode must copy what it keeps. The caller may
// change the row and must then call PutRow in the same operation.
func (tx *Tx) Row(key []byte, decode func([]byte) (Row, error)) (Row, error) {
	full := tx.full(key)
	if c := tx.m.rows.own(full); c != nil {
		return c.row, nil
	}
	value, err := tx.m.batch.Get(full)
	if errors.Is(err, kv.ErrNotFound) {
		tx.m.rows.add(full, nil, 0)
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	row, err := decode(value)
	if err != nil {
		return nil, err
	}
	tx.m.rows.add(full, row, len(value))
	return row, nil
}

// PutRow stores row under key. The machine keeps the row itself.
func (tx *Tx) PutRow(key []byte, row Row) { tx.m.rows.put(tx.full(key), row) }

// DeleteRow removes the row under key.
func (tx *Tx) DeleteRow(key []byte) { tx.m.rows.put(tx.full(key), nil) }

// ExpireAt has Type.Sweep called for key at or after shard time at. It is called when a row is made, not at each
// change: a row that lives longer than first said is told to Sweep, which calls ExpireAt again.
func (tx *Tx) ExpireAt(key []byte, at Time) { tx.m.expireAt(tx.typeID, key, at) }

// Emit tells those who watch the shard what was done. It is no part of the state.
func (tx *Tx) Emit(body []byte) {
	tx.m.events = append(tx.m.events, Event{Type: tx.typeID, Body: body})
}

// Get returns the value of key of the view's type; see kv.Reader.
func (v *View) Get(key []byte) ([]byte, error) {
	v.key = append(append(v.key[:0], v.typeID), key...)
	return v.reader.Get(v.key)
}

// Row returns the row stored under key, or nil when there is none. decode must copy what it keeps. The caller must not
// change the row: it may be the machine's own.
func (v *View) Row(key []byte, decode func([]byte) (Row, error)) (Row, error) {
	v.key = append(append(v.key[:0], v.typeID), key...)
	if v.rows != nil {
		if c := v.rows.lookup(v.key); c != nil {
			return c.row, nil
		}
	}
	value, err := v.reader.Get(v.key)
	if errors.Is(err, kv.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	row, err := decode(value)
	if err != nil {
		return nil, err
	}
	if v.rows != nil {
		v.rows.keep(v.key, row, len(value))
	}
	return row, nil
}

// Iter walks the type's keys in [lower, upper); see Tx.Iter.
func (v *View) Iter(lower, upper []byte) (kv.Iterator, error) {
	return typeIter(v.reader, v.typeID, lower, upper)
}

func typeIter(r kv.Reader, typeID uint8, lower, upper []byte) (kv.Iterator, error) {
	from := append([]byte{typeID}, lower...)
	to := []byte{typeID + 1}
	if upper != nil {
		to = append([]byte{typeID}, upper...)
	} else if typeID == 255 {
		to = nil
	}
	it, err := r.Iter(from, to)
	if err != nil {
		return nil, err
	}
	return relativeIter{it}, nil
}

// relativeIter cuts the type's number off the keys.
type relativeIter struct{ kv.Iterator }

func (it relativeIter) Key() []byte { return it.Iterator.Key()[1:] }

// These bound each of the two generations of cached rows: their number, and the size of their encodings as last seen. A
// machine with less memory than MaxMemory has a part of it.
const (
	rowCacheSize  = 16_384
	rowCacheBytes = 32 << 20
)

// rowCache keeps decoded rows in two generations: a row used while in the old one moves to the young one; when the
// young one is full it becomes the old one, and what was not used for a whole generation is forgotten. Which rows are
// cached changes no outcome (I1).
//
// Rows that changed are encoded into a batch all at once, by flush, or in small steps: freeze says that they belong to a
// batch as they are now, and settle encodes some of them. Who wants to change one of these has it encoded before.
type rowCache struct {
	young, old map[string]*cachedRow
	generation uint64 // of the young ones
	bytes      int    // of the young ones
	most       int    // young rows
	mostBytes  int
	dirty      []*cachedRow
	frozen     []*cachedRow // those that are still marked so are not in the batch yet
	into       kv.Writer    // takes the frozen ones
	buf        []byte
}

type cachedRow struct {
	key        string
	row        Row // nil: known to be absent
	size       int // of the encoding, when the row was last read or written
	generation uint64
	dirty      bool
	frozen     bool
}

func newRowCache(memory int) *rowCache {
	return &rowCache{
		young: make(map[string]*cachedRow), old: make(map[string]*cachedRow),
		most: share(rowCacheSize, memory), mostBytes: share(rowCacheBytes, memory),
	}
}

// lookup finds a row to look at.
func (c *rowCache) lookup(key []byte) *cachedRow {
	if r, ok := c.young[string(key)]; ok {
		return r
	}
	r, ok := c.old[string(key)]
	if ok {
		c.enter(r)
	}
	return r
}

func (c *rowCache) enter(r *cachedRow) {
	c.young[r.key] = r
	r.generation = c.generation
	c.bytes += r.size
}

// own finds a row that may be changed.
func (c *rowCache) own(key []byte) *cachedRow {
	r := c.lookup(key)
	if r != nil && r.frozen {
		c.write(r, c.into)
	}
	return r
}

func (c *rowCache) add(key []byte, row Row, size int) *cachedRow {
	r := &cachedRow{key: string(key), row: row, size: size}
	c.enter(r)
	return r
}

// keep adds a row that was read, unless that would make the cache too large: what changed must be written first.
func (c *rowCache) keep(key []byte, row Row, size int) {
	if len(c.dirty)+len(c.frozen) == 0 {
		c.age()
	}
	if !c.full() {
		c.add(key, row, size)
	}
}

func (c *rowCache) put(key []byte, row Row) {
	r := c.own(key)
	if r == nil {
		r = c.add(key, row, 0)
	}
	r.row = row
	if !r.dirty {
		r.dirty = true
		c.dirty = append(c.dirty, r)
	}
}

// full tells that it is time to flush: what changed cannot be forgotten before.
func (c *rowCache) full() bool { return len(c.young) >= c.most || c.bytes >= c.mostBytes }

// flush writes what changed into the batch, in the order of first change, and returns how many rows that were.
func (c *rowCache) flush(w kv.Writer) int {
	n := len(c.dirty)
	for _, r := range c.dirty {
		c.write(r, w)
	}
	clear(c.dirty)
	c.dirty = c.dirty[:0]
	return n
}

// freeze says that all that changed belongs to a batch. Nothing of the batch before may be frozen any more. Until settle is
// through, the rows stay in the cache: they are in no generation before the last.
func (c *rowCache) freeze(into kv.Writer) {
	for _, r := range c.dirty {
		r.dirty, r.frozen = false, true
	}
	c.frozen, c.dirty, c.into = c.dirty, c.frozen[:0], into
	c.age()
}

// settle writes some of the frozen rows, all if most is negative, and tells whether there are no more.
func (c *rowCache) settle(most int) bool {
	for len(c.frozen) > 0 && most != 0 {
		last := len(c.frozen) - 1
		if r := c.frozen[last]; r.frozen {
			c.write(r, c.into)
			most--
		}
		c.frozen[last] = nil
		c.frozen = c.frozen[:last]
	}
	if len(c.frozen) > 0 {
		return false
	}
	c.into = nil
	return true
}

func (c *rowCache) write(r *cachedRow, w kv.Writer) {
	r.dirty, r.frozen = false, false
	size := 0
	if r.row == nil {
		w.Delete([]byte(r.key))
	} else {
		c.buf = r.row.Append(c.buf[:0])
		w.Set([]byte(r.key), c.buf)
		size = len(c.buf)
	}
	if r.generation == c.generation {
		c.bytes += size - r.size
	}
	r.size = size
}

// age starts a new generation when the young one is full. Only called when nothing is dirty, and what is frozen is young.
func (c *rowCache) age() {
	if c.full() {
		c.old, c.bytes = c.young, 0
		c.young = make(map[string]*cachedRow, c.most)
		c.generation++
	}
}

// The machine's own keys, under type number 0.
const (
	keyApplied       = "\x00a" // index, term, time, clients
	keyConfiguration = "\x00g" // index, Raft configuration
	prefixWindow     = "\x00w" // client id, slot: one frame's results
	prefixExpiry     = "\x00x" // time, type, key: what is due when
)

const expiryTimeBytes = 6

// appendExpiryKey builds an expiry-index key: rows sort by time.
func appendExpiryKey(dst []byte, at Time, typeID uint8, key []byte) []byte {
	dst = append(dst, prefixExpiry...)
	dst = appendExpiryTime(dst, at)
	dst = append(dst, typeID)
	return append(dst, key...)
}

func appendExpiryTime(dst []byte, at Time) []byte {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(max(at, 0)))
	return append(dst, b[8-expiryTimeBytes:]...)
}

// splitExpiryKey is the inverse of appendExpiryKey.
func splitExpiryKey(full []byte) (at Time, typeID uint8, key []byte, ok bool) {
	const header = len(prefixExpiry) + expiryTimeBytes
	if len(full) < header+1 || string(full[:len(prefixExpiry)]) != prefixExpiry {
		return 0, 0, nil, false
	}
	var b [8]byte
	copy(b[8-expiryTimeBytes:], full[len(prefixExpiry):header])
	return Time(binary.BigEndian.Uint64(b[:])), full[header], full[header+1:], true
}
