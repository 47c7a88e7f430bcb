package models

import (
	"slices"

	"github.com/holdfastdb/holdfast/cluster-tests/history"
	"github.com/holdfastdb/holdfast/fsm/session"
)

// judgeLook looks at one answer that tells of sessions: what is there, what was erased, and why sessions ended.
func (f *fates) judgeLook(j *Judged, op *history.Op, in SessionOp, out SessionAnswer) {
	switch in.Kind {
	case KindValidate:
		f.judgeErased(j, op, in, in.Session, out.Valid || out.Ended != "")
		f.judgeReason(j, op, in.Session, out.Ended)
	case KindGet:
		f.judgeThere(j, op, in.Session, out.lives())
		f.judgeErased(j, op, in, in.Session, out.Found)
		f.judgeReason(j, op, in.Session, out.Ended)
		f.judgeRemembered(j, op, in.Session, out.Found)
	case KindList:
		f.judgeLimits(j, op, in, out)
		f.judgeMany(j, op, in, out, f.judgeThere)
	case KindHistory:
		for i, id := range out.List {
			f.judgeReason(j, op, id, out.Ends[i])
		}
		f.judgeMany(j, op, in, out, f.judgeRemembered)
	}
}

// judgeMany looks at an answer about all sessions of a user: none of them was erased, and each is there if it must be.
func (f *fates) judgeMany(j *Judged, op *history.Op, in SessionOp, out SessionAnswer, must func(j *Judged, op *history.Op, id string, found bool)) {
	if first, known := f.erased[in.User]; known && first < op.Call {
		j.Looked[lookedErased]++
	}
	found := make(map[string]bool, len(out.List))
	for _, id := range out.List {
		found[id] = true
		if one := f.of[id]; one != nil && one.erased < op.Call {
			j.session(op, "session %s is told of, and all that is known of its user had been erased at %s", id, one.erased)
		}
	}
	for _, id := range f.users[in.User] {
		must(j, op, id, found[id])
	}
}

// judgeErased looks at an answer about one session: nothing is told of it if it was erased.
func (f *fates) judgeErased(j *Judged, op *history.Op, in SessionOp, id string, found bool) {
	one := f.of[id]
	if one == nil || in.Forged || one.erased >= op.Call-in.Stale {
		return
	}
	j.Looked[lookedErased]++
	if found {
		j.session(op, "session %s is told of, and all that is known of its user had been erased at %s", id, one.erased)
	}
}

// judgeThere: who was given a session finds it as long as nothing can have ended it.
func (f *fates) judgeThere(j *Judged, op *history.Op, id string, found bool) {
	one := f.of[id]
	if one == nil || one.login.Return >= op.Call || op.Return >= one.safe {
		return
	}
	j.Looked[lookedThere]++
	if !found {
		j.session(op, "session %s is not there, and nothing can have ended it before %s", id, one.safe)
	}
}

// judgeReason: a session ended for a reason that somebody gave.
func (f *fates) judgeReason(j *Judged, op *history.Op, id, told string) {
	one := f.of[id]
	if one == nil || told == "" {
		return
	}
	j.Looked[lookedWhy]++
	for why, since := range one.why {
		if why.String() == told && why != session.Erased && since <= op.Return {
			return
		}
	}
	j.session(op, "session %s ended as %q, and nobody did that", id, told)
}

// judgeRemembered: a session whose end was acknowledged is in its user's history, unless that was erased or is full of
// others that ended later.
func (f *fates) judgeRemembered(j *Judged, op *history.Op, id string, found bool) {
	one := f.of[id]
	if one == nil || one.over >= op.Call || one.mayErase <= op.Return {
		return
	}
	begun, _ := slices.BinarySearch(f.begun[one.user], op.Return)
	over, _ := slices.BinarySearch(f.over[one.user], one.login.Call)
	if begun-over > mostPast { // others that may have ended after it, and itself
		return
	}
	j.Looked[lookedHistory]++
	if !found {
		j.session(op, "nothing is known of session %s, whose end had been acknowledged at %s to %s (%s)", id, one.over, one.by.Process, one.by.Input.Describe())
	}
}

// judgeLimits: no list has more sessions, or devices, than its user may have.
func (f *fates) judgeLimits(j *Judged, op *history.Op, in SessionOp, out SessionAnswer) {
	sessions, devices := f.mayHave(in.User)
	distinct := slices.Compact(slices.Sorted(slices.Values(out.Devices)))
	for _, limit := range []struct {
		what, looked string
		has, most    int
	}{{"sessions", lookedMost, len(out.List), sessions}, {"devices", lookedDevices, len(distinct), devices}} {
		if limit.most == 0 || limit.has < limit.most {
			continue
		}
		j.Looked[limit.looked]++
		if limit.has > limit.most {
			j.session(op, "%s has %d %s, %d are allowed", in.User, limit.has, limit.what, limit.most)
		}
	}
}

// mayHave tells how many sessions and devices a user may have, 0 if its logins say nothing or do not agree.
func (f *fates) mayHave(user string) (sessions, devices int) {
	for i, id := range f.users[user] {
		switch in := f.of[id].login.Input.(SessionOp); {
		case i == 0:
			sessions, devices = in.Most, in.MostDevices
		case in.Most != sessions || in.MostDevices != devices:
			return 0, 0
		}
	}
	return sessions, devices
}
