package session

import (
	"testing"

	"github.com/holdfastdb/holdfast/fsm"
)

// Whatever one takes out of a store, or puts into it, the check finds.
func TestCheckFindsWhatIsBroken(t *testing.T) {
	s := newShard(t)
	l := s.create("ada", func(q *CreateRequest) { q.Attributes = []byte("some") })
	s.create("bob", remembered)
	s.revoke(LoggedOut, s.create("ada", nil))
	s.check()
	for k := range s.kept.Keys {
		if k[0] != TypeID || k[1] == prefixAttributes { // a session need not have any
			continue
		}
		broken := s.kept.Clone()
		delete(broken.Keys, k)
		if Type().Check(broken.View(), s.now) == nil {
			t.Errorf("without %c it passes", k[1])
		}
	}
	stray := Key{l.User, l.Number + 1}
	for name, key := range map[string][]byte{
		"a session": stray.under(prefixSession), "what stays of one": stray.under(prefixEnded), "attributes": stray.under(prefixAttributes),
		"a user": keyOf("eve").under(prefixUser),
	} {
		broken := s.kept.Clone()
		full := append([]byte{TypeID}, key...)
		whole := append([]byte{TypeID}, l.under(key[0])...)
		if key[0] == prefixUser {
			whole = append([]byte{TypeID}, l.User.under(prefixUser)...)
		}
		broken.Keys[string(full)] = s.kept.Keys[string(whole)]
		if Type().Check(broken.View(), s.now) == nil {
			t.Errorf("with %s more it passes", name)
		}
	}
	twice := (&user{live: []entry{{l.Number, 0}, {l.Number, 0}}}).Append(nil)
	broken := s.kept.Clone()
	broken.Keys[string(append([]byte{TypeID}, l.User.under(prefixUser)...))] = twice
	if Type().Check(broken.View(), s.now) == nil {
		t.Error("with a session that is listed twice it passes")
	}
}

// Keys in the expiry index that the type did not put there stop the replica.
func TestSweepOfAnUnknownKey(t *testing.T) {
	for _, key := range []string{"", "c", "z", string(sampleKey.under(prefixAttributes)), "s12"} {
		s := newShard(t)
		s.kept.Keys["\x00x\x00\x00\x00\x00\x00\x01\x03"+key] = []byte{}
		m := s.open(s.reg, s.kept)
		e := fsm.Entry{Kind: fsm.Sweep, Time: s.now}
		if _, err := m.Apply([]fsm.LogEntry{{Index: 1, Term: 1, Data: e.Append(nil)}}); err == nil {
			t.Errorf("%q is swept", key)
		}
	}
}
