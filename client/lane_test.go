package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zeebo/xxh3"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/holdfastdb/holdfast/client"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// subject is a request whose limits live in one of the two shards of a fake cluster.
func subject(shard uint32) client.Request {
	for i := 0; ; i++ {
		name := fmt.Sprintf("c%d", i)
		if uint32(xxh3.HashString("client:"+name)>>63)+1 == shard {
			return client.Request{Client: name}
		}
	}
}

// waiting is a context that tells when a call has queued its operation and begins to wait for the answer.
type waiting struct {
	context.Context
	once sync.Once
	on   chan struct{}
}

func newWaiting(ctx context.Context) *waiting { return &waiting{Context: ctx, on: make(chan struct{})} }

// Done implements context.Context.
func (w *waiting) Done() <-chan struct{} {
	w.once.Do(func() { close(w.on) })
	return w.Context.Done()
}

// started is a call that runs in a goroutine of its own.
type started struct {
	d    client.Decision
	err  error
	done chan struct{}
}

func start(do func() (client.Decision, error)) *started {
	s := &started{done: make(chan struct{})}
	go func() {
		defer close(s.done)
		s.d, s.err = do()
	}()
	return s
}

// startCheck starts a check and returns when its operation is queued.
func startCheck(ctx context.Context, c *client.Client, q client.Request) *started {
	w := newWaiting(ctx)
	s := start(func() (client.Decision, error) { return c.Limits().Check(w, q) })
	<-w.on
	return s
}

// wait returns the outcome of a call that must end soon. The limit is there for a test that fails.
func (s *started) wait(t *testing.T) (client.Decision, error) {
	t.Helper()
	select {
	case <-s.done:
	case <-time.After(20 * time.Second):
		t.Fatal("the call does not return")
	}
	return s.d, s.err
}

// sameFrame reports what differs in a frame that was sent again. The id belongs to the stream, and the deadline is
// stamped by the first node.
func sameFrame(a, b seen) error {
	switch {
	case a.Seq != b.Seq:
		return fmt.Errorf("number %d, then %d", a.Seq, b.Seq)
	case !bytes.Equal(a.Client, b.Client):
		return fmt.Errorf("client %x, then %x", a.Client, b.Client)
	case a.Shard != b.Shard || a.AckUpTo != b.AckUpTo || a.Query != b.Query || a.TimeoutMs != b.TimeoutMs || len(a.Ops) != len(b.Ops):
		return fmt.Errorf("%v, then %v", a.FrameRequest, b.FrameRequest)
	}
	for i := range a.Ops {
		if !proto.Equal(a.Ops[i], b.Ops[i]) {
			return fmt.Errorf("operation %d: %v, then %v", i, a.Ops[i], b.Ops[i])
		}
	}
	return nil
}

func TestTheFramesOfALaneHaveNumbersFromOneThatNeverRepeat(t *testing.T) {
	f := newFake(t, "n1")
	c := f.client(0)
	const callers, each = 20, 25
	var running sync.WaitGroup
	var mu sync.Mutex
	numbers := make(map[uint32]bool) // of the answers: each caller must get its own
	for range callers {
		running.Go(func() {
			for range each {
				d, err := c.Limits().Check(t.Context(), subject(1))
				if err != nil || !d.Allowed {
					t.Errorf("%+v, %v", d, err)
				}
				mu.Lock()
				numbers[d.Remaining] = true
				mu.Unlock()
			}
		})
	}
	running.Wait()
	if len(numbers) != callers*each || f.effects() != callers*each {
		t.Errorf("%d answers and %d effects for %d calls", len(numbers), f.effects(), callers*each)
	}
	frames := f.log()
	numbered := make(map[uint64]bool)
	for _, q := range frames {
		if numbered[q.Seq] || q.Seq == 0 || q.Seq > uint64(len(frames)) {
			t.Errorf("number %d of %d frames: repeated or not in a row", q.Seq, len(frames))
		}
		numbered[q.Seq] = true
		if len(q.Client) != 16 || !bytes.Equal(q.Client, frames[0].Client) {
			t.Errorf("client id %x, before %x", q.Client, frames[0].Client)
		}
		if q.AckUpTo >= q.Seq || q.Shard != 1 || q.Query || len(q.Ops) == 0 {
			t.Errorf("malformed frame %v", q.FrameRequest)
		}
	}
}

