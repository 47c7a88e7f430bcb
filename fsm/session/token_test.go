package session

import (
	"fmt"
	"testing"

	"github.com/holdfastdb/holdfast/fsm"
)

func TestValidate(t *testing.T) {
	s := newShard(t)
	l := s.create("ada", func(q *CreateRequest) { q.Attributes = []byte("some") })
	other := s.create("ada", nil)
	s.verdict(l, l.access, Valid)
	s.verdict(l, other.access, UnknownToken)
	s.verdict(l, s.secret(), UnknownToken)
	s.verdict(&login{Key: Key{l.User, l.Number + 1}}, l.access, UnknownToken)
	s.verdict(&login{Key: Key{keyOf("bob"), l.Number}}, l.access, UnknownToken)
	if i := s.validate(l.Key, s.secret()); len(i.Profile) > 0 || i.Created != 0 {
		t.Errorf("who made a token up is told %+v", i)
	}
	with := into[Info](s, s.query(OpValidate, &ValidateRequest{l.Key, l.access, true}))
	if with.Version != 1 || string(with.Attributes) != "some" || string(with.Profile) != "sealed ada" {
		t.Errorf("with attributes: %+v", with)
	}
	if without := s.validate(l.Key, l.access); without.Version != 0 || len(without.Attributes) != 0 {
		t.Errorf("without attributes: %+v", without)
	}
}

// A session counts until its time is over and not for a millisecond more, whether it was swept or not.
func TestTimeouts(t *testing.T) {
	tests := map[string]struct {
		change func(*CreateRequest)
		life   fsm.Millis
		before Verdict // what is said until the sweep
		reason Reason  // and after it
	}{
		"idle":              {func(q *CreateRequest) { q.Idle, q.Life = minute, hour }, minute, IdleTooLong, Idle},
		"absolute":          {func(q *CreateRequest) { q.Idle, q.Life = 0, hour }, hour, TimeOver, Expired},
		"absolute and idle": {func(q *CreateRequest) { q.Idle, q.Life = hour, minute }, minute, TimeOver, Expired},
		"both at once":      {func(q *CreateRequest) { q.Idle, q.Life = hour, hour }, hour, TimeOver, Expired},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s := newShard(t)
			l := s.create("ada", test.change)
			s.now += fsm.Time(test.life) - 1
			s.sweep()
			s.verdict(l, l.access, Valid)
			s.lists("ada", l)
			s.now++
			s.verdict(l, l.access, test.before)
			s.verdict(l, s.secret(), UnknownToken)
			s.lists("ada")
			if i := s.get(l.Key); i.Verdict != Ended || i.Reason != test.reason || i.Until != s.now {
				t.Errorf("before the sweep: %+v", i)
			}
			s.sweep()
			s.emitted(Event{Kind: EventEnded, Session: l.Key, Reason: test.reason})
			s.ended(l, test.reason)
			s.check()
		})
	}
}

func TestTouch(t *testing.T) {
	s := newShard(t)
	l := s.create("ada", func(q *CreateRequest) { q.Idle, q.Life = minute, hour })
	half := fsm.Time(minute / 2)
	s.now += half
	if n := s.touch(s.now, l, l); n != 1 {
		t.Errorf("two uses at one moment are %d", n)
	}
	s.emitted()
	if n := s.touch(s.now-1, l); n != 0 {
		t.Errorf("an older use is %d", n)
	}
	if n := s.touch(s.now+5000, l); n != 0 {
		t.Errorf("a use to come is %d", n)
	}
	s.now += fsm.Time(minute) - 1
	s.verdict(l, l.access, Valid)
	s.sweep() // the place in the expiry index is as old as the session
	s.verdict(l, l.access, Valid)
	if n := s.touch(s.now, l); n != 1 {
		t.Errorf("a use in the last moment is %d", n)
	}
	s.now += fsm.Time(minute)
	s.verdict(l, l.access, IdleTooLong)
	if n := s.touch(s.now-1, l); n != 0 {
		t.Errorf("a use that was reported too late is %d", n)
	}
	s.verdict(l, l.access, IdleTooLong)
	s.sweep()
	s.ended(l, Idle)
	if n := s.touch(s.now, l); n != 0 {
		t.Errorf("a use of one that ended is %d", n)
	}
	s.ended(l, Idle)
	s.check()
}

