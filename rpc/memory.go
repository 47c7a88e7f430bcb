package rpc

import (
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// The memory of frames is bounded twice. A stream that holds more than its share is not read on, so that its client is
// held up by gRPC's flow control. When all streams together hold too much, what comes is refused at once. A frame counts
// with what its operations take until it is answered, and then with its answer until that is sent.
const (
	// maxStreamMemory is enough for all frames that an SDK has under way to eight shards.
	maxStreamMemory = 32 << 20
	maxMemory       = 256 << 20
	// opMemory is about what an operation takes beside its request: its plan, its call; resultMemory what a
	// result takes beside its bytes.
	opMemory     = 1 << 10
	resultMemory = 128
	// stallTimeout is how long a client may leave an answer untaken. Then its stream ends, and what it holds is free.
	stallTimeout = 15 * time.Second
)

var errStalled = status.Error(codes.ResourceExhausted, "the answers of this stream are not taken")

func requestMemory(q *pb.PackedFrame) int64 {
	// What this version does not know was copied too.
	n := opMemory*(1+len(q.Ops)) + len(q.Client) + 2*len(q.ProtoReflect().GetUnknown())
	for _, o := range q.Ops {
		n += len(o)
	}
	return int64(n)
}

func answerMemory(r *pb.FrameResponse) int64 {
	n := resultMemory * (1 + len(r.Results))
	for _, o := range r.Results {
		n += len(o.Response) + len(o.Message)
	}
	return int64(n)
}

// hold counts n more bytes, or fewer, for the stream and the node.
func (x *stream) hold(n int64) (all int64) {
	if x.held.Add(n) < maxStreamMemory && n < 0 {
		select {
		case x.freed <- struct{}{}:
		default:
		}
	}
	return x.s.memory.Add(n)
}

// share waits until the stream holds less than its share; false if it ends before.
func (x *stream) share() bool {
	for x.held.Load() >= maxStreamMemory {
		select {
		case <-x.freed:
		case <-x.ctx.Done():
			return false
		}
	}
	return true
}
