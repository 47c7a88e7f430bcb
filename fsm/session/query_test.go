package session

import (
	"fmt"
	"slices"
	"testing"

	"github.com/holdfastdb/holdfast/fsm"
)

func TestScan(t *testing.T) {
	s := newShard(t)
	var want []Key
	for i := range 12 {
		l := s.create(fmt.Sprint(i%4), func(q *CreateRequest) {
			if i%3 == 0 {
				q.Idle = minute
			}
		})
		switch i % 3 {
		case 1:
			s.revoke(LoggedOut, l)
		case 2:
			want = append(want, l.Key)
		}
	}
	slices.SortFunc(want, func(a, b Key) int { return slices.Compare(a.Append(nil), b.Append(nil)) })
	s.now += fsm.Time(minute)
	for limit := uint32(1); limit < 14; limit++ {
		var got []Key
		q := &ScanRequest{Limit: limit}
		for {
			page := into[Infos](s, s.query(OpScan, q))
			if len(page.List) > int(limit) {
				t.Fatalf("a page of %d by %d", len(page.List), limit)
			}
			for _, i := range page.List {
				if i.Verdict != Valid || len(i.Profile) == 0 {
					t.Errorf("%+v", i)
				}
				got = append(got, i.Session)
			}
			if !page.More {
				break
			}
			q.After = page.Next
		}
		if !slices.Equal(got, want) {
			t.Errorf("by %d: %x, want %x", limit, got, want)
		}
	}
}

func TestScansOutOfBounds(t *testing.T) {
	for _, limit := range []uint32{0, MaxScan + 1, 1<<32 - 1} {
		if new(ScanRequest).Decode((&ScanRequest{Limit: limit}).Append(nil)) == nil {
			t.Errorf("sessions by %d", limit)
		}
		if new(ScanSavedRequest).Decode((&ScanSavedRequest{Limit: limit}).Append(nil)) == nil {
			t.Errorf("saved sessions by %d", limit)
		}
	}
}

func TestCounts(t *testing.T) {
	s := newShard(t)
	if c := s.counts(); c.Active[Web] != 0 || c.Ended[Idle] != 0 {
		t.Errorf("of nothing: %+v", c)
	}
	kind := func(k Kind) func(*CreateRequest) { return func(q *CreateRequest) { q.Kind = k } }
	web, mobile := s.create("ada", nil), s.create("ada", kind(Mobile))
	s.create("bob", kind(API))
	s.create("ada", kind(API))
	s.revoke(LoggedOut, web)
	s.do(OpMark, &MarkRequest{Session: mobile.Key, Sign: Burst, Act: EndSession})
	s.do(OpPurgeUser, &PurgeUserRequest{keyOf("ada")})
	s.now += fsm.Time(30 * minute)
	if c := s.counts(); c.Active[API] != 1 {
		t.Errorf("before the sweep: %+v", c)
	}
	s.sweep()
	got, want := s.counts(), Counts{
		Active:  map[Kind]uint64{Web: 0, Mobile: 0, API: 0},
		Created: map[Kind]uint64{Web: 1, Mobile: 1, API: 2},
		Ended: map[Reason]uint64{
			LoggedOut: 1, Revoked: 0, Idle: 1, Expired: 0, Evicted: 0, Reused: 0, Suspicious: 1, Erased: 1,
		},
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestListIsOfOneUser(t *testing.T) {
	s := newShard(t)
	a, b := s.create("ada", nil), s.create("ada", remembered)
	c := s.create("bob", nil)
	s.lists("ada", a, b)
	s.lists("bob", c)
	s.lists("eve")
	if i := s.list("ada")[1]; i.Verdict != Valid || i.RefreshUntil != b.refreshUntil || string(i.Profile) != "sealed ada" {
		t.Errorf("%+v", i)
	}
	s.now += fsm.Time(hour) // the one is over; the other's access token is, but not the session
	s.lists("ada", b)
}

// Users' keys differ in their last bytes, too, and nothing of one shows with another.
func TestNeighbours(t *testing.T) {
	s := newShard(t)
	users := []UserKey{{}, {15: 1}, {0: 0xff, 15: 0xff}, {}}
	for i := range users[3] {
		users[3][i] = 0xff
	}
	for _, u := range users {
		for range 2 {
			q := s.request("x", nil)
			q.User = u
			k := into[CreateResult](s, s.do(OpCreate, q)).Session
			s.revoke(LoggedOut, &login{Key: k})
		}
	}
	for _, u := range users {
		h := into[Infos](s, s.query(OpHistory, &ListRequest{u})).List
		if len(h) != 2 || h[0].Session.User != u || h[1].Session.User != u {
			t.Errorf("history of %x: %+v", u, h)
		}
	}
	s.check()
}

func TestUserKey(t *testing.T) {
	k := NewUserKey(0xabcd, "ada")
	if k.Slot() != 0xabcd || k == NewUserKey(0xabcd, "bob") || k == NewUserKey(0xabce, "ada") || k != NewUserKey(0xabcd, "ada") {
		t.Errorf("%x in slot %x", k, k.Slot())
	}
}

func TestReasonNames(t *testing.T) {
	seen := make(map[string]bool)
	for r := LoggedOut; r <= reasons; r++ {
		if name := r.String(); seen[name] || name == "" || name == "unknown" {
			t.Errorf("reason %d is called %q", r, name)
		}
		seen[r.String()] = true
	}
	if name := Reason(reasons + 1).String(); name != "unknown" {
		t.Errorf("another is called %q", name)
	}
}
