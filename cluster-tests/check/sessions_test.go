package check

import (
	"crypto/sha256"
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/holdfastdb/holdfast/cluster-tests/history"
	"github.com/holdfastdb/holdfast/cluster-tests/models"
	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/session"
	"github.com/holdfastdb/holdfast/rpc/sessiontoken"
)

// visits is a world of sessions: few users, and callers who use whatever tokens they were given.
type visits struct {
	*world
	rand    *rand.Rand
	known   []*visit
	devices map[string]string // by id of session
}

type visit struct {
	user, device    string
	key             session.Key
	family          sessiontoken.Secret
	access, refresh []sessiontoken.Secret
	version         uint64
}

func (v *visits) secret() (s sessiontoken.Secret) {
	for i := range s {
		s[i] = byte(v.rand.Uint32())
	}
	return s
}

func (p *visit) id() (id sessiontoken.ID) {
	copy(id[:], p.key.Append(nil))
	return id
}

func (p *visit) token(kind sessiontoken.Kind, s sessiontoken.Secret) string {
	t := sessiontoken.Token{Kind: kind, Session: p.id(), Secret: s, Family: p.family}
	return t.String()
}

// do executes a command for a caller, and decodes its result.
func (v *visits) do(in models.SessionOp, op uint8, q interface{ Append([]byte) []byte }, r interface{ Decode([]byte) error }, answer func() models.SessionAnswer) bool {
	v.t.Helper()
	o := v.begin("", "")
	o.Input = in
	f := v.frame(fsm.Call{Type: session.TypeID, Op: op, Body: q.Append(nil)})
	out := v.entry(fsm.Entry{Frames: []fsm.Frame{f}}).Frames[0]
	o.Trace = trace(out.Index, out.Time)
	o.Trace.Seq = f.Seq
	if out.Results[0].Code != fsm.OK {
		o.Outcome, o.Error = history.Failed, out.Results[0].Code.String()
		v.ops = append(v.ops, o)
		return false
	}
	if err := r.Decode(out.Results[0].Body); err != nil {
		v.t.Fatal(err)
	}
	o.Output = answer()
	v.ops = append(v.ops, o)
	return true
}

func (v *visits) ask(in models.SessionOp, op uint8, q interface{ Append([]byte) []byte }, r interface{ Decode([]byte) error }, answer func() models.SessionAnswer) {
	v.t.Helper()
	o := v.begin("", "")
	o.Input = in
	results, at, err := v.reg.Query(v.store.View(), []fsm.Call{{Type: session.TypeID, Op: op, Body: q.Append(nil)}})
	if err == nil && results[0].Code != fsm.NotFound { // which leaves r as it is
		err = r.Decode(results[0].Body)
	}
	if err != nil {
		v.t.Fatal(err)
	}
	o.Trace = trace(at.Index, at.Time)
	o.Trace.Query = true
	o.Output = answer()
	v.ops = append(v.ops, o)
}

var verdictTexts = map[session.Verdict]string{
	session.UnknownToken: "unknown", session.Ended: "ended", session.IdleTooLong: "idle", session.TimeOver: "expired", session.RotatedAway: "rotated",
	session.StepUp: "step_up_required", session.ReusedToken: "refresh_reuse", session.TooManyAtOnce: "too_many_at_once",
}

// of picks one of some, mostly the last.
func of[T any](r *rand.Rand, list []T) T {
	if r.IntN(3) > 0 {
		return list[len(list)-1]
	}
	return list[r.IntN(len(list))]
}

