package models

import (
	"fmt"
	"time"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/session"
)

// request is what every request of package session is.
type request interface{ Decode([]byte) error }

// result is what every result is.
type result interface{ Append([]byte) []byte }

// commands are those of sessions, by their numbers. Each returns a request to decode, and what executes it.
func (s *sessions) command(m *Moment, op uint8) (request, func() (result, fsm.Code)) {
	done := func(r result) (result, fsm.Code) { return r, fsm.OK }
	switch op {
	case session.OpCreate:
		q := &session.CreateRequest{}
		return q, func() (result, fsm.Code) { return s.create(m, q) }
	case session.OpReissue:
		q := &session.ReissueRequest{}
		return q, func() (result, fsm.Code) { return s.reissue(m, q) }
	case session.OpTouch:
		q := &session.TouchRequest{}
		return q, func() (result, fsm.Code) { return done(s.touch(m, q)) }
	case session.OpRefresh:
		q := &session.RefreshRequest{}
		return q, func() (result, fsm.Code) { return done(s.exchange(m, q)) }
	case session.OpRotate:
		q := &session.RotateRequest{}
		return q, func() (result, fsm.Code) { return done(s.rotate(m, q)) }
	case session.OpLogout:
		q := &session.LogoutRequest{}
		return q, func() (result, fsm.Code) { return done(s.logout(m, q)) }
	case session.OpRevoke:
		q := &session.RevokeRequest{}
		return q, func() (result, fsm.Code) { return done(s.revoke(m, q.Sessions, q.Reason)) }
	case session.OpRevokeUser:
		q := &session.RevokeUserRequest{}
		return q, func() (result, fsm.Code) { return done(s.revokeUser(m, q)) }
	case session.OpPurgeUser:
		q := &session.PurgeUserRequest{}
		return q, func() (result, fsm.Code) { return done(s.purge(m, q)) }
	case session.OpSetAttributes:
		q := &session.SetAttributesRequest{}
		return q, func() (result, fsm.Code) { return s.set(m, q) }
	case session.OpMark:
		q := &session.MarkRequest{}
		return q, func() (result, fsm.Code) { return done(s.mark(m, q)) }
	case session.OpSave:
		q := &session.SaveRequest{}
		return q, func() (result, fsm.Code) { return s.save(m, q) }
	case session.OpDrop:
		q := &session.DropRequest{}
		return q, func() (result, fsm.Code) { return done(s.drop(m, q)) }
	}
	return nil, nil
}

// Apply implements Model.
func (s *sessions) Apply(m *Moment, call fsm.Call) (fsm.Result, error) {
	q, execute := s.command(m, call.Op)
	if q == nil {
		return fsm.Result{}, errUnread("command", fmt.Errorf("sessions have no command %d", call.Op))
	}
	if err := q.Decode(call.Body); err != nil {
		return fsm.Result{}, errUnread("command", err)
	}
	r, code := execute()
	if code != fsm.OK {
		return fsm.Result{Code: code}, nil
	}
	return fsm.Result{Body: r.Append(nil)}, nil
}

func (s *sessions) create(m *Moment, q *session.CreateRequest) (result, fsm.Code) {
	u := s.user(q.User)
	most := int(q.Sessions)
	if most == 0 {
		most = session.MaxSessions
	}
	var over, alive, leave []*login
	for _, l := range u.live {
		if l.over(m.Now) == 0 {
			alive = append(alive, l)
		} else {
			over = append(over, l)
		}
	}
	if len(excess(u.live, q.Device, most, int(q.Devices))) > 0 {
		leave = excess(alive, q.Device, most, int(q.Devices))
		if len(leave) > 0 && !q.Evict {
			return nil, fsm.Exhausted
		}
		for _, l := range over {
			s.end(m, l, l.over(m.Now))
		}
	}
	for _, l := range leave {
		s.end(m, l, session.Evicted)
	}
	l := &login{
		key: session.Key{User: q.User, Number: m.id()}, kind: q.Kind, device: q.Device, group: q.Group, created: m.Now, seen: m.Now, issued: m.Now,
		idle: q.Idle, life: q.Life, until: m.Now + fsm.Time(q.Life), access: newGenerations(q.Access),
	}
	if q.RefreshLife > 0 {
		l.refreshUntil, l.family, l.refresh = m.Now+fsm.Time(q.RefreshLife), q.Family, newGenerations(q.Refresh)
	}
	if len(q.Attributes) > 0 {
		l.version = 1
	}
	if s.all[l.key] != nil {
		s.violate("session %x was made twice", l.key.Append(nil))
	}
	s.all[l.key] = l
	u.live = append(u.live, l)
	s.happened(m, client.EventCreated, l.key, "")
	look(m, storedKey('s', l.key), l.end())
	if n := len(alive) - len(leave) + 1; n > most {
		s.violate("a user has %d sessions at entry %d, %d are allowed", n, m.Index, most)
	}
	return &session.CreateResult{Session: l.key, Until: l.until, RefreshUntil: l.refreshUntil, Evicted: uint32(len(leave))}, fsm.OK
}

