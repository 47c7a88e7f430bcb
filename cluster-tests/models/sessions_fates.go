package models

import (
	"math"
	"slices"
	"time"

	"github.com/holdfastdb/holdfast/cluster-tests/history"
	"github.com/holdfastdb/holdfast/fsm/session"
)

// fate is what callers know of a session that one of them was given.
type fate struct {
	user  string
	login *history.Op
	// over is when it was over at the latest, by what a caller was told who then ended it or saw its end.
	over time.Duration
	by   *history.Op
	// safe is until when nothing was done that may have ended it, or replaced its tokens.
	safe time.Duration
	// seen is until when it surely counted.
	seen time.Duration
	// spared is when a caller was told that all others had ended.
	spared time.Duration
	// why has, for each reason for which it may have ended, since when.
	why map[session.Reason]time.Duration
	// erased is when a caller was told that nothing is known of it any more, and mayErase since when that may be so.
	erased, mayErase time.Duration
}

const never = time.Duration(math.MaxInt64)

// fates are those of all sessions, by id.
type fates struct {
	of    map[string]*fate
	users map[string][]string // ids
	// begun is when logins of a user were called, those of unknown outcome too, and over when its sessions were at the latest;
	// both ascend.
	begun, over map[string][]time.Duration
	erased      map[string]time.Duration // when the first session of a user was
}

func fatesOf(ops []history.Op) *fates {
	f := &fates{
		of: make(map[string]*fate), users: make(map[string][]string), begun: make(map[string][]time.Duration), over: make(map[string][]time.Duration),
		erased: make(map[string]time.Duration),
	}
	for i := range ops {
		if in, is := ops[i].Input.(SessionOp); is && in.Kind == KindLogin && ops[i].Outcome != history.Failed {
			f.begun[in.User] = append(f.begun[in.User], ops[i].Call)
		}
		in, out, ok := sessionOp(&ops[i])
		if !ok || in.Kind != KindLogin {
			continue
		}
		one := &fate{
			user: in.User, login: &ops[i], over: never, safe: never, seen: ops[i].Return, spared: never, erased: never, mayErase: never,
			why: make(map[session.Reason]time.Duration),
		}
		if in.Brief {
			one.safe = 0
			one.why[session.Idle], one.why[session.Expired] = 0, 0
		}
		f.of[out.Session] = one
		f.users[in.User] = append(f.users[in.User], out.Session)
	}
	for i := range ops {
		f.note(&ops[i])
	}
	for user, ids := range f.users {
		for _, id := range ids {
			if one := f.of[id]; one.over != never {
				f.over[user] = append(f.over[user], one.over)
			}
		}
		slices.Sort(f.begun[user])
		slices.Sort(f.over[user])
	}
	return f
}

// sessionOp is an operation on sessions that was executed.
func sessionOp(op *history.Op) (in SessionOp, out SessionAnswer, ok bool) {
	in, ok = op.Input.(SessionOp)
	if !ok || op.Outcome != history.Definite {
		return in, out, false
	}
	out, ok = op.Output.(SessionAnswer)
	return in, out, ok
}

// mayEnd says that an operation may have ended a session for a reason, or replaced its tokens if that is 0.
func (f *fates) mayEnd(id string, op *history.Op, why session.Reason) {
	one := f.of[id]
	if one == nil {
		return
	}
	one.safe = min(one.safe, op.Call)
	if since, known := one.why[why]; !known || op.Call < since {
		one.why[why] = op.Call
	}
}

// ended says that a session was over when an operation returned.
func (f *fates) ended(id string, op *history.Op) {
	if one := f.of[id]; one != nil && op.Return < one.over {
		one.over, one.by = op.Return, op
	}
}

// after tells whether a session began when an operation was over, which so cannot have ended it.
func (one *fate) after(op *history.Op) bool {
	return op.Outcome == history.Definite && op.Return < one.login.Call
}

// all does the same for the sessions of a user, but one, or for those of one login: which were there when an operation was
// called surely ended, if it says that all have.
func (f *fates) all(user, except, login string, op *history.Op, why session.Reason, sure bool) {
	for _, id := range f.users[user] {
		one := f.of[id]
		if id == except || one.after(op) || login != "" && one.login.Input.(SessionOp).Login != login {
			continue
		}
		f.mayEnd(id, op, why)
		if sure && one.login.Return < op.Call {
			f.ended(id, op)
		}
	}
}

