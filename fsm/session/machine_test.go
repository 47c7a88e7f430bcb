package session

import (
	"bytes"
	"encoding/binary"
	"reflect"
	"testing"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/fsmtest"
)

// failer is what tests and rapid have in common.
type failer interface {
	Helper()
	Fatalf(format string, args ...any)
}

// shard drives two machines with the same log. One keeps what it can in memory and writes when it is asked; the other is
// opened again before each entry, keeps next to nothing, and writes after each. Whatever one of them remembers beyond what
// it stores makes outcomes, events, answers or stores differ.
type shard struct {
	t            failer
	reg, small   *fsm.Registry
	kept, stored *fsmtest.Memory
	machine      *fsm.Machine
	index        uint64
	now          fsm.Time
	secrets      uint64
	events       []Event      // of the last entry
	over         map[Key]bool // of which an event told that they ended
}

const epoch fsm.Time = 1_700_000_000_123

const (
	second fsm.Millis = 1000
	minute            = 60 * second
	hour              = 60 * minute
	day               = 24 * hour
)

func newShard(t failer) *shard {
	t.Helper()
	reg, err := fsm.New(Type())
	if err != nil {
		t.Fatalf("registry: %v", err)
	}
	s := &shard{
		t: t, reg: reg, small: reg.Within(1), kept: fsmtest.NewMemory(), stored: fsmtest.NewMemory(), now: epoch,
		over: make(map[Key]bool),
	}
	s.machine = s.open(s.reg, s.kept)
	return s
}

func (s *shard) open(reg *fsm.Registry, store *fsmtest.Memory) *fsm.Machine {
	m, err := fsm.Open(reg, store)
	if err != nil {
		s.t.Fatalf("open: %v", err)
	}
	return m
}

func (s *shard) apply(m *fsm.Machine, log []fsm.LogEntry) fsm.Outcome {
	s.t.Helper()
	outs, err := m.Apply(log)
	if err != nil {
		s.t.Fatalf("apply: %v", err)
	}
	return outs[0]
}

func (s *shard) flush(m *fsm.Machine) {
	s.t.Helper()
	if err := m.Flush(); err != nil {
		s.t.Fatalf("flush: %v", err)
	}
}

func (s *shard) entry(e fsm.Entry) fsm.Outcome {
	s.t.Helper()
	s.index++
	e.Time = s.now
	log := []fsm.LogEntry{{Index: s.index, Term: 1, Data: e.Append(nil)}}
	out := s.apply(s.machine, log)
	other := s.open(s.small, s.stored)
	again := s.apply(other, log)
	s.flush(other)
	clear(log[0].Data) // it is the log's: what of it is to stay must be copied
	if !reflect.DeepEqual(out, again) {
		s.t.Fatalf("entry %d at %d: the outcomes differ\n%+v\n%+v", s.index, s.now, out, again)
	}
	s.events = nil
	for _, body := range out.Events {
		e, err := DecodeEvent(body.Body)
		if err != nil || body.Type != TypeID {
			s.t.Fatalf("event %x of type %d: %v", body.Body, body.Type, err)
		}
		if s.over[e.Session] {
			s.t.Fatalf("%+v of a session that ended", e)
		}
		s.over[e.Session] = e.Kind == EventEnded
		s.events = append(s.events, e)
	}
	return out
}

// sync compares the stores.
func (s *shard) sync() {
	s.t.Helper()
	s.flush(s.machine)
	if !s.kept.Equal(s.stored) {
		s.t.Fatalf("entry %d at %d: the stores differ\n%x\n%x", s.index, s.now, s.kept.Keys, s.stored.Keys)
	}
}

type encoder interface{ Append(dst []byte) []byte }

type decoder interface{ Decode(b []byte) error }

func call(op uint8, q encoder) fsm.Call { return fsm.Call{Type: TypeID, Op: op, Body: q.Append(nil)} }

func (s *shard) do(op uint8, q encoder) fsm.Result {
	s.t.Helper()
	return s.entry(fsm.Entry{Frames: []fsm.Frame{{Calls: []fsm.Call{call(op, q)}}}}).Frames[0].Results[0]
}

