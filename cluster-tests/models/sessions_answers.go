package models

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/holdfastdb/holdfast/cluster-tests/history"
	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/session"
	"github.com/holdfastdb/holdfast/rpc/sessiontoken"
)

// presented reads an access or a refresh token.
func presented(text string) (k session.Key, h session.Hash, err error) {
	t, err := parseAccess(text)
	if err != nil {
		t, err = sessiontoken.Parse(text, sessiontoken.Refresh, sessiontoken.Cluster{})
	}
	return session.DecodeKey(t.Session[:]), t.Secret.Hash(), err
}

func parseAccess(text string) (sessiontoken.Token, error) {
	return sessiontoken.Parse(text, sessiontoken.Access, sessiontoken.Cluster{})
}

func idOfSession(k session.Key) string {
	var id sessiontoken.ID
	copy(id[:], k.Append(nil))
	return id.String()
}

func userKeyOf(user string) session.UserKey {
	return session.NewUserKey(uint16(xxh3.HashString(user)>>48), user)
}

// Learn implements Model: of what is sealed only who had it sealed knows what it is.
func (s *sessions) Learn(op *history.Op, done []Execution) {
	var q session.SaveRequest
	if in := op.Input.(SessionOp); in.Kind == KindSave && q.Decode(done[0].Call.Body) == nil {
		s.values[string(q.Sealed)] = in.Value
	}
}

// Query implements Model.
func (s *sessions) Query(now fsm.Time, op *history.Op) (fsm.Result, bool) {
	in := op.Input.(SessionOp)
	var r result
	switch in.Kind {
	case KindValidate:
		k, h, err := presented(in.Token)
		if err != nil {
			return fsm.Result{}, false
		}
		l := s.all[k]
		i := &session.Info{Verdict: l.told(h, now)}
		if i.Verdict != session.UnknownToken && i.Verdict != session.RotatedAway {
			i.Session, i.Reason = k, l.ended
		}
		if i.Verdict == session.Valid {
			i.Until, i.Version = l.tokenEnd(h), l.version
		}
		r = i
	case KindList:
		list := &session.Infos{}
		if u := s.users[userKeyOf(in.User)]; u != nil {
			for _, l := range u.live {
				if l.over(now) == 0 {
					list.List = append(list.List, session.Info{Session: l.key})
				}
			}
		}
		r = list
	case KindGet:
		i, err := s.about(in.Session, now)
		if err != nil {
			return fsm.Result{}, false
		}
		r = i
	case KindHistory:
		list := &session.Infos{}
		if u := s.users[userKeyOf(in.User)]; u != nil {
			for _, l := range u.past {
				list.List = append(list.List, session.Info{Session: l.key, Reason: l.ended})
			}
			for _, l := range u.live {
				if why := l.over(now); why != 0 {
					list.List = append(list.List, session.Info{Session: l.key, Reason: why})
				}
			}
		}
		slices.SortFunc(list.List, func(a, b session.Info) int { return cmp.Compare(a.Session.Number, b.Session.Number) })
		r = list
	case KindFind:
		h := savedHash(in.Token)
		found := &session.Saved{Token: h}
		if kept := s.saved[h]; kept != nil && !kept.dropped && kept.until > now {
			found.Found, found.Until, found.Sealed = true, kept.until, []byte(s.values[string(kept.sealed)])
		}
		r = found
	default:
		return fsm.Result{}, false
	}
	return fsm.Result{Body: r.Append(nil)}, true
}

// about tells of a session that is known by its id.
func (s *sessions) about(id string, now fsm.Time) (*session.Info, error) {
	named, err := sessiontoken.ParseID(id)
	if err != nil {
		return nil, err
	}
	i := &session.Info{Session: session.DecodeKey(named[:]), Verdict: session.UnknownToken}
	switch l := s.all[i.Session]; {
	case l == nil || l.ended != 0 && !l.remembered:
	case l.ended != 0:
		i.Verdict, i.Reason, i.Until = session.Ended, l.ended, l.endedAt
	case l.over(now) != 0:
		i.Verdict, i.Reason, i.Until = session.Ended, l.over(now), l.end()
	default:
		i.Verdict, i.Until, i.Version = session.Valid, l.accessEnd(), l.version
	}
	return i, nil
}

