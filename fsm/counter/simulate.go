package counter

import "github.com/holdfastdb/holdfast/fsm"

// Simulator makes the decisions of the take command on counters of its own, at times that the caller gives: what would
// these rules have done? It is used by one goroutine.
type Simulator struct {
	rows map[Key]*row
	next uint64
}

// NewSimulator starts with unused counters.
func NewSimulator() *Simulator { return &Simulator{rows: make(map[Key]*row)} }

// Take decides on one request. Times must not go back; an earlier one counts as the latest seen by the caller.
func (s *Simulator) Take(now fsm.Time, limits []Limit, weight uint32) TakeResult {
	d := deal{now: now, limits: limits}
	for i := range limits {
		r := s.rows[limits[i].Key]
		if r == nil {
			r = &row{}
			s.rows[limits[i].Key] = r
		}
		d.rows[i] = r
	}
	s.next++
	var t TakeResult
	d.take(&t, int64(weight), s.next, nil)
	return t
}
