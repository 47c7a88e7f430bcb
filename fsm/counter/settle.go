package counter

import (
	"encoding/binary"
	"errors"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage/kv"
	"github.com/holdfastdb/holdfast/storage/plant"
	"github.com/holdfastdb/holdfast/storage/wire"
)

// ReserveRequest takes an estimate that is settled later. What is not settled within TTL is given back by itself.
type ReserveRequest struct {
	// ID names the reservation if it spans shards, so that asking again has no further effect; 0 to have one made.
	ID  uint64
	TTL fsm.Millis
	TakeRequest
}

// MaxReserve is the longest TTL of a reservation, in milliseconds.
const MaxReserve = 3600 * 1000

// Append appends the encoding.
func (q *ReserveRequest) Append(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, q.ID)
	dst = binary.AppendUvarint(dst, uint64(q.TTL))
	return q.TakeRequest.Append(dst)
}

// Decode implements the requests of package fsm.
func (q *ReserveRequest) Decode(b []byte) error {
	d := wire.NewDecoder(b)
	q.ID = d.Uint64()
	ttl := d.Uvarint()
	if ttl < 1 || ttl > MaxReserve {
		d.Fail()
	}
	q.TTL = fsm.Millis(ttl)
	if d.Bad() {
		return d.End("reserve")
	}
	return q.TakeRequest.Decode(d.Rest())
}

// reserve takes like take and leaves holds.
func reserve(tx *fsm.Tx, q *ReserveRequest) (*TakeResult, error) {
	var d deal
	if err := d.load(tx, q.Limits); err != nil {
		return nil, err
	}
	id := q.ID
	if id == 0 {
		id = holdID(tx)
	}
	weight := int64(q.Weight)
	again := false
	for i := range d.limits {
		l, r := &d.limits[i], d.rows[i]
		// A hold that has ended, or that a change of the rules ends, is not there any more.
		at := r.find(id, false)
		again = again || at >= 0 && r.holds[at].until > d.now && r.alg == l.Algorithm
	}
	if again { // the first answer was lost
		d.weigh(0)
		d.store(tx, false)
		return &TakeResult{Allowed: true, Hold: id, Limits: d.results(0, nil)}, nil
	}
	if err := d.room(); err != nil {
		return nil, err
	}
	t := &TakeResult{Allowed: d.weigh(weight)}
	if t.Allowed {
		t.Hold = id
		for i := range d.limits {
			if d.short[i] {
				continue
			}
			l, r := &d.limits[i], d.rows[i]
			r.st.take(d.now, weight)
			h := hold{kind: reserved, id: id, n: q.Weight, at: d.now, until: d.now + fsm.Time(q.TTL)}
			if l.Algorithm == Concurrency {
				h.kind, h.until = slot, d.now+fsm.Time(l.Window)
			}
			r.add(h)
		}
	}
	t.Limits = d.results(weight, nil)
	d.store(tx, t.Allowed)
	return t, nil
}

// SettleMode is how a reservation ends.
type SettleMode uint8

// The ways to settle.
const (
	// Confirm keeps the tokens taken and the slots held.
	Confirm SettleMode = 1
	// Charge sets the cost to Actual: less gives tokens back, more takes what there is and then goes below zero.
	// Slots are freed. Charging 0 is a refund, or a release.
	Charge SettleMode = 2
)

// SettleRequest ends the hold ID on the counters Keys.
type SettleRequest struct {
	ID     uint64
	Mode   SettleMode
	Actual uint32
	Keys   []Key
}

// Append appends the encoding.
func (q *SettleRequest) Append(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, q.ID)
	dst = append(dst, byte(q.Mode))
	dst = binary.AppendUvarint(dst, uint64(q.Actual))
	return appendKeys(dst, q.Keys)
}

// Decode implements the requests of package fsm.
func (q *SettleRequest) Decode(b []byte) error {
	d := wire.NewDecoder(b)
	q.ID, q.Mode, q.Actual = d.Uint64(), SettleMode(d.Byte()), d.Uint32()
	if q.Mode != Confirm && q.Mode != Charge {
		d.Fail()
	}
	q.Keys = decodeKeys(&d)
	return d.End("settle")
}

func appendKeys(dst []byte, keys []Key) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(keys)))
	for i := range keys {
		dst = append(dst, keys[i][:]...)
	}
	return dst
}

func decodeKeys(d *wire.Decoder) []Key {
	n := d.Count(KeyBytes)
	if n == 0 || n > MaxLimits {
		d.Fail()
		return nil
	}
	keys := make([]Key, n)
	for i := range keys {
		copy(keys[i][:], d.Bytes(KeyBytes))
	}
	return keys
}

// SettleResult tells what settling changed, in tokens of one limit.
type SettleResult struct {
	Refunded, Charged uint32
}

// Append appends the encoding.
func (s *SettleResult) Append(dst []byte) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(dst, uint64(s.Refunded)), uint64(s.Charged))
}

// DecodeSettleResult parses what settle answered.
func DecodeSettleResult(b []byte) (SettleResult, error) {
	d := wire.NewDecoder(b)
	s := SettleResult{Refunded: d.Uint32(), Charged: d.Uint32()}
	return s, d.End("settle result")
}

// settle ends a reservation, or frees slots. A hold that has ended by itself is not found.
func settle(tx *fsm.Tx, q *SettleRequest) (*SettleResult, error) {
	var rows [MaxLimits]*row
	found := false
	for i := range q.Keys {
		r, err := load(tx, &q.Keys[i])
		if err != nil {
			return nil, err
		}
		rows[i] = r
		if at := r.find(q.ID, false); at >= 0 && r.holds[at].until > tx.Now() {
			found = true
		}
	}
	if !found {
		return nil, fsm.Errorf(fsm.NotFound, "no such reservation: it was settled, or its time was over and it was refunded")
	}
	s := &SettleResult{}
	for i := range q.Keys {
		r := rows[i]
		if !r.stored || r.alg == 0 {
			continue
		}
		r.settleDue(tx.Now())
		if at := r.find(q.ID, false); at >= 0 {
			r.settle(at, q, s)
		}
		r.put(tx, &q.Keys[i])
	}
	return s, nil
}

func (r *row) settle(at int, q *SettleRequest, s *SettleResult) {
	h := r.holds[at]
	if q.Mode == Confirm {
		if h.kind == reserved {
			r.drop(at)
		}
		return
	}
	r.drop(at)
	actual := q.Actual
	if h.kind == slot {
		actual = 0
	}
	if actual < h.n {
		r.st.give(h.at, int64(h.n-actual))
		if plant.On(plant.RefundTwice) {
			r.st.give(h.at, int64(h.n-actual))
		}
		s.Refunded = max(s.Refunded, h.n-actual)
	} else if actual > h.n {
		r.st.take(h.at, int64(actual-h.n))
		r.expires = r.st.charged(r.expires, int64(actual-h.n))
		s.Charged = max(s.Charged, actual-h.n)
	}
}

// view reads a counter in a query.
func view(v *fsm.View, key *Key) (*row, error) {
	value, err := v.Get(key[:])
	if errors.Is(err, kv.ErrNotFound) {
		return &row{}, nil
	}
	if err != nil {
		return nil, err
	}
	stored, err := decodeRow(value)
	if err != nil {
		return nil, err
	}
	return stored.(*row), nil
}
