package client_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/holdfastdb/holdfast/client"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// Config.Timeout holds whatever a node does, also one that takes a frame and never answers.
func TestANodeThatNeverAnswersIsNotWaitedForLongerThanTheTimeout(t *testing.T) {
	f := newFake(t, "n1")
	f.on("n1", always(silence))
	c := f.client(300 * time.Millisecond)
	for name, tt := range map[string]struct {
		do   func(context.Context, client.Request) (client.Decision, error)
		want error
	}{
		"command": {c.Limits().Check, client.ErrOutcomeUnknown},
		"query":   {c.Limits().Peek, client.ErrUnavailable},
	} {
		_, err := start(func() (client.Decision, error) { return tt.do(context.Background(), subject(1)) }).wait(t)
		if !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
	// The lane goes on, and tells the shard that nobody waits for the first frame any more.
	f.on("n1", f.execute)
	if _, err := c.Limits().Check(t.Context(), subject(1)); err != nil {
		t.Fatal(err)
	}
	if log := f.log(); log[len(log)-1].Seq != 2 || log[len(log)-1].AckUpTo != 1 {
		t.Errorf("frames:\n%s", f.describe())
	}
}

// One operation may wait for another shard, for seconds. Calls to the healthy one do not wait with it.
func TestALateAnswerHoldsNobodyBack(t *testing.T) {
	f := newFake(t, "n1")
	f.on("n1", f.first(always(silence)))
	c := f.client(0)
	late := startCheck(t.Context(), c, subject(1))
	f.await("the first frame", func() bool { return len(f.log()) == 1 })
	began := time.Now()
	for range 3 {
		if _, err := startCheck(t.Context(), c, subject(1)).wait(t); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("three calls took %v", took)
	}
	select {
	case <-late.done:
		t.Errorf("the first call has an answer: %v", late.err)
	default:
	}
}

func TestAnOverloadedShardIsLeftAloneAsLongAsItSays(t *testing.T) {
	f := newFake(t, "n1")
	f.on("n1", f.first(func(*pb.FrameRequest) reaction {
		r := refusal(pb.FrameError_REASON_OVERLOADED, "")
		r.answers[0].Error.RetryAfterMs = 400
		return r
	}))
	began := time.Now()
	if _, err := f.client(0).Limits().Check(t.Context(), subject(1)); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < 400*time.Millisecond {
		t.Errorf("it was asked again after %v", took)
	}
}

// Nobody waits for what comes after all callers have left: the shard need not do it, and it is not sent again.
func TestAFrameEndsWithItsCallers(t *testing.T) {
	f := newFake(t, "n1")
	const timeout = 10 * time.Second
	c := f.client(timeout)
	for _, tt := range []struct {
		name     string
		patience time.Duration
		want     time.Duration // of the frame
	}{{"one without a deadline", 0, timeout}, {"one that waits for a second", time.Second, time.Second}, {"one that waits for longer", time.Minute, timeout}} {
		ctx := t.Context()
		if tt.patience > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, tt.patience)
			defer cancel()
		}
		if _, err := c.Limits().Check(ctx, subject(1)); err != nil {
			t.Fatal(err)
		}
		log := f.log()
		if got := time.Duration(log[len(log)-1].TimeoutMs) * time.Millisecond; got > tt.want || got < tt.want*3/4 {
			t.Errorf("%s: the frame has %v, want %v", tt.name, got, tt.want)
		}
	}
	f.on("n1", always(refusal(pb.FrameError_REASON_OVERLOADED, "")))
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := c.Limits().Check(ctx, subject(1)); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	time.Sleep(time.Second) // an attempt that was under way may come
	sent := len(f.log())
	time.Sleep(time.Second) // retries are 250 ms apart at most
	if n := len(f.log()); n != sent {
		t.Errorf("it was sent %d times more after its caller had left", n-sent)
	}
}

