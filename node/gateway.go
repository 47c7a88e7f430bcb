package node

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/holdfastdb/holdfast/fsm"
)

// gateway carries the commands of callers that have no client identity of their own (REST, plain gRPC, foreign
// protocols) under the node's: it packs those that wait for the same group into frames, like an SDK does, so that they
// too are batched and exactly-once while the node lives.
type gateway struct {
	client [16]byte // random for each start of the node
	send   func(ctx context.Context, group uint32, f *fsm.Frame) (fsm.FrameOutcome, error)
	now    func(group uint32) fsm.Time

	mu     sync.Mutex
	lanes  map[uint32]*lane
	closed bool
	ctx    context.Context
	stop   context.CancelFunc
	work   sync.WaitGroup
}

// lane is one group's queue. Guarded by gateway.mu.
type lane struct {
	group   uint32
	seq     uint64
	open    map[uint64]bool // frames sent and not answered
	waiting []*parcel
}

// parcel is one caller's commands. It travels whole.
type parcel struct {
	calls []fsm.Call
	done  chan struct{}
	out   fsm.FrameOutcome
	err   error
}

const (
	// gatewayFrames is how many frames of a lane may be on their way; more would only make them smaller.
	gatewayFrames = 3
	// gatewayQueue bounds the parcels that wait in a lane.
	gatewayQueue = 4096
	// gatewayDeadline is how long a frame is retried.
	gatewayDeadline = 10 * time.Second
)

func newGateway(client [16]byte, now func(group uint32) fsm.Time, send func(context.Context, uint32, *fsm.Frame) (fsm.FrameOutcome, error)) *gateway {
	ctx, stop := context.WithCancel(context.Background())
	return &gateway{client: client, send: send, now: now, lanes: make(map[uint32]*lane), ctx: ctx, stop: stop}
}

// do executes calls as one atomic step of the group and returns their results. If ctx ends first, the calls may still
// be executed.
func (g *gateway) do(ctx context.Context, group uint32, calls []fsm.Call) (fsm.FrameOutcome, error) {
	if len(calls) > fsm.MaxOps {
		return fsm.FrameOutcome{}, fmt.Errorf("%d operations in one request, at most %d", len(calls), fsm.MaxOps)
	}
	p := &parcel{calls: calls, done: make(chan struct{})}
	if err := g.enqueue(group, p); err != nil {
		return fsm.FrameOutcome{}, err
	}
	select {
	case <-p.done:
		return p.out, p.err
	case <-ctx.Done():
		return fsm.FrameOutcome{}, fmt.Errorf("%w: waiting for shard %d: %w", fsm.ErrOutcomeUnknown, group, ctx.Err())
	}
}

func (g *gateway) enqueue(group uint32, p *parcel) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return fsm.ErrClosed
	}
	l := g.lanes[group]
	if l == nil {
		l = &lane{group: group, open: make(map[uint64]bool)}
		g.lanes[group] = l
	}
	if len(l.waiting) >= gatewayQueue {
		return fsm.ErrOverloaded
	}
	l.waiting = append(l.waiting, p)
	g.launch(l)
	return nil
}

// launch starts frames while the lane has work and room. Called with mu held.
func (g *gateway) launch(l *lane) {
	for len(l.waiting) > 0 && len(l.open) < gatewayFrames && l.seq-l.acked() < fsm.MaxWindow-1 {
		l.seq++
		f, parcels := l.pack(g.client, g.now(l.group)+fsm.Time(gatewayDeadline.Milliseconds()))
		l.open[f.Seq] = true
		g.work.Add(1)
		go g.carry(l, f, parcels)
	}
}

// acked is the frame up to which all are answered.
func (l *lane) acked() uint64 {
	acked := l.seq
	for seq := range l.open {
		acked = min(acked, seq-1)
	}
	return acked
}

func (l *lane) pack(client [16]byte, deadline fsm.Time) (*fsm.Frame, []*parcel) {
	f := &fsm.Frame{Client: client, Seq: l.seq, Deadline: deadline}
	f.AckUpTo = min(l.acked(), l.seq-1)
	n, size := 0, 0
	for _, p := range l.waiting {
		for _, c := range p.calls {
			size += len(c.Body) + 8
		}
		if n > 0 && (len(f.Calls)+len(p.calls) > fsm.MaxOps || size > fsm.MaxFrameBytes) {
			break
		}
		f.Calls = append(f.Calls, p.calls...)
		n++
	}
	parcels := l.waiting[:n:n]
	l.waiting = l.waiting[n:]
	return f, parcels
}

// carry sends one frame until it is answered or past its deadline, and hands the results out.
func (g *gateway) carry(l *lane, f *fsm.Frame, parcels []*parcel) {
	defer g.work.Done()
	ctx, cancel := context.WithTimeout(g.ctx, gatewayDeadline)
	out, err := g.send(ctx, l.group, f)
	cancel()
	if err == nil {
		err = out.Err()
	}
	at := 0
	for _, p := range parcels {
		p.err = err
		if err == nil {
			p.out = out
			p.out.Results = out.Results[at : at+len(p.calls)]
			at += len(p.calls)
		}
		close(p.done)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(l.open, f.Seq)
	if !g.closed {
		g.launch(l)
	}
}

// close ends all frames and waits for their goroutines. Callers that wait get an error.
func (g *gateway) close() {
	g.mu.Lock()
	g.closed = true
	for _, l := range g.lanes {
		for _, p := range l.waiting {
			p.err = fsm.ErrClosed
			close(p.done)
		}
		l.waiting = nil
	}
	g.mu.Unlock()
	g.stop()
	g.work.Wait()
}
