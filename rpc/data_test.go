package rpc

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/counter"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// sdk is the other end of a stream.
type sdk struct {
	grpc.BidiStreamingServer[pb.FrameRequest, pb.FrameResponse]
	ctx     context.Context
	frames  chan *pb.PackedFrame
	answers chan *pb.FrameResponse // not read: it takes no answers
	got     int                    // frames that were taken from it
}

func newSDK(ctx context.Context, room int) *sdk {
	return &sdk{ctx: ctx, frames: make(chan *pb.PackedFrame), answers: make(chan *pb.FrameResponse, room)}
}

func (s *sdk) Context() context.Context { return s.ctx }

func (s *sdk) RecvMsg(m any) error {
	select {
	case q := <-s.frames:
		s.got++
		proto.Merge(m.(*pb.PackedFrame), q)
		return nil
	case <-s.ctx.Done():
		return io.EOF
	}
}

// packed are operations as nodes read them.
func packed(ops ...*pb.Op) (list [][]byte) {
	for _, o := range ops {
		b, err := proto.Marshal(o)
		if err != nil {
			panic(err) // there are no texts in it
		}
		list = append(list, b)
	}
	return list
}

func (s *sdk) Send(r *pb.FrameResponse) error {
	select {
	case s.answers <- proto.Clone(r).(*pb.FrameResponse):
		return nil
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

// What is answered and not taken is as much a load as what is not answered.
func TestAStreamThatTakesNoAnswersIsNotReadOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s := newSDK(ctx, 0)
		service := &data{metrics: NewMetrics(), closing: make(chan struct{})}
		done := make(chan error)
		go func() { done <- service.Frames(s) }()
		go func() {
			for {
				select {
				case s.frames <- &pb.PackedFrame{}: // malformed, so it is answered at once
				case <-ctx.Done():
					return
				}
			}
		}()
		synctest.Wait()
		if s.got != maxFrames+1 { // the last one waits for room
			t.Errorf("%d frames were read", s.got)
		}
		for range 10 {
			<-s.answers
		}
		synctest.Wait()
		if s.got != maxFrames+11 {
			t.Errorf("%d frames were read when ten answers were taken", s.got)
		}
		cancel()
		<-done
	})
}

// A node that stops does not wait for its SDKs to hang up, only for what is not answered yet.
func TestAStreamEndsWithTheServiceWhenAllIsAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s := newSDK(ctx, 0)
		service := &data{metrics: NewMetrics(), closing: make(chan struct{})}
		done := make(chan error, 1)
		go func() { done <- service.Frames(s) }()
		s.frames <- &pb.PackedFrame{Id: 7}
		synctest.Wait()
		close(service.closing)
		synctest.Wait()
		select {
		case <-done:
			t.Fatal("it ended before the answer was sent")
		default:
		}
		if r := <-s.answers; r.Id != 7 {
			t.Errorf("answer %v", r)
		}
		<-done
		cancel() // as gRPC does when the service returns
		service.streams.Wait()
	})
}

// leader leads every shard, at a time of its own, and keeps what it is told to do.
type leader struct {
	Node
	now    fsm.Time
	busy   bool
	frames []*fsm.Frame
}

func (l *leader) Replica(uint32) (Replica, bool) { return leading{l}, true }

// leading is a shard of a leader.
type leading struct{ *leader }

func (l leading) IsLeader() bool { return true }
func (l leading) Now() fsm.Time  { return l.now }
func (l leading) Watch(func(uint64, fsm.Time, []fsm.Event)) func() {
	return func() {}
}
func (l leading) Query(context.Context, []fsm.Call) ([]fsm.Result, fsm.Applied, error) {
	return nil, fsm.Applied{}, fsm.ErrNotLeader
}
func (l leading) Busy() bool { return l.busy }

func (l leading) ProposeAsync(f *fsm.Frame, _ func(fsm.FrameOutcome, error)) error {
	l.frames = append(l.frames, f)
	return nil
}

// A frame that was stamped by another node is not refused because this one's clock is behind: it may have been executed.
func TestADeadlineOfAnotherNodeIsTaken(t *testing.T) {
	const now = 1_700_000_000_000
	for deadline, taken := range map[int64]bool{
		now - 1: true, now + fsm.MaxDeadline: true, now + fsm.MaxDeadline + 2000: true, now + 2*fsm.MaxDeadline: false,
	} {
		node := &leader{now: now}
		x := newStream(t.Context(), &data{node: node, metrics: NewMetrics()})
		x.frame(&pb.PackedFrame{Client: make([]byte, 16), Shard: 1, Seq: 1, DeadlineMs: deadline, Ops: packed(&pb.Op{})})
		if (len(node.frames) == 1) != taken || (len(x.queue) == 0) != taken {
			t.Errorf("%d ms ahead: %d frames proposed, answers %v", deadline-now, len(node.frames), x.queue)
		}
	}
}

