package rpc

import (
	"net/netip"
	"sync"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/session"
)

// places follows sessions from one network to another, to find those that are in two places at once: used from one, then
// from another, and from the first again faster than anybody moves.
type places struct {
	mu     sync.Mutex
	looked fsm.Time // for what can be forgotten
	away   map[session.Key]place
}

// place is where a session is that was not always there.
type place struct {
	before, now   netip.Prefix
	changed, told fsm.Time
}

const (
	// movesWithin is how long nobody takes who moves away and back, in milliseconds.
	movesWithin = 10_000
	// movesAgain is after how long the same is told again, and a session is forgotten that stays where it is.
	movesAgain = 60_000
	// maxAway bounds the sessions that are followed.
	maxAway = 64 << 10
)

// seen tells of a use of a session from a network, where another one may be stored as its own; true if that shows it to be in
// two places.
func (p *places) seen(k session.Key, stored, from netip.Prefix, at fsm.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forget(at)
	e, known := p.away[k]
	switch {
	case known && e.now == from, !known && (stored == from || len(p.away) >= maxAway):
		return false
	case !known:
		e.now = stored
	}
	both := from == e.before && at-e.changed <= movesWithin && (e.told == 0 || at-e.told >= movesAgain)
	if both {
		e.told = at
	}
	e.before, e.now, e.changed = e.now, from, at
	p.away[k] = e
	return both
}

// forget drops who has stayed. Called with mu held.
func (p *places) forget(at fsm.Time) {
	if at >= p.looked && at < p.looked+movesAgain {
		return
	}
	p.looked = at
	for k, e := range p.away {
		if at-e.changed >= movesAgain {
			delete(p.away, k)
		}
	}
}
