package shard

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfastdb/holdfast/fsm"
)

// proposer packs the frames that wait into one entry at a time. It never waits for more frames: while entries are on
// their way others gather, so entries grow with the load and a lone frame leaves at once.
type proposer struct {
	g *Group

	mu      sync.Mutex
	waiting []proposal
	ops     int           // in waiting
	bytes   int           // in waiting
	emptied time.Time     // when nothing was waiting last
	taken   time.Time     // when operations were taken off last and others stayed, zero if none did,
	batch   int           // and how many
	spent   time.Duration // lately, on an entry while others waited,
	did     float64       // which had so many operations
	closed  bool

	wake     chan struct{}
	inflight chan batch // bounded: the entries on their way

	entries, frames, commands atomic.Uint64
}

// proposal is a frame and whom to tell.
type proposal struct {
	frame *fsm.Frame
	size  int
	done  func(fsm.FrameOutcome, error)
}

type batch struct {
	proposals []proposal
	entry     proposed
}

const (
	// maxInflight entries keep the disk and the network busy; more would only be smaller.
	maxInflight = 3
	// maxWaitingOps and maxWaitingBytes bound the queue: at full speed less than half a second of work.
	maxWaitingOps   = 32 * 1024
	maxWaitingBytes = 32 << 20
	// A queue that was empty within maxStanding takes up a burst, or a disk that halted. One that was not only makes all wait
	// for their turn, so long that many have left by then: more work than can be done for nobody. Then a frame is only taken
	// in if it need not wait for longer than maxWait (after K. Nichols, V. Jacobson: Controlling Queue Delay, 2012).
	maxStanding = time.Second
	maxWait     = 200 * time.Millisecond
	// enqueueTimeout is how long Raft may take to accept an entry.
	enqueueTimeout = 5 * time.Second
)

func newProposer(g *Group) *proposer {
	return &proposer{g: g, wake: make(chan struct{}, 1), inflight: make(chan batch, maxInflight-1)}
}

// frameSize bounds a frame's encoding.
func frameSize(f *fsm.Frame) int {
	n := 64
	for i := range f.Calls {
		n += len(f.Calls[i].Body) + 12
	}
	return n
}

func (p *proposer) submit(f *fsm.Frame, done func(fsm.FrameOutcome, error)) error {
	size := frameSize(f)
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		return fsm.ErrClosed
	case p.ops > 0 && (p.ops+len(f.Calls) > maxWaitingOps || p.bytes+size > maxWaitingBytes):
		return fsm.ErrOverloaded
	}
	if len(p.waiting) == 0 {
		p.emptied = time.Now()
	}
	p.waiting = append(p.waiting, proposal{frame: f, size: size, done: done})
	p.ops += len(f.Calls)
	p.bytes += size
	select {
	case p.wake <- struct{}{}:
	default:
	}
	return nil
}

// busy tells that a frame would wait too long for its turn. Called with mu held.
func (p *proposer) busy(now time.Time) bool {
	if len(p.waiting) == 0 {
		return false
	}
	return float64(p.ops)*float64(p.spent) > float64(maxWait)*p.did && now.Sub(p.emptied) > maxStanding
}

// next takes the frames of the next entry off the queue.
func (p *proposer) next() []proposal {
	p.mu.Lock()
	defer p.mu.Unlock()
	n, ops, size := 0, 0, 0
	for ; n < len(p.waiting); n++ {
		w := &p.waiting[n]
		if n > 0 && (ops+len(w.frame.Calls) > fsm.MaxOps || size+w.size > fsm.MaxFrameBytes) {
			break
		}
		ops += len(w.frame.Calls)
		size += w.size
	}
	taken := p.waiting[:n:n]
	p.waiting = p.waiting[n:]
	now := time.Now()
	if !p.taken.IsZero() {
		p.spent += (now.Sub(p.taken) - p.spent) / 8
		p.did += (float64(p.batch) - p.did) / 8
	}
	p.taken, p.batch = now, ops
	if len(p.waiting) == 0 {
		p.emptied, p.taken = now, time.Time{}
	}
	p.ops -= ops
	p.bytes -= size
	return taken
}

func (p *proposer) run() {
	defer close(p.inflight)
	for {
		select {
		case <-p.wake:
		case <-p.g.ctx.Done():
			return
		}
		runtime.Gosched() // who is about to hand a frame in goes first
		for {
			proposals := p.next()
			if len(proposals) == 0 {
				break
			}
			p.inflight <- p.propose(proposals)
		}
	}
}

func (p *proposer) propose(proposals []proposal) batch {
	e := fsm.Entry{Kind: fsm.Commands, Frames: make([]fsm.Frame, len(proposals))}
	size := 16
	for i := range proposals {
		e.Frames[i] = *proposals[i].frame
		size += proposals[i].size
		p.commands.Add(uint64(len(proposals[i].frame.Calls)))
	}
	p.entries.Add(1)
	p.frames.Add(uint64(len(proposals)))
	return batch{proposals, p.g.append(&e, size)}
}

// complete tells the callers, in the order of the log.
func (p *proposer) complete() {
	for b := range p.inflight {
		err := fromRaft(b.entry.Error())
		var out *fsm.Outcome
		if err == nil {
			out, _ = b.entry.Response().(*fsm.Outcome)
			if out == nil || len(out.Frames) != len(b.proposals) {
				err = fsm.ErrOutcomeUnknown // the replica is stopping after a failed apply
			}
		}
		for i := range b.proposals {
			if err != nil {
				b.proposals[i].done(fsm.FrameOutcome{}, err)
			} else {
				b.proposals[i].done(out.Frames[i], nil)
			}
		}
	}
}

// close refuses what waits and everything after.
func (p *proposer) close() {
	p.mu.Lock()
	p.closed = true
	waiting := p.waiting
	p.waiting, p.ops, p.bytes = nil, 0, 0
	p.mu.Unlock()
	for i := range waiting {
		waiting[i].done(fsm.FrameOutcome{}, fsm.ErrClosed)
	}
}

// ProposeAsync has the group execute a frame and calls done once, from a goroutine of the group, which done must not
// block. The frame must not change before; when done is called nobody looks at it any more. An error means that done will
// not be called.
func (g *Group) ProposeAsync(f *fsm.Frame, done func(fsm.FrameOutcome, error)) error {
	if !g.IsLeader() {
		return fsm.ErrNotLeader
	}
	if g.cfg.DiskFull != nil && g.cfg.DiskFull() {
		return fsm.ErrDiskFull
	}
	return g.proposer.submit(f, done)
}

// Busy tells that a frame would wait too long for its turn. Whoever has a choice offers none then; the steps of what has
// begun elsewhere are taken in as long as there is room.
func (g *Group) Busy() bool {
	g.proposer.mu.Lock()
	defer g.proposer.mu.Unlock()
	return g.proposer.busy(time.Now())
}

// Propose has the group execute a frame and waits for the outcome. If ctx ends first the outcome is unknown.
func (g *Group) Propose(ctx context.Context, f *fsm.Frame) (fsm.FrameOutcome, error) {
	type answer struct {
		out fsm.FrameOutcome
		err error
	}
	answers := make(chan answer, 1)
	err := g.ProposeAsync(f, func(out fsm.FrameOutcome, err error) { answers <- answer{out, err} })
	if err != nil {
		return fsm.FrameOutcome{}, err
	}
	select {
	case a := <-answers:
		return a.out, a.err
	case <-ctx.Done():
		return fsm.FrameOutcome{}, fsm.ErrOutcomeUnknown
	}
}