func (v *visits) login() {
	user := []string{"ann", "bob", "cid"}[v.rand.IntN(3)]
	p := &visit{user: user, device: []string{"", "phone", "tablet", "desk"}[v.rand.IntN(4)], family: v.secret()}
	p.key.User = session.NewUserKey(uint16(xxh3.HashString(user)>>48), user)
	access, refresh := v.secret(), v.secret()
	q := &session.CreateRequest{
		User: p.key.User, Kind: session.Web, Life: 60_000, Access: access.Hash(), Sessions: uint32(v.rand.IntN(4)), Devices: uint32(v.rand.IntN(3)),
		Device: hashOf(p.device), Group: uint64(v.rand.IntN(2)), Evict: v.rand.IntN(3) > 0,
	}
	if v.rand.IntN(2) == 0 {
		q.Idle = 15_000
	}
	if v.rand.IntN(2) == 0 {
		q.RefreshLife, q.Refresh, q.Family = 90_000, refresh.Hash(), p.family.Hash()
	}
	var r session.CreateResult
	if v.do(models.SessionOp{Kind: models.KindLogin, User: user}, session.OpCreate, q, &r, func() models.SessionAnswer {
		p.key = r.Session
		v.devices[p.id().String()] = p.device
		out := models.SessionAnswer{Session: p.id().String(), Until: int64(r.Until), N: int(r.Evicted), Token: p.token(sessiontoken.Access, access)}
		if q.RefreshLife > 0 {
			out.Refresh = p.token(sessiontoken.Refresh, refresh)
			p.refresh = append(p.refresh, refresh)
		}
		return out
	}) {
		p.access = append(p.access, access)
		v.known = append(v.known[max(0, len(v.known)-8):], p)
	}
}

// hashOf is what a shard knows of the name of a device.
func hashOf(name string) uint64 {
	if name == "" {
		return 0
	}
	sum := sha256.Sum256([]byte(name))
	return binary.BigEndian.Uint64(sum[:])
}

func (v *visits) validate(p *visit) {
	s := of(v.rand, p.access)
	var i session.Info
	in := models.SessionOp{Kind: models.KindValidate, Session: p.id().String(), Token: p.token(sessiontoken.Access, s)}
	v.ask(in, session.OpValidate, &session.ValidateRequest{Session: p.key, Token: s.Hash(), Attributes: true}, &i, func() models.SessionAnswer {
		out := models.SessionAnswer{Valid: i.Verdict == session.Valid, Reason: verdictTexts[i.Verdict], Ended: i.Reason.String()}
		if out.Valid {
			out.Session, out.Until, out.Version = in.Session, int64(i.Until), uint32(i.Version)
		}
		return out
	})
}

// exchange refreshes or rotates.
func (v *visits) exchange(p *visit) {
	access, next := v.secret(), v.secret()
	in, op, kind := models.SessionOp{Kind: models.KindRotate, Session: p.id().String()}, uint8(session.OpRotate), sessiontoken.Access
	presented := of(v.rand, p.access)
	var q interface{ Append([]byte) []byte } = &session.RotateRequest{Session: p.key, Token: presented.Hash(), Access: access.Hash(), Proved: v.rand.IntN(2) == 0}
	if len(p.refresh) > 0 && v.rand.IntN(4) > 0 {
		presented = of(v.rand, p.refresh)
		in.Kind, op, kind = models.KindRefresh, session.OpRefresh, sessiontoken.Refresh
		q = &session.RefreshRequest{Session: p.key, Family: p.family.Hash(), Token: presented.Hash(), Access: access.Hash(), Next: next.Hash()}
	}
	in.Token = p.token(kind, presented)
	var r session.RefreshResult
	v.do(in, op, q, &r, func() models.SessionAnswer {
		if r.Verdict != session.Valid {
			return models.SessionAnswer{Reason: verdictTexts[r.Verdict], Until: int64(r.Until)}
		}
		p.access = append(p.access, access)
		if kind == sessiontoken.Refresh {
			p.refresh = append(p.refresh, next)
		}
		return models.SessionAnswer{Session: in.Session, Until: int64(r.Until), Token: p.token(sessiontoken.Access, access)}
	})
}

