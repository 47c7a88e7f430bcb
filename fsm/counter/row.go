package counter

import (
	"encoding/binary"
	"fmt"
	"sort"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage/kv"
	"github.com/holdfastdb/holdfast/storage/wire"
)

// row is one stored counter. Its key is the Key.
type row struct {
	alg     Algorithm // 0 after a reset: the next command starts afresh
	st      state     // nil when alg is 0
	holds   []hold    // ascending by until
	expires fsm.Time  // from then on the row is as good as none
	stored  bool      // it is in the state, and in the expiry index
}

// holdKind tells what becomes of a hold's tokens when its time is over. Stored: never reorder.
type holdKind uint8

const (
	reserved holdKind = 1 // they are given back
	leased   holdKind = 2 // they count as used
	slot     holdKind = 3 // a slot of a concurrency limit is freed
)

// hold is a claim on n tokens that were taken from the state.
type hold struct {
	kind      holdKind
	id        uint64
	n         uint32
	at, until fsm.Time // when the tokens count as taken; when the hold ends
}

// out is how many tokens are leased or reserved.
func (r *row) out() int64 {
	var n int64
	for i := range r.holds {
		if r.holds[i].kind != slot {
			n += int64(r.holds[i].n)
		}
	}
	return n
}

func (r *row) find(id uint64, lease bool) int {
	for i := range r.holds {
		if r.holds[i].id == id && (r.holds[i].kind == leased) == lease {
			return i
		}
	}
	return -1
}

func (r *row) add(h hold) {
	i := len(r.holds)
	for i > 0 && r.holds[i-1].until > h.until {
		i--
	}
	r.holds = append(r.holds, hold{})
	copy(r.holds[i+1:], r.holds[i:])
	r.holds[i] = h
}

func (r *row) drop(i int) { r.holds = append(r.holds[:i], r.holds[i+1:]...) }

// advance brings the counter to now under the rules p. Holds end one after the other, each at its own time: the tokens
// of a lease may be used until it ends, so the bucket must not fill beyond burst less these before. The same goes for a
// reservation, whose tokens may come back: a bucket that filled up meanwhile would have them twice.
func (r *row) advance(p *Params, now fsm.Time) {
	if r.alg != p.Algorithm {
		r.restart(p.Algorithm)
		r.bringLeases(p, now)
	}
	out, ended := r.out(), 0
	for ended < len(r.holds) && r.holds[ended].until <= now {
		h := &r.holds[ended]
		r.st.advance(p, h.until, out)
		if h.kind != slot {
			out -= int64(h.n)
		}
		if h.kind != leased {
			r.st.give(h.at, int64(h.n))
		}
		ended++
	}
	if ended > 0 { // all at once: there can be thousands
		r.holds = append(r.holds[:0], r.holds[ended:]...)
	}
	r.st.advance(p, now, out)
}

// restart makes the state new. What is leased may still be used and stays on the books.
func (r *row) restart(a Algorithm) {
	r.alg, r.st = a, newState(a)
	kept := r.holds[:0]
	for _, h := range r.holds {
		if h.kind == leased {
			kept = append(kept, h)
		}
	}
	r.holds = kept
}

// bringLeases takes what is leased from a new state. An algorithm that cannot be leased has nothing to do with leases of
// the one before.
func (r *row) bringLeases(p *Params, now fsm.Time) {
	if len(r.holds) == 0 {
		return
	}
	now = min(now, r.holds[0].until)
	r.st.advance(p, now, 0)
	for i := range r.holds {
		h := &r.holds[i]
		_, at, ok := r.st.lease(p, now, h.until)
		if !ok {
			r.holds = nil
			return
		}
		h.at = at
		r.st.take(at, int64(h.n))
	}
}

// whole is when the counter is as good as new, whatever becomes of its holds: the tokens of a lease may be used up to its
// last moment and have to come back after that, and a charge may come as long as there is a reservation.
func (r *row) whole(p *Params, now fsm.Time) fsm.Time {
	end := max(r.st.full(p, now), r.lastHold())
	if w, ok := r.st.(*fixedWindow); ok && len(r.holds) > 0 {
		return max(end, w.end)
	}
	var lent int64
	var last fsm.Time
	for i := range r.holds {
		if h := &r.holds[i]; h.kind == leased {
			lent, last = lent+int64(h.n), h.until
		}
	}
	if lent > 0 {
		end = max(end, r.st.charged(last, lent))
	}
	return end
}

// settleDue gives back what ended before now without knowing the rules. Leases wait for the next advance.
func (r *row) settleDue(now fsm.Time) {
	kept := r.holds[:0]
	for _, h := range r.holds {
		if h.kind != leased && h.until <= now {
			r.st.give(h.at, int64(h.n))
			continue
		}
		kept = append(kept, h)
	}
	r.holds = kept
}

