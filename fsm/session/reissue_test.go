package session

import (
	"testing"

	"github.com/holdfastdb/holdfast/fsm"
)

func TestReissue(t *testing.T) {
	s := newShard(t)
	l := s.create("ada", remembered)
	lost := *l
	l.access, l.refresh = s.secret(), s.secret()
	for range 2 * maxTokens { // the same ones again are no more
		if r := into[Done](s, s.reissue(l, s.now, l.access, l.refresh)); !r.Found {
			t.Fatal("not found")
		}
	}
	s.verdict(l, lost.access, Valid)
	s.verdict(l, l.access, Valid)
	if r := s.refresh(l, l.refresh); r.Verdict != Valid {
		t.Errorf("with the token that was issued again: %+v", r)
	}
	if r := s.refresh(&lost, lost.refresh); r.Verdict != Valid {
		t.Errorf("with the lost one, in the grace: %+v", r)
	}
	s.check()
}

// Who asks again for what a command gave must not get what a later exchange was for: that may have been because the
// tokens had come into wrong hands.
func TestReissueAfterAnExchange(t *testing.T) {
	tests := map[string]func(s *shard, l *login){
		"refresh":         func(s *shard, l *login) { s.refresh(l, l.refresh) },
		"rotate":          func(s *shard, l *login) { s.rotate(l, l.access, false) },
		"rotate, proved":  func(s *shard, l *login) { s.rotate(l, l.access, true) },
		"refresh, rotate": func(s *shard, l *login) { s.refresh(l, l.refresh); s.rotate(l, l.access, false) },
	}
	for name, exchange := range tests {
		t.Run(name, func(t *testing.T) {
			s := newShard(t)
			l := s.create("ada", remembered)
			made, access := s.now, s.secret()
			s.now += 5
			into[Done](s, s.reissue(l, made, access, Hash{}))
			exchange(s, l)
			exchanged := s.now
			s.now++
			s.refused(s.reissue(l, made, s.secret(), s.secret()), fsm.Conflict)
			s.refused(s.reissue(l, exchanged-1, s.secret(), Hash{}), fsm.Conflict)
			s.refused(s.reissue(l, made, access, Hash{}), fsm.Conflict) // nor does it say that these count
			s.refused(s.reissue(l, made, l.access, Hash{}), fsm.Conflict)

			again := *l
			again.access, again.refresh = s.secret(), s.secret()
			into[Done](s, s.reissue(l, exchanged, again.access, again.refresh)) // of the exchange itself
			s.verdict(l, again.access, Valid)
			if r := s.refresh(&again, again.refresh); r.Verdict != Valid {
				t.Errorf("with the token of the exchange that was issued again: %+v", r)
			}
			s.check()
		})
	}
}

// A request that raced with a refresh got a pair of the same standing: that is no exchange after the first.
func TestReissueAfterARace(t *testing.T) {
	s := newShard(t)
	l := s.create("ada", remembered)
	token := l.refresh
	s.refresh(l, token)
	first := s.now
	s.now += 5
	s.refresh(l, token)
	for _, at := range []fsm.Time{first, s.now} {
		access := s.secret()
		into[Done](s, s.reissue(l, at, access, Hash{}))
		s.verdict(l, access, Valid)
	}
}

func TestReissueIsBounded(t *testing.T) {
	s := newShard(t)
	l := s.create("ada", nil)
	s.refused(s.reissue(l, s.now, s.secret(), s.secret()), fsm.Conflict)
	for range maxTokens - 1 {
		if r := into[Done](s, s.reissue(l, s.now, s.secret(), Hash{})); !r.Found {
			t.Fatal("not found")
		}
	}
	s.refused(s.reissue(l, s.now, s.secret(), Hash{}), fsm.Exhausted)
	s.verdict(l, l.access, Valid)
	s.revoke(LoggedOut, l)
	if r := into[Done](s, s.reissue(l, s.now, l.access, Hash{})); r.Found {
		t.Error("found after its end")
	}
	s.verdict(l, s.secret(), UnknownToken)
}