// query asks at the moment s.now, which the machines have to be told about first.
func (s *shard) query(op uint8, q encoder) fsm.Result {
	s.t.Helper()
	if s.machine.Applied().Time != s.now {
		events := s.events
		s.entry(fsm.Entry{Kind: fsm.Nudge})
		s.events = events
	}
	calls := []fsm.Call{call(op, q)}
	want, position, err := s.reg.Query(s.stored.View(), calls)
	if err != nil {
		s.t.Fatalf("query: %v", err)
	}
	if !s.reg.Point(calls) {
		return want[0]
	}
	for range 2 { // from the store, and from memory
		got, at, err := s.machine.Query(calls)
		if err != nil || !reflect.DeepEqual(got, want) || at.Index != position.Index {
			s.t.Fatalf("query %d at %d: from memory %v, %v; from the store %v", op, s.now, got, err, want)
		}
	}
	return want[0]
}

// into unwraps a result that must be a success.
func into[T any, P interface {
	*T
	decoder
}](s *shard, r fsm.Result) T {
	s.t.Helper()
	if r.Code != fsm.OK {
		s.t.Fatalf("refused: %v %s", r.Code, r.Body)
	}
	var v T
	if err := P(&v).Decode(r.Body); err != nil {
		s.t.Fatalf("decode result: %v", err)
	}
	return v
}

// refused fails unless a result is a refusal.
func (s *shard) refused(r fsm.Result, code fsm.Code) {
	s.t.Helper()
	if r.Code != code {
		s.t.Fatalf("%v %q, want %v", r.Code, r.Body, code)
	}
}

func (s *shard) sweep() { s.t.Helper(); s.entry(fsm.Entry{Kind: fsm.Sweep}) }

func (s *shard) check() {
	s.t.Helper()
	s.sync()
	if err := Type().Check(s.kept.View(), s.now); err != nil {
		s.t.Fatalf("check: %v", err)
	}
}

// drain lets time pass, sweeping, until nothing is left to expire.
func (s *shard) drain() {
	s.t.Helper()
	for i := 0; s.machine.NextExpiry() != 0; i++ {
		if i > 1000 {
			s.t.Fatalf("still something to expire at %d", s.machine.NextExpiry())
		}
		s.now = max(s.now, s.machine.NextExpiry())
		s.sweep()
	}
	s.check()
}

// keys lists the stored keys of the type, by their first letter.
func (s *shard) keys() map[byte]int {
	s.t.Helper()
	s.sync()
	n := make(map[byte]int)
	for k := range s.kept.Keys {
		if k[0] == TypeID {
			n[k[1]]++
		}
	}
	return n
}

// secret makes the hash of a new secret.
func (s *shard) secret() (h Hash) {
	s.secrets++
	binary.BigEndian.PutUint64(h[:], s.secrets)
	return h
}

// login is a session as its holder knows it: with the hashes of its tokens.
type login struct {
	Key
	access, refresh, family Hash
	until, refreshUntil     fsm.Time
}

// keyOf is the key of a user of the tests.
func keyOf(name string) UserKey { return NewUserKey(7, name) }

// request describes a web session of half an hour's idleness and a day; change makes another of it.
func (s *shard) request(user string, change func(*CreateRequest)) *CreateRequest {
	q := &CreateRequest{User: keyOf(user), Kind: Web, Idle: 30 * minute, Life: day, Profile: []byte("sealed " + user)}
	q.Access, q.Family, q.Refresh = s.secret(), s.secret(), s.secret()
	if change != nil {
		change(q)
	}
	if q.RefreshLife == 0 {
		q.Family, q.Refresh = Hash{}, Hash{}
	}
	return q
}

// remembered makes sessions without idle timeout, of an hour, with refresh tokens for 30 days.
func remembered(q *CreateRequest) { q.Idle, q.Life, q.RefreshLife = 0, hour, 30*day }

func (s *shard) create(user string, change func(*CreateRequest)) *login {
	s.t.Helper()
	q := s.request(user, change)
	r := into[CreateResult](s, s.do(OpCreate, q))
	return &login{r.Session, q.Access, q.Refresh, q.Family, r.Until, r.RefreshUntil}
}

func (s *shard) validate(k Key, token Hash) Info {
	s.t.Helper()
	i := into[Info](s, s.query(OpValidate, &ValidateRequest{Session: k, Token: token}))
	if i.Verdict == Valid && s.over[k] {
		s.t.Fatalf("session %x ended and is valid", k.Append(nil))
	}
	return i
}

