package session

import (
	"errors"
	"fmt"
	"testing"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage/wire"
)

func TestCreate(t *testing.T) {
	s := newShard(t)
	l := s.create("ada", func(q *CreateRequest) {
		remembered(q)
		q.Kind, q.Group, q.Device, q.Attributes = Mobile, 5, 9, []byte("attributes")
	})
	s.emitted(Event{Kind: EventCreated, Session: l.Key})
	if l.User != keyOf("ada") || l.until != s.now+fsm.Time(hour) || l.refreshUntil != s.now+fsm.Time(30*day) {
		t.Errorf("created: %+v", l)
	}
	i := s.get(l.Key)
	if i.Verdict != Valid || i.Kind != Mobile || i.Group != 5 || string(i.Profile) != "sealed ada" || i.Created != s.now ||
		i.Seen != s.now || i.Until != l.until || i.RefreshUntil != l.refreshUntil || i.Flagged || i.StepUp {
		t.Errorf("it is %+v", i)
	}
	if i.Version != 1 || string(i.Attributes) != "attributes" {
		t.Errorf("attributes %q at version %d", i.Attributes, i.Version)
	}
	s.check()
}

func TestSessionsOfOneEntryHaveTheirOwnNumbers(t *testing.T) {
	s := newShard(t)
	var calls []fsm.Call
	for range 3 {
		calls = append(calls, call(OpCreate, s.request("ada", nil)))
	}
	out := s.entry(fsm.Entry{Frames: []fsm.Frame{{Calls: calls[:2]}, {Calls: calls[2:]}}})
	last := uint64(0)
	for _, f := range out.Frames {
		for _, r := range f.Results {
			if n := into[CreateResult](s, r).Session.Number; n <= last {
				t.Errorf("number %d after %d", n, last)
			} else {
				last = n
			}
		}
	}
	if n := len(s.list("ada")); n != 3 {
		t.Errorf("%d sessions", n)
	}
	s.check()
}

// limited makes sessions on a device that are one of so many.
func limited(device uint64, sessions, devices uint32, evict bool) func(*CreateRequest) {
	return func(q *CreateRequest) {
		q.Device, q.Sessions, q.Devices, q.Evict = device, sessions, devices, evict
	}
}

func TestLimits(t *testing.T) {
	tests := map[string]struct {
		have              []uint64 // devices of the sessions before, oldest first
		device            uint64
		sessions, devices uint32
		leave             []int // which must leave
	}{
		"no limit":                          {[]uint64{1, 2, 3}, 4, 0, 0, nil},
		"room for one":                      {[]uint64{1, 2}, 3, 3, 0, nil},
		"one too many":                      {[]uint64{1, 2, 3}, 4, 3, 0, []int{0}},
		"a lower limit than before":         {[]uint64{1, 2, 3, 4}, 5, 2, 0, []int{0, 1, 2}},
		"only one":                          {[]uint64{1, 1}, 1, 1, 0, []int{0, 1}},
		"a device more":                     {[]uint64{1, 2}, 3, 0, 3, nil},
		"a device too many":                 {[]uint64{1, 2, 1}, 3, 0, 2, []int{0, 2}},
		"a known device is no other":        {[]uint64{1, 2, 1}, 2, 0, 2, nil},
		"only this device":                  {[]uint64{1, 2, 3, 2}, 2, 0, 1, []int{0, 2}},
		"unknown devices do not count":      {[]uint64{0, 0, 1}, 2, 0, 2, nil},
		"on an unknown device":              {[]uint64{1, 2}, 0, 0, 2, nil},
		"on an unknown one, by a new limit": {[]uint64{1, 2, 3}, 0, 0, 2, []int{0}},
		"both, met by the device":           {[]uint64{1, 2, 1}, 3, 3, 2, []int{0, 2}},
		"both, and one more":                {[]uint64{1, 2, 2, 2}, 3, 3, 2, []int{0, 1}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s := newShard(t)
			var had []*login
			for _, device := range test.have {
				had = append(had, s.create("ada", limited(device, 0, 0, false)))
			}
			leaves := make(map[*login]bool)
			for _, i := range test.leave {
				leaves[had[i]] = true
			}
			other := s.create("bob", limited(test.device, 1, 1, true))

			r := s.do(OpCreate, s.request("ada", limited(test.device, test.sessions, test.devices, false)))
			if len(test.leave) > 0 {
				s.refused(r, fsm.Exhausted)
				s.emitted()
				s.lists("ada", had...)
				q := s.request("ada", limited(test.device, test.sessions, test.devices, true))
				r = s.do(OpCreate, q)
			}
			made := into[CreateResult](s, r)
			if int(made.Evicted) != len(test.leave) {
				t.Errorf("%d were evicted, want %d", made.Evicted, len(test.leave))
			}
			var stay []*login
			for _, l := range had {
				if leaves[l] {
					s.ended(l, Evicted)
				} else {
					stay = append(stay, l)
				}
			}
			s.lists("ada", append(stay, &login{Key: made.Session})...)
			s.lists("bob", other)
			s.check()
		})
	}
}

