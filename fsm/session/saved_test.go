package session

import (
	"fmt"
	"testing"

	"github.com/holdfastdb/holdfast/fsm"
)

func (s *shard) save(token Hash, until fsm.Time, text string) fsm.Result {
	s.t.Helper()
	return s.do(OpSave, &SaveRequest{token, until, []byte(text)})
}

func (s *shard) saveNew(token Hash, until fsm.Time, text string) {
	s.t.Helper()
	if into[Done](s, s.save(token, until, text)).Found {
		s.t.Fatalf("it was there before")
	}
}

func (s *shard) drop(token Hash) bool {
	s.t.Helper()
	return into[Done](s, s.do(OpDrop, &DropRequest{token})).Found
}

func (s *shard) find(token Hash) (string, bool) {
	s.t.Helper()
	r := into[Saved](s, s.query(OpFindSaved, &DropRequest{token}))
	return string(r.Sealed), r.Found
}

// finds fails unless a saved session has this content; "" means that it is not there.
func (s *shard) finds(token Hash, want string) {
	s.t.Helper()
	if text, found := s.find(token); text != want || found != (want != "") {
		s.t.Fatalf("found %q, %v at %d; want %q", text, found, s.now, want)
	}
}

func TestSave(t *testing.T) {
	s := newShard(t)
	token := s.secret()
	s.finds(token, "")
	s.saveNew(token, s.now+500, "one")
	s.emitted()
	s.finds(token, "one")
	s.finds(s.secret(), "")
	if !into[Done](s, s.save(token, s.now+1000, "two")).Found {
		t.Error("it was not there")
	}
	s.now += 999
	s.sweep() // the place in the expiry index is of the first save
	s.finds(token, "two")
	s.now++
	s.finds(token, "")
	s.sweep()
	if keys := s.keys(); len(keys) != 0 {
		t.Errorf("stored: %v", keys)
	}
}

// A session that is saved with an earlier end than before leaves the store then.
func TestSaveWithAnEarlierEnd(t *testing.T) {
	s := newShard(t)
	token := s.secret()
	s.saveNew(token, s.now+fsm.Time(day), "one")
	s.save(token, s.now+1000, "two")
	s.now += 1000
	s.finds(token, "")
	s.sweep()
	if keys := s.keys(); len(keys) != 0 {
		t.Errorf("stored: %v", keys)
	}
	s.drain()
}

func TestSaveIsBoundedInTime(t *testing.T) {
	s := newShard(t)
	token := s.secret()
	s.saveNew(token, s.now+2*fsm.Time(MaxLife), "long")
	s.now += fsm.Time(MaxLife) - 1
	s.finds(token, "long")
	s.now++
	s.finds(token, "")
}

func TestSaveOfWhatIsOver(t *testing.T) {
	s := newShard(t)
	token := s.secret()
	s.saveNew(token, s.now-5, "late")
	s.finds(token, "")
	s.saveNew(token, s.now+5, "in time")
	s.finds(token, "in time")
}

// A request that began before a logout and saves after it does not undo it.
func TestSaveAfterDropIsRefused(t *testing.T) {
	tests := map[string]struct {
		left fsm.Millis // of the session's time, at the drop
		wait fsm.Millis // until somebody saves
		gone bool       // the tombstone, too
	}{
		"at once":                              {day, 0, false},
		"when it would have ended, nearly":     {day, day - 1, false},
		"when it would have ended":             {day, day, true},
		"dropped in its last moment":           {1, 10 * minute, false},
		"dropped in its last moment, an hour":  {1, hour - 1, false},
		"dropped in its last moment, and more": {1, hour, true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s := newShard(t)
			token := s.secret()
			s.saveNew(token, s.now+fsm.Time(day), "one")
			s.now += fsm.Time(day - test.left)
			if !s.drop(token) {
				t.Error("there was nothing to drop")
			}
			s.finds(token, "")
			s.sweep()
			s.now += fsm.Time(test.wait)
			s.sweep()
			if s.drop(token) {
				t.Error("dropped twice")
			}
			if test.gone {
				s.saveNew(token, s.now+5, "another")
				s.finds(token, "another")
				return
			}
			s.refused(s.save(token, s.now+fsm.Time(day), "two"), fsm.Conflict)
			s.finds(token, "")
			s.drain()
			if keys := s.keys(); len(keys) != 0 {
				t.Errorf("stored: %v", keys)
			}
		})
	}
}

func TestTombstonesHoldNoContent(t *testing.T) {
	s := newShard(t)
	token := s.secret()
	s.saveNew(token, s.now+1000, "secret")
	s.drop(token)
	s.sync()
	if n := len(s.kept.Keys[string(append([]byte{TypeID}, token.under(prefixSaved)...))]); n > 10 {
		t.Errorf("%d bytes are left", n)
	}
}

func TestDropOfWhatIsNotThere(t *testing.T) {
	s := newShard(t)
	token := s.secret()
	if s.drop(token) {
		t.Error("dropped nothing")
	}
	s.saveNew(token, s.now+1000, "one")
	s.now += 1000
	if s.drop(token) {
		t.Error("dropped what was over")
	}
	s.refused(s.save(token, s.now+1000, "two"), fsm.Conflict)
}

func TestScanSaved(t *testing.T) {
	s := newShard(t)
	var want []Hash
	for i := range 10 {
		token := s.secret()
		s.saveNew(token, s.now+1000+fsm.Time(i%3), fmt.Sprint(i))
		switch i % 3 {
		case 1:
			s.drop(token)
		case 2:
			want = append(want, token)
		}
	}
	s.now += 1001
	for limit := uint32(1); limit < 12; limit++ {
		var got []Hash
		q := &ScanSavedRequest{Limit: limit}
		for {
			page := into[SavedList](s, s.query(OpScanSaved, q))
			if len(page.List) > int(limit) {
				t.Fatalf("a page of %d by %d", len(page.List), limit)
			}
			for _, x := range page.List {
				got = append(got, x.Token)
			}
			if !page.More {
				break
			}
			q.After = page.Next
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("by %d: %x, want %x", limit, got, want)
		}
	}
}

func TestPagesAreBoundedInBytes(t *testing.T) {
	s := newShard(t)
	const each, n = MaxSaved, 3 * maxPage / MaxSaved
	for range n {
		s.saveNew(s.secret(), s.now+1000, string(make([]byte, each)))
	}
	q := &ScanSavedRequest{Limit: MaxScan}
	page := into[SavedList](s, s.query(OpScanSaved, q))
	if size := each * len(page.List); !page.More || size <= maxPage || size > maxPage+2*each {
		t.Errorf("%d of %d sessions, more: %v", len(page.List), n, page.More)
	}
	for i := range 300 {
		s.create(fmt.Sprint(i), func(q *CreateRequest) { q.Profile = make([]byte, MaxProfile) })
	}
	r := into[Infos](s, s.query(OpScan, &ScanRequest{Limit: MaxScan}))
	if size := MaxProfile * len(r.List); !r.More || size <= maxPage || size > maxPage+2*MaxProfile {
		t.Errorf("%d of 300 sessions, more: %v", len(r.List), r.More)
	}
	rest := into[Infos](s, s.query(OpScan, &ScanRequest{After: r.Next, Limit: MaxScan}))
	if n := len(r.List) + len(rest.List); n != 300 || rest.More {
		t.Errorf("%d sessions on both pages, more: %v", n, rest.More)
	}
}
