package session

import (
	"fmt"
	"testing"
)

// A live session takes at most 300 bytes of keys and values in the store, with its user's record, its place in the expiry
// index and 60 bytes of profile. One that was refreshed also keeps what it replaced.
func TestSizeOfALiveSession(t *testing.T) {
	tests := map[string]struct {
		change  func(*CreateRequest)
		refresh bool
		most    int
	}{
		"web": {nil, false, 300},
		"with everything": {func(q *CreateRequest) {
			remembered(q)
			q.Idle, q.Life, q.RefreshLife, q.Device, q.Group = day, 30*day, MaxLife, 1<<63, 1<<63
		}, false, 300},
		"refreshed": {remembered, true, 366},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s := newShard(t)
			s.index = 1 << 32
			size := func() (n int) {
				s.sync()
				for k, v := range s.kept.Keys {
					n += len(k) + len(v)
				}
				return n
			}
			before := size()
			const sessions = 100
			for i := range sessions {
				l := s.create(fmt.Sprint(i), func(q *CreateRequest) {
					if test.change != nil {
						test.change(q)
					}
					q.Profile = make([]byte, 60)
				})
				s.now += 100_000
				if test.refresh {
					s.refresh(l, l.refresh)
				}
			}
			each := float64(size()-before) / sessions
			t.Logf("%.1f bytes", each)
			if each > float64(test.most) {
				t.Errorf("a session takes %.1f bytes, at most %d are allowed", each, test.most)
			}
		})
	}
}
