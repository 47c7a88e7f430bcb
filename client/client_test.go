package client_test

import (
	"context"
	"errors"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/holdfastdb/holdfast/client"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

func TestDialNeedsAnAddress(t *testing.T) {
	if _, err := client.Dial(t.Context(), client.Config{}); !errors.Is(err, client.ErrInvalid) {
		t.Errorf("got %v", err)
	}
}

func TestDialTriesAllAddressesAndLearnsTheOthers(t *testing.T) {
	f := newFake(t, "n1", "n2")
	f.lead(1, "n1")
	c, err := client.Dial(t.Context(), client.Config{Addrs: []string{"nowhere", "n2"}, Dial: f.dial})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Limits().Check(t.Context(), subject(1)); err != nil {
		t.Fatal(err)
	}
	if log := f.log(); len(log) != 1 || log[0].node != "n1" {
		t.Errorf("the frame did not go to the leader, of which only the map tells:\n%s", f.describe())
	}
}

func TestDialWaitsForANodeThatIsStarting(t *testing.T) {
	f := newFake(t, "n1")
	f.nodes["n1"].noMap = true
	done := make(chan error, 1)
	go func() {
		c, err := client.Dial(t.Context(), client.Config{Addrs: []string{"n1"}, Dial: f.dial})
		if err == nil {
			_ = c.Close()
		}
		done <- err
	}()
	f.await("it asks again", func() bool { return f.asked() >= 2 })
	select {
	case err := <-done:
		t.Fatalf("did not wait: %v", err)
	default:
	}
	f.mu.Lock()
	f.nodes["n1"].noMap = false
	f.mu.Unlock()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestDialEndsWithItsContextAndLeavesNothingBehind(t *testing.T) {
	settled := goroutines(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := client.Dial(ctx, client.Config{Addrs: []string{"127.0.0.1:1"}, Dial: func(context.Context, string) (net.Conn, error) {
		return nil, errors.New("no route")
	}})
	if !errors.Is(err, client.ErrUnavailable) || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Errorf("got %v, want one that names who was asked", err)
	}
	settled()
}

// Who runs a program without a cluster is to see why nothing happens.
func TestDialGivesUpAndTellsWhoWasAskedAndWhatToDo(t *testing.T) {
	deaf := func(ctx context.Context, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	refused := func(context.Context, string) (net.Conn, error) { return nil, errors.New("connection refused") }
	within := func(d time.Duration) func(*testing.T) context.Context {
		return func(t *testing.T) context.Context {
			ctx, cancel := context.WithTimeout(t.Context(), d)
			t.Cleanup(cancel)
			return ctx
		}
	}
	for name, tt := range map[string]struct {
		dial  func(context.Context, string) (net.Conn, error)
		limit time.Duration
		ctx   func(*testing.T) context.Context
		want  time.Duration
	}{
		"by default":                      {refused, 0, (*testing.T).Context, 10 * time.Second},
		"nobody says no":                  {deaf, 0, (*testing.T).Context, 10 * time.Second},
		"as configured":                   {refused, 3 * time.Second, (*testing.T).Context, 3 * time.Second},
		"the context ends earlier":        {refused, 3 * time.Second, within(time.Second), time.Second},
		"the context is more patient":     {refused, 0, within(time.Minute), time.Minute},
		"though the configuration is not": {refused, 3 * time.Second, within(time.Minute), 3 * time.Second},
		"the context alone":               {refused, -1, within(time.Hour), time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begun := time.Now()
				_, err := client.Dial(tt.ctx(t), client.Config{Addrs: []string{"192.0.2.1:7400", "192.0.2.2:7400"}, DialTimeout: tt.limit, Dial: tt.dial})
				if took := time.Since(begun); took != tt.want {
					t.Errorf("gave up after %v, want %v", took, tt.want)
				}
				if !errors.Is(err, client.ErrUnavailable) {
					t.Fatalf("got %v", err)
				}
				for _, part := range []string{"192.0.2.1:7400", "192.0.2.2:7400", tt.want.String(), "holdfast dev"} {
					if !strings.Contains(err.Error(), part) {
						t.Errorf("%q does not tell %q", err, part)
					}
				}
				if name != "nobody says no" && !strings.Contains(err.Error(), "connection refused") {
					t.Errorf("%q does not tell the reason", err)
				}
			})
		})
	}
}

