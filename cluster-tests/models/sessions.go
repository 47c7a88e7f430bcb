package models

import (
	"fmt"
	"slices"
	"time"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/session"
)

// sessions is the model of package session: every session that ever was, with when and why it ended, and every token with
// the generation in which it was given out.
type sessions struct {
	all    map[session.Key]*login
	users  map[session.UserKey]*holder
	saved  map[session.Hash]*savedLogin
	values map[string]string // of saved sessions, by the sealed bytes
	events []SessionEvent    // all that happened
	broken []string
}

func newSessions() *sessions {
	return &sessions{
		all: make(map[session.Key]*login), users: make(map[session.UserKey]*holder), saved: make(map[session.Hash]*savedLogin),
		values: make(map[string]string),
	}
}

// login is a session.
type login struct {
	key           session.Key
	kind          session.Kind
	device, group uint64
	created, seen fsm.Time
	idle, life    fsm.Millis
	until         fsm.Time // of the access token
	issued        fsm.Time // when tokens were last made or exchanged
	access        generations
	refreshUntil  fsm.Time // 0 without refresh tokens
	family        session.Hash
	refresh       generations
	flagged       bool
	stepUp        bool
	version       uint64 // of the attributes

	// replaced is when access tokens were replaced that count for nothing since, on the clock of the history.
	replaced map[session.Hash]time.Duration

	ended      session.Reason // 0 while it lives
	endedAt    fsm.Time
	endedTold  time.Duration // on the clock of the history
	remembered bool          // in its user's past
}

// holder is a user: the sessions that live, oldest first, and those that are remembered, in the order of their ends.
type holder struct{ live, past []*login }

// The bounds of what is remembered of ended sessions.
const (
	mostPast   = 100
	longestAgo = 30 * 24 * 3600 * 1000
	mostTokens = 4
	// What is stored is looked at so often, and a tombstone stays for so long.
	lookEvery   = 24 * 3600 * 1000
	keepDropped = 3600 * 1000
)

// look has a sweep look at what ends at a time.
func look(m *Moment, key string, end fsm.Time) { m.Expire(key, min(end, m.Now+lookEvery)) }

// generations are the tokens of one use, each with its turn. Those of the last turn count, and those of the one before for
// the grace after the turn, unless it was sudden.
type generations struct {
	of     map[session.Hash]int
	newest session.Hash
	last   int
	turned fsm.Time
	sudden bool
}

func newGenerations(h session.Hash) generations {
	g := generations{of: make(map[session.Hash]int)}
	g.turn(h, 0, true)
	return g
}

func (g *generations) turn(h session.Hash, at fsm.Time, sudden bool) {
	g.last++
	g.turned, g.sudden = at, sudden
	g.add(h)
}

// add gives out another token of the last turn.
func (g *generations) add(h session.Hash) { g.of[h], g.newest = g.last, h }

func (g *generations) full() bool {
	n := 0
	for _, turn := range g.of {
		if turn == g.last {
			n++
		}
	}
	return n >= mostTokens
}

// place tells whether a token is of the last turn, or of the one before that a grace was given.
func (g *generations) place(h session.Hash) (fresh, old bool) {
	turn, given := g.of[h]
	return given && turn == g.last, given && turn == g.last-1 && !g.sudden
}

// forget has those of the turn before count for nothing if their grace is over.
func (g *generations) forget(t fsm.Time) { g.sudden = g.sudden || !g.graceful(t) }

func (g *generations) graceful(t fsm.Time) bool { return t-g.turned < fsm.Time(session.Grace) }

// accessEnd is when the access token ends, end when the session does.
func (l *login) accessEnd() fsm.Time {
	if idle := l.seen + fsm.Time(l.idle); l.idle > 0 && idle < l.until {
		return idle
	}
	return l.until
}

// tokenEnd is when a token ends, the grace of one of the turn before included.
func (l *login) tokenEnd(h session.Hash) fsm.Time {
	if fresh, _ := l.access.place(h); !fresh {
		return min(l.accessEnd(), l.access.turned+fsm.Time(session.Grace))
	}
	return l.accessEnd()
}

func (l *login) end() fsm.Time { return max(l.accessEnd(), l.refreshUntil) }

