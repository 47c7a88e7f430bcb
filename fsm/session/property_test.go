package session

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"

	"github.com/holdfastdb/holdfast/fsm"
)

// game plays the same commands to the machines and to the reference.
type game struct {
	*shard
	t       *rapid.T
	ref     *reference
	players []*player
	saved   []Hash
	last    uint64 // number of the newest session
}

// player is a session with all tokens that it was ever given.
type player struct {
	Key
	family          Hash
	access, refresh []Hash
}

var users = []string{"ada", "bob"}

func (g *game) one(label string, of ...fsm.Millis) fsm.Millis {
	return rapid.SampledFrom(of).Draw(g.t, label)
}

func (g *game) user() string { return rapid.SampledFrom(users).Draw(g.t, "user") }

// player draws a session, now and then one that never was.
func (g *game) player() *player {
	if n := len(g.players); n > 0 && rapid.IntRange(0, 19).Draw(g.t, "known") > 0 {
		// The newest ones are drawn more often: the others mostly are over.
		back := min(rapid.IntRange(0, n-1).Draw(g.t, "back"), rapid.IntRange(0, n-1).Draw(g.t, "back"))
		return g.players[n-1-back]
	}
	return &player{Key{keyOf(g.user()), 7}, g.secret(), []Hash{g.secret()}, []Hash{g.secret()}}
}

// token draws one of a session's tokens, most often a new one, and now and then one of others.
func (g *game) token(of []Hash) Hash {
	back := rapid.IntRange(0, 9).Draw(g.t, "token")
	switch {
	case len(of) == 0 || back == 9:
		return g.secret()
	case back > 5:
		return rapid.SampledFrom(of).Draw(g.t, "any")
	}
	return of[max(len(of)-1-back/3, 0)]
}

func (g *game) step() {
	g.now += fsm.Time(g.one("step", 0, 0, 0, 1, second, Grace-1, Grace, minute, 20*minute, hour, day, 30*day))
	g.ref.now = g.now
}

func (g *game) same(what string, got, want any) {
	g.t.Helper()
	if got != want {
		g.t.Fatalf("%s at %d: %v, the reference says %v", what, g.now, got, want)
	}
}

func (g *game) create() {
	name := g.user()
	q := g.request(name, func(q *CreateRequest) {
		q.Kind = rapid.SampledFrom([]Kind{Web, Mobile, API}).Draw(g.t, "kind")
		q.Idle = g.one("idle", 0, minute, hour)
		q.Life = g.one("life", minute, hour, day)
		q.RefreshLife = g.one("refresh", 0, 0, minute, day, 30*day)
		q.Device = rapid.Uint64Range(0, 3).Draw(g.t, "device")
		q.Group = rapid.Uint64Range(0, 2).Draw(g.t, "group")
		q.Sessions = rapid.Uint32Range(0, 4).Draw(g.t, "sessions")
		q.Devices = rapid.Uint32Range(0, 3).Draw(g.t, "devices")
		q.Evict = rapid.Bool().Draw(g.t, "evict")
		if rapid.Bool().Draw(g.t, "attributes") {
			q.Attributes = []byte("attributes")
		}
	})
	evicted, ok := g.ref.create(q)
	result := g.do(OpCreate, q)
	if !ok {
		g.refused(result, fsm.Exhausted)
		return
	}
	r := into[CreateResult](g.shard, result)
	g.same("evicted", int(r.Evicted), evicted)
	if r.Session.User != q.User || r.Session.Number <= g.last {
		g.t.Fatalf("session %+v after %d", r.Session, g.last)
	}
	g.last = r.Session.Number
	g.ref.begin(r.Session, q)
	p := &player{Key: r.Session, family: q.Family, access: []Hash{q.Access}}
	if q.RefreshLife > 0 {
		p.refresh = []Hash{q.Refresh}
	}
	g.players = append(g.players, p)

	list := g.list(name)
	devices := make(map[uint64]bool)
	for _, i := range list {
		if device := g.ref.live[i.Session].Device; device != 0 {
			devices[device] = true
		}
	}
	if q.Sessions > 0 && len(list) > int(q.Sessions) || q.Devices > 0 && len(devices) > int(q.Devices) {
		g.t.Fatalf("%d sessions on %d devices; %d and %d are allowed", len(list), len(devices), q.Sessions, q.Devices)
	}
}