func TestTouchDoesNotOutliveTheAbsoluteTimeout(t *testing.T) {
	s := newShard(t)
	l := s.create("ada", func(q *CreateRequest) { q.Idle, q.Life = 40*minute, hour })
	for range 3 {
		s.now += fsm.Time(20*minute) - 1
		s.touch(s.now, l)
	}
	s.now = l.until
	s.verdict(l, l.access, TimeOver)
}

// A remembered session without use needs its refresh token, and a touch is not one.
func TestTouchDoesNotReplaceARefresh(t *testing.T) {
	s := newShard(t)
	l := s.create("ada", func(q *CreateRequest) { q.Idle, q.Life, q.RefreshLife = minute, hour, 30*day })
	s.now += fsm.Time(minute)
	if n := s.touch(s.now, l); n != 0 {
		t.Errorf("touched %d", n)
	}
	s.verdict(l, l.access, IdleTooLong)
	s.lists("ada", l)
	if r := s.refresh(l, l.refresh); r.Verdict != Valid || r.Until != s.now+fsm.Time(hour) {
		t.Errorf("refreshed: %+v", r)
	}
	s.verdict(l, l.access, Valid)
}

func TestRefresh(t *testing.T) {
	s := newShard(t)
	l := s.create("ada", remembered)
	first := *l
	s.now += fsm.Time(2 * hour)
	s.verdict(l, l.access, TimeOver)
	r := s.refresh(l, l.refresh)
	if r.Verdict != Valid || r.Until != s.now+fsm.Time(hour) || r.RefreshUntil != first.refreshUntil {
		t.Fatalf("refreshed: %+v", r)
	}
	s.emitted(Event{Kind: EventChanged, Session: l.Key})
	s.verdict(l, l.access, Valid)
	s.verdict(l, first.access, Valid) // a request may be under way with it
	s.now += fsm.Time(Grace) - 1
	s.verdict(l, first.access, Valid)
	s.now++
	s.verdict(l, first.access, RotatedAway)
	s.verdict(l, l.access, Valid)

	second := *l
	s.refresh(l, l.refresh)
	s.verdict(l, first.access, UnknownToken)
	s.verdict(l, second.access, Valid)
	s.check()
}

func TestRefreshEndsWithTheRefreshToken(t *testing.T) {
	s := newShard(t)
	l := s.create("ada", remembered)
	s.now = l.refreshUntil - 5
	if r := s.refresh(l, l.refresh); r.Verdict != Valid || r.Until != l.refreshUntil {
		t.Fatalf("refreshed: %+v", r)
	}
	s.now += 5
	s.verdict(l, l.access, TimeOver)
	if r := s.refresh(l, l.refresh); r.Verdict != UnknownToken {
		t.Errorf("after its end: %+v", r)
	}
	s.sweep()
	s.ended(l, Expired)
}

// A refresh never shortens a session: its place in the expiry index would come too late.
func TestRefreshTokensThatEndBeforeTheAccessToken(t *testing.T) {
	s := newShard(t)
	l := s.create("ada", func(q *CreateRequest) { q.Idle, q.Life, q.RefreshLife = 0, hour, minute })
	until := l.until
	if r := s.refresh(l, l.refresh); r.Verdict != Valid || r.Until != until {
		t.Errorf("refreshed: %+v", r)
	}
	s.now += fsm.Time(minute)
	if r := s.refresh(l, l.refresh); r.Verdict != TimeOver {
		t.Errorf("after the end of the refresh token: %+v", r)
	}
	s.verdict(l, l.access, Valid)
	s.now = until
	s.sweep()
	s.ended(l, Expired)
}