// over is why a session that nobody ended is over, 0 if it is not.
func (l *login) over(t fsm.Time) session.Reason {
	switch {
	case t < l.end():
		return 0
	case l.refreshUntil == 0 && l.accessEnd() < l.until:
		return session.Idle
	}
	return session.Expired
}

// worth is what an access token of a session that nobody ended counts for.
func (l *login) worth(h session.Hash, t fsm.Time) session.Verdict {
	fresh, old := l.access.place(h)
	switch {
	case !fresh && !old:
		return session.UnknownToken
	case old && !l.access.graceful(t):
		return session.RotatedAway
	case t >= l.until:
		return session.TimeOver
	case t >= l.accessEnd():
		return session.IdleTooLong
	case l.stepUp:
		return session.StepUp
	}
	return session.Valid
}

// told is what who presents a token learns of a session.
func (l *login) told(h session.Hash, t fsm.Time) session.Verdict {
	switch {
	case l == nil || l.ended != 0 && !l.remembered:
		return session.UnknownToken
	case l.ended == 0:
		return l.worth(h, t)
	case [8]byte(l.access.newest[:]) == [8]byte(h[:]): // so much of it is kept
		return session.Ended
	}
	return session.UnknownToken
}

// find returns a session that lives at a time, nil if there is none.
func (s *sessions) find(k session.Key, t fsm.Time) *login {
	if l := s.all[k]; l != nil && l.ended == 0 && l.over(t) == 0 {
		return l
	}
	return nil
}

func (s *sessions) user(k session.UserKey) *holder {
	if s.users[k] == nil {
		s.users[k] = &holder{}
	}
	return s.users[k]
}

// end ends a session that nobody ended before.
func (s *sessions) end(m *Moment, l *login, reason session.Reason) {
	s.happened(m, client.EventEnded, l.key, reason.String())
	u := s.user(l.key.User)
	u.live = slices.DeleteFunc(u.live, func(other *login) bool { return other == l })
	l.ended, l.endedAt, l.endedTold, l.version = reason, m.Now, m.Told, 0
	if reason == session.Erased {
		return
	}
	l.remembered = true
	look(m, storedKey('e', l.key), m.Now+longestAgo)
	if u.past = append(u.past, l); len(u.past) > mostPast {
		u.past[0].remembered = false
		u.past = u.past[1:]
	}
}

// storedKey is how the state machine names what is due: things that are due at the same time come in the order of their
// keys, and no sweep takes more than so many.
func storedKey(prefix byte, k session.Key) string { return string(k.Append([]byte{prefix})) }

func savedKey(h session.Hash) string { return "x" + string(h[:]) }

// Sweep implements Model.
func (s *sessions) Sweep(m *Moment, key string) {
	rest := []byte(key[1:])
	if key[0] == 'x' {
		switch kept := s.saved[session.Hash(rest)]; {
		case kept == nil:
		case kept.until > m.Now:
			look(m, key, kept.until)
		default:
			delete(s.saved, session.Hash(rest))
		}
		return
	}
	l := s.all[session.DecodeKey(rest)]
	if key[0] == 'e' {
		switch end := l.endedAt + longestAgo; {
		case !l.remembered:
		case end > m.Now:
			look(m, key, end)
		default:
			l.remembered = false
			u := s.user(l.key.User)
			u.past = slices.DeleteFunc(u.past, func(other *login) bool { return other == l })
		}
		return
	}
	if l.ended != 0 {
		return
	}
	if reason := l.over(m.Now); reason != 0 {
		s.end(m, l, reason)
	} else {
		look(m, key, l.end())
	}
}

// Rows implements Model: the sessions that live, their attributes, what is remembered, users, saved sessions, and the row
// of all that was counted.
func (s *sessions) Rows() (n int) {
	if len(s.all) > 0 {
		n++
	}
	for _, u := range s.users {
		n += len(u.live) + len(u.past)
		if len(u.live)+len(u.past) > 0 {
			n++
		}
		for _, l := range u.live {
			if l.version > 0 {
				n++
			}
		}
	}
	return n + len(s.saved)
}

// Broken implements Model.
func (s *sessions) Broken() []string { return s.broken }

func (s *sessions) violate(format string, args ...any) {
	s.broken = append(s.broken, fmt.Sprintf(format, args...))
}
