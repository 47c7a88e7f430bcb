package session

import (
	"fmt"
	"reflect"
	"testing"

	"github.com/holdfastdb/holdfast/fsm"
)

func TestRevoke(t *testing.T) {
	s := newShard(t)
	a, b, c := s.create("ada", nil), s.create("bob", remembered), s.create("bob", nil)
	unknown := &login{Key: Key{keyOf("eve"), a.Number}}
	if n := s.revoke(Revoked, a, b, a, unknown); n != 2 {
		t.Errorf("%d were revoked", n)
	}
	s.emitted(Event{Kind: EventEnded, Session: a.Key, Reason: Revoked}, Event{Kind: EventEnded, Session: b.Key, Reason: Revoked})
	s.ended(a, Revoked)
	s.ended(b, Revoked)
	s.verdict(c, c.access, Valid)
	s.lists("ada")
	s.lists("bob", c)
	if r := s.refresh(b, b.refresh); r.Verdict != UnknownToken {
		t.Errorf("refresh: %+v", r)
	}
	if n := s.revoke(LoggedOut, a, b); n != 0 {
		t.Errorf("%d were revoked again", n)
	}
	s.ended(a, Revoked)
	s.check()
}

// What is over by itself cannot be revoked any more: its reason is that of its time.
func TestRevokeOfWhatIsOver(t *testing.T) {
	s := newShard(t)
	l := s.create("ada", nil)
	s.now += fsm.Time(30 * minute)
	if n := s.revoke(LoggedOut, l); n != 0 {
		t.Errorf("%d were revoked", n)
	}
	s.verdict(l, l.access, IdleTooLong)
	s.sweep()
	s.ended(l, Idle)
}

func TestRevokeUser(t *testing.T) {
	grouped := func(group uint64) func(*CreateRequest) {
		return func(q *CreateRequest) { q.Group = group }
	}
	tests := map[string]struct {
		except int // of the sessions, counted from 1
		group  uint64
		ends   []int
	}{
		"all":                       {0, 0, []int{1, 2, 3, 4}},
		"all but one":               {3, 0, []int{1, 2, 4}},
		"a login":                   {0, 7, []int{2, 3}},
		"a login but one":           {2, 7, []int{3}},
		"a login but one of others": {1, 7, []int{2, 3}},
		"a login that is unknown":   {0, 9, nil},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s := newShard(t)
			logins := []*login{nil, s.create("ada", nil), s.create("ada", grouped(7)), s.create("ada", grouped(7)), s.create("ada", grouped(8))}
			other := s.create("bob", grouped(7))
			over := s.create("ada", func(q *CreateRequest) { q.Idle, q.Group = minute, 7 })
			s.now += fsm.Time(minute)
			q := &RevokeUserRequest{User: keyOf("ada"), Reason: LoggedOut, Group: test.group}
			if test.except > 0 {
				q.Except = logins[test.except].Number
			}
			if n := into[Count](s, s.do(OpRevokeUser, q)).N; int(n) != len(test.ends) {
				t.Errorf("%d ended, want %d", n, len(test.ends))
			}
			ends := make(map[int]bool)
			for _, i := range test.ends {
				ends[i] = true
				s.ended(logins[i], LoggedOut)
			}
			for i, l := range logins[1:] {
				if !ends[i+1] {
					s.verdict(l, l.access, Valid)
				}
			}
			s.sweep()
			s.ended(over, Idle)
			s.verdict(other, other.access, Valid)
			s.check()
		})
	}
}

func TestPurgeUser(t *testing.T) {
	s := newShard(t)
	secrets := func(q *CreateRequest) { q.Attributes = []byte("secret") }
	a, b := s.create("ada", secrets), s.create("ada", remembered)
	gone := s.create("ada", secrets)
	s.revoke(LoggedOut, gone)
	if n := into[Count](s, s.do(OpPurgeUser, &PurgeUserRequest{keyOf("ada")})).N; n != 2 {
		t.Errorf("%d sessions ended", n)
	}
	s.emitted(Event{Kind: EventEnded, Session: a.Key, Reason: Erased}, Event{Kind: EventEnded, Session: b.Key, Reason: Erased})
	for _, l := range []*login{a, b, gone} {
		s.verdict(l, l.access, UnknownToken)
		s.refused(s.query(OpGet, &GetRequest{l.Key}), fsm.NotFound)
	}
	if h := s.history("ada"); len(h) != 0 {
		t.Errorf("history: %+v", h)
	}
	if keys := s.keys(); len(keys) != 1 || keys[keyCounts[0]] != 1 {
		t.Errorf("stored: %v", keys)
	}
	c := s.counts()
	if c.Active[Web] != 0 || c.Created[Web] != 3 || c.Ended[Erased] != 2 || c.Ended[LoggedOut] != 1 {
		t.Errorf("counts: %+v", c)
	}
	s.drain()
	if n := len(s.kept.Keys); n != 2 { // counts, and the machine's position
		t.Errorf("at the end %d keys are left: %q", n, s.kept.Keys)
	}
}

func TestPurgeOfAnUnknownUser(t *testing.T) {
	s := newShard(t)
	l := s.create("ada", nil)
	if n := into[Count](s, s.do(OpPurgeUser, &PurgeUserRequest{keyOf("bob")})).N; n != 0 {
		t.Errorf("%d sessions ended", n)
	}
	s.verdict(l, l.access, Valid)
	s.check()
}