// excess are the sessions that must go so that one more, on a device, keeps to the limits: whole devices first, those with
// the oldest sessions, then the oldest sessions.
func excess(list []*login, device uint64, sessions, devices int) (leave []*login) {
	var others []uint64 // devices
	known := map[uint64]bool{0: true, device: true}
	for _, l := range list {
		if !known[l.device] {
			known[l.device] = true
			others = append(others, l.device)
		}
	}
	gone := make(map[uint64]bool)
	if devices > 0 {
		left := devices
		if device != 0 {
			left--
		}
		for len(others) > left {
			gone[others[0]] = true
			others = others[1:]
		}
	}
	var stay []*login
	for _, l := range list {
		if gone[l.device] {
			leave = append(leave, l)
		} else {
			stay = append(stay, l)
		}
	}
	return append(leave, stay[:max(0, len(stay)-sessions+1)]...)
}

func (s *sessions) reissue(m *Moment, q *session.ReissueRequest) (result, fsm.Code) {
	l := s.find(q.Session, m.Now)
	if l == nil {
		return &session.Done{}, fsm.OK
	}
	both := q.Refresh != session.Hash{}
	switch {
	case both && l.refreshUntil == 0:
		return nil, fsm.Conflict
	case q.At < l.issued:
		return nil, fsm.Conflict
	case l.access.of[q.Access] == l.access.last:
		return &session.Done{Found: true}, fsm.OK
	case l.access.full() || both && l.refresh.full():
		return nil, fsm.Exhausted
	case both:
		l.refresh.add(q.Refresh)
	}
	l.access.add(q.Access)
	return &session.Done{Found: true}, fsm.OK
}

func (s *sessions) touch(m *Moment, q *session.TouchRequest) result {
	c := &session.Count{}
	for _, use := range q.Uses {
		at := min(use.At, m.Now)
		if l := s.find(use.Session, m.Now); l != nil && at > l.seen && m.Now < l.accessEnd() {
			l.seen = at
			l.access.forget(m.Now)
			l.refresh.forget(m.Now)
			c.N++
		}
	}
	return c
}

func (s *sessions) exchange(m *Moment, q *session.RefreshRequest) result {
	l := s.find(q.Session, m.Now)
	if l == nil || l.refreshUntil == 0 || l.family != q.Family {
		return &session.RefreshResult{Verdict: session.UnknownToken}
	}
	fresh, old := l.refresh.place(q.Token)
	switch {
	case m.Now >= l.refreshUntil:
		return &session.RefreshResult{Verdict: session.TimeOver}
	case fresh:
		l.refresh.turn(q.Next, m.Now, false)
		l.access.turn(q.Access, m.Now, false)
		l.issued = m.Now
	case !old || !l.refresh.graceful(m.Now):
		s.end(m, l, session.Reused)
		return &session.RefreshResult{Verdict: session.ReusedToken}
	case l.refresh.full() || l.access.full():
		return &session.RefreshResult{Verdict: session.TooManyAtOnce}
	default:
		l.refresh.add(q.Next)
		l.access.add(q.Access)
	}
	s.happened(m, client.EventChanged, l.key, "")
	l.seen, l.until = m.Now, max(l.until, min(m.Now+fsm.Time(l.life), l.refreshUntil))
	return &session.RefreshResult{Verdict: session.Valid, Until: l.until, RefreshUntil: l.refreshUntil}
}

func (s *sessions) rotate(m *Moment, q *session.RotateRequest) result {
	l := s.find(q.Session, m.Now)
	if l == nil {
		return &session.RefreshResult{Verdict: session.UnknownToken}
	}
	if worth := l.worth(q.Token, m.Now); worth != session.Valid && worth != session.StepUp {
		return &session.RefreshResult{Verdict: worth}
	}
	if fresh, _ := l.access.place(q.Token); !fresh {
		return &session.RefreshResult{Verdict: session.RotatedAway}
	}
	if l.replaced == nil {
		l.replaced = make(map[session.Hash]time.Duration)
	}
	for h := range l.access.of {
		if _, before := l.replaced[h]; !before {
			l.replaced[h] = m.Told
		}
	}
	s.happened(m, client.EventChanged, l.key, "")
	l.access.turn(q.Access, m.Now, true)
	l.stepUp, l.seen, l.issued = l.stepUp && !q.Proved, m.Now, m.Now
	return &session.RefreshResult{Verdict: session.Valid, Until: l.until, RefreshUntil: l.refreshUntil}
}

