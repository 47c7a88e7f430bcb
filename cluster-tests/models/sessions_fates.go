package models

import (
	"math"
	"time"

	"github.com/holdfastdb/holdfast/cluster-tests/history"
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
}

const never = time.Duration(math.MaxInt64)

// fates are those of all sessions, by id.
type fates struct {
	of    map[string]*fate
	users map[string][]string // ids
}

func fatesOf(ops []history.Op) *fates {
	f := &fates{of: make(map[string]*fate), users: make(map[string][]string)}
	for i := range ops {
		in, out, ok := sessionOp(&ops[i])
		if !ok || in.Kind != KindLogin {
			continue
		}
		one := &fate{user: in.User, login: &ops[i], over: never, safe: never, seen: ops[i].Return}
		if in.Brief {
			one.safe = 0
		}
		f.of[out.Session] = one
		f.users[in.User] = append(f.users[in.User], out.Session)
	}
	for i := range ops {
		f.note(&ops[i])
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

// mayEnd says that an operation may have ended a session, or replaced its tokens.
func (f *fates) mayEnd(id string, op *history.Op) {
	if one := f.of[id]; one != nil {
		one.safe = min(one.safe, op.Call)
	}
}

// ended says that a session was over when an operation returned.
func (f *fates) ended(id string, op *history.Op) {
	if one := f.of[id]; one != nil && op.Return < one.over {
		one.over, one.by = op.Return, op
	}
}

// all does the same for the sessions of a user, but one: those that were there when an operation was called surely ended, if
// it says that all have.
func (f *fates) all(user, except string, op *history.Op, sure bool) {
	for _, id := range f.users[user] {
		if id == except {
			continue
		}
		f.mayEnd(id, op)
		if sure && f.of[id].login.Return < op.Call {
			f.ended(id, op)
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
			f.all(in.User, out.Session, op, false)
		}
	case KindRefresh, KindRotate:
		f.mayEnd(in.Session, op)
		if told && out.Reason == reasonReused {
			f.ended(in.Session, op)
		}
	case KindRevoke:
		f.mayEnd(in.Session, op)
		if told {
			f.ended(in.Session, op)
		}
	case KindLogout:
		f.mayEnd(in.Session, op)
		counted := told && out.Reason == ""
		if counted {
			f.ended(in.Session, op)
		}
		if in.Everywhere { // of a session that was over before it ends no others
			f.all(in.User, "", op, counted && out.N > 0)
		}
	case KindRevokeUser:
		f.all(in.User, in.Except, op, told)
	case KindValidate:
		if told && out.Reason == reasonEnded {
			f.ended(in.Session, op)
		}
		if one := f.of[in.Session]; told && out.Valid && in.Stale == 0 && one != nil {
			one.seen = max(one.seen, op.Call)
		}
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
