package models

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/holdfastdb/holdfast/cluster-tests/history"
)

// What judgeSessions looks at.
const (
	lookedAfter    = "uses of sessions after an acknowledged end"
	lookedSafe     = "validations of sessions that nothing can have ended"
	lookedForged   = "validations of made-up tokens"
	lookedAtOnce   = "logins of users who may have so many sessions"
	lookedOld      = "refreshes with tokens that had been exchanged twice"
	lookedVersions = "versions of attributes"
	lookedSaved    = "uses of saved sessions after an acknowledged end"
	lookedKept     = "reads of saved sessions that nothing can have ended"
	lookedThere    = "looks at sessions that nothing can have ended"
	lookedErased   = "looks at users, or their sessions, after an acknowledged erasure"
	lookedGroup    = "uses of sessions after a logout of their whole login elsewhere"
	lookedSpared   = "validations of sessions that were spared when all others ended"
	lookedMost     = "lists of users who have as many sessions as they may"
	lookedDevices  = "lists of users who have as many devices as they may"
	lookedWhy      = "reasons for which sessions ended"
	lookedHistory  = "sessions that a history must remember"
	lookedWatched  = "events of sessions that watches told"
	lookedTold     = "acknowledged begins and ends of sessions compared with what watches told"
)

// judgeSessions looks at what callers were told about sessions, whatever the logs say.
func judgeSessions(ops []history.Op) Judged {
	j := Judged{Looked: map[string]int{
		lookedAfter: 0, lookedSafe: 0, lookedForged: 0, lookedAtOnce: 0, lookedOld: 0, lookedVersions: 0, lookedSaved: 0, lookedKept: 0,
		lookedThere: 0, lookedErased: 0, lookedGroup: 0, lookedSpared: 0, lookedMost: 0, lookedDevices: 0, lookedWhy: 0, lookedHistory: 0, lookedWatched: 0,
	}}
	if len(ops) > 0 && ops[len(ops)-1].Call > longHistory {
		j.Looked[lookedTold] = 0
	}
	f := fatesOf(ops)
	for i := range ops {
		if in, out, ok := sessionOp(&ops[i]); ok {
			f.judge(&j, &ops[i], in, out)
			f.judgeLook(&j, &ops[i], in, out)
		}
	}
	f.judgeNumbers(&j)
	judgeRefreshes(&j, ops)
	judgeVersions(&j, ops)
	judgeSaved(&j, ops)
	f.judgeWatches(&j, ops)
	return j
}

func (j *Judged) session(op *history.Op, format string, args ...any) {
	j.Violations = append(j.Violations, Violation{Kind: BrokenSession, Detail: fmt.Sprintf(format, args...), Op: op})
}

// judge looks at one answer: what ended stays so, and what nothing ended counts.
func (f *fates) judge(j *Judged, op *history.Op, in SessionOp, out SessionAnswer) {
	used, counts := []string{in.Session}, out.Reason == ""
	switch in.Kind {
	case KindList:
		used = out.List
	case KindValidate:
		counts = out.Valid
	case KindGet:
		counts = out.lives()
	case KindRefresh, KindRotate, KindSet:
	default:
		return
	}
	if in.Forged {
		j.Looked[lookedForged]++
		if counts {
			j.session(op, "a token that nobody gave out counts")
		}
		return
	}
	for _, id := range used {
		one := f.of[id]
		if one == nil {
			continue
		}
		if one.over < op.Call-in.Stale {
			j.Looked[lookedAfter]++
			if by := one.by.Input.(SessionOp); by.WholeLogin && by.Session != id {
				j.Looked[lookedGroup]++
			}
			if counts {
				j.session(op, "session %s counts, and its end had been acknowledged at %s to %s (%s)", id, one.over, one.by.Process, one.by.Input.Describe())
			}
		}
		if in.Kind == KindValidate && op.Return < one.safe {
			j.Looked[lookedSafe]++
			if one.spared < op.Call {
				j.Looked[lookedSpared]++
			}
			if !counts {
				j.session(op, "session %s does not count (%s), and nothing can have ended it before %s", id, out.Reason, one.safe)
			}
		}
	}
}

// judgeNumbers counts how many sessions users surely had at the same time: each from when its login returned until it was
// last called and counted.
func (f *fates) judgeNumbers(j *Judged) {
	type turn struct {
		at    time.Duration
		begin bool
		login *history.Op
	}
	for user, ids := range f.users {
		most := f.of[ids[0]].login.Input.(SessionOp).Most
		var turns []turn
		for _, id := range ids {
			one := f.of[id]
			if one.login.Input.(SessionOp).Most != most {
				most = 0 // the last one admitted says how many, and which that is nobody knows
			}
			if one.seen > one.login.Return {
				turns = append(turns, turn{one.login.Return, true, one.login}, turn{one.seen, false, one.login})
			}
		}
		if most == 0 {
			continue
		}
		slices.SortFunc(turns, func(a, b turn) int {
			switch {
			case a.at != b.at:
				return cmp.Compare(a.at, b.at)
			case b.begin: // who goes at this moment has gone
				return -1
			}
			return 1
		})
		had := 0
		for _, t := range turns {
			if !t.begin {
				had--
				continue
			}
			j.Looked[lookedAtOnce]++
			if had++; had > most {
				j.session(t.login, "%s has %d sessions at %s, %d are allowed", user, had, t.at, most)
			}
		}
	}
}

