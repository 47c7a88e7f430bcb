package session

import (
	"slices"

	"github.com/holdfastdb/holdfast/fsm"
)

// reference is what the state machine should do, in maps and without care for what it costs.
type reference struct {
	now     fsm.Time
	live    map[Key]*refSession
	past    map[Key]*refPast
	saved   map[Hash]*refSaved
	created map[Kind]uint64
	ended   map[Reason]uint64
}

func newReference() *reference {
	return &reference{
		live: make(map[Key]*refSession), past: make(map[Key]*refPast), saved: make(map[Hash]*refSaved),
		created: make(map[Kind]uint64), ended: make(map[Reason]uint64),
	}
}

type refSession struct {
	CreateRequest
	key                                Key
	created, seen, until, refreshUntil fsm.Time
	flagged, stepUp                    bool
	access, refresh                    generations
	version                            uint64
}

type refPast struct {
	reason Reason
	at     fsm.Time
	proof  Hash
}

type refSaved struct {
	dead  bool
	until fsm.Time
	text  string
}

// generations knows of every token that was ever given out how many times they were rotated before that.
type generations struct {
	of      map[Hash]int
	now     int
	rotated fsm.Time
	last    Hash
}

func (g *generations) give(h Hash) {
	if g.of == nil {
		g.of = make(map[Hash]int)
	}
	g.of[h], g.last = g.now, h
}

// is tells whether a token was given out after all rotations but the last few.
func (g *generations) is(h Hash, before int) bool {
	n, ok := g.of[h]
	return ok && n == g.now-before
}

func (g *generations) full() bool {
	n := 0
	for _, of := range g.of {
		if of == g.now {
			n++
		}
	}
	return n >= maxTokens
}

func (g *generations) inGrace(now fsm.Time) bool { return now < g.rotated+fsm.Time(Grace) }

func (s *refSession) accessOver(now fsm.Time) Reason {
	switch {
	case now >= s.until:
		return Expired
	case s.Idle > 0 && now >= s.seen+fsm.Time(s.Idle):
		return Idle
	}
	return 0
}

// over is why a session is over, 0 if it is not.
func (s *refSession) over(now fsm.Time) Reason {
	why := s.accessOver(now)
	if why == 0 || now < s.refreshUntil {
		return 0
	}
	if s.refreshUntil != 0 || s.Idle == 0 || s.seen+fsm.Time(s.Idle) >= s.until {
		return Expired
	}
	return Idle
}

// at returns a session that is not over.
func (m *reference) at(k Key) *refSession {
	if s := m.live[k]; s != nil && s.over(m.now) == 0 {
		return s
	}
	return nil
}

// of lists a user's sessions, oldest first; those that are over too if they were not swept.
func (m *reference) of(u UserKey, over bool) (list []*refSession) {
	for k, s := range m.live {
		if k.User == u && (over || s.over(m.now) == 0) {
			list = append(list, s)
		}
	}
	slices.SortFunc(list, func(a, b *refSession) int { return int(a.key.Number) - int(b.key.Number) })
	return list
}

func (m *reference) end(s *refSession, why Reason) {
	delete(m.live, s.key)
	m.ended[why]++
	if why != Erased {
		m.past[s.key] = &refPast{why, m.now, s.access.last}
	}
}

func (m *reference) sweep() {
	for k, p := range m.past {
		if p.at+keepEnded <= m.now {
			delete(m.past, k)
		}
	}
	for _, s := range m.live {
		if why := s.over(m.now); why != 0 {
			m.end(s, why)
		}
	}
	for h, s := range m.saved {
		if s.until <= m.now {
			delete(m.saved, h)
		}
	}
}

// tooMany returns the session that has to go first so that there is room for another, nil if there is room.
func tooMany(list []*refSession, q *CreateRequest) *refSession {
	devices := make(map[uint64]bool)
	for _, s := range list {
		devices[s.Device] = true
	}
	devices[q.Device] = true
	delete(devices, 0)
	for _, s := range list {
		if q.Devices > 0 && len(devices) > int(q.Devices) && s.Device != 0 && s.Device != q.Device {
			return s
		}
	}
	if q.Sessions > 0 && len(list) >= int(q.Sessions) {
		return list[0]
	}
	return nil
}

// create tells how many sessions were evicted; ok is false if the new one is refused.
func (m *reference) create(q *CreateRequest) (evicted int, ok bool) {
	if tooMany(m.of(q.User, true), q) == nil {
		return 0, true
	}
	if tooMany(m.of(q.User, false), q) != nil && !q.Evict {
		return 0, false
	}
	for _, s := range m.of(q.User, true) {
		if why := s.over(m.now); why != 0 {
			m.end(s, why)
		}
	}
	for s := tooMany(m.of(q.User, false), q); s != nil; s = tooMany(m.of(q.User, false), q) {
		for _, same := range m.of(q.User, false) {
			if same == s || s.Device != 0 && same.Device == s.Device && m.devicesTooMany(q) {
				m.end(same, Evicted)
				evicted++
			}
		}
	}
	return evicted, true
}

// devicesTooMany tells that it is the number of devices that has to go down.
func (m *reference) devicesTooMany(q *CreateRequest) bool {
	only := *q
	only.Sessions = 0
	return tooMany(m.of(q.User, false), &only) != nil
}

func (m *reference) begin(k Key, q *CreateRequest) {
	s := &refSession{CreateRequest: *q, key: k, created: m.now, seen: m.now, until: m.now + fsm.Time(q.Life)}
	s.access.give(q.Access)
	if q.RefreshLife > 0 {
		s.refreshUntil = m.now + fsm.Time(q.RefreshLife)
		s.refresh.give(q.Refresh)
	}
	if len(q.Attributes) > 0 {
		s.version = 1
	}
	m.live[k] = s
	m.created[q.Kind]++
}

