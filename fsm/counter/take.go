package counter

import (
	"encoding/binary"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage/plant"
	"github.com/holdfastdb/holdfast/storage/wire"
)

// TakeRequest asks for Weight tokens of every limit, or of none. The keys of its limits differ.
type TakeRequest struct {
	Weight uint32
	Limits []Limit
}

// Append appends the encoding.
func (q *TakeRequest) Append(dst []byte) []byte {
	return appendLimits(binary.AppendUvarint(dst, uint64(q.Weight)), q.Limits)
}

// Decode implements the requests of package fsm.
func (q *TakeRequest) Decode(b []byte) error {
	d := wire.NewDecoder(b)
	q.Weight, q.Limits = d.Uint32(), decodeLimits(&d, nil)
	return d.End("take")
}

// LimitResult is what one limit said.
type LimitResult struct {
	Policy    uint32
	Denied    bool // it had not enough; with Shadow set the request passed all the same
	Shadow    bool
	Remaining uint32     // tokens free after the decision
	Used      uint32     // tokens in use after the decision
	ResetIn   fsm.Millis // until the quota is whole again
	RetryIn   fsm.Millis // if Denied: until the same request may succeed; -1 if it never will
}

// TakeResult is the decision on a request.
type TakeResult struct {
	Allowed bool
	// Hold names what was reserved, or the slots of concurrency limits; 0 if nothing is held.
	Hold   uint64
	Limits []LimitResult
}

const (
	resultDenied = 1
	resultShadow = 2
)

// Append appends the encoding.
func (t *TakeResult) Append(dst []byte) []byte {
	allowed := byte(0)
	if t.Allowed {
		allowed = 1
	}
	dst = append(dst, allowed)
	dst = binary.AppendUvarint(dst, t.Hold)
	dst = binary.AppendUvarint(dst, uint64(len(t.Limits)))
	for i := range t.Limits {
		l := &t.Limits[i]
		flags := byte(0)
		if l.Denied {
			flags |= resultDenied
		}
		if l.Shadow {
			flags |= resultShadow
		}
		dst = append(dst, flags)
		dst = binary.AppendUvarint(dst, uint64(l.Policy))
		dst = binary.AppendUvarint(dst, uint64(l.Remaining))
		dst = binary.AppendUvarint(dst, uint64(l.Used))
		dst = binary.AppendUvarint(dst, uint64(l.ResetIn))
		if l.Denied {
			dst = binary.AppendUvarint(dst, uint64(l.RetryIn+1))
		}
	}
	return dst
}

func decodeTake(d *wire.Decoder, room []LimitResult) TakeResult {
	var t TakeResult
	t.Allowed = d.Byte() == 1
	t.Hold = d.Uvarint()
	n := d.Count(5)
	switch {
	case n > len(room):
		t.Limits = make([]LimitResult, n)
	case n > 0:
		t.Limits = room[:n]
	}
	for i := range t.Limits {
		t.Limits[i] = LimitResult{}
		l := &t.Limits[i]
		flags := d.Byte()
		l.Denied, l.Shadow = flags&resultDenied != 0, flags&resultShadow != 0
		l.Policy, l.Remaining, l.Used = d.Uint32(), d.Uint32(), d.Uint32()
		l.ResetIn = fsm.Millis(d.Uvarint())
		if l.Denied {
			l.RetryIn = fsm.Millis(d.Uvarint()) - 1
		}
	}
	return t
}

// DecodeTakeResult parses the result of take, reserve and peek.
func DecodeTakeResult(b []byte) (TakeResult, error) { return DecodeTakeResultInto(b, nil) }

// DecodeTakeResultInto is DecodeTakeResult with room for the results of the limits, which are kept there if it is enough.
// What is in room is overwritten.
func DecodeTakeResultInto(b []byte, room []LimitResult) (TakeResult, error) {
	d := wire.NewDecoder(b)
	t := decodeTake(&d, room)
	return t, d.End("take result")
}

// deal is a set of counters at one moment, on which a decision is made.
type deal struct {
	now    fsm.Time
	limits []Limit
	rows   [MaxLimits]*row
	short  [MaxLimits]bool // not enough was free
}

// weigh advances the counters and finds out which have less than weight; ok if all have enough or only watch.
func (d *deal) weigh(weight int64) (ok bool) {
	ok = true
	for i := range d.limits {
		l, r := &d.limits[i], d.rows[i]
		r.advance(&l.Params, d.now)
		d.short[i] = r.st.free(&l.Params) < weight && !plant.On(plant.AllowShort)
		ok = ok && (!d.short[i] || l.Shadow)
	}
	return ok
}

