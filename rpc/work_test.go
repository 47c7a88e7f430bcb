package rpc

import (
	"testing"

	"github.com/holdfastdb/holdfast/fsm"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// What a frame leaves in the memory that the next one gets is room and nothing else: not its plans, which would apply to
// others, and not its texts, which are somebody's.
func TestWorkIsEmptyWhenItIsUsedAgain(t *testing.T) {
	s := &data{}
	w := s.begin(3)
	for i := range w.ops {
		w.ops[i] = op{place: i, method: methodCheck, check: w.plan()}
		w.ops[i].check.weight = uint32(i + 1)
		w.frame.Calls[i] = fsm.Call{Type: 1, Body: []byte("somebody's")}
	}
	ops, plans, calls := w.ops, w.plans, w.frame.Calls
	s.end(w)
	for i := range ops {
		if ops[i].check != nil || ops[i].place != 0 || plans[i].weight != 0 || calls[i].Body != nil {
			t.Errorf("operation %d is still there: %+v, %+v, %+v", i, ops[i], plans[i], calls[i])
		}
	}
	for _, n := range []int{1, 3, 200, 2} {
		w := s.begin(n)
		if len(w.ops) != n || len(w.frame.Calls) != n || len(w.plans) != 0 || len(w.bodies) != 0 {
			t.Errorf("for %d: %d operations, %d calls, %d plans, %d bytes", n, len(w.ops), len(w.frame.Calls), len(w.plans), len(w.bodies))
		}
		s.end(w)
	}
}

// A plan stays where it is while others are handed out, however small the frame before was.
func TestPlansOfAFrameStayInPlace(t *testing.T) {
	s := &data{}
	for _, n := range []int{1, 5, 300} {
		w := s.begin(n)
		plans := make([]*plan, n)
		for i := range plans {
			plans[i] = w.plan()
			plans[i].weight = uint32(i + 1)
		}
		for i, p := range plans {
			if p.weight != uint32(i+1) {
				t.Fatalf("of %d plans, number %d has become %d", n, i+1, p.weight)
			}
		}
		s.end(w)
	}
}

func TestARepliesMemoryIsEmptyWhenItIsUsedAgain(t *testing.T) {
	s := &data{}
	for _, n := range []int{2, 1, 40, 3} {
		r := s.replyOf(n, resultBytes)
		if len(r.Results) != n || len(r.buf) != 0 || cap(r.buf) < n*resultBytes || r.Id != 0 || r.Error != nil {
			t.Fatalf("for %d results: %v", n, r)
		}
		for i, o := range r.Results {
			if o.Code != 0 || o.Message != "" || o.Response != nil {
				t.Fatalf("result %d of %d is not empty: %v", i, n, o)
			}
			o.Code, o.Message, o.Response = 1, "m", []byte("x")
		}
		r.Id, r.Error = 7, &pb.FrameError{Message: "e"}
		s.sent(r)
	}
}

// A large frame's memory is not kept by small ones, which do not count for it.
func TestLargeBuffersAreNotKept(t *testing.T) {
	s := &data{}
	w := s.begin(1)
	w.bodies = make([]byte, maxKept+1)
	s.end(w)
	r := s.replyOf(1, maxKept+1)
	s.sent(r)
	if w.bodies != nil || r.buf != nil {
		t.Errorf("kept: %d and %d bytes", cap(w.bodies), cap(r.buf))
	}
}