// lastHold is when the last hold ends.
func (r *row) lastHold() fsm.Time {
	if n := len(r.holds); n > 0 {
		return r.holds[n-1].until
	}
	return 0
}

// living is how many holds have not ended.
func (r *row) living(now fsm.Time) int {
	ended := sort.Search(len(r.holds), func(i int) bool { return r.holds[i].until > now })
	return len(r.holds) - ended
}

const rowHasHolds = 0x80

// Append implements fsm.Row.
func (r *row) Append(dst []byte) []byte {
	head := byte(r.alg)
	if len(r.holds) > 0 {
		head |= rowHasHolds
	}
	dst = append(dst, head)
	dst = binary.AppendVarint(dst, int64(r.expires))
	if len(r.holds) > 0 {
		dst = binary.AppendUvarint(dst, uint64(len(r.holds)))
		for _, h := range r.holds {
			dst = append(dst, byte(h.kind))
			dst = binary.LittleEndian.AppendUint64(dst, h.id)
			dst = binary.AppendUvarint(dst, uint64(h.n))
			dst = binary.AppendVarint(dst, int64(r.expires-h.at))
			dst = binary.AppendVarint(dst, int64(r.expires-h.until))
		}
	}
	if r.alg == 0 {
		return dst
	}
	return r.st.append(dst, r.expires)
}

const holdMinBytes = 12

func decodeRow(b []byte) (fsm.Row, error) {
	d := wire.NewDecoder(b)
	head := d.Byte()
	r := &row{alg: Algorithm(head &^ rowHasHolds), expires: fsm.Time(d.Varint()), stored: true}
	if head&rowHasHolds != 0 {
		r.holds = make([]hold, d.Count(holdMinBytes))
		for i := range r.holds {
			h := hold{kind: holdKind(d.Byte()), id: d.Uint64(), n: d.Uint32()}
			h.at, h.until = r.expires-fsm.Time(d.Varint()), r.expires-fsm.Time(d.Varint())
			if h.kind < reserved || h.kind > slot || i > 0 && h.until < r.holds[i-1].until {
				d.Fail()
			}
			r.holds[i] = h
		}
	}
	if r.alg != 0 {
		if r.st = newState(r.alg); r.st == nil {
			d.Fail()
		} else {
			r.st.decode(&d, r.expires)
		}
	}
	if err := d.End("counter"); err != nil {
		return nil, err
	}
	return r, nil
}

// load returns the counter of a limit, a new one if there is none.
func load(tx *fsm.Tx, key *Key) (*row, error) {
	stored, err := tx.Row(key[:], decodeRow)
	if err != nil {
		return nil, fmt.Errorf("read counter: %w", err)
	}
	if stored == nil {
		return &row{}, nil
	}
	return stored.(*row), nil
}

// minLife is how long a counter stays in the expiry index at least, so that a busy one with a short window is not
// looked at all the time.
const minLife = 60_000

// maxExpiry is the last time that the expiry index can hold.
const maxExpiry fsm.Time = 1<<48 - 1

// expiry is when the sweep shall look at the counter next.
func (r *row) expiry(now fsm.Time) fsm.Time { return min(max(r.expires, now+minLife), maxExpiry) }

// put stores the counter.
func (r *row) put(tx *fsm.Tx, key *Key) {
	if !r.stored {
		r.stored = true
		tx.ExpireAt(key[:], r.expiry(tx.Now()))
	}
	tx.PutRow(key[:], r)
}

// sweep removes a counter that is as good as new.
func sweep(tx *fsm.Tx, key []byte) error {
	stored, err := tx.Row(key, decodeRow)
	if err != nil || stored == nil {
		return err
	}
	r := stored.(*row)
	if r.expires > tx.Now() {
		tx.ExpireAt(key, r.expiry(tx.Now()))
		return nil
	}
	tx.DeleteRow(key)
	return nil
}

// check verifies all counters of a shard; see fsm.Type.
func check(r kv.Reader, _ fsm.Time) error {
	it, err := r.Iter([]byte{TypeID}, []byte{TypeID + 1})
	if err != nil {
		return err
	}
	defer it.Close()
	for it.Next() {
		if len(it.Key()) != 1+KeyBytes {
			return fmt.Errorf("counter key %x", it.Key())
		}
		stored, err := decodeRow(it.Value())
		if err != nil {
			return fmt.Errorf("counter %x: %w", it.Key(), err)
		}
		r := stored.(*row)
		if r.lastHold() > r.expires {
			return fmt.Errorf("counter %x expires at %d, before its last hold at %d", it.Key(), r.expires, r.lastHold())
		}
		if c, ok := r.st.(*concurrency); ok {
			var held int64
			for _, h := range r.holds {
				held += int64(h.n)
			}
			if held != c.inUse {
				return fmt.Errorf("counter %x has %d slots in use and %d held", it.Key(), c.inUse, held)
			}
		}
	}
	return it.Err()
}
