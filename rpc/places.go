package rpc

import (
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/session"
)

// places follows sessions from one network to another, to find those that are in two places at once: used from one, then
// from another, and from the first again faster than anybody moves.
type places struct {
	followed atomic.Int64 // len(away): who is at home, as almost all are, need not wait for mu when nobody is away

	mu     sync.Mutex
	looked fsm.Time // for what can be forgotten
	away   map[session.Key]place
}

// place is where a session is that was not always there.
type place struct {
	before, now         netip.Prefix
	changed, told, used fsm.Time // used: last away from home, or on the move
}

const (
	// movesWithin is how long nobody takes who moves away and back, in milliseconds.
	movesWithin = 10_000
	// movesAgain is after how long a session that has a flag is told of again, and one is forgotten that is at home, or rests.
	movesAgain = 60_000
	// maxAway bounds the sessions that are followed.
	maxAway = 64 << 10
)

// seen tells of a use of a session from a network, where another one may be stored as its own; true if that shows it to be in
// two places. Who has an IPv4 and an IPv6 address uses both, so that only one family of a session is followed.
func (p *places) seen(k session.Key, stored, from netip.Prefix, at fsm.Time) bool {
	if stored == from && p.followed.Load() == 0 {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forget(at)
	e, known := p.away[k]
	if !known {
		if stored == from || len(p.away) >= maxAway {
			return false
		}
		e.now = stored
	}
	if e.now.Addr().Is4() != from.Addr().Is4() || e.now == from && stored == from {
		return false
	}
	if e.now != from && at <= e.changed { // from before the move, or nobody knows: what is asked at a time is answered in any order
		return false
	}
	both := from == e.before && at-e.changed <= movesWithin
	if e.now != from {
		e.before, e.now, e.changed = e.now, from, at
	}
	e.used = max(e.used, at) // forgotten, it would seem to have just left home when it is used again
	p.away[k] = e
	p.followed.Store(int64(len(p.away)))
	return both
}

// tell notes that a session which is in two places is told of; false if it was told of a short while ago and sparingly says
// that this is enough.
func (p *places) tell(k session.Key, sparingly bool, at fsm.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	e, known := p.away[k]
	if sparingly && e.told != 0 && at-e.told < movesAgain {
		return false
	}
	if known {
		e.told = at
		p.away[k] = e
	}
	return true
}

// forget drops who has stayed. The shards' clocks differ a little: one that is behind does not have all looked through again.
// Called with mu held.
func (p *places) forget(at fsm.Time) {
	if at < p.looked+movesAgain {
		return
	}
	p.looked = at
	for k, e := range p.away {
		if at-e.used >= movesAgain {
			delete(p.away, k)
		}
	}
	p.followed.Store(int64(len(p.away)))
}