// Requests that race with the same refresh token each get a pair, and each pair leads on.
func TestRacingRefreshes(t *testing.T) {
	for pair := range maxTokens {
		t.Run(fmt.Sprint(pair), func(t *testing.T) {
			s := newShard(t)
			l := s.create("ada", remembered)
			token := l.refresh
			var pairs []login
			for range maxTokens {
				if r := s.refresh(l, token); r.Verdict != Valid {
					t.Fatalf("pair %d: %+v", len(pairs), r)
				}
				pairs = append(pairs, *l)
				s.now += fsm.Time(Grace)/maxTokens - 1
			}
			if r := s.refresh(l, token); r.Verdict != TooManyAtOnce {
				t.Errorf("one more: %+v", r)
			}
			s.emitted()
			for i := range pairs {
				s.verdict(l, pairs[i].access, Valid)
			}
			if r := s.refresh(l, pairs[pair].refresh); r.Verdict != Valid {
				t.Errorf("going on: %+v", r)
			}
			for i := range pairs {
				s.verdict(l, pairs[i].access, Valid) // in grace
			}
			s.now += fsm.Time(Grace)
			s.verdict(l, l.access, Valid)
			s.verdict(l, pairs[0].access, RotatedAway)
			s.check()
		})
	}
}

func TestRefreshReuse(t *testing.T) {
	tests := map[string]struct {
		rotations int
		wait      fsm.Millis // after the last
		ends      bool
	}{
		"at once":                  {1, 0, false},
		"in the last moment":       {1, Grace - 1, false},
		"after the grace":          {1, Grace, true},
		"long after":               {1, 20 * day, true},
		"of the one before, early": {2, 0, true},
		"of the one before, late":  {2, Grace, true},
		"of a very old one":        {9, hour, true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s := newShard(t)
			l := s.create("ada", remembered)
			old := l.refresh
			for range test.rotations {
				s.refresh(l, l.refresh)
			}
			last := *l
			s.now += fsm.Time(test.wait)
			r := s.refresh(l, old)
			if !test.ends {
				if r.Verdict != Valid {
					t.Fatalf("in the grace: %+v", r)
				}
				s.verdict(l, last.access, Valid)
				return
			}
			if r.Verdict != ReusedToken {
				t.Fatalf("reused: %+v", r)
			}
			s.emitted(Event{Kind: EventEnded, Session: l.Key, Reason: Reused})
			s.ended(&last, Reused)
			if r := s.refresh(&last, last.refresh); r.Verdict != UnknownToken {
				t.Errorf("after that: %+v", r)
			}
			s.lists("ada")
			s.check()
		})
	}
}

// Who was never given a refresh token of a session can neither use it nor end it.
func TestRefreshTokensThatTheSessionNeverHad(t *testing.T) {
	s := newShard(t)
	l, other := s.create("ada", remembered), s.create("ada", remembered)
	plain := s.create("ada", nil)
	tests := map[string]struct{ of, with *login }{
		"made up":                     {l, &login{Key: l.Key, family: s.secret(), refresh: s.secret()}},
		"a made-up family":            {l, &login{Key: l.Key, family: s.secret(), refresh: l.refresh}},
		"of another session":          {l, &login{Key: l.Key, family: other.family, refresh: other.refresh}},
		"zeros":                       {l, &login{Key: l.Key}},
		"for one without":             {plain, &login{Key: plain.Key, family: l.family, refresh: l.refresh}},
		"zeros, for one without":      {plain, &login{Key: plain.Key}},
		"the access token as refresh": {l, &login{Key: l.Key, family: l.access, refresh: l.access}},
	}
	for name, test := range tests {
		if r := s.refresh(test.with, test.with.refresh); r.Verdict != UnknownToken {
			t.Errorf("%s: %+v", name, r)
		}
		s.emitted()
		s.verdict(test.of, test.of.access, Valid)
	}
	if r := s.refresh(l, l.refresh); r.Verdict != Valid {
		t.Errorf("the right one, after all: %+v", r)
	}
}