func (m *reference) validate(k Key, h Hash) (Verdict, Reason) {
	s := m.live[k]
	if s == nil {
		if p := m.past[k]; p != nil && p.proof == h {
			return Ended, p.reason
		}
		return UnknownToken, 0
	}
	switch {
	case !s.access.is(h, 0) && !s.access.is(h, 1):
		return UnknownToken, 0
	case s.access.is(h, 1) && !s.access.inGrace(m.now):
		return RotatedAway, 0
	case s.accessOver(m.now) == Expired:
		return TimeOver, 0
	case s.accessOver(m.now) == Idle:
		return IdleTooLong, 0
	case s.stepUp:
		return StepUp, 0
	}
	return Valid, 0
}

func (m *reference) touch(q *TouchRequest) (n uint32) {
	for _, u := range q.Uses {
		s := m.at(u.Session)
		if s != nil && s.accessOver(m.now) == 0 && min(u.At, m.now) > s.seen {
			s.seen = min(u.At, m.now)
			n++
		}
	}
	return n
}

func (m *reference) refresh(q *RefreshRequest) Verdict {
	s := m.at(q.Session)
	if s == nil || s.refreshUntil == 0 || s.Family != q.Family {
		return UnknownToken
	}
	if m.now >= s.refreshUntil {
		return TimeOver
	}
	switch {
	case s.refresh.is(q.Token, 0):
		for _, g := range []*generations{&s.refresh, &s.access} {
			g.now++
			g.rotated = m.now
		}
	case s.refresh.is(q.Token, 1) && s.refresh.inGrace(m.now):
		if s.refresh.full() || s.access.full() {
			return TooManyAtOnce
		}
	default:
		m.end(s, Reused)
		return ReusedToken
	}
	s.refresh.give(q.Next)
	s.access.give(q.Access)
	s.seen = m.now
	s.until = max(s.until, min(m.now+fsm.Time(s.Life), s.refreshUntil))
	return Valid
}

func (m *reference) rotate(q *RotateRequest) Verdict {
	s := m.at(q.Session)
	if s == nil || !s.access.is(q.Token, 0) && !(s.access.is(q.Token, 1) && s.access.inGrace(m.now)) {
		return UnknownToken
	}
	if s.accessOver(m.now) != 0 {
		return TimeOver
	}
	s.access.now += 2 // nothing of before counts, not even for a moment
	s.access.give(q.Access)
	s.stepUp, s.seen = false, m.now
	return Valid
}

func (m *reference) reissue(q *ReissueRequest) (found bool, code fsm.Code) {
	s := m.at(q.Session)
	with := q.Refresh != Hash{}
	switch {
	case s == nil:
		return false, fsm.OK
	case with && s.refreshUntil == 0:
		return false, fsm.Conflict
	case s.access.full() || with && s.refresh.full():
		return false, fsm.Exhausted
	}
	s.access.give(q.Access)
	if with {
		s.refresh.give(q.Refresh)
	}
	return true, fsm.OK
}

func (m *reference) revoke(q *RevokeRequest) (n uint32) {
	for _, k := range q.Sessions {
		if s := m.at(k); s != nil {
			m.end(s, q.Reason)
			n++
		}
	}
	return n
}

func (m *reference) revokeUser(q *RevokeUserRequest) (n uint32) {
	for _, s := range m.of(q.User, true) {
		if s.key.Number == q.Except || q.Group != 0 && s.Group != q.Group {
			continue
		}
		why := s.over(m.now)
		if why == 0 {
			why = q.Reason
			n++
		}
		m.end(s, why)
	}
	return n
}

func (m *reference) purge(u UserKey) uint32 {
	n := len(m.of(u, false))
	for _, s := range m.of(u, true) {
		m.end(s, Erased)
	}
	for k := range m.past {
		if k.User == u {
			delete(m.past, k)
		}
	}
	return uint32(n)
}

func (m *reference) setAttributes(q *SetAttributesRequest) fsm.Code {
	s := m.at(q.Session)
	switch {
	case s == nil:
		return fsm.NotFound
	case s.version != q.Version:
		return fsm.Conflict
	}
	s.version, s.Attributes = s.version+1, q.Sealed
	return fsm.OK
}

func (m *reference) mark(q *MarkRequest) bool {
	s := m.at(q.Session)
	switch {
	case s == nil:
		return false
	case q.Act == EndSession:
		m.end(s, Suspicious)
		return true
	case q.Act == AskAgain:
		s.stepUp = true
	}
	s.flagged = true
	if len(q.Profile) > 0 {
		s.Profile = q.Profile
	}
	return true
}

func (m *reference) save(q *SaveRequest) (found bool, code fsm.Code) {
	s := m.saved[q.Token]
	if s != nil && s.dead {
		return false, fsm.Conflict
	}
	m.saved[q.Token] = &refSaved{until: min(q.Until, m.now+fsm.Time(MaxLife)), text: string(q.Sealed)}
	return s != nil && s.until > m.now, fsm.OK
}

func (m *reference) drop(h Hash) bool {
	s := m.saved[h]
	if s == nil || s.dead {
		return false
	}
	m.saved[h] = &refSaved{dead: true, until: max(s.until, m.now+keepDropped)}
	return s.until > m.now
}

func (m *reference) find(h Hash) (text string, found bool) {
	if s := m.saved[h]; s != nil && !s.dead && s.until > m.now {
		return s.text, true
	}
	return "", false
}