func (g *game) touch() {
	q := &TouchRequest{}
	for range rapid.IntRange(1, 3).Draw(g.t, "uses") {
		at := g.now - fsm.Time(g.one("ago", 0, 1, second, minute, -second))
		q.Uses = append(q.Uses, Use{g.player().Key, at})
	}
	want := g.ref.touch(q)
	g.same("touched", into[Count](g.shard, g.do(OpTouch, q)).N, want)
}

func (g *game) refresh() {
	p := g.player()
	q := &RefreshRequest{Session: p.Key, Family: p.family, Token: g.token(p.refresh), Access: g.secret(), Next: g.secret()}
	if rapid.IntRange(0, 9).Draw(g.t, "family") == 0 {
		q.Family = g.player().family
	}
	want := g.ref.refresh(q)
	r := into[RefreshResult](g.shard, g.do(OpRefresh, q))
	g.same("refresh", r.Verdict, want)
	if want == Valid {
		s := g.ref.live[p.Key]
		g.same("until", r.Until, s.until)
		g.same("refresh until", r.RefreshUntil, s.refreshUntil)
		p.access, p.refresh = append(p.access, q.Access), append(p.refresh, q.Next)
	}
}

func (g *game) rotate() {
	p := g.player()
	q := &RotateRequest{p.Key, g.token(p.access), g.secret(), rapid.Bool().Draw(g.t, "proved")}
	want := g.ref.rotate(q)
	g.same("rotate", into[RefreshResult](g.shard, g.do(OpRotate, q)).Verdict, want)
	if want == Valid {
		p.access = append(p.access, q.Access)
	}
}

func (g *game) reissue() {
	p := g.player()
	q := &ReissueRequest{Session: p.Key, At: g.now, Access: g.secret()}
	if s := g.ref.live[p.Key]; s != nil { // around its last exchange
		q.At = s.issued + fsm.Time(g.one("at", -minute, -1, 0, 0, 0, 1, minute))
	}
	if rapid.IntRange(0, 3).Draw(g.t, "again") == 0 {
		q.Access = g.token(p.access)
	}
	if rapid.Bool().Draw(g.t, "refresh") {
		q.Refresh = g.secret()
	}
	found, code := g.ref.reissue(q)
	r := g.do(OpReissue, q)
	g.same("reissue", r.Code, code)
	if code == fsm.OK {
		g.same("reissue", into[Done](g.shard, r).Found, found)
	}
	if found {
		p.access = append(p.access, q.Access)
		if q.Refresh != (Hash{}) {
			p.refresh = append(p.refresh, q.Refresh)
		}
	}
}

func (g *game) reason() Reason {
	return rapid.SampledFrom([]Reason{LoggedOut, Revoked}).Draw(g.t, "reason")
}

func (g *game) revoke() {
	q := &RevokeRequest{Reason: g.reason()}
	for range rapid.IntRange(1, 2).Draw(g.t, "sessions") {
		q.Sessions = append(q.Sessions, g.player().Key)
	}
	want := g.ref.revoke(q)
	g.same("revoked", into[Count](g.shard, g.do(OpRevoke, q)).N, want)
}

func (g *game) revokeUser() {
	q := &RevokeUserRequest{User: keyOf(g.user()), Reason: g.reason(), Group: rapid.Uint64Range(0, 2).Draw(g.t, "group")}
	if rapid.Bool().Draw(g.t, "except") {
		q.Except = g.player().Number
	}
	want := g.ref.revokeUser(q)
	g.same("revoked", into[Count](g.shard, g.do(OpRevokeUser, q)).N, want)
}