// judgeRefreshes looks for refresh tokens that still count though what they were exchanged for was exchanged, too.
func judgeRefreshes(j *Judged, ops []history.Op) {
	parent := make(map[string]string)         // of a refresh token: what it was exchanged for
	old := make(map[string]time.Duration)     // since when a token is at least two exchanges old
	exchanged := make(map[string]*history.Op) // the first exchange of a token to return
	for i := range ops {
		in, out, ok := sessionOp(&ops[i])
		if !ok || in.Kind != KindRefresh || out.Reason != "" {
			continue
		}
		parent[out.Refresh] = in.Token
		if first := exchanged[in.Token]; first == nil || ops[i].Return < first.Return {
			exchanged[in.Token] = &ops[i]
		}
	}
	for token, op := range exchanged {
		if before, ok := parent[token]; ok {
			if at, known := old[before]; !known || op.Return < at {
				old[before] = op.Return
			}
		}
	}
	for i := range ops {
		in, out, ok := sessionOp(&ops[i])
		if !ok || in.Kind != KindRefresh {
			continue
		}
		if at, is := old[in.Token]; is && at < ops[i].Call {
			j.Looked[lookedOld]++
			if out.Reason == "" {
				j.session(&ops[i], "a refresh token counts, and what it was exchanged for had been exchanged at %s", at)
			}
		}
	}
}

// judgeVersions: a version of a session's attributes is made once, and is the same for all who read it.
func judgeVersions(j *Judged, ops []history.Op) {
	type version struct {
		session string
		number  uint32
	}
	made := make(map[version]*history.Op)
	for i := range ops {
		in, out, ok := sessionOp(&ops[i])
		if !ok || in.Kind != KindSet {
			continue
		}
		v := version{in.Session, out.Version}
		j.Looked[lookedVersions]++
		if other := made[v]; other != nil {
			j.session(&ops[i], "version %d of the attributes was made twice, also by %s", v.number, other.Process)
		}
		made[v] = &ops[i]
		if in.Version != nil && out.Version != *in.Version+1 {
			j.session(&ops[i], "version %d of the attributes was made from version %d", out.Version, *in.Version)
		}
	}
	for i := range ops {
		in, out, ok := sessionOp(&ops[i])
		if !ok || in.Kind != KindValidate && in.Kind != KindGet || !out.Valid && !out.lives() {
			continue
		}
		if op := made[version{in.Session, out.Version}]; op != nil && op.Input.(SessionOp).Value != out.Value {
			j.session(&ops[i], "version %d of the attributes is %q, and was made as %q", out.Version, out.Value, op.Input.(SessionOp).Value)
		}
	}
}

// judgeSaved: what was dropped is not found, and not saved again; what nobody dropped is found.
func judgeSaved(j *Judged, ops []history.Op) {
	type known struct{ saved, dropped, safe time.Duration }
	of := make(map[string]*known)
	for i := range ops {
		op := &ops[i]
		in, ok := op.Input.(SessionOp)
		if !ok || op.Outcome == history.Failed || in.Kind != KindSave && in.Kind != KindDrop {
			continue
		}
		k := of[in.Token]
		if k == nil {
			k = &known{never, never, never}
			of[in.Token] = k
		}
		_, out, told := sessionOp(op)
		switch {
		case in.Kind == KindDrop:
			k.safe = min(k.safe, op.Call)
			if told && out.Found { // one that was not there yet leaves no trace
				k.dropped = min(k.dropped, op.Return)
			}
		case told:
			k.saved = min(k.saved, op.Return)
		}
	}
	for i := range ops {
		op := &ops[i]
		in, out, ok := sessionOp(op)
		k := of[in.Token]
		if !ok || k == nil || in.Kind != KindFind && in.Kind != KindSave {
			continue
		}
		if k.dropped < op.Call {
			j.Looked[lookedSaved]++
			if in.Kind == KindSave || out.Found {
				j.session(op, "a saved session is there again, and its end had been acknowledged at %s", k.dropped)
			}
		}
		if in.Kind == KindFind && k.saved < op.Call && op.Return < k.safe {
			j.Looked[lookedKept]++
			if !out.Found {
				j.session(op, "a session that was saved at %s is not found, and nobody dropped it", k.saved)
			}
		}
	}
}