// results tells the state of all limits after a decision on weight, in room if that is enough.
func (d *deal) results(weight int64, room []LimitResult) []LimitResult {
	results := room[:0]
	if len(d.limits) > len(room) {
		results = make([]LimitResult, 0, len(d.limits))
	}
	results = results[:len(d.limits)]
	for i := range d.limits {
		l, r := &d.limits[i], d.rows[i]
		results[i] = LimitResult{
			Policy: l.Policy, Shadow: l.Shadow, Denied: d.short[i],
			Remaining: clamp(r.st.free(&l.Params)), Used: clamp(r.st.used(&l.Params)),
			ResetIn: int64(max(r.st.full(&l.Params, d.now), r.slotEnd()) - d.now),
		}
		if d.short[i] {
			if at := r.st.ready(&l.Params, d.now, weight, r.holds); at == Never {
				results[i].RetryIn = -1
			} else {
				results[i].RetryIn = max(int64(at-d.now), 1)
			}
		}
	}
	return results
}

// slotEnd is when the last slot frees itself, 0 for limits without.
func (r *row) slotEnd() fsm.Time {
	if r.alg == Concurrency {
		return r.lastHold()
	}
	return 0
}

func clamp(n int64) uint32 { return uint32(min(max(n, 0), 1<<32-1)) }

// load reads the counters of limits.
func (d *deal) load(tx *fsm.Tx, limits []Limit) error {
	d.now, d.limits = tx.Now(), limits
	for i := range limits {
		r, err := load(tx, &limits[i].Key)
		if err != nil {
			return err
		}
		d.rows[i] = r
	}
	return nil
}

// store writes the counters. Those that existed are written even if nothing was taken: advance has moved them, and what
// is in memory must never differ from what is stored.
func (d *deal) store(tx *fsm.Tx, taken bool) {
	for i := range d.limits {
		r := d.rows[i]
		if r.stored || taken && !d.short[i] {
			r.expires = r.whole(&d.limits[i].Params, d.now)
			r.put(tx, &d.limits[i].Key)
		}
	}
}

// room refuses holds beyond what a counter may list.
func (d *deal) room() error {
	for i := range d.limits {
		if d.rows[i].living(d.now) >= MaxListed {
			return fsm.Errorf(fsm.Exhausted, "a counter has %d reservations, leases or slots already", MaxListed)
		}
	}
	return nil
}

// takeCall is a TakeRequest with room for one limit and its result: the usual case, which then takes no memory of its own.
type takeCall struct {
	TakeRequest
	limit  [1]Limit
	answer TakeResult
	result [1]LimitResult
}

// Empty implements the requests of package fsm: nothing of a take is kept.
func (q *takeCall) Empty() { *q = takeCall{} }

// Decode implements the requests of package fsm.
func (q *takeCall) Decode(b []byte) error {
	d := wire.NewDecoder(b)
	q.Weight, q.Limits = d.Uint32(), decodeLimits(&d, q.limit[:])
	return d.End("take")
}

// take is the command behind a check.
func take(tx *fsm.Tx, q *takeCall) (*TakeResult, error) {
	var d deal
	if err := d.load(tx, q.Limits); err != nil {
		return nil, err
	}
	d.take(&q.answer, int64(q.Weight), holdID(tx), q.result[:])
	d.store(tx, q.answer.Allowed)
	return &q.answer, nil
}

// holdID makes a number that no other hold of the shard has.
func holdID(tx *fsm.Tx) uint64 { return tx.Index()*fsm.MaxOps + uint64(tx.Op()) }

// take decides and takes. t is empty.
func (d *deal) take(t *TakeResult, weight int64, id uint64, room []LimitResult) {
	t.Allowed = d.weigh(weight)
	if t.Allowed {
		for i := range d.limits {
			if d.short[i] {
				continue
			}
			l, r := &d.limits[i], d.rows[i]
			r.st.take(d.now, weight)
			if l.Algorithm == Concurrency && weight > 0 {
				r.add(hold{kind: slot, id: id, n: uint32(weight), at: d.now, until: d.now + fsm.Time(l.Window)})
				t.Hold = id
			}
		}
	}
	t.Limits = d.results(weight, room)
}

// peek tells what a take would answer.
func peek(v *fsm.View, q *TakeRequest) (*TakeResult, error) {
	d := deal{now: v.Now(), limits: q.Limits}
	for i := range q.Limits {
		r, err := view(v, &q.Limits[i].Key)
		if err != nil {
			return nil, err
		}
		d.rows[i] = r
	}
	t := &TakeResult{Allowed: d.weigh(int64(q.Weight))}
	t.Limits = d.results(int64(q.Weight), nil)
	return t, nil
}
