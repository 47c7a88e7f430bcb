package client_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfastdb/holdfast/client"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

func TestAFrameWhoseAnswerWasLostComesAgainUnderItsNumberAndTakesEffectOnce(t *testing.T) {
	f := newFake(t, "n1")
	executeAndCut := func(q *pb.FrameRequest) reaction {
		f.execute(q)
		return cut
	}
	f.on("n1", f.first(executeAndCut, executeAndCut))
	c := f.client(0)
	d, err := c.Limits().Check(t.Context(), subject(1))
	if err != nil || !d.Allowed || d.Remaining != 1 {
		t.Fatalf("%+v, %v: want the answer of the first attempt", d, err)
	}
	if f.effects() != 1 {
		t.Errorf("%d effects", f.effects())
	}
	log := f.log()
	if len(log) != 3 {
		t.Fatalf("want three attempts:\n%s", f.describe())
	}
	for _, q := range log[1:] {
		if err := sameFrame(log[0], q); err != nil {
			t.Error(err)
		}
	}
	// The number is not used for anything else.
	if _, err := c.Limits().Check(t.Context(), subject(1)); err != nil {
		t.Fatal(err)
	}
	if q := f.log()[3]; q.Seq != 2 || q.AckUpTo != 1 {
		t.Errorf("the next frame has number %d and acknowledges %d", q.Seq, q.AckUpTo)
	}
}

func TestAllCallersOfALostFrameGetTheirOwnResult(t *testing.T) {
	f := newFake(t, "n1")
	c := f.client(0)
	release := held(f)
	defer release()
	var calls []*started
	for range 50 {
		calls = append(calls, startCheck(t.Context(), c, subject(1)))
	}
	f.await("a frame", func() bool { return len(f.log()) > 0 })
	f.on("n1", f.first(func(q *pb.FrameRequest) reaction {
		f.execute(q)
		return cut
	}))
	release()
	got := make(map[uint32]bool)
	for _, s := range calls {
		d, err := s.wait(t)
		if err != nil || got[d.Remaining] {
			t.Fatalf("%+v, %v: an error, or an answer that another call got too", d, err)
		}
		got[d.Remaining] = true
	}
	if f.effects() != 50 {
		t.Errorf("%d effects of 50 calls", f.effects())
	}
}

// The first node stamps the deadline. If a retry asked for another one, a shard could forget the frame before the client
// stops trying.
func TestARetryRepeatsTheDeadlineThatTheFirstNodeStamped(t *testing.T) {
	f := newFake(t, "n1")
	f.on("n1", f.first(func(*pb.FrameRequest) reaction {
		r := refusal(pb.FrameError_REASON_UNKNOWN_OUTCOME, "")
		r.answers[0].DeadlineMs = 123_456
		return r
	}, always(cut)))
	if _, err := f.client(4*time.Second).Limits().Check(t.Context(), subject(1)); err != nil {
		t.Fatal(err)
	}
	log := f.log()
	if len(log) != 3 || log[0].DeadlineMs != 0 || log[1].DeadlineMs != 123_456 || log[2].DeadlineMs != 123_456 {
		t.Errorf("deadlines of %d attempts: %v", len(log), log)
	}
	if log[0].TimeoutMs != 4000 {
		t.Errorf("the node is told a timeout of %d ms", log[0].TimeoutMs)
	}
}

