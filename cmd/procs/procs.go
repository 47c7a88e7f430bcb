// Package procs gives a process as many processors as it has work for.
//
// When a goroutine becomes ready while one of the Go runtime's processors (the Ps, GOMAXPROCS) has nothing to do, the runtime
// wakes a thread for it. In a process whose work goes from goroutine to goroutine, each of which waits for the next, most of
// these threads find nothing, or take the work to a cold cache: to wake them, to look around and to sleep again is a sixth
// of what a node does under load, and a third with a single caller. With one processor there is nobody to wake.
package procs

import (
	"context"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// look is how often the process looks at what it used, and so how long a sudden load has to do with too few; longer if the
// heap is being collected just then, during which the runtime changes nothing.
const look = 500 * time.Millisecond

// Twice as many are worth their price above busy, as a part of what there is, and half are enough if those would be used below
// calm.
const (
	busy = 0.75
	calm = 0.55
)

// Processors are those of this process, of which there is one at a time. How many it may have is what it had at New: a limit
// of its cgroup that changes later counts again after the end.
type Processors struct {
	most  int
	used  func() (time.Duration, bool) // CPU time so far
	set   func(int)
	back  func()        // to what the runtime would have
	works atomic.Int64  // pieces of work under way that Work was told of
	begun chan struct{} // one of them has begun

	cancel context.CancelFunc
	done   sync.WaitGroup
}

// New changes nothing yet.
func New() *Processors {
	return &Processors{
		most: runtime.GOMAXPROCS(0), used: used, set: func(n int) { runtime.GOMAXPROCS(n) }, back: runtime.SetDefaultGOMAXPROCS,
		begun: make(chan struct{}, 1), cancel: func() {},
	}
}

// Follow makes the number of processors follow the load until ctx ends or Close is called. Who sets GOMAXPROCS gets that.
func (p *Processors) Follow(ctx context.Context) {
	if _, known := p.used(); !known || p.most == 1 || os.Getenv("GOMAXPROCS") != "" {
		return
	}
	ctx, p.cancel = context.WithCancel(ctx)
	p.done.Go(func() { p.follow(ctx) })
}

// Close gives all processors back.
func (p *Processors) Close() {
	p.cancel()
	p.done.Wait()
}

// Work is told when a piece of work begins and when it ends that would keep a processor for milliseconds: meanwhile there is
// one more, or all else would wait. It does not block.
func (p *Processors) Work(begins bool) {
	if !begins {
		p.works.Add(-1)
		return
	}
	p.works.Add(1)
	select {
	case p.begun <- struct{}{}:
	default:
	}
}

// follow sets the number of processors again and again.
func (p *Processors) follow(ctx context.Context) {
	defer p.back()
	ticks := time.NewTicker(look)
	defer ticks.Stop()
	last, _ := p.used()
	at := time.Now()
	n, more, now := p.most, 0, p.most
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.begun:
			more = 1
		case <-ticks.C:
			used, _ := p.used()
			passed := time.Since(at)
			n = enough(n, p.most, float64(used-last)/float64(passed)-float64(more)) // that one is for the other work
			last, at = used, at.Add(passed)
			if p.works.Load() == 0 {
				more = 0
			}
		}
		if next := min(n+more, p.most); next != now { // each change stops the world
			now = next
			p.set(now)
		}
	}
}

// enough is how many processors follow n, of which load were used.
func enough(n, most int, load float64) int {
	switch {
	case load > busy*float64(n):
		return min(2*n, most)
	case n > 1 && load < calm*float64(n/2):
		return n / 2
	}
	return n
}