// goroutines counts those of the SDK and of its connections. The returned function waits until there are no more than
// now.
func goroutines(t *testing.T) (settled func()) {
	t.Helper()
	count := func() (n int, all string) {
		buf := make([]byte, 1<<20)
		for {
			used := runtime.Stack(buf, true)
			if used < len(buf) {
				all = string(buf[:used])
				break
			}
			buf = make([]byte, 2*len(buf))
		}
		var ours []string
		for _, stack := range strings.Split(all, "\n\n") {
			if strings.Contains(stack, "holdfast/client.") || strings.Contains(stack, "http2Client") || strings.Contains(stack, "grpc.(*ClientConn)") {
				ours = append(ours, stack)
			}
		}
		return len(ours), strings.Join(ours, "\n\n")
	}
	before, _ := count()
	return func() {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			n, stacks := count()
			if n <= before {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%d goroutines before, %d after:\n%s", before, n, stacks)
			}
		}
	}
}

func TestCloseEndsEveryGoroutineAndFailsWhatIsUnderWay(t *testing.T) {
	f := newFake(t, "n1", "n2")
	f.lead(2, "n2")
	settled := goroutines(t)
	c := f.client(0)
	for shard := uint32(1); shard <= 2; shard++ {
		if _, err := c.Limits().Check(t.Context(), subject(shard)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Limits().Peek(t.Context(), subject(shard)); err != nil {
			t.Fatal(err)
		}
	}
	f.on("n1", always(silence))
	f.on("n2", always(cut)) // its frame is between two attempts, most of the time
	base := len(f.log())
	first := startCheck(t.Context(), c, subject(1))
	f.await("the first frame", func() bool { return len(f.log()) == base+1 })
	retried := startCheck(t.Context(), c, subject(2))
	f.await("a retry", func() bool { return len(f.log()) >= base+3 })
	waits := startCheck(t.Context(), c, subject(1)) // not sent: a frame is under way
	began := time.Now()
	if err := c.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	for i, s := range []*started{first, retried} {
		if _, err := s.wait(t); !errors.Is(err, client.ErrOutcomeUnknown) {
			t.Errorf("call %d was sent and got %v", i, err)
		}
	}
	if _, err := waits.wait(t); !errors.Is(err, client.ErrClosed) || errors.Is(err, client.ErrOutcomeUnknown) {
		t.Errorf("the call that was not sent got %v", err)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("it took %v", took)
	}
	settled()
}

func TestCloseEndsTheSearchForALeader(t *testing.T) {
	f := newFake(t, "n1")
	f.lead(1, "")
	settled := goroutines(t)
	c := f.client(0)
	s := startCheck(t.Context(), c, subject(1))
	f.await("the client looks for a leader", func() bool { return f.asked() >= 2 })
	if err := c.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if _, err := s.wait(t); !errors.Is(err, client.ErrClosed) {
		t.Errorf("got %v", err)
	}
	settled()
}

func TestAClosedClientRefusesEverything(t *testing.T) {
	f := newFake(t, "n1")
	reserved, err := proto.Marshal(&pb.ReserveResponse{Check: &pb.CheckResponse{Allowed: true}, ReservationId: "r"})
	if err != nil {
		t.Fatal(err)
	}
	f.on("n1", always(reaction{answers: []*pb.FrameResponse{{Results: []*pb.OpResult{{Response: reserved}}}}}))
	c := f.client(0)
	r, err := c.Limits().Reserve(t.Context(), subject(1), 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // closing twice is no error
		if err := c.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	base := len(f.log())
	l, q := c.Limits(), subject(1)
	for name, do := range map[string]func() error{
		"check":   func() error { _, err := l.Check(t.Context(), q); return err },
		"peek":    func() error { _, err := l.Peek(t.Context(), q); return err },
		"async":   func() error { _, err := l.Async(t.Context(), q); return err },
		"status":  func() error { _, err := l.Status(t.Context(), q); return err },
		"reset":   func() error { _, err := l.Reset(t.Context(), q); return err },
		"reserve": func() error { _, err := l.Reserve(t.Context(), q, 0); return err },
		"commit":  func() error { return r.Commit(t.Context(), 1) },
		"refund":  func() error { return r.Refund(t.Context()) },
		"release": func() error { return l.Release(t.Context(), q, "token") },
		"conn": func() error {
			_, err := pb.NewPoliciesClient(c.Conn()).CreatePolicy(t.Context(), &pb.CreatePolicyRequest{})
			return err
		},
		"stream": func() error {
			_, err := pb.NewDataClient(c.Conn()).Frames(t.Context())
			return err
		},
	} {
		if err := do(); !errors.Is(err, client.ErrClosed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := len(f.log()); n != base {
		t.Errorf("%d frames after the close", n-base)
	}
}

func TestOtherCallsGoToTheNextNodeIfOneIsUnreachable(t *testing.T) {
	f := newFake(t, "n1", "n2")
	c := f.client(0)
	var served atomic.Int32
	f.nodes["n2"].create = func(q *pb.CreatePolicyRequest) (*pb.Policy, error) {
		served.Add(1)
		return &pb.Policy{Name: q.Name}, nil
	}
	// A call that went out just before the connection was found dead is of unknown outcome. The ones after it are not.
	call := func() (err error) {
		eventually(t, "the connection is found dead", func() bool {
			_, err = pb.NewPoliciesClient(c.Conn()).CreatePolicy(t.Context(), &pb.CreatePolicyRequest{Name: "api"})
			return !errors.Is(err, client.ErrOutcomeUnknown)
		})
		return err
	}
	f.nodes["n1"].stop()
	if err := call(); err != nil || served.Load() != 1 {
		t.Errorf("%v, served %d times", err, served.Load())
	}
	f.nodes["n2"].stop()
	if err := call(); status.Code(err) != codes.Unavailable {
		t.Errorf("with no node left: %v", err)
	}
}

func TestOtherCallsKeepTheAnswerOfTheNodeThatServedThem(t *testing.T) {
	f := newFake(t, "n1", "n2")
	f.nodes["n1"].create = func(*pb.CreatePolicyRequest) (*pb.Policy, error) {
		return nil, status.Error(codes.Aborted, "the name is taken")
	}
	f.nodes["n2"].create = func(*pb.CreatePolicyRequest) (*pb.Policy, error) {
		t.Error("tried elsewhere")
		return &pb.Policy{}, nil
	}
	_, err := pb.NewPoliciesClient(f.client(0).Conn()).CreatePolicy(t.Context(), &pb.CreatePolicyRequest{})
	if status.Code(err) != codes.Aborted || status.Convert(err).Message() != "the name is taken" {
		t.Errorf("got %v", err)
	}
}

// A node that vanishes with a call may have served it: to try elsewhere could do it twice.
func TestOtherCallsAreSentOnce(t *testing.T) {
	f := newFake(t, "n1", "n2")
	c := f.client(0)
	f.nodes["n1"].create = func(*pb.CreatePolicyRequest) (*pb.Policy, error) {
		go f.nodes["n1"].stop() // it waits for this handler
		<-t.Context().Done()
		return nil, nil
	}
	f.nodes["n2"].create = func(*pb.CreatePolicyRequest) (*pb.Policy, error) {
		t.Error("tried elsewhere")
		return &pb.Policy{}, nil
	}
	_, err := pb.NewPoliciesClient(c.Conn()).CreatePolicy(t.Context(), &pb.CreatePolicyRequest{})
	if !errors.Is(err, client.ErrOutcomeUnknown) || status.Code(err) != codes.Unavailable {
		t.Errorf("got %v", err)
	}
}