// Sessions that are over, though nobody swept them yet, make room before others have to.
func TestThoseThatAreOverLeaveFirst(t *testing.T) {
	for _, evict := range []bool{false, true} {
		t.Run(fmt.Sprintf("evict=%v", evict), func(t *testing.T) {
			s := newShard(t)
			oldest := s.create("ada", nil)
			idle := s.create("ada", func(q *CreateRequest) { q.Idle = minute })
			short := s.create("ada", func(q *CreateRequest) { q.Idle, q.Life = 0, minute })
			s.now += fsm.Time(minute)
			q := s.request("ada", limited(0, 3, 0, evict))
			r := into[CreateResult](s, s.do(OpCreate, q))
			if r.Evicted != 0 {
				t.Errorf("%d were evicted", r.Evicted)
			}
			s.emitted(Event{Kind: EventEnded, Session: idle.Key, Reason: Idle},
				Event{Kind: EventEnded, Session: short.Key, Reason: Expired}, Event{Kind: EventCreated, Session: r.Session})
			s.lists("ada", oldest, &login{Key: r.Session})
			s.sweep()
			s.emitted()
			s.check()
		})
	}
}

func TestNobodyHasMoreSessionsThanTheSystemAllows(t *testing.T) {
	s := newShard(t)
	var calls []fsm.Call
	for range MaxSessions {
		calls = append(calls, call(OpCreate, s.request("ada", func(q *CreateRequest) { q.Sessions = MaxSessions + 5 })))
	}
	for len(calls) > 0 {
		n := min(len(calls), fsm.MaxOps)
		s.entry(fsm.Entry{Frames: []fsm.Frame{{Calls: calls[:n]}}})
		calls = calls[n:]
	}
	for _, sessions := range []uint32{0, MaxSessions, MaxSessions + 5} {
		s.refused(s.do(OpCreate, s.request("ada", func(q *CreateRequest) { q.Sessions = sessions })), fsm.Exhausted)
	}
	s.create("ada", func(q *CreateRequest) { q.Evict = true })
	if n := len(s.list("ada")); n != MaxSessions {
		t.Errorf("%d sessions", n)
	}
	s.check()
}

func TestCreateRequestsOutOfBounds(t *testing.T) {
	tests := map[string]func(*CreateRequest){
		"no kind":         func(q *CreateRequest) { q.Kind = 0 },
		"unknown kind":    func(q *CreateRequest) { q.Kind = kinds + 1 },
		"no life":         func(q *CreateRequest) { q.Life = 0 },
		"long life":       func(q *CreateRequest) { q.Life = MaxLife + 1 },
		"long idleness":   func(q *CreateRequest) { q.Idle = MaxLife + 1 },
		"long refresh":    func(q *CreateRequest) { q.RefreshLife = MaxLife + 1 },
		"much profile":    func(q *CreateRequest) { q.Profile = make([]byte, MaxProfile+1) },
		"many attributes": func(q *CreateRequest) { q.Attributes = make([]byte, MaxAttributes+1) },
	}
	for name, change := range tests {
		q := newShard(t).request("ada", change)
		if err := new(CreateRequest).Decode(q.Append(nil)); !errors.Is(err, wire.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
