package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfastdb/holdfast/fsm"
)

// echoServer answers each call with its body and records the frames it got.
type echoServer struct {
	mu     sync.Mutex
	frames []fsm.Frame
	gate   chan struct{} // each frame waits for one receive, if not nil
}

func (s *echoServer) send(ctx context.Context, _ uint32, f *fsm.Frame) (fsm.FrameOutcome, error) {
	if s.gate != nil {
		select {
		case <-s.gate:
		case <-ctx.Done():
			return fsm.FrameOutcome{}, ctx.Err()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.frames = append(s.frames, *f)
	var out fsm.FrameOutcome
	for _, c := range f.Calls {
		out.Results = append(out.Results, fsm.Result{Body: c.Body})
	}
	return out, nil
}

func groupTime(uint32) fsm.Time { return fsm.Time(time.Now().UnixMilli()) }

func TestGatewayPacksWaitingCallersAndGivesEachItsOwnResults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &echoServer{gate: make(chan struct{})}
		g := newGateway([16]byte{1}, groupTime, s.send)
		const callers = 100
		var wg sync.WaitGroup
		for i := range callers {
			wg.Go(func() {
				a, b := fmt.Sprint("a", i), fmt.Sprint("b", i)
				out, err := g.do(t.Context(), 3, []fsm.Call{{Type: 1, Op: 1, Body: []byte(a)}, {Type: 1, Op: 1, Body: []byte(b)}})
				if err != nil || len(out.Results) != 2 || string(out.Results[0].Body) != a || string(out.Results[1].Body) != b {
					t.Errorf("caller %d: %+v, %v", i, out, err)
				}
			})
		}
		synctest.Wait()
		close(s.gate)
		wg.Wait()
		g.close()
		if len(s.frames) > gatewayFrames+1 {
			t.Errorf("%d frames for %d callers that waited together", len(s.frames), callers)
		}
		seen := make(map[uint64]bool)
		for _, f := range s.frames {
			if seen[f.Seq] || f.Seq == 0 || f.AckUpTo >= f.Seq || len(f.Calls) > fsm.MaxOps {
				t.Errorf("frame %d, ack %d, %d calls", f.Seq, f.AckUpTo, len(f.Calls))
			}
			seen[f.Seq] = true
		}
	})
}

func TestGatewayNeverOutrunsTheWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := make(chan struct{})
		var mu sync.Mutex
		var highest uint64
		g := newGateway([16]byte{1}, groupTime, func(_ context.Context, _ uint32, f *fsm.Frame) (fsm.FrameOutcome, error) {
			if f.Seq == 1 {
				<-slow // the oldest frame is stuck, the ones behind it are not
			}
			mu.Lock()
			highest = max(highest, f.Seq)
			mu.Unlock()
			return fsm.FrameOutcome{Results: make([]fsm.Result, len(f.Calls))}, nil
		})
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if _, err := g.do(t.Context(), 1, []fsm.Call{{Type: 1, Op: 1}}); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait() // one caller in each frame
		}
		if highest >= 1+fsm.MaxWindow {
			t.Errorf("frame %d was sent while frame 1 was unanswered", highest)
		}
		close(slow)
		wg.Wait()
		g.close()
	})
}

func TestGatewayRefusesAfterCloseAndWhenFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &echoServer{gate: make(chan struct{})}
		g := newGateway([16]byte{1}, groupTime, s.send)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range gatewayQueue + gatewayFrames {
			wg.Go(func() { _, _ = g.do(ctx, 1, []fsm.Call{{Type: 1, Op: 1}}) })
		}
		synctest.Wait()
		if _, err := g.do(t.Context(), 1, []fsm.Call{{Type: 1, Op: 1}}); !errors.Is(err, fsm.ErrOverloaded) {
			t.Errorf("full queue: %v", err)
		}
		g.close()
		cancel()
		wg.Wait()
		if _, err := g.do(t.Context(), 1, []fsm.Call{{Type: 1, Op: 1}}); !errors.Is(err, fsm.ErrClosed) {
			t.Errorf("closed: %v", err)
		}
	})
}