func (v *visits) end(p *visit) {
	in := models.SessionOp{Session: p.id().String()}
	var c session.Count
	counted := func() models.SessionAnswer { return models.SessionAnswer{N: int(c.N)} }
	switch v.rand.IntN(4) {
	case 0:
		in.Kind = models.KindRevoke
		v.do(in, session.OpRevoke, &session.RevokeRequest{Reason: session.Revoked, Sessions: []session.Key{p.key}}, &c, counted)
	case 1:
		in.Kind = models.KindRevokeUser
		q := &session.RevokeUserRequest{User: p.key.User, Reason: session.Revoked, Except: p.key.Number, Group: uint64(v.rand.IntN(2))}
		v.do(in, session.OpRevokeUser, q, &c, counted)
	case 2:
		if v.rand.IntN(2) == 0 {
			in.Kind = models.KindErase
			v.do(in, session.OpPurgeUser, &session.PurgeUserRequest{User: p.key.User}, &c, counted)
		}
	default:
		in.Kind = models.KindLogout
		s := of(v.rand, p.access)
		var r session.LogoutResult
		q := &session.LogoutRequest{Session: p.key, Token: s.Hash(), Scope: session.Scope(v.rand.IntN(3))}
		v.do(in, session.OpLogout, q, &r, func() models.SessionAnswer {
			out := models.SessionAnswer{N: int(r.Ended.N)}
			if r.Verdict == session.UnknownToken || r.Verdict == session.RotatedAway {
				out.Reason = verdictTexts[r.Verdict]
			}
			return out
		})
	}
}

// look asks what there is of a session, or of all that its user has or had.
func (v *visits) look(p *visit) {
	in := models.SessionOp{User: p.user}
	if v.rand.IntN(2) == 0 {
		in.Kind, in.Session = models.KindGet, p.id().String()
		var i session.Info
		v.ask(in, session.OpGet, &session.GetRequest{Session: p.key}, &i, func() models.SessionAnswer {
			if i.Verdict == 0 {
				return models.SessionAnswer{}
			}
			return models.SessionAnswer{
				Session: in.Session, Found: true, Ended: i.Reason.String(), Until: int64(i.Until), Version: uint32(i.Version), Device: p.device,
			}
		})
		return
	}
	op, list := uint8(session.OpList), session.Infos{}
	if in.Kind = models.KindList; v.rand.IntN(2) == 0 {
		in.Kind, op = models.KindHistory, session.OpHistory
	}
	v.ask(in, op, &session.ListRequest{User: p.key.User}, &list, func() (out models.SessionAnswer) {
		for _, i := range list.List {
			id := (&visit{key: i.Session}).id().String()
			out.List, out.Devices = append(out.List, id), append(out.Devices, v.devices[id])
			if in.Kind == models.KindHistory {
				out.Ends = append(out.Ends, i.Reason.String())
			}
		}
		return out
	})
}

func (v *visits) change(p *visit) {
	in := models.SessionOp{Kind: models.KindSet, Session: p.id().String()}
	var made session.Version
	v.do(in, session.OpSetAttributes, &session.SetAttributesRequest{Session: p.key, Version: p.version, Sealed: []byte{1}}, &made, func() models.SessionAnswer {
		p.version = made.V
		return models.SessionAnswer{Session: in.Session, Version: uint32(made.V)}
	})
}

// aside does what services do on their own.
func (v *visits) aside(p *visit) {
	var q interface{ Append([]byte) []byte }
	op := uint8(session.OpTouch)
	switch v.rand.IntN(3) {
	case 0:
		q = &session.TouchRequest{Uses: []session.Use{{Session: p.key, At: v.now - fsm.Time(v.rand.IntN(5000))}}}
	case 1:
		s := v.secret()
		op, q = session.OpReissue, &session.ReissueRequest{Session: p.key, At: v.now, Access: s.Hash()}
		p.access = append(p.access, s)
	default:
		op, q = session.OpMark, &session.MarkRequest{Session: p.key, Sign: session.Burst, Act: session.Act(1 + v.rand.IntN(3))}
	}
	v.entry(fsm.Entry{Frames: []fsm.Frame{{Calls: []fsm.Call{{Type: session.TypeID, Op: op, Body: q.Append(nil)}}}}})
}

