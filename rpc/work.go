package rpc

import (
	"slices"

	"github.com/holdfastdb/holdfast/fsm"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// work is the memory of a frame on its way, and reply that of its answer. Both are used again, for other frames of any stream,
// as soon as nobody looks at them any more: made anew for each frame they would be half of a leader's garbage.
type work struct {
	ops    []op
	frame  fsm.Frame
	plans  []plan // of the checks among the operations
	bodies []byte // of their calls
}

// begin gives a frame of n operations its memory. What it has is empty, but for the room in it.
func (s *data) begin(n int) *work {
	w, _ := s.works.Get().(*work)
	if w == nil {
		w = &work{}
	}
	w.ops = slices.Grow(w.ops[:0], n)[:n]
	w.frame.Calls = slices.Grow(w.frame.Calls[:0], n)[:n]
	w.bodies = slices.Grow(w.bodies[:0], callBytes*n)
	w.plans = w.plans[:0]
	if cap(w.plans) < n {
		w.plans = nil
	}
	return w
}

// plan is memory for one more check.
func (w *work) plan() *plan {
	if w.plans == nil {
		w.plans = make([]plan, 0, len(w.ops)) // what was handed out stays where it is
	}
	w.plans = w.plans[:len(w.plans)+1]
	return &w.plans[len(w.plans)-1]
}

// end takes the memory of a frame that is done. It keeps nothing alive meanwhile.
func (s *data) end(w *work) {
	clear(w.ops)
	clear(w.plans)
	clear(w.frame.Calls)
	if cap(w.bodies) > maxKept {
		w.bodies = nil
	}
	s.works.Put(w)
}

// maxKept is how many bytes are used again at most: what a large frame needed must not be kept by small ones, which count for less.
const maxKept = 64 << 10

type reply struct {
	pb.FrameResponse
	room []pb.OpResult
	list []*pb.OpResult // to the results in room
	buf  []byte         // for what they say
}

// replyOf is memory for n results, which are empty, and as many bytes for each.
func (s *data) replyOf(n, bytes int) *reply {
	r, _ := s.replies.Get().(*reply)
	if r == nil {
		r = &reply{}
	}
	if cap(r.room) < n {
		r.room = make([]pb.OpResult, n)
		r.list = make([]*pb.OpResult, n)
		for i := range r.room {
			r.list[i] = &r.room[i]
		}
	}
	r.Results = r.list[:n]
	r.buf = slices.Grow(r.buf[:0], bytes*n)
	return r
}

// sent takes the memory of an answer that has left: gRPC has encoded it, and keeps nothing of it.
func (s *data) sent(r *reply) {
	for _, o := range r.Results {
		o.Reset()
	}
	r.Reset()
	if cap(r.buf) > maxKept {
		r.buf = nil
	}
	s.replies.Put(r)
}