// hasDevice tells whether a session began on the device that an answer names; of its name shards know a hash only.
func (s *sessions) hasDevice(k session.Key, name string) bool {
	l := s.all[k]
	return l != nil && l.device == hashOfName(name)
}

func hashOfName(name string) uint64 {
	if name == "" {
		return 0
	}
	sum := sha256.Sum256([]byte(name))
	return max(binary.BigEndian.Uint64(sum[:]), 1)
}

// verdicts are how answers tell them.
var verdicts = map[session.Verdict]string{
	session.Valid: "", session.UnknownToken: "unknown", session.Ended: reasonEnded, session.IdleTooLong: "idle", session.TimeOver: "expired",
	session.RotatedAway: "rotated", session.StepUp: "step_up_required", session.ReusedToken: reasonReused, session.TooManyAtOnce: "too_many_at_once",
}

// Compare implements Model.
func (s *sessions) Compare(op *history.Op, done []Execution) error {
	in := op.Input.(SessionOp)
	out, ok := op.Output.(SessionAnswer)
	switch {
	case !ok:
		return fmt.Errorf("an answer of type %T", op.Output)
	case len(done) == 0:
		return fmt.Errorf("it was acknowledged, and no log has a command of it")
	}
	x := done[len(done)-1]
	if x.Result.Code != fsm.OK {
		return fmt.Errorf("it succeeded, the model refuses it: %s", x.Result.Code)
	}
	want, err := s.expected(in, &x, out)
	if err != nil {
		return err
	}
	if !want.same(out) {
		return fmt.Errorf("the answer is %+v, the model says %+v", out, want)
	}
	return nil
}

// same compares what the model knows of answers.
func (a SessionAnswer) same(b SessionAnswer) bool {
	return a.Session == b.Session && a.Until == b.Until && a.Valid == b.Valid && a.Reason == b.Reason && a.N == b.N && a.Version == b.Version &&
		a.Found == b.Found && a.Value == b.Value && a.Ended == b.Ended && a.Device == b.Device && slices.Equal(a.List, b.List) &&
		slices.Equal(a.Devices, b.Devices) && slices.Equal(a.Ends, b.Ends)
}

// expected is the answer to a result. out is what the caller was told: of tokens the log has hashes only.
func (s *sessions) expected(in SessionOp, x *Execution, out SessionAnswer) (want SessionAnswer, err error) {
	read := func(r interface{ Decode([]byte) error }) { err = r.Decode(x.Result.Body) }
	switch in.Kind {
	case KindLogin:
		var r session.CreateResult
		read(&r)
		want.Session, want.Until, want.N = idOfSession(r.Session), int64(r.Until), int(r.Evicted)
		if err == nil {
			err = s.given(r.Session, out)
		}
	case KindRefresh, KindRotate:
		var r session.RefreshResult
		read(&r)
		want.Session, want.Reason, want.Until = in.Session, verdicts[r.Verdict], int64(r.Until)
		if k, _, bad := presented(in.Token); err == nil && bad == nil && r.Verdict == session.Valid {
			err = s.given(k, out)
		}
		if r.Verdict != session.Valid {
			want.Session = ""
		}
	case KindLogout:
		var r session.LogoutResult
		read(&r)
		want.N = int(r.Ended.N)
		if r.Verdict == session.UnknownToken || r.Verdict == session.RotatedAway {
			want.Reason = verdicts[r.Verdict]
		}
	case KindRevoke, KindRevokeUser, KindErase:
		var r session.Count
		read(&r)
		want.N = int(r.N)
	case KindSet:
		var r session.Version
		read(&r)
		want.Session, want.Version, want.Value = in.Session, uint32(r.V), out.Value // see judgeVersions
	case KindSave, KindDrop:
		var r session.Done
		read(&r)
		want.Found = r.Found
		if in.Kind == KindSave {
			want.Found = out.Found // callers are not told
		}
	case KindValidate:
		var r session.Info
		read(&r)
		want.Valid, want.Reason, want.Value, want.Ended = r.Verdict == session.Valid, verdicts[r.Verdict], out.Value, r.Reason.String()
		if want.Valid {
			want.Session, want.Until, want.Version = idOfSession(r.Session), int64(r.Until), uint32(r.Version)
		}
	case KindGet:
		var r session.Info
		read(&r)
		if r.Verdict == session.UnknownToken {
			break
		}
		want.Session, want.Found, want.Ended, want.Until, want.Version = in.Session, true, r.Reason.String(), int64(r.Until), uint32(r.Version)
		want.Value = out.Value // see judgeVersions
		if s.hasDevice(r.Session, out.Device) {
			want.Device = out.Device
		} else if err == nil {
			err = fmt.Errorf("session %s did not begin on device %q", in.Session, out.Device)
		}
	case KindList, KindHistory:
		var r session.Infos
		read(&r)
		for n, i := range r.List {
			want.List = append(want.List, idOfSession(i.Session))
			if in.Kind == KindHistory {
				want.Ends = append(want.Ends, i.Reason.String())
			}
			if n < len(out.Devices) && s.hasDevice(i.Session, out.Devices[n]) {
				want.Devices = append(want.Devices, out.Devices[n])
			}
		}
	case KindFind:
		var r session.Saved
		read(&r)
		want.Found, want.Value = r.Found, string(r.Sealed)
		if r.Found && want.Value == "" { // its save's outcome is not known
			want.Value = out.Value
		}
	}
	return want, err
}