func (g *game) purge() {
	q := &PurgeUserRequest{keyOf(g.user())}
	want := g.ref.purge(q.User)
	g.same("purged", into[Count](g.shard, g.do(OpPurgeUser, q)).N, want)
	g.same("history", len(into[Infos](g.shard, g.query(OpHistory, &ListRequest{q.User})).List), 0)
}

func (g *game) setAttributes() {
	q := &SetAttributesRequest{g.player().Key, rapid.Uint64Range(0, 3).Draw(g.t, "version"), []byte("other")}
	want := g.ref.setAttributes(q)
	g.same("set attributes", g.do(OpSetAttributes, q).Code, want)
}

func (g *game) mark() {
	q := &MarkRequest{Session: g.player().Key, Sign: Burst, Act: rapid.SampledFrom([]Act{Flag, AskAgain, EndSession}).Draw(g.t, "act")}
	if rapid.Bool().Draw(g.t, "profile") {
		q.Profile = []byte("elsewhere")
	}
	want := g.ref.mark(q)
	g.same("mark", into[Done](g.shard, g.do(OpMark, q)).Found, want)
}

func (g *game) save() {
	h := g.secret()
	if len(g.saved) > 0 && rapid.Bool().Draw(g.t, "known") {
		h = rapid.SampledFrom(g.saved).Draw(g.t, "saved")
	}
	g.saved = append(g.saved, h)
	q := &SaveRequest{h, g.now + fsm.Time(g.one("until", -1, 0, minute, hour, day, 2*MaxLife)), []byte{byte(len(g.saved))}}
	found, code := g.ref.save(q)
	r := g.do(OpSave, q)
	g.same("save", r.Code, code)
	if code == fsm.OK {
		g.same("save", into[Done](g.shard, r).Found, found)
	}
}

func (g *game) drop() {
	h := rapid.SampledFrom(append([]Hash{{1}}, g.saved...)).Draw(g.t, "saved")
	want := g.ref.drop(h)
	g.same("drop", into[Done](g.shard, g.do(OpDrop, &DropRequest{h})).Found, want)
}

func (g *game) sweep() {
	g.ref.sweep()
	g.shard.sweep()
}

// see compares what is said of a token.
func (g *game) see(k Key, h Hash) {
	g.t.Helper()
	verdict, reason := g.ref.validate(k, h)
	i := g.validate(k, h)
	g.same("verdict", i.Verdict, verdict)
	g.same("reason", i.Reason, reason)
}

// look compares what is said of a session by its name.
func (g *game) look(k Key) {
	g.t.Helper()
	r := g.query(OpGet, &GetRequest{k})
	s, p := g.ref.live[k], g.ref.past[k]
	if s == nil && p == nil {
		g.refused(r, fsm.NotFound)
		return
	}
	i := into[Info](g.shard, r)
	if s == nil || s.over(g.now) != 0 {
		g.same("get", i.Verdict, Ended)
		return
	}
	want := Info{
		Session: k, Verdict: Valid, Kind: s.Kind, Flagged: s.flagged, StepUp: s.stepUp, Created: s.created, Seen: s.seen, Until: s.until,
		RefreshUntil: s.refreshUntil, Idle: s.Idle, Group: s.Group, Profile: s.Profile, Version: s.version, Attributes: s.Attributes,
	}
	if s.Idle > 0 {
		want.Until = min(s.until, s.seen+fsm.Time(s.Idle))
	}
	if got := i.Append(nil); !bytes.Equal(got, want.Append(nil)) {
		g.t.Fatalf("get at %d: %+v, the reference says %+v", g.now, i, want)
	}
}