func TestRefusalsThatHadNoEffectAreRetriedUnderTheSameNumber(t *testing.T) {
	for _, reason := range []pb.FrameError_Reason{
		pb.FrameError_REASON_NOT_LEADER, pb.FrameError_REASON_OVERLOADED, pb.FrameError_REASON_UNKNOWN_OUTCOME,
		pb.FrameError_REASON_WINDOW_FULL, pb.FrameError_REASON_UNAVAILABLE,
	} {
		t.Run(reason.String(), func(t *testing.T) {
			f := newFake(t, "n1")
			f.on("n1", f.first(refuse(reason, ""), refuse(reason, "")))
			d, err := f.client(0).Limits().Check(t.Context(), subject(1))
			if err != nil || d.Remaining != 1 {
				t.Fatalf("%+v, %v", d, err)
			}
			log := f.log()
			if len(log) != 3 {
				t.Fatalf("want three attempts:\n%s", f.describe())
			}
			for _, q := range log[1:] {
				if err := sameFrame(log[0], q); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestRefusalsThatAreFinalFailAtOnce(t *testing.T) {
	for reason, want := range map[pb.FrameError_Reason]error{
		pb.FrameError_REASON_INVALID: client.ErrInvalid,
		pb.FrameError_REASON_EXPIRED: client.ErrUnavailable,    // no effect, and there will be none
		pb.FrameError_REASON_STALE:   client.ErrOutcomeUnknown, // executed, but nobody remembers the result
	} {
		t.Run(reason.String(), func(t *testing.T) {
			f := newFake(t, "n1")
			f.on("n1", refuse(reason, ""))
			_, err := f.client(0).Limits().Check(t.Context(), subject(1))
			if !errors.Is(err, want) {
				t.Errorf("got %v, want %v", err, want)
			}
			if n := len(f.log()); n != 1 {
				t.Errorf("sent %d times", n)
			}
		})
	}
}

func TestBackPressureIsRetriedUntilTheTimeoutAndThenSurelyHadNoEffect(t *testing.T) {
	f := newFake(t, "n1")
	f.on("n1", refuse(pb.FrameError_REASON_OVERLOADED, ""))
	began := time.Now()
	_, err := f.client(300*time.Millisecond).Limits().Check(t.Context(), subject(1))
	if !errors.Is(err, client.ErrUnavailable) || errors.Is(err, client.ErrOutcomeUnknown) {
		t.Errorf("got %v", err)
	}
	if took := time.Since(began); took < 300*time.Millisecond {
		t.Errorf("gave up after %v", took)
	}
	if n := len(f.log()); n < 2 || n > 100 {
		t.Errorf("%d attempts in 300 ms: none, or no pause between them", n)
	}
}

func TestTheHintToAnotherLeaderIsFollowedAndKept(t *testing.T) {
	f := newFake(t, "n1", "n2")
	f.on("n1", refuse(pb.FrameError_REASON_NOT_LEADER, "n2"))
	c := f.client(0)
	for range 3 {
		if _, err := c.Limits().Check(t.Context(), subject(1)); err != nil {
			t.Fatal(err)
		}
	}
	log := f.log()
	if len(log) != 4 || log[0].node != "n1" || log[1].node != "n2" || log[2].node != "n2" || log[3].node != "n2" {
		t.Fatalf("want one frame to n1 and then all to n2:\n%s", f.describe())
	}
	if err := sameFrame(log[0], log[1]); err != nil {
		t.Error(err)
	}
	// The hint was about shard 1 only.
	if _, err := c.Limits().Check(t.Context(), subject(2)); err != nil {
		t.Fatal(err)
	}
	if q := f.log()[4]; q.node != "n1" || q.Shard != 2 {
		t.Errorf("the first frame for shard %d went to %s", q.Shard, q.node)
	}
}

func TestAHintToANodeThatTheMapDoesNotKnowIsFollowed(t *testing.T) {
	f := newFake(t, "n1")
	c := f.client(0)
	f.add("n2")
	f.on("n1", refuse(pb.FrameError_REASON_NOT_LEADER, "n2"))
	if _, err := c.Limits().Check(t.Context(), subject(1)); err != nil {
		t.Fatal(err)
	}
	if log := f.log(); len(log) != 2 || log[1].node != "n2" {
		t.Errorf("frames:\n%s", f.describe())
	}
}

func TestANewerShardMapIsTakenWhenANodeDoesNotLeadAnyMore(t *testing.T) {
	f := newFake(t, "n1")
	c := f.client(0)
	if _, err := c.Limits().Check(t.Context(), subject(1)); err != nil {
		t.Fatal(err)
	}
	f.add("n2") // joined after the client did
	f.lead(1, "n2")
	f.on("n1", refuse(pb.FrameError_REASON_NOT_LEADER, ""))
	for range 2 {
		if _, err := c.Limits().Check(t.Context(), subject(1)); err != nil {
			t.Fatal(err)
		}
	}
	log := f.log()
	if len(log) != 4 || log[1].node != "n1" || log[2].node != "n2" || log[3].node != "n2" {
		t.Fatalf("want one frame to n1 after the change and then all to n2:\n%s", f.describe())
	}
	if err := sameFrame(log[1], log[2]); err != nil {
		t.Error(err)
	}
}

func TestAShardWithoutALeaderIsWaitedFor(t *testing.T) {
	f := newFake(t, "n1")
	f.lead(1, "")
	c := f.client(0)
	s := startCheck(t.Context(), c, subject(1))
	f.await("the client looks for a leader", func() bool { return f.asked() >= 3 })
	if n := len(f.log()); n != 0 {
		t.Errorf("%d frames to nodes that do not lead", n)
	}
	f.lead(1, "n1")
	if _, err := s.wait(t); err != nil {
		t.Fatal(err)
	}
}

func TestAFrameOfADeadLeaderGoesToTheNextUnderItsNumber(t *testing.T) {
	f := newFake(t, "n1", "n2")
	c := f.client(0)
	f.on("n1", func(q *pb.FrameRequest) reaction {
		f.execute(q) // replicated before the death: the next leader has the window
		f.lead(1, "n2")
		return death
	})
	d, err := c.Limits().Check(t.Context(), subject(1))
	if err != nil || d.Remaining != 1 || f.effects() != 1 {
		t.Fatalf("%+v, %v, %d effects", d, err, f.effects())
	}
	log := f.log()
	if len(log) != 2 || log[1].node != "n2" {
		t.Fatalf("frames:\n%s", f.describe())
	}
	if err := sameFrame(log[0], log[1]); err != nil {
		t.Error(err)
	}
}

func TestACommandThatWasSentToANodeThatVanishedHasAnUnknownOutcome(t *testing.T) {
	f := newFake(t, "n1")
	f.on("n1", always(death))
	c := f.client(500 * time.Millisecond)
	_, err := start(func() (client.Decision, error) { return c.Limits().Check(t.Context(), subject(1)) }).wait(t)
	if !errors.Is(err, client.ErrOutcomeUnknown) || errors.Is(err, client.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	if n := len(f.log()); n != 1 {
		t.Errorf("%d frames", n)
	}
}

func TestACommandThatCouldNeverBeSentSurelyHadNoEffect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, "n1")
		c := f.client(500 * time.Millisecond)
		f.nodes["n1"].stop()
		synctest.Wait() // until the client knows: what is written to a connection that is ending may arrive
		_, err := c.Limits().Check(t.Context(), subject(1))
		if !errors.Is(err, client.ErrUnavailable) || errors.Is(err, client.ErrOutcomeUnknown) {
			t.Errorf("got %v", err)
		}
		if n := len(f.log()); n != 0 {
			t.Errorf("%d frames", n)
		}
	})
}

// Who asks again does no harm, so the caller need not know that the first question may have arrived.
func TestAQueryIsNeverOfUnknownOutcome(t *testing.T) {
	f := newFake(t, "n1")
	f.on("n1", always(death))
	c := f.client(500 * time.Millisecond)
	_, err := start(func() (client.Decision, error) { return c.Limits().Peek(t.Context(), subject(1)) }).wait(t)
	if !errors.Is(err, client.ErrUnavailable) || errors.Is(err, client.ErrOutcomeUnknown) {
		t.Errorf("got %v", err)
	}
}

// ending is a context that a test ends, with either of the two errors.
type ending struct {
	context.Context
	done chan struct{}
	err  error
}

// Done implements context.Context.
func (e *ending) Done() <-chan struct{} { return e.done }

// Err implements context.Context.
func (e *ending) Err() error {
	select {
	case <-e.done:
		return e.err
	default:
		return nil
	}
}

func TestTheContextEndsACall(t *testing.T) {
	for name, ended := range map[string]error{"cancelled": context.Canceled, "deadline": context.DeadlineExceeded} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, "n1")
			f.on("n1", always(silence))
			c := f.client(0)
			// One command is sent and may be executed; another one waits for its turn; a query has no effect anyway.
			ctx := &ending{Context: t.Context(), done: make(chan struct{}), err: ended}
			first := startCheck(ctx, c, subject(1))
			f.await("the first frame", func() bool { return len(f.log()) == 1 })
			second := startCheck(ctx, c, subject(1))
			query := start(func() (client.Decision, error) { return c.Limits().Peek(ctx, subject(1)) })
			f.await("the query", func() bool { return len(f.log()) == 2 })
			close(ctx.done)
			began := time.Now()
			for i, s := range []*started{first, second, query} {
				_, err := s.wait(t)
				want, not := client.ErrOutcomeUnknown, client.ErrUnavailable
				if i >= 1 {
					want, not = not, want
				}
				if !errors.Is(err, ended) || !errors.Is(err, want) || errors.Is(err, not) {
					t.Errorf("call %d: got %v, want %v", i, err, want)
				}
			}
			// Far less than the client's own timeout of ten seconds.
			if took := time.Since(began); took > 3*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}

func TestACallWhoseCallerLeftBeforeItsTurnIsNotSent(t *testing.T) {
	f := newFake(t, "n1")
	c := f.client(0)
	release := held(f)
	defer release()
	calls := []*started{startCheck(t.Context(), c, subject(1))}
	f.await("the first frame", func() bool { return len(f.log()) == 1 })
	ctx, leave := context.WithCancel(t.Context())
	left := startCheck(ctx, c, client.Request{Client: subject(1).Client, Resource: "left"})
	calls = append(calls, startCheck(t.Context(), c, subject(1)))
	leave()
	if _, err := left.wait(t); !errors.Is(err, client.ErrUnavailable) {
		t.Errorf("the caller that left got %v", err)
	}
	release()
	for _, s := range calls {
		if _, err := s.wait(t); err != nil {
			t.Fatal(err)
		}
	}
	if f.effects() != 2 {
		t.Errorf("%d effects of two calls and one that was given up:\n%s", f.effects(), f.describe())
	}
}