func TestEachShardCountsItsFramesAndQueriesHaveNoNumber(t *testing.T) {
	f := newFake(t, "n1")
	c := f.client(0)
	for range 3 {
		for shard := uint32(1); shard <= 2; shard++ {
			if _, err := c.Limits().Check(t.Context(), subject(shard)); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Limits().Peek(t.Context(), subject(shard)); err != nil {
				t.Fatal(err)
			}
		}
	}
	next := map[uint32]uint64{1: 1, 2: 1}
	for _, q := range f.log() {
		want := uint64(0)
		if !q.Query {
			want = next[q.Shard]
			next[q.Shard]++
		}
		if q.Seq != want || q.AckUpTo != max(want, 1)-1 {
			t.Errorf("shard %d, query %v: number %d, acknowledged %d, want %d", q.Shard, q.Query, q.Seq, q.AckUpTo, want)
		}
	}
	if next[1] != 4 || next[2] != 4 {
		t.Errorf("commands went to shards so often, and one more: %v", next)
	}
}

func TestTwoClientsHaveDifferentIDs(t *testing.T) {
	f := newFake(t, "n1")
	for range 2 {
		if _, err := f.client(0).Limits().Check(t.Context(), subject(1)); err != nil {
			t.Fatal(err)
		}
	}
	if log := f.log(); len(log) != 2 || bytes.Equal(log[0].Client, log[1].Client) {
		t.Errorf("two clients look like one to a shard:\n%s", f.describe())
	}
}

// held makes the node keep frames until the returned function lets them go; then it executes all that it gets.
func held(f *fake) (release func()) {
	gate := make(chan struct{})
	f.on("n1", func(q *pb.FrameRequest) reaction {
		<-gate
		return f.execute(q)
	})
	return sync.OnceFunc(func() { close(gate) })
}

func TestWhatIsCalledWhileAFrameIsUnderWayTravelsInOneFrame(t *testing.T) {
	f := newFake(t, "n1")
	c := f.client(0)
	release := held(f)
	defer release()
	calls := []*started{startCheck(t.Context(), c, subject(1))}
	f.await("the first frame", func() bool { return len(f.log()) == 1 })
	for range largeFrame - 1 {
		calls = append(calls, startCheck(t.Context(), c, subject(1)))
	}
	release()
	for _, s := range calls {
		if d, err := s.wait(t); err != nil || !d.Allowed {
			t.Fatalf("%+v, %v", d, err)
		}
	}
	if log := f.log(); len(log) != 2 || len(log[1].Ops) != largeFrame-1 {
		t.Errorf("want the calls in the second frame:\n%s", f.describe())
	}
}

// largeFrame is with how many operations a frame is sent while another one is under way.
const largeFrame = 32

// startLarge starts so many calls.
func startLarge(t *testing.T, c *client.Client) []*started {
	t.Helper()
	calls := make([]*started, largeFrame)
	for i := range calls {
		calls[i] = startCheck(t.Context(), c, subject(1))
	}
	return calls
}

func TestLargeFramesDoNotWaitForTheOneBefore(t *testing.T) {
	f := newFake(t, "n1")
	c := f.client(0)
	f.on("n1", always(silence))
	first := startCheck(t.Context(), c, subject(1))
	f.await("the first frame", func() bool { return len(f.log()) == 1 })
	sent := []*started{first}
	const mostFrames = 6
	for n := 2; n <= mostFrames; n++ {
		sent = append(sent, startLarge(t, c)...)
		f.await("another frame", func() bool { return len(f.log()) == n })
		if log := f.log(); len(log[n-1].Ops) != largeFrame {
			t.Errorf("want %d calls in frame %d:\n%s", largeFrame, n, f.describe())
		}
	}
	waits := startLarge(t, c) // too many are under way
	_ = c.Close()
	for _, s := range sent {
		if _, err := s.wait(t); !errors.Is(err, client.ErrOutcomeUnknown) {
			t.Fatalf("sent, not answered, closed: %v", err)
		}
	}
	for _, s := range waits {
		if _, err := s.wait(t); !errors.Is(err, client.ErrClosed) || errors.Is(err, client.ErrOutcomeUnknown) {
			t.Fatalf("not sent, closed: %v", err)
		}
	}
}