// A node that is paused, hangs or has vanished ends no connection. Once another one leads, the frame goes there; the SDK
// waited until the connection was found dead, 15 seconds, before.
func TestASilentLeaderIsLeftOnceAnotherOneLeads(t *testing.T) {
	for _, query := range []bool{false, true} {
		f := newFake(t, "n1", "n2")
		f.on("n1", always(silence))
		c := f.client(0)
		begin := time.Now()
		call := start(func() (client.Decision, error) {
			if query {
				return c.Limits().Peek(t.Context(), subject(1))
			}
			return c.Limits().Check(t.Context(), subject(1))
		})
		f.await("a frame at the old leader", func() bool { return len(f.log()) == 1 })
		asked := f.asked()
		f.await("a question who leads", func() bool { return f.asked() > asked })
		if n := len(f.log()); n != 1 {
			t.Errorf("while nobody else leads, the frame was sent %d times", n)
		}
		f.lead(1, "n2")
		f.lead(2, "n2")
		if _, err := call.wait(t); err != nil {
			t.Fatal(err)
		}
		log := f.log()
		if len(log) != 2 || log[1].node != "n2" || sameFrame(log[0], log[1]) != nil {
			t.Errorf("want the same frame at the new leader:\n%s", f.describe())
		}
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("it took %v", took)
		}
	}
}

// What the old leader says after all has no effect on the next attempt.
func TestASilentLeaderIsLeftByCallersWithoutPatience(t *testing.T) {
	f := newFake(t, "n1", "n2")
	f.on("n1", always(silence))
	c := f.client(0)
	try := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		_, err := c.Limits().Check(ctx, subject(1))
		return err
	}
	if err := try(); !errors.Is(err, client.ErrOutcomeUnknown) {
		t.Fatalf("of a leader that says nothing: %v", err)
	}
	f.lead(1, "n2")
	f.lead(2, "n2")
	for begin := time.Now(); try() != nil; {
		if time.Since(begin) > 5*time.Second {
			t.Fatal("they never come to the new leader")
		}
	}
}

// How long a frame looked for a leader says nothing of those after it.
func TestATimeWithoutALeaderIsNoReasonToRefuse(t *testing.T) {
	f := newFake(t, "n1")
	c := f.client(0)
	begin := time.Now()
	f.on("n1", func(q *pb.FrameRequest) reaction {
		if time.Since(begin) < 3*time.Second {
			return refusal(pb.FrameError_REASON_NOT_LEADER, "")
		}
		return f.execute(q)
	})
	if _, err := startCheck(t.Context(), c, subject(1)).wait(t); err != nil {
		t.Fatal(err)
	}
	f.on("n1", f.first(func(q *pb.FrameRequest) reaction {
		time.Sleep(400 * time.Millisecond)
		return f.execute(q)
	}))
	before := len(f.log())
	one := startCheck(t.Context(), c, subject(1))
	f.await("a frame that takes its time", func() bool { return len(f.log()) > before })
	ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
	defer cancel()
	if _, err := startCheck(ctx, c, subject(1)).wait(t); err != nil { // it leaves after 250 ms, when the one before is late
		t.Errorf("who would wait for 0.45 s more: %v", err)
	}
	if _, err := one.wait(t); err != nil {
		t.Error(err)
	}
}

func TestALateAnswerOfALeaderThatWasLeftIsIgnored(t *testing.T) {
	f := newFake(t, "n1", "n2")
	late := make(chan struct{})
	f.on("n1", func(*pb.FrameRequest) reaction {
		<-late
		return refusal(pb.FrameError_REASON_INVALID, "")
	})
	f.on("n2", func(q *pb.FrameRequest) reaction {
		close(late)
		time.Sleep(50 * time.Millisecond) // the other answer is on its way
		return f.execute(q)
	})
	c := f.client(0)
	call := startCheck(t.Context(), c, subject(1))
	f.await("a frame at the old leader", func() bool { return len(f.log()) == 1 })
	f.lead(1, "n2")
	f.lead(2, "n2")
	if d, err := call.wait(t); err != nil || !d.Allowed {
		t.Errorf("%+v, %v", d, err)
	}
}

// Also without another leader an operation ends in its time.
func TestSilenceEndsWithTheTimeout(t *testing.T) {
	f := newFake(t, "n1")
	f.on("n1", always(silence))
	begin := time.Now()
	_, err := f.client(time.Second).Limits().Check(t.Context(), subject(1))
	if !errors.Is(err, client.ErrOutcomeUnknown) || time.Since(begin) > 4*time.Second {
		t.Errorf("%v after %v", err, time.Since(begin))
	}
}