func (s *sessions) logout(m *Moment, q *session.LogoutRequest) result {
	l := s.all[q.Session]
	r := &session.LogoutResult{Verdict: l.told(q.Token, m.Now)}
	switch {
	case r.Verdict == session.UnknownToken || r.Verdict == session.RotatedAway || r.Verdict == session.Ended:
	case q.Scope == session.Everywhere:
		r.Ended = *s.revokeUser(m, &session.RevokeUserRequest{User: q.Session.User, Reason: session.LoggedOut})
	case q.Scope == session.WholeLogin && l.group != 0:
		r.Ended = *s.revokeUser(m, &session.RevokeUserRequest{User: q.Session.User, Reason: session.LoggedOut, Group: l.group})
	default:
		r.Ended = *s.revoke(m, []session.Key{q.Session}, session.LoggedOut)
	}
	return r
}

func (s *sessions) revoke(m *Moment, keys []session.Key, reason session.Reason) *session.Count {
	c := &session.Count{}
	for _, k := range keys {
		if l := s.find(k, m.Now); l != nil {
			s.end(m, l, reason)
			c.N++
		}
	}
	return c
}

func (s *sessions) revokeUser(m *Moment, q *session.RevokeUserRequest) *session.Count {
	c := &session.Count{}
	for _, l := range append([]*login(nil), s.user(q.User).live...) {
		if l.key.Number == q.Except || q.Group != 0 && l.group != q.Group {
			continue
		}
		reason := l.over(m.Now)
		if reason == 0 {
			reason = q.Reason
			c.N++
		}
		s.end(m, l, reason)
	}
	return c
}

func (s *sessions) purge(m *Moment, q *session.PurgeUserRequest) result {
	u := s.user(q.User)
	c := &session.Count{}
	for _, l := range append([]*login(nil), u.live...) {
		if l.over(m.Now) == 0 {
			c.N++
		}
		s.end(m, l, session.Erased)
	}
	for _, l := range u.past {
		l.remembered = false
	}
	u.past = nil
	return c
}

func (s *sessions) set(m *Moment, q *session.SetAttributesRequest) (result, fsm.Code) {
	switch l := s.find(q.Session, m.Now); {
	case l == nil:
		return nil, fsm.NotFound
	case l.version != q.Version:
		return nil, fsm.Conflict
	default:
		s.happened(m, client.EventChanged, l.key, "")
		l.version++
		return &session.Version{V: l.version}, fsm.OK
	}
}

func (s *sessions) mark(m *Moment, q *session.MarkRequest) result {
	l := s.find(q.Session, m.Now)
	if l == nil {
		return &session.Done{}
	}
	s.happened(m, client.EventSuspicious, l.key, signs[q.Sign])
	if q.Act == session.EndSession {
		s.end(m, l, session.Suspicious)
	} else {
		s.happened(m, client.EventChanged, l.key, "")
		l.flagged, l.stepUp = true, l.stepUp || q.Act == session.AskAgain
	}
	return &session.Done{Found: true}
}

// savedLogin is a session of a framework.
type savedLogin struct {
	dropped bool
	until   fsm.Time
	sealed  []byte
}

func (s *sessions) save(m *Moment, q *session.SaveRequest) (result, fsm.Code) {
	before, until := s.saved[q.Token], min(q.Until, m.Now+fsm.Time(session.MaxLife))
	if before != nil && before.dropped {
		return nil, fsm.Conflict
	}
	if before == nil || until < before.until {
		look(m, savedKey(q.Token), until)
	}
	s.saved[q.Token] = &savedLogin{until: until, sealed: q.Sealed}
	return &session.Done{Found: before != nil && before.until > m.Now}, fsm.OK
}

func (s *sessions) drop(m *Moment, q *session.DropRequest) result {
	before := s.saved[q.Token]
	if before == nil || before.dropped {
		return &session.Done{}
	}
	s.saved[q.Token] = &savedLogin{dropped: true, until: max(before.until, m.Now+keepDropped)}
	return &session.Done{Found: before.until > m.Now}
}