// The reason is told to whoever holds the last token, and to nobody else: others do not learn that there was a session.
func TestWhoIsToldTheReason(t *testing.T) {
	s := newShard(t)
	l := s.create("ada", remembered)
	old := l.access
	s.refresh(l, l.refresh)
	s.now += 3
	s.revoke(Suspicious, l)
	s.now += 5
	s.ended(l, Suspicious)
	s.verdict(l, old, UnknownToken)
	s.verdict(l, l.refresh, UnknownToken)
	s.verdict(l, s.secret(), UnknownToken)
	i := s.validate(l.Key, l.access)
	if i.Created != epoch || i.Until != s.now-5 || string(i.Profile) != "sealed ada" {
		t.Errorf("it was %+v", i)
	}
	if got := s.get(l.Key); got.Reason != Suspicious {
		t.Errorf("by its name: %+v", got)
	}
}

func TestHistory(t *testing.T) {
	s := newShard(t)
	a, b := s.create("ada", nil), s.create("ada", nil)
	s.create("bob", nil)
	s.revoke(LoggedOut, b)
	s.now += fsm.Time(30 * minute)
	before := s.history("ada")
	s.sweep()
	h := s.history("ada")
	if !reflect.DeepEqual(before, h) {
		t.Errorf("before a sweep has come by the history is %+v, after it %+v", before, h)
	}
	if len(h) != 2 || h[0].Session != a.Key || h[0].Reason != Idle || h[0].Until != s.now ||
		h[1].Session != b.Key || h[1].Reason != LoggedOut || h[1].Until != epoch || string(h[1].Profile) != "sealed ada" {
		t.Errorf("history: %+v", h)
	}
	s.now = epoch + keepEnded - 1
	s.sweep()
	if n := len(s.history("ada")); n != 2 {
		t.Errorf("a moment before 30 days are over there are %d", n)
	}
	s.now++
	s.sweep()
	if h := s.history("ada"); len(h) != 1 || h[0].Session != a.Key {
		t.Errorf("after them: %+v", h)
	}
	s.verdict(b, b.access, UnknownToken)
	s.drain()
	if keys := s.keys(); len(keys) != 1 {
		t.Errorf("at the end there is %v", keys)
	}
}

func TestHistoryIsBounded(t *testing.T) {
	s := newShard(t)
	var logins []*login
	for i := range maxEnded + 5 {
		logins = append(logins, s.create("ada", func(q *CreateRequest) { q.Profile = fmt.Append(nil, i) }))
	}
	last := logins[0]
	s.revoke(LoggedOut, logins[1:]...)
	s.revoke(Revoked, last)
	h := s.history("ada")
	if len(h) != maxEnded || h[0].Session != last.Key || h[1].Session != logins[6].Key {
		t.Errorf("%d, the first ones are %+v %+v", len(h), h[0], h[1])
	}
	s.ended(last, Revoked)
	s.verdict(logins[5], logins[5].access, UnknownToken)
	s.check()
	s.drain()
	if keys := s.keys(); len(keys) != 1 {
		t.Errorf("at the end there is %v", keys)
	}
}

// due counts the rows of the expiry index.
func (s *shard) due() (n int) {
	s.t.Helper()
	s.sync()
	for k := range s.kept.Keys {
		if k[:2] == "\x00x" {
			n++
		}
	}
	return n
}

// pass lets time pass and sweeps what becomes due.
func (s *shard) pass(span fsm.Millis) {
	s.t.Helper()
	for end := s.now + fsm.Time(span); ; s.sweep() {
		next := s.machine.NextExpiry()
		if next == 0 || next > end {
			s.now = end
			return
		}
		s.now = max(s.now, next)
	}
}

// Sessions that leave before their time stay in the expiry index for a day, not until their time would have been over:
// who logs in and out all the time does not fill it.
func TestExpiryRowsDoNotPileUp(t *testing.T) {
	const each = 2 * hour
	tests := map[string]func(s *shard){
		"evicted": func(s *shard) {
			s.create("ada", func(q *CreateRequest) { remembered(q); q.Sessions, q.Evict = 1, true })
		},
		"logged out": func(s *shard) { s.revoke(LoggedOut, s.create("ada", remembered)) },
		"erased": func(s *shard) {
			s.create("ada", remembered)
			s.do(OpPurgeUser, &PurgeUserRequest{keyOf("ada")})
		},
	}
	for name, churn := range tests {
		t.Run(name, func(t *testing.T) {
			s := newShard(t)
			for range 40 * day / each {
				churn(s)
				s.pass(each)
			}
			// Those of a day, each with its place in the history, the whole history, and the one that is live.
			const most = 2*day/each + maxEnded + 1
			if n := s.due(); n > int(most) {
				t.Errorf("after 40 days there are %d rows, want at most %d", n, most)
			}
			s.check()
			s.indexed()
			s.drain()
			if n := s.due(); n != 0 {
				t.Errorf("at the end there are %d rows", n)
			}
		})
	}
}

// One sweep looks at a bounded number of sessions; those that follow go on.
func TestManySessionsEndAtOnce(t *testing.T) {
	s := newShard(t)
	for i := range 3 * fsm.MaxSweep / 2 {
		s.create(fmt.Sprint(i%5), func(q *CreateRequest) { q.Idle = minute })
	}
	s.now += fsm.Time(minute)
	s.sweep()
	if n := len(s.events); n != fsm.MaxSweep {
		t.Errorf("the first sweep ends %d", n)
	}
	s.check()
	s.sweep()
	if n := len(s.events); n != fsm.MaxSweep/2 {
		t.Errorf("the second sweep ends %d", n)
	}
	if c := s.counts(); c.Active[Web] != 0 || c.Ended[Idle] != 3*fsm.MaxSweep/2 {
		t.Errorf("counts: %+v", c)
	}
	s.check()
}