func (v *visits) framework() {
	in := models.SessionOp{Token: string(rune('a' + v.rand.IntN(5)))}
	h := session.Hash(sha256.Sum256([]byte(in.Token)))
	var d session.Done
	switch v.rand.IntN(3) {
	case 0:
		in.Kind, in.Value = models.KindSave, time.Duration(v.now).String()
		q := &session.SaveRequest{Token: h, Until: v.now + fsm.Time(v.rand.IntN(40_000)), Sealed: []byte(in.Value)}
		v.do(in, session.OpSave, q, &d, func() models.SessionAnswer { return models.SessionAnswer{} })
	case 1:
		in.Kind = models.KindDrop
		v.do(in, session.OpDrop, &session.DropRequest{Token: h}, &d, func() models.SessionAnswer { return models.SessionAnswer{Found: d.Found} })
	default:
		in.Kind = models.KindFind
		var s session.Saved
		v.ask(in, session.OpFindSaved, &session.DropRequest{Token: h}, &s, func() models.SessionAnswer {
			return models.SessionAnswer{Found: s.Found, Value: string(s.Sealed)}
		})
	}
}

func visited(t *testing.T, seed uint64, steps int) *visits {
	v := &visits{world: newWorld(t, session.Type()), rand: rand.New(rand.NewPCG(seed, 1)), devices: make(map[string]string)}
	v.login()
	for range steps {
		if len(v.known) == 0 || v.rand.IntN(5) == 0 {
			v.login()
			continue
		}
		p := v.known[v.rand.IntN(len(v.known))]
		switch v.rand.IntN(12) {
		case 10, 11:
			v.look(p)
		case 0, 1, 2:
			v.validate(p)
		case 3, 4:
			v.exchange(p)
		case 5:
			v.end(p)
		case 6:
			v.change(p)
		case 7:
			v.aside(p)
		case 8:
			v.framework()
		default:
			v.now += fsm.Time(v.rand.IntN(8000))
			v.entry(fsm.Entry{Kind: fsm.Sweep})
		}
	}
	return v
}

// The model says what the state machine does, whatever callers do with whatever tokens, and remembers as many rows.
func TestTheModelOfSessionsIsTheStateMachine(t *testing.T) {
	for seed := range uint64(8) {
		v := visited(t, seed, 500)
		r := v.replay()
		if len(r.Violations) > 0 || r.Unclear > 0 || r.Checked < 150 || r.Queries < 80 {
			t.Fatalf("seed %d: %d checked, %d queries, %d unclear; %.3v", seed, r.Checked, r.Queries, r.Unclear, r.Violations[:min(3, len(r.Violations))])
		}
		it, err := v.store.View().Iter([]byte{session.TypeID}, []byte{session.TypeID + 1})
		if err != nil {
			t.Fatal(err)
		}
		rows := 0
		for it.Next() {
			rows++
		}
		if err := it.Close(); err != nil {
			t.Fatal(err)
		}
		if rows != r.Rows[theShard][session.TypeID] {
			t.Fatalf("seed %d: %d rows are stored, the model has %d", seed, rows, r.Rows[theShard][session.TypeID])
		}
	}
}