// all compares everything that is known.
func (g *game) all() {
	g.t.Helper()
	for _, p := range g.players {
		g.look(p.Key)
		for _, h := range p.access {
			g.see(p.Key, h)
		}
	}
	for _, h := range g.saved {
		text, found := g.find(h)
		wantText, want := g.ref.find(h)
		g.same("found", found, want)
		g.same("content", text, wantText)
	}
	for _, name := range users {
		past := 0
		for k := range g.ref.past {
			if k.User == keyOf(name) {
				past++
			}
		}
		for k, r := range g.ref.live {
			if k.User == keyOf(name) && r.over(g.ref.now) != 0 { // no sweep has come by
				past++
			}
		}
		g.same("history", len(g.history(name)), past)
	}
	c := g.counts()
	for k := Web; k <= kinds; k++ {
		active := uint64(0)
		for _, s := range g.ref.live {
			if s.Kind == k {
				active++
			}
		}
		g.same("active", c.Active[k], active)
		g.same("created", c.Created[k], g.ref.created[k])
	}
	for r := LoggedOut; r <= reasons; r++ {
		g.same("ended", c.Ended[r], g.ref.ended[r])
	}
}

// Whatever is asked for in whatever order, machines and reference agree: on every verdict, on who has to leave, and on what
// is left. The shard compares a machine that remembers with one that was opened again, and memory with store; it also
// fails if something is said of a session, or if it is valid, after it was said to have ended.
func TestSessionsAreTheReferences(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := &game{shard: newShard(t), t: t, ref: newReference()}
		g.ref.now = g.now
		actions := []func(){
			g.create, g.create, g.create, g.touch, g.touch, g.refresh, g.refresh, g.refresh, g.rotate, g.reissue, g.revoke,
			g.revokeUser, g.purge, g.setAttributes, g.mark, g.save, g.save, g.drop, g.sweep, g.sweep,
		}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			g.step()
			actions[rapid.IntRange(0, len(actions)-1).Draw(t, "action")]()
			p := g.player()
			g.see(p.Key, g.token(p.access))
			name := g.user()
			g.same("listed", len(g.list(name)), len(g.ref.of(keyOf(name), false)))
			if rapid.IntRange(0, 9).Draw(t, "flush") == 0 {
				g.check()
				g.indexed()
			}
		}
		g.check()
		g.indexed()
		g.all()
		g.drain()
		for k, n := range g.keys() {
			if k != keyCounts[0] {
				t.Fatalf("at the end there are %d of %c", n, k)
			}
		}
	})
}

// indexed verifies I6: all that expires is in the expiry index, not after its end.
func (s *shard) indexed() {
	s.t.Helper()
	s.sync()
	const header = len("\x00x") + 6 // and then the type and the key
	due := make(map[string]fsm.Time)
	for k := range s.kept.Keys {
		if k[:2] != "\x00x" {
			continue
		}
		var at fsm.Time
		for _, b := range []byte(k[2:header]) {
			at = at<<8 | fsm.Time(b)
		}
		if before, ok := due[k[header:]]; !ok || at < before {
			due[k[header:]] = at
		}
	}
	for k, v := range s.kept.Keys {
		if k[0] != TypeID {
			continue
		}
		var end fsm.Time
		switch k[1] {
		case prefixSession:
			r, err := decodeRow(v)
			if err != nil {
				s.t.Fatalf("%v", err)
			}
			end = r.(*row).end()
		case prefixEnded:
			e, err := decodeEnded(v)
			if err != nil {
				s.t.Fatalf("%v", err)
			}
			end = e.at + keepEnded
		case prefixSaved:
			r, err := decodeSaved(v)
			if err != nil {
				s.t.Fatalf("%v", err)
			}
			end = max(r.(*saved).until, 0)
		default:
			continue
		}
		// What was over when it was made is due at once, and everything within a day.
		if at, ok := due[k]; !ok || at > min(max(end, s.now), s.now+lookEvery) {
			s.t.Fatalf("%x ends at %d and is in the expiry index at %d, %v", k, end, at, ok)
		}
	}
}
