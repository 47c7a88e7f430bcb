package session

import (
	"testing"

	"github.com/holdfastdb/holdfast/fsm"
)

func TestAttributes(t *testing.T) {
	s := newShard(t)
	l := s.create("ada", nil)
	set := func(version uint64, text string) fsm.Result {
		return s.do(OpSetAttributes, &SetAttributesRequest{l.Key, version, []byte(text)})
	}
	s.refused(set(1, "of nothing"), fsm.Conflict)
	if v := into[Version](s, set(0, "one")).V; v != 1 {
		t.Errorf("version %d", v)
	}
	s.emitted(Event{Kind: EventChanged, Session: l.Key})
	s.refused(set(0, "by one who saw nothing"), fsm.Conflict)
	s.emitted()
	if v := into[Version](s, set(1, "two")).V; v != 2 {
		t.Errorf("version %d", v)
	}
	s.refused(set(1, "by one who is late"), fsm.Conflict)
	s.refused(set(3, "by one who guesses"), fsm.Conflict)
	if i := s.get(l.Key); i.Version != 2 || string(i.Attributes) != "two" {
		t.Errorf("version %d is %q", i.Version, i.Attributes)
	}
	if v := into[Version](s, set(2, "")).V; v != 3 { // none are a version, too
		t.Errorf("version %d", v)
	}
	if i := s.get(l.Key); i.Version != 3 || len(i.Attributes) != 0 {
		t.Errorf("version %d is %q", i.Version, i.Attributes)
	}
	s.revoke(LoggedOut, l)
	s.refused(set(3, "after the end"), fsm.NotFound)
	if n := s.keys()[prefixAttributes]; n != 0 {
		t.Errorf("attributes are left after the end")
	}
	s.check()
}

func TestAttributesOfASessionThatIsOver(t *testing.T) {
	s := newShard(t)
	l := s.create("ada", func(q *CreateRequest) { q.Attributes = []byte("one") })
	s.now += fsm.Time(30 * minute)
	s.refused(s.do(OpSetAttributes, &SetAttributesRequest{l.Key, 1, []byte("two")}), fsm.NotFound)
	i := into[Info](s, s.query(OpValidate, &ValidateRequest{l.Key, l.access, true}))
	if i.Verdict != IdleTooLong || len(i.Attributes) != 0 {
		t.Errorf("%+v", i)
	}
}

func TestMark(t *testing.T) {
	s := newShard(t)
	l := s.create("ada", remembered)
	mark := func(sign Sign, act Act, profile string) bool {
		return into[Done](s, s.do(OpMark, &MarkRequest{l.Key, sign, act, []byte(profile)})).Found
	}
	marked := func(sign Sign) Event { return Event{Kind: EventMarked, Session: l.Key, Mark: sign} }
	changed := Event{Kind: EventChanged, Session: l.Key}

	if !mark(NetworkChanged, Flag, "") {
		t.Error("not found")
	}
	s.emitted(marked(NetworkChanged), changed)
	if i := s.validate(l.Key, l.access); i.Verdict != Valid || !i.Flagged || i.StepUp || string(i.Profile) != "sealed ada" {
		t.Errorf("flagged: %+v", i)
	}

	mark(DeviceChanged, AskAgain, "elsewhere")
	s.emitted(marked(DeviceChanged), changed)
	if i := s.validate(l.Key, l.access); i.Verdict != StepUp || !i.StepUp || string(i.Profile) != "elsewhere" {
		t.Errorf("has to step up: %+v", i)
	}
	mark(TwoNetworks, Flag, "")
	s.emitted(marked(TwoNetworks), changed)
	mark(Burst, Flag, "")
	s.verdict(l, l.access, StepUp) // a flag does not take that back
	s.refresh(l, l.refresh)
	s.verdict(l, l.access, StepUp) // nor does a refresh
	if v := s.rotate(l, l.access, false); v != Valid {
		t.Errorf("rotated: %d", v)
	}
	s.verdict(l, l.access, StepUp) // nor a rotation by itself
	if v := s.rotate(l, l.access, true); v != Valid {
		t.Errorf("stepped up: %d", v)
	}
	if i := s.validate(l.Key, l.access); i.Verdict != Valid || i.StepUp || !i.Flagged {
		t.Errorf("after the step-up: %+v", i)
	}

	if !mark(Burst, EndSession, "") {
		t.Error("not found")
	}
	s.emitted(marked(Burst), Event{Kind: EventEnded, Session: l.Key, Reason: Suspicious})
	s.ended(l, Suspicious)
	if mark(Burst, Flag, "") {
		t.Error("found after its end")
	}
	s.emitted()
	s.check()
}