// What a caller is told wrongly is found.
func TestAWrongAnswerAboutSessionsIsFound(t *testing.T) {
	for _, test := range []struct {
		name, kind string // of operation
		breaks     func(o *models.SessionAnswer)
	}{
		{"a token counts or not", models.KindValidate, func(o *models.SessionAnswer) { o.Valid = !o.Valid }},
		{"until when", models.KindValidate, func(o *models.SessionAnswer) { o.Until++ }},
		{"the version of attributes", models.KindSet, func(o *models.SessionAnswer) { o.Version++ }},
		{"how many ended", models.KindRevoke, func(o *models.SessionAnswer) { o.N++ }},
		{"how many had to go", models.KindLogin, func(o *models.SessionAnswer) { o.N++ }},
		{"a token of another session", models.KindLogin, func(o *models.SessionAnswer) { o.Token = (&visit{}).token(sessiontoken.Access, sessiontoken.Secret{}) }},
		{"a refresh that was refused", models.KindRefresh, func(o *models.SessionAnswer) { o.Reason += "x" }},
		{"what was saved", models.KindFind, func(o *models.SessionAnswer) { o.Found = !o.Found }},
		{"what was dropped", models.KindDrop, func(o *models.SessionAnswer) { o.Found = !o.Found }},
		{"a logout", models.KindLogout, func(o *models.SessionAnswer) { o.N++ }},
		{"an erasure", models.KindErase, func(o *models.SessionAnswer) { o.N++ }},
		{"a session that is there, or not", models.KindGet, func(o *models.SessionAnswer) { o.Found = !o.Found }},
		{"why a session ended", models.KindGet, func(o *models.SessionAnswer) { o.Ended += "x" }},
		{"when a session ends", models.KindGet, func(o *models.SessionAnswer) { o.Until++ }},
		{"the device of a session", models.KindGet, func(o *models.SessionAnswer) { o.Device += "x" }},
		{"who is listed", models.KindList, func(o *models.SessionAnswer) { o.List = append(o.List, "x") }},
		{"the devices of a user", models.KindList, func(o *models.SessionAnswer) { o.Devices = append(o.Devices, "x") }},
		{"who is remembered", models.KindHistory, func(o *models.SessionAnswer) { o.List = append(o.List, "x") }},
		{"the reasons in a history", models.KindHistory, func(o *models.SessionAnswer) { o.Ends = append(o.Ends, "x") }},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := visited(t, 1, 600)
			for i := range v.ops {
				in := v.ops[i].Input.(models.SessionOp)
				if out, ok := v.ops[i].Output.(models.SessionAnswer); ok && in.Kind == test.kind {
					test.breaks(&out)
					v.ops[i].Output = out
					finds(t, v.replay().Violations, KindResult)
					return
				}
			}
			t.Error("there is no such operation")
		})
	}
}

// What an SDK answers from what it remembers may be as old as its caller allows.
func TestWhatAnSDKRemembersOfSessionsIsJudged(t *testing.T) {
	for _, test := range []struct {
		name   string
		after  time.Duration // the end
		broken bool
	}{
		{"as old as allowed", 500 * time.Millisecond, false},
		{"older", 501 * time.Millisecond, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := &visits{world: newWorld(t, session.Type()), rand: rand.New(rand.NewPCG(1, 1)), devices: make(map[string]string)}
			v.login()
			p := v.known[0]
			var c session.Count
			in := models.SessionOp{Kind: models.KindRevoke, Session: p.id().String()}
			v.do(in, session.OpRevoke, &session.RevokeRequest{Reason: session.Revoked, Sessions: []session.Key{p.key}}, &c, func() models.SessionAnswer {
				return models.SessionAnswer{N: int(c.N)}
			})
			o := v.begin("", "")
			o.Call = time.Duration(v.now)*time.Millisecond + test.after
			o.Return = o.Call
			o.Input = models.SessionOp{Kind: models.KindValidate, Session: in.Session, Token: p.token(sessiontoken.Access, p.access[0]), Stale: 500 * time.Millisecond}
			o.Output = models.SessionAnswer{Valid: true, Session: in.Session}
			v.ops = append(v.ops, o)
			r := Replay(models.Types(), map[uint32][]Entry{theShard: Stamped(v.log, time.UnixMilli(0))}, v.ops)
			if r.Lent != 1 || (len(r.Violations) > 0) != test.broken {
				t.Errorf("%d judged, %v", r.Lent, r.Violations)
			}
			if test.broken {
				finds(t, r.Violations, KindLease)
			}
		})
	}
}