// An operation that waits for another shard holds its frame's answer back, and with it the shard's memory of all frames after
// it. Many callers must not use that up at once: late frames are to go on.
func TestLargeFramesLeaveRoomForLateOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, "n1")
		c := f.client(0)
		f.on("n1", func(q *pb.FrameRequest) reaction {
			if q.Seq == 1 {
				return silence
			}
			return f.execute(q)
		})
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		check := func() error {
			_, err := c.Limits().Check(ctx, subject(1))
			return err
		}
		running.Go(func() { _ = check() })
		time.Sleep(time.Millisecond)
		for range 2 * largeFrame {
			running.Go(func() {
				for check() == nil {
				}
			})
		}
		time.Sleep(100 * time.Millisecond)
		const half = 8 // of the frames that a shard remembers
		if n := len(f.log()); n != half {
			t.Errorf("%d frames at once behind one without an answer, want %d", n, half)
		}
		time.Sleep(5 * time.Second)
		if n := len(f.log()); n <= half {
			t.Errorf("none of %d frames is late", n)
		}
		stop()
		running.Wait()
	})
}

func TestAFrameHasAtMost512Operations(t *testing.T) {
	f := newFake(t, "n1")
	c := f.client(0)
	release := held(f)
	defer release()
	var calls []*started
	for range 1200 {
		calls = append(calls, startCheck(t.Context(), c, subject(1)))
	}
	release()
	for _, s := range calls {
		if _, err := s.wait(t); err != nil {
			t.Fatal(err)
		}
	}
	for _, q := range f.log() {
		if len(q.Ops) > 512 {
			t.Errorf("a frame of %d operations", len(q.Ops))
		}
	}
}

// A frame that a shard would refuse for its size would fail everything in it.
func TestLargeRequestsAreSpreadOverFrames(t *testing.T) {
	f := newFake(t, "n1")
	c := f.client(0)
	release := held(f)
	defer release()
	q := subject(1)
	q.Resource = string(bytes.Repeat([]byte("r"), 10<<10))
	var calls []*started
	for range 100 {
		calls = append(calls, startCheck(t.Context(), c, q))
	}
	release()
	for _, s := range calls {
		if _, err := s.wait(t); err != nil {
			t.Fatal(err)
		}
	}
	for _, q := range f.log() {
		if size := proto.Size(q.FrameRequest); size > 256<<10 {
			t.Errorf("a frame of %d bytes with %d operations", size, len(q.Ops))
		}
	}
}

func TestResultsHaveTheErrorsOfTheirOperations(t *testing.T) {
	for code, want := range map[codes.Code]error{
		codes.InvalidArgument: client.ErrInvalid, codes.NotFound: client.ErrNotFound, codes.Aborted: client.ErrConflict,
		codes.ResourceExhausted: client.ErrExhausted, codes.Unavailable: client.ErrUnavailable,
		codes.DeadlineExceeded: client.ErrOutcomeUnknown, codes.Internal: nil,
	} {
		t.Run(code.String(), func(t *testing.T) {
			f := newFake(t, "n1")
			f.on("n1", always(reaction{answers: []*pb.FrameResponse{{Results: []*pb.OpResult{{Code: uint32(code), Message: "the reason"}}}}}))
			_, err := f.client(0).Limits().Check(t.Context(), subject(1))
			if err == nil || want != nil && !errors.Is(err, want) || !bytes.Contains([]byte(err.Error()), []byte("the reason")) {
				t.Errorf("got %v, want %v", err, want)
			}
			if n := len(f.log()); n != 1 {
				t.Errorf("an operation with a result was sent %d times", n)
			}
		})
	}
}

