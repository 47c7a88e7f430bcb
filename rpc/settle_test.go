package rpc

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/holdfastdb/holdfast/fsm/counter"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// Settling goes on behind a group that is done or out of reach, so that a repetition ends what is left.
func TestSettlingReachesEveryGroup(t *testing.T) {
	g := newGroups(t, 1, 2, 3)
	l := &limits{node: g}
	d, err := coordinate(t.Context(), planOf(weight, limitIn(1), limitIn(2), limitIn(3)), time.Minute, l.nobody())
	if err != nil {
		t.Fatal(err)
	}
	token := encodeToken(reservation, d.holds)
	g.fault = func(_ int, group uint32) fault { return map[bool]fault{true: refused}[group == 2] }
	if _, err := l.Commit(t.Context(), &pb.CommitRequest{ReservationId: token, Actual: proto.Uint32(1)}); kindOf(err) != overloaded {
		t.Errorf("with a group out of reach: %v", err)
	}
	g.fault = func(int, uint32) fault { return fine }
	if _, err := l.Commit(t.Context(), &pb.CommitRequest{ReservationId: token, Actual: proto.Uint32(1)}); err != nil {
		t.Errorf("again: %v", err)
	}
	for id := uint32(1); id <= 3; id++ {
		if used := g.used(id, limitIn(id)); used != 1 {
			t.Errorf("group %d: %d in use", id, used)
		}
	}
	if _, err := l.Commit(t.Context(), &pb.CommitRequest{ReservationId: token, Actual: proto.Uint32(1)}); kindOf(err) != notFound {
		t.Errorf("a third time: %v", err)
	}
}

func TestATokenForAShardThatThereIsNotIsInvalid(t *testing.T) {
	g := newGroups(t, 1)
	token := encodeToken(reservation, []held{{group: 77, id: 1, keys: []counter.Key{{1}}}})
	if _, err := (&limits{node: g}).Refund(t.Context(), &pb.RefundRequest{ReservationId: token}); kindOf(err) != invalid || g.calls != 0 {
		t.Errorf("%v after %d calls", err, g.calls)
	}
}

// A reservation ends when the first of what it holds is given back.
func TestWhatAReservationHoldsIsHeldUntilItExpires(t *testing.T) {
	slots := slotsIn(2)
	for name, tt := range map[string]struct {
		limits []counter.Limit
		window time.Duration // of the slots
		want   time.Duration
	}{
		"tokens":                 {[]counter.Limit{limitIn(1)}, 0, time.Minute},
		"slots for longer":       {[]counter.Limit{slots}, time.Hour, time.Hour},
		"slots for less":         {[]counter.Limit{slots}, time.Second, time.Second},
		"tokens, slots longer":   {[]counter.Limit{limitIn(1), slots}, time.Hour, time.Minute},
		"tokens, slots for less": {[]counter.Limit{limitIn(1), slots}, time.Second, time.Second},
	} {
		p := planOf(1, tt.limits...)
		for i := range p.matches {
			if l := &p.matches[i].Limit; l.Algorithm == counter.Concurrency {
				l.Window = tt.window.Milliseconds()
			}
		}
		if got := p.holdsFor(time.Minute); got != tt.want.Milliseconds() {
			t.Errorf("%s: %d ms, want %v", name, got, tt.want)
		}
	}
}