// given tells whether the log has the tokens of an answer.
func (s *sessions) given(k session.Key, out SessionAnswer) error {
	l := s.all[k]
	for _, text := range []string{out.Token, out.Refresh} {
		if text == "" {
			continue
		}
		named, h, err := presented(text)
		switch {
		case err != nil:
			return fmt.Errorf("the answer has a token that is none: %w", err)
		case named != k || l == nil:
			return fmt.Errorf("the answer has a token of another session")
		}
		_, access := l.access.of[h]
		_, refresh := l.refresh.of[h]
		if !access && !refresh && l.ended == 0 { // a session that ended gives out none when an answer was lost
			return fmt.Errorf("the answer has a token that the log does not have")
		}
	}
	return nil
}

// Alone implements Model.
func (s *sessions) Alone(op *history.Op) error {
	in := op.Input.(SessionOp)
	out, ok := op.Output.(SessionAnswer)
	switch {
	case op.Outcome != history.Definite || !ok:
		return nil
	case in.Kind == KindValidate && out.Valid == (out.Reason != ""):
		return fmt.Errorf("valid is %v, and why not is %q", out.Valid, out.Reason)
	case out.Age > in.Stale:
		return fmt.Errorf("the answer is %s old, at most %s is allowed", out.Age, in.Stale)
	}
	return nil
}

// Unasked implements Model: an SDK remembers whom it validated, and sees by itself that a token is none. Who watches is told.
func (s *sessions) Unasked(op *history.Op) bool {
	in := op.Input.(SessionOp)
	return in.Kind == KindValidate && (in.Stale > 0 || in.Forged) || in.Kind == KindWatch
}

// Local implements Model: what an SDK answered from what it remembered was true within the time that the caller allowed.
func (s *sessions) Local(shard uint32, ops []*history.Op, _ func(*history.Op) ([16]byte, bool)) (judged int, broken []Violation) {
	violate := func(format string, args ...any) { broken = append(broken, violation(BrokenLease, format, args...)) }
	for _, op := range ops {
		if told, is := op.Output.([]WatchedEvent); is {
			broken = append(broken, s.judgeWatch(shard, told)...)
		}
		in := op.Input.(SessionOp)
		out, ok := op.Output.(SessionAnswer)
		if in.Kind != KindValidate || !ok || !out.Valid {
			continue
		}
		k, h, err := presented(in.Token)
		l := s.all[k]
		if err != nil || l == nil {
			continue // of another shard
		}
		judged++
		if _, given := l.access.of[h]; !given {
			violate("a token that nobody was given counts at %s", op.Call)
		}
		if at, replaced := l.replaced[h]; replaced && at < op.Call-in.Stale {
			violate("a token counts at %s that was replaced at %s", op.Call, at.Round(time.Millisecond))
		}
		if l.ended != 0 && l.endedTold < op.Call-in.Stale {
			violate("session %s counts for a caller of %s, who allows an answer of %s before: it ended at %s (%s)",
				in.Session, op.Call, in.Stale, l.endedTold.Round(time.Millisecond), l.ended)
		}
	}
	return judged, broken
}

// savedHash names a framework's session.
func savedHash(token string) session.Hash { return sha256.Sum256([]byte(token)) }
