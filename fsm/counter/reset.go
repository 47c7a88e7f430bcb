package counter

import (
	"encoding/binary"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage/wire"
)

// ResetRequest forgets what was used of the counters Keys. Leases that are out stay on the books.
type ResetRequest struct {
	Keys []Key
}

// Append appends the encoding.
func (q *ResetRequest) Append(dst []byte) []byte { return appendKeys(dst, q.Keys) }

// Decode implements the requests of package fsm.
func (q *ResetRequest) Decode(b []byte) error {
	d := wire.NewDecoder(b)
	q.Keys = decodeKeys(&d)
	return d.End("reset")
}

// ResetResult tells how many of the counters had been used.
type ResetResult struct {
	Reset uint32
}

// Append appends the encoding.
func (s *ResetResult) Append(dst []byte) []byte { return binary.AppendUvarint(dst, uint64(s.Reset)) }

// DecodeResetResult parses what reset answered.
func DecodeResetResult(b []byte) (ResetResult, error) {
	d := wire.NewDecoder(b)
	s := ResetResult{Reset: d.Uint32()}
	return s, d.End("reset result")
}

// reset leaves the rows to the sweep, which finds them unused: each is in the expiry index once.
func reset(tx *fsm.Tx, q *ResetRequest) (*ResetResult, error) {
	s := &ResetResult{}
	for i := range q.Keys {
		r, err := load(tx, &q.Keys[i])
		if err != nil {
			return nil, err
		}
		if !r.stored {
			continue
		}
		r.restart(0)
		if len(r.holds) == 0 { // leases still keep the row as long as before
			r.expires = tx.Now()
		}
		r.put(tx, &q.Keys[i])
		s.Reset++
	}
	return s, nil
}
