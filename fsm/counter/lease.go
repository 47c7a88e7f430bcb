package counter

import (
	"encoding/binary"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage/plant"
	"github.com/holdfastdb/holdfast/storage/wire"
)

// LeaseRequest takes tokens in bulk, for a holder that decides by itself until the lease ends. The tokens are deducted
// at once; what the holder does not use it may return.
type LeaseRequest struct {
	Want uint32
	// TTL is how long the lease shall last, 1 to MaxLease milliseconds; a window may end earlier.
	TTL fsm.Millis
	// Returns end earlier leases of the same limits.
	Returns []LeaseReturn
	Limits  []Limit
}

// LeaseReturn gives a lease back of which Unused tokens were not used. The holder uses none of it any more.
type LeaseReturn struct {
	ID     uint64
	Unused uint32
}

// Bounds of leases.
const (
	MaxLease      = 60_000 // milliseconds
	MaxReturns    = 64
	minReturnSize = 9
)

// Append appends the encoding.
func (q *LeaseRequest) Append(dst []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(q.Want))
	dst = binary.AppendUvarint(dst, uint64(q.TTL))
	dst = binary.AppendUvarint(dst, uint64(len(q.Returns)))
	for _, r := range q.Returns {
		dst = binary.LittleEndian.AppendUint64(dst, r.ID)
		dst = binary.AppendUvarint(dst, uint64(r.Unused))
	}
	return appendLimits(dst, q.Limits)
}

// Decode implements the requests of package fsm.
func (q *LeaseRequest) Decode(b []byte) error {
	d := wire.NewDecoder(b)
	q.Want = d.Uint32()
	ttl := d.Uvarint()
	n := d.Count(minReturnSize)
	if ttl < 1 || ttl > MaxLease || n > MaxReturns {
		d.Fail()
		n = 0
	}
	q.TTL = fsm.Millis(ttl)
	q.Returns = make([]LeaseReturn, n)
	for i := range q.Returns {
		q.Returns[i] = LeaseReturn{ID: d.Uint64(), Unused: d.Uint32()}
	}
	q.Limits = decodeLimits(&d, nil)
	return d.End("lease")
}

// LeaseResult is a grant of 0 to Want tokens.
type LeaseResult struct {
	// Leasable is false if one of the limits cannot be leased.
	Leasable bool
	ID       uint64
	Granted  uint32
	// TTL counts from the decision; the holder counts from when it sent the request, which is earlier.
	TTL   fsm.Millis
	State TakeResult
}

// Append appends the encoding.
func (g *LeaseResult) Append(dst []byte) []byte {
	leasable := byte(0)
	if g.Leasable {
		leasable = 1
	}
	dst = append(dst, leasable)
	dst = binary.AppendUvarint(dst, g.ID)
	dst = binary.AppendUvarint(dst, uint64(g.Granted))
	dst = binary.AppendUvarint(dst, uint64(g.TTL))
	return g.State.Append(dst)
}

// DecodeLeaseResult parses what lease answered.
func DecodeLeaseResult(b []byte) (LeaseResult, error) {
	d := wire.NewDecoder(b)
	g := LeaseResult{Leasable: d.Byte() == 1, ID: d.Uvarint(), Granted: d.Uint32(), TTL: fsm.Millis(d.Uvarint())}
	g.State = decodeTake(&d, nil)
	return g, d.End("lease result")
}

// grantLease ends the leases that are returned and grants a new one: half of what is free at most, so that the first
// to ask does not leave the others with nothing.
func grantLease(tx *fsm.Tx, q *LeaseRequest) (*LeaseResult, error) {
	var d deal
	if err := d.load(tx, q.Limits); err != nil {
		return nil, err
	}
	if err := d.room(); err != nil {
		return nil, err
	}
	d.weigh(0)
	d.takeBack(q.Returns)
	g := &LeaseResult{}
	end, leasable := d.leaseEnd(d.now + fsm.Time(q.TTL))
	if g.Leasable = leasable; leasable && end > d.now {
		g.Granted = d.share(q.Want)
	}
	if g.Granted > 0 {
		g.ID, g.TTL = holdID(tx), int64(end-d.now)
		d.lease(g, end)
	}
	g.State = TakeResult{Allowed: g.Granted > 0, Limits: d.results(1, nil)}
	d.store(tx, g.Granted > 0)
	return g, nil
}

func (d *deal) takeBack(returns []LeaseReturn) {
	for i := range d.limits {
		r := d.rows[i]
		for _, back := range returns {
			if at := r.find(back.ID, true); at >= 0 {
				h := r.holds[at]
				r.drop(at)
				r.st.give(h.at, int64(min(back.Unused, h.n)))
			}
		}
		r.st.advance(&d.limits[i].Params, d.now, r.out())
	}
}

// leaseEnd is the earliest end that the algorithms allow.
func (d *deal) leaseEnd(end fsm.Time) (fsm.Time, bool) {
	for i := range d.limits {
		e, _, ok := d.rows[i].st.lease(&d.limits[i].Params, d.now, end)
		if !ok {
			return 0, false
		}
		end = e
	}
	return end, true
}

// share is how much may be granted, and marks the limits that have nothing.
func (d *deal) share(want uint32) uint32 {
	granted := int64(want)
	for i := range d.limits {
		l, r := &d.limits[i], d.rows[i]
		free := r.st.free(&l.Params)
		if d.short[i] = free < 1; !l.Shadow {
			granted = min(granted, (free+1)/2)
		}
	}
	return clamp(granted)
}

func (d *deal) lease(g *LeaseResult, end fsm.Time) {
	for i := range d.limits {
		l, r := &d.limits[i], d.rows[i]
		if r.st.free(&l.Params) < int64(g.Granted) {
			d.short[i] = true // a shadow limit: it only watches
			continue
		}
		_, at, _ := r.st.lease(&l.Params, d.now, end)
		if !plant.On(plant.FreeLease) {
			r.st.take(at, int64(g.Granted))
		}
		r.add(hold{kind: leased, id: g.ID, n: g.Granted, at: at, until: end})
	}
}