func TestRotate(t *testing.T) {
	s := newShard(t)
	l := s.create("ada", remembered)
	again := s.secret()
	s.reissue(l, s.now, again, Hash{})
	old := *l
	s.now += 5
	if v := s.rotate(l, s.secret(), false); v != UnknownToken {
		t.Errorf("with a made-up token: %d", v)
	}
	if v := s.rotate(l, l.access, false); v != Valid {
		t.Fatalf("rotated: %d", v)
	}
	s.emitted(Event{Kind: EventChanged, Session: l.Key})
	s.verdict(l, old.access, UnknownToken)
	s.verdict(l, again, UnknownToken)
	s.verdict(l, l.access, Valid)
	if i := s.get(l.Key); i.Seen != s.now || i.Until != old.until {
		t.Errorf("after it: %+v", i)
	}
	if v := s.rotate(l, old.access, false); v != UnknownToken {
		t.Errorf("with the old token: %d", v)
	}
	if r := s.refresh(l, l.refresh); r.Verdict != Valid {
		t.Errorf("its refresh token: %+v", r)
	}
	s.now += fsm.Time(hour)
	if v := s.rotate(l, l.access, false); v != TimeOver {
		t.Errorf("of one whose access token is over: %d", v)
	}
	s.revoke(LoggedOut, l)
	if v := s.rotate(l, l.access, false); v != UnknownToken {
		t.Errorf("of one that ended: %d", v)
	}
}

// The grace is for requests that were under way with a token, not for exchanging it once more; and who is refused is told
// what a validation would tell.
func TestRotateWhatWasRotatedAway(t *testing.T) {
	s := newShard(t)
	l := s.create("ada", func(q *CreateRequest) { remembered(q); q.Idle = minute })
	old := *l
	s.refresh(l, l.refresh)
	s.verdict(l, old.access, Valid)
	if v := s.rotate(l, old.access, true); v != RotatedAway {
		t.Errorf("in the grace: %d", v)
	}
	s.emitted()
	s.verdict(l, old.access, Valid)
	s.now += fsm.Time(Grace)
	if v := s.rotate(l, old.access, true); v != RotatedAway {
		t.Errorf("after it: %d", v)
	}
	s.now += fsm.Time(minute)
	if v := s.rotate(l, l.access, true); v != IdleTooLong {
		t.Errorf("not used for too long: %d", v)
	}
	s.now += fsm.Time(hour)
	if v := s.rotate(l, l.access, true); v != TimeOver {
		t.Errorf("of one whose access token is over: %d", v)
	}
	s.refresh(l, l.refresh)
	s.now += 5
	if v := s.rotate(l, l.access, false); v != Valid {
		t.Errorf("after a refresh: %d", v)
	}
	s.check()
}

// A use after the grace forgets what was rotated away, which counts no more in any case. Using the refresh token of before
// twice still ends the session.
func TestTouchForgetsWhatWasRotatedAway(t *testing.T) {
	s := newShard(t)
	l := s.create("ada", remembered)
	old := *l
	s.refresh(l, l.refresh)
	s.now += fsm.Time(Grace) - 1
	s.touch(s.now, l)
	s.verdict(l, old.access, Valid)
	s.now++
	s.verdict(l, old.access, RotatedAway)
	s.touch(s.now, l)
	s.verdict(l, old.access, UnknownToken)
	s.verdict(l, l.access, Valid)
	if r := s.refresh(&old, old.refresh); r.Verdict != ReusedToken {
		t.Errorf("the old refresh token: %+v", r)
	}
	s.ended(l, Reused)
	s.check()
}

// A session has so many access tokens and so many refresh tokens at most, however they were asked for.
func TestTokensOfEachUseAreBounded(t *testing.T) {
	s := newShard(t)
	l := s.create("ada", remembered)
	first := l.refresh
	s.refresh(l, first)
	for range maxTokens - 1 {
		into[Done](s, s.reissue(l, s.now, s.secret(), Hash{}))
	}
	if r := s.refresh(l, first); r.Verdict != TooManyAtOnce {
		t.Errorf("with %d access tokens: %+v", maxTokens, r)
	}

	l = s.create("bob", remembered)
	first = l.refresh
	for range maxTokens {
		s.refresh(l, first)
	}
	s.rotate(l, l.access, false)
	s.refused(s.reissue(l, s.now, s.secret(), s.secret()), fsm.Exhausted)
	into[Done](s, s.reissue(l, s.now, s.secret(), Hash{}))
	s.check()
}

func TestWhenARememberedSessionEnded(t *testing.T) {
	s := newShard(t)
	l := s.create("ada", func(q *CreateRequest) { q.Idle, q.Life, q.RefreshLife = minute, hour, day })
	s.now = l.refreshUntil + 5
	if i := s.get(l.Key); i.Verdict != Ended || i.Reason != Expired || i.Until != l.refreshUntil {
		t.Errorf("%+v", i)
	}
}