func TestAnAnswerThatDoesNotFitItsFrameFailsTheCall(t *testing.T) {
	for name, answer := range map[string]*pb.FrameResponse{
		"no results":   {},
		"too many":     {Results: []*pb.OpResult{checked(t, 1), checked(t, 2)}},
		"not a result": {Results: []*pb.OpResult{{Response: []byte{0xff}}}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, "n1")
			f.on("n1", f.first(always(reaction{answers: []*pb.FrameResponse{answer}})))
			c := f.client(0)
			if d, err := c.Limits().Check(t.Context(), subject(1)); err == nil {
				t.Errorf("got %+v", d)
			}
			if _, err := c.Limits().Check(t.Context(), subject(1)); err != nil {
				t.Errorf("and the lane is lost: %v", err)
			}
		})
	}
}

func TestAnswersComeInAnyOrderAndStrangeOnesAreIgnored(t *testing.T) {
	f := newFake(t, "n1")
	c := f.client(0)
	var one, two *pb.FrameResponse
	// The first frame waits for the second; then answers come: one for nobody, the later one, the earlier one twice.
	f.on("n1", f.first(
		func(q *pb.FrameRequest) reaction {
			one = &pb.FrameResponse{Id: q.Id, Results: []*pb.OpResult{checked(t, 11)}}
			return silence
		},
		func(q *pb.FrameRequest) reaction {
			two = &pb.FrameResponse{Id: q.Id}
			for range q.Ops {
				two.Results = append(two.Results, checked(t, 22))
			}
			again := proto.Clone(one).(*pb.FrameResponse)
			return reaction{answers: []*pb.FrameResponse{{Id: 1 << 40}, two, one, again}}
		},
	))
	first := startCheck(t.Context(), c, subject(1))
	f.await("the first frame", func() bool { return len(f.log()) == 1 })
	rest := startLarge(t, c)
	if d, err := first.wait(t); err != nil || d.Remaining != 11 {
		t.Errorf("the first call got %+v, %v", d, err)
	}
	for _, s := range rest {
		if d, err := s.wait(t); err != nil || d.Remaining != 22 {
			t.Errorf("a call of the second frame got %+v, %v", d, err)
		}
	}
	if _, err := c.Limits().Check(t.Context(), subject(1)); err != nil {
		t.Errorf("the stream is lost: %v", err)
	}
}

// When operations wait longer than their callers do, those that are about to leave are told so, and the others are served.
// Before, each was sent when its caller was leaving: all work was done for nobody.
func TestUnderOverloadOperationsWithoutTimeLeftAreNotSent(t *testing.T) {
	f := newFake(t, "n1")
	const took, patience = 100 * time.Millisecond, 300 * time.Millisecond
	f.on("n1", func(q *pb.FrameRequest) reaction {
		time.Sleep(took)
		return f.execute(q)
	})
	c := f.client(0)
	for range 30 { // the lane learns how long a frame takes
		if _, err := c.Limits().Check(t.Context(), subject(1)); err != nil {
			t.Fatal(err)
		}
	}
	release := held(f)
	first := startCheck(t.Context(), c, subject(1))
	f.await("a frame under way", func() bool { return len(f.log()) == 31 })
	short, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	long, cancelLong := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancelLong()
	impatient, patient := startCheck(short, c, subject(1)), startCheck(long, c, subject(1))
	time.Sleep(patience - took) // impatient has waited long, and has less time left than two frames take
	release()
	if _, err := impatient.wait(t); !errors.Is(err, client.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the one without time left: %v", err)
	}
	for _, s := range []*started{first, patient} {
		if _, err := s.wait(t); err != nil {
			t.Errorf("one with time left: %v", err)
		}
	}
	if n := f.effects(); n != 32 {
		t.Errorf("%d operations were executed, want those that were acknowledged: 32", n)
	}
}