// A stream lives for days: what it keeps of a frame must not be more than the frame's own.
func TestAStreamKeepsNothingOfAFrame(t *testing.T) {
	body, err := proto.Marshal(&pb.CheckRequest{ClientId: "a", Resource: "", Weight: new(uint32)}) // refused before it is planned
	if err != nil {
		t.Fatal(err)
	}
	x := newStream(t.Context(), &data{node: &leader{now: 1}, metrics: NewMetrics(), limits: &limits{}})
	x.frame(&pb.PackedFrame{Client: make([]byte, 16), Shard: 1, Seq: 1, Ops: packed(&pb.Op{Type: uint32(counter.TypeID), Method: methodCheck, Request: body})})
	if len(x.queue) != 0 || x.in.Request != nil || x.check.ClientId != "" || x.preparing != nil {
		t.Errorf("answers %v; kept: %v, %v", x.queue, &x.in, &x.check)
	}
}

// An operation that is no message fails alone.
func TestABrokenOperationFailsAlone(t *testing.T) {
	node := &leader{now: 1}
	x := newStream(t.Context(), &data{node: node, metrics: NewMetrics()})
	ops := append(packed(&pb.Op{Type: 77}), []byte{0xff})
	x.frame(&pb.PackedFrame{Client: make([]byte, 16), Shard: 1, Seq: 1, Ops: ops})
	if len(node.frames) != 1 || len(node.frames[0].Calls) != 2 {
		t.Fatalf("proposed: %v, answers %v", node.frames, x.queue)
	}
	prepared := make([]op, 2)
	for i := range ops {
		x.prepare(&prepared[i], ops[i], &pb.PackedFrame{})
		for _, want := range []string{"no data type 77", "malformed operation"}[i : i+1] {
			if _, err := prepared[i].finish(fsm.Result{Code: fsm.Skipped}, 1); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("operation %d: %v, want %q", i, err, want)
			}
		}
	}
}

// What a busy shard would refuse is refused before it costs any work, and may be tried again.
func TestABusyShardIsGivenNoFrames(t *testing.T) {
	node := &leader{now: 1, busy: true}
	x := newStream(t.Context(), &data{node: node, metrics: NewMetrics()})
	x.frame(&pb.PackedFrame{Client: make([]byte, 16), Shard: 1, Seq: 1, Ops: packed(&pb.Op{})})
	if len(node.frames) != 0 || len(x.queue) != 1 || x.queue[0].Error.GetReason() != pb.FrameError_REASON_OVERLOADED || x.queue[0].Error.RetryAfterMs == 0 {
		t.Errorf("%d frames proposed, answers %v", len(node.frames), x.queue)
	}
}

// leaderless is an operation in a shard that nobody leads.
func leaderless() op {
	return op{method: methodPeek, call: fsm.Noop(), elsewhere: func(ctx context.Context, _ *pb.PackedFrame, _ int) (proto.Message, error) {
		<-ctx.Done()
		return nil, fmt.Errorf("shard 2: %w: %w", fsm.ErrNotLeader, ctx.Err())
	}}
}

func TestAQueryEndsWhenItsTimeIsOver(t *testing.T) {
	for ms, want := range map[uint32]time.Duration{0: requestTimeout, 300: 300 * time.Millisecond, 60_000: requestTimeout} {
		synctest.Test(t, func(t *testing.T) {
			x := newStream(t.Context(), &data{metrics: NewMetrics()})
			begin := time.Now()
			x.query(&pb.PackedFrame{Query: true, TimeoutMs: ms}, &work{ops: []op{leaderless(), leaderless()}}, nil, begin)
			if took := time.Since(begin); took != want {
				t.Errorf("a timeout of %d ms: it took %v", ms, took)
			}
			for _, r := range x.queue[0].Results {
				if codes.Code(r.Code) != codes.Unavailable {
					t.Errorf("%v", r)
				}
			}
		})
	}
}

func TestNoCallLastsForever(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		_, err := bounded(t.Context(), nil, nil, func(ctx context.Context, _ any) (any, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
		if kindOf(err) != unavailable || time.Since(begin) != callTimeout {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
		begin = time.Now()
		h := boundedHTTP(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil))
		if time.Since(begin) != callTimeout {
			t.Errorf("HTTP took %v", time.Since(begin))
		}
	})
}

// A denial from a lease has no rows, and is a denial all the same.
func TestADenialIsStatus429IfTheCallerWantsIt(t *testing.T) {
	for name, m := range map[string]*pb.CheckResponse{
		"by a shard": {RetryAfter: 2.5, Limits: []*pb.LimitState{{PolicyName: "api", Denied: true}}},
		"by a lease": {RetryAfter: 2.5},
	} {
		for wanted, code := range map[bool]int{true: http.StatusTooManyRequests, false: http.StatusOK} {
			w := httptest.NewRecorder()
			if err := limitHeaders(context.WithValue(t.Context(), httpStatusKey{}, wanted), w, m); err != nil {
				t.Fatal(err)
			}
			if w.Code != code || wanted && w.Header().Get("Retry-After") != "3" {
				t.Errorf("%s, wanted %v: %d %v", name, wanted, w.Code, w.Header())
			}
		}
	}
}