// erase says that nothing may be known any more of the sessions of a user, nor of those that had ended before.
func (f *fates) erase(user string, op *history.Op, sure bool) {
	for _, id := range f.users[user] {
		one := f.of[id]
		if one.after(op) {
			continue
		}
		one.mayErase = min(one.mayErase, op.Call)
		if sure && one.login.Return < op.Call {
			one.erased = min(one.erased, op.Return)
			if first, known := f.erased[user]; !known || one.erased < first {
				f.erased[user] = one.erased
			}
		}
	}
}

func (f *fates) note(op *history.Op) {
	in, ok := op.Input.(SessionOp)
	if !ok || op.Outcome == history.Failed {
		return
	}
	_, out, told := sessionOp(op)
	switch in.Kind {
	case KindLogin:
		if in.Evict {
			f.all(in.User, out.Session, "", op, session.Evicted, false)
		}
	case KindRotate:
		f.mayEnd(in.Session, op, 0)
	case KindRefresh:
		f.mayEnd(in.Session, op, session.Reused)
		if told && out.Reason == reasonReused {
			f.ended(in.Session, op)
		}
	case KindRevoke:
		f.mayEnd(in.Session, op, session.Revoked)
		if told {
			f.ended(in.Session, op)
		}
	case KindLogout:
		f.mayEnd(in.Session, op, session.LoggedOut)
		counted := told && out.Reason == ""
		if counted {
			f.ended(in.Session, op)
		}
		if in.Everywhere || in.WholeLogin && in.Login != "" { // of a session that was over before it ends no others
			login := in.Login
			if in.Everywhere {
				login = ""
			}
			f.all(in.User, "", login, op, session.LoggedOut, counted && out.N > 0)
		}
	case KindRevokeUser:
		f.all(in.User, in.Except, in.Login, op, session.Revoked, told)
		if one := f.of[in.Except]; told && one != nil {
			one.spared = min(one.spared, op.Return)
		}
	case KindErase:
		f.all(in.User, "", "", op, session.Erased, told)
		f.erase(in.User, op, told)
	case KindValidate:
		f.noteSeen(in.Session, op, told && out.Valid && in.Stale == 0, told && out.Reason == reasonEnded)
	case KindGet:
		f.noteSeen(in.Session, op, told && out.lives(), told && out.Ended != "")
	}
}

// noteSeen says that a caller saw a session live, or that it had ended.
func (f *fates) noteSeen(id string, op *history.Op, lives, ended bool) {
	if ended {
		f.ended(id, op)
	}
	if one := f.of[id]; lives && one != nil {
		one.seen = max(one.seen, op.Call)
	}
}

// sums compares what is there in the end with what callers know. listed are the ids of the sessions that users have.
func (f *fates) sums(listed map[string]bool, active, created, ended int) (j Judged) {
	add := func(format string, args ...any) {
		j.Violations = append(j.Violations, violation(BrokenSum, format, args...))
	}
	if active != created-ended || len(listed) > active {
		add("%d sessions are listed, and %d counted: %d were made and %d ended", len(listed), active, created, ended)
	}
	for id, one := range f.of {
		switch {
		case listed[id] && one.over != never:
			add("session %s is listed, and its end was acknowledged at %s", id, one.over)
		case !listed[id] && one.safe == never:
			add("session %s is not listed, and nothing can have ended it", id)
		}
	}
	return j
}

// judgeCreated compares how many sessions were made with how many logins callers know of.
func judgeCreated(ops []history.Op, created int) (j Judged) {
	var b bounds
	for i := range ops {
		if in, ok := ops[i].Input.(SessionOp); ok && in.Kind == KindLogin {
			b = b.with(1, ops[i].Outcome)
		}
	}
	if !b.allow(uint64(created)) {
		j.Violations = append(j.Violations, violation(BrokenSum, "%d sessions were made, and callers know of %d to %d", created, b.least, b.most))
	}
	return j
}
