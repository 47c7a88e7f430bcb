package shard

import (
	"runtime"
	"sync"
	"time"
)

// Pacer starts the entries of a node's groups in rounds: while the entries of one round are on their way frames gather,
// and then all groups that have some begin an entry at the same moment. Their entries so share messages, syncs and
// wake-ups at every step that follows, on all nodes, which on a busy node costs a fraction of what they cost one by one.
// A lone frame still leaves at once, and a group that is slow holds the others up for maxRound at most.
type Pacer struct {
	mu     sync.Mutex
	ready  []*proposer // each has frames, and room for an entry
	rounds int         // under way
	closed bool

	wake chan struct{}
	done chan struct{}
}

const (
	// maxRounds is how many rounds are under way: while one waits for disks the next is on the network.
	maxRounds = 1
	// maxRound is how long the next round waits for the entries of one.
	maxRound = 4 * time.Millisecond
)

// NewPacer starts a pacer. Close it after its groups.
func NewPacer() *Pacer {
	p := &Pacer{wake: make(chan struct{}, 1), done: make(chan struct{})}
	go p.run()
	return p
}

// Close ends the pacer.
func (p *Pacer) Close() {
	p.mu.Lock()
	p.closed = true
	p.poke()
	p.mu.Unlock()
	<-p.done
}

// add puts a proposer into the next round.
func (p *Pacer) add(x *proposer) {
	p.mu.Lock()
	p.ready = append(p.ready, x)
	if p.rounds < maxRounds {
		p.poke()
	}
	p.mu.Unlock()
}

func (p *Pacer) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *Pacer) run() {
	defer close(p.done)
	for range p.wake {
		runtime.Gosched() // who is about to hand a frame in goes first
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			return
		}
		if p.rounds >= maxRounds || len(p.ready) == 0 {
			p.mu.Unlock()
			continue
		}
		ready := p.ready
		p.ready = nil
		p.rounds++
		p.mu.Unlock()
		r := &round{p: p, left: len(ready)}
		r.late = time.AfterFunc(maxRound, r.end)
		for _, x := range ready {
			x.start(r)
		}
	}
}

// round is a set of entries that began together.
type round struct {
	p     *Pacer
	late  *time.Timer
	mu    sync.Mutex
	left  int
	ended bool
}

// completed tells that one of the entries is done.
func (r *round) completed() {
	r.mu.Lock()
	r.left--
	last := r.left == 0
	r.mu.Unlock()
	if last {
		r.late.Stop()
		r.end()
	}
}

// end lets the next round begin.
func (r *round) end() {
	r.mu.Lock()
	ended := r.ended
	r.ended = true
	r.mu.Unlock()
	if ended {
		return
	}
	r.p.mu.Lock()
	r.p.rounds--
	if len(r.p.ready) > 0 {
		r.p.poke()
	}
	r.p.mu.Unlock()
}