// verdict fails unless a token gets a verdict.
func (s *shard) verdict(l *login, token Hash, want Verdict) {
	s.t.Helper()
	if i := s.validate(l.Key, token); i.Verdict != want {
		s.t.Fatalf("verdict %d at %d, want %d: %+v", i.Verdict, s.now, want, i)
	}
}

// ended fails unless the holder of a session's token is told that it ended, and why.
func (s *shard) ended(l *login, why Reason) {
	s.t.Helper()
	if i := s.validate(l.Key, l.access); i.Verdict != Ended || i.Reason != why {
		s.t.Fatalf("verdict %d, %v; want that it ended: %v", i.Verdict, i.Reason, why)
	}
}

func (s *shard) touch(at fsm.Time, logins ...*login) uint32 {
	s.t.Helper()
	q := &TouchRequest{}
	for _, l := range logins {
		q.Uses = append(q.Uses, Use{l.Key, at})
	}
	return into[Count](s, s.do(OpTouch, q)).N
}

// refresh presents a refresh token; if that succeeds the login has the new pair.
func (s *shard) refresh(l *login, token Hash) RefreshResult {
	s.t.Helper()
	q := &RefreshRequest{Session: l.Key, Family: l.family, Token: token, Access: s.secret(), Next: s.secret()}
	r := into[RefreshResult](s, s.do(OpRefresh, q))
	if r.Verdict == Valid {
		l.access, l.refresh, l.until = q.Access, q.Next, r.Until
	}
	return r
}

func (s *shard) rotate(l *login, token Hash) Verdict {
	s.t.Helper()
	q := &RotateRequest{Session: l.Key, Token: token, Access: s.secret()}
	r := into[RefreshResult](s, s.do(OpRotate, q))
	if r.Verdict == Valid {
		l.access = q.Access
	}
	return r.Verdict
}

func (s *shard) revoke(why Reason, logins ...*login) uint32 {
	s.t.Helper()
	q := &RevokeRequest{Reason: why}
	for _, l := range logins {
		q.Sessions = append(q.Sessions, l.Key)
	}
	return into[Count](s, s.do(OpRevoke, q)).N
}

func (s *shard) get(k Key) Info { s.t.Helper(); return into[Info](s, s.query(OpGet, &GetRequest{k})) }

func (s *shard) list(user string) []Info {
	s.t.Helper()
	return into[Infos](s, s.query(OpList, &ListRequest{keyOf(user)})).List
}

func (s *shard) history(user string) []Info {
	s.t.Helper()
	return into[Infos](s, s.query(OpHistory, &ListRequest{keyOf(user)})).List
}

func (s *shard) counts() Counts {
	s.t.Helper()
	return into[Counts](s, s.query(OpCounts, &CountsRequest{}))
}

// lists fails unless the user has these sessions.
func (s *shard) lists(user string, logins ...*login) {
	s.t.Helper()
	var want, got []Key
	for _, l := range logins {
		want = append(want, l.Key)
	}
	for _, i := range s.list(user) {
		got = append(got, i.Session)
	}
	if !reflect.DeepEqual(got, want) {
		s.t.Fatalf("%s has %d, want %d", user, got, want)
	}
}

// emitted fails unless the last entry told these events.
func (s *shard) emitted(want ...Event) {
	s.t.Helper()
	if !reflect.DeepEqual(s.events, want) {
		s.t.Fatalf("events %+v, want %+v", s.events, want)
	}
}

// A query shows what the machine holds, and changes none of it.
func TestAnswersAreCopies(t *testing.T) {
	s := newShard(t)
	l := s.create("ada", nil)
	q := call(OpValidate, &ValidateRequest{Session: l.Key, Token: l.access})
	first, _, err := s.machine.Query([]fsm.Call{q})
	if err != nil {
		t.Fatal(err)
	}
	whole := bytes.Clone(first[0].Body)
	clear(first[0].Body)
	if again, _, err := s.machine.Query([]fsm.Call{q}); err != nil || !bytes.Equal(again[0].Body, whole) {
		t.Errorf("after the answer was changed: %x, %v; before %x", again[0].Body, err, whole)
	}
	s.check()
}
