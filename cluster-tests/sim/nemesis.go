package sim

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// nemesis applies one fault after the other, sometimes two at a time, as the seed says.
type nemesis struct {
	c   *Cluster
	rng *rand.Rand // used by the planning goroutine only

	mu      sync.Mutex
	applied map[string]int
	spans   []span
	work    sync.WaitGroup
}

// span is the time of one fault.
type span struct {
	kind       string
	begin, end time.Time
	few        bool
}

// fault is one kind of trouble.
type fault struct {
	name   string
	weight int
	// few says that no more than one server is kept from its work at a time, so that the others must go on.
	few bool
	// plan draws what the fault needs from the nemesis' randomness and returns what applies it, waits, and makes good. That
	// returns whether anything was done.
	plan func(n *nemesis) func(ctx context.Context) bool
}

func newNemesis(c *Cluster) *nemesis {
	return &nemesis{c: c, rng: rand.New(rand.NewPCG(c.opts.Seed, 3)), applied: make(map[string]int)}
}

// faultPauseMax is the longest time between two faults.
const faultPauseMax = 25 * time.Second

// run applies faults until ctx ends. All are made good when it returns.
func (n *nemesis) run(ctx context.Context) {
	defer n.work.Wait()
	kinds, longest := faults, faultPauseMax
	if only := n.c.opts.Faults; only != nil {
		kinds = slices.DeleteFunc(slices.Clone(faults), func(f fault) bool { return !slices.Contains(only, f.name) })
	}
	if n.c.opts.Pause != 0 {
		longest = n.c.opts.Pause
	}
	sum := 0
	for _, f := range kinds {
		sum += f.weight
	}
	for {
		if sleep(ctx, n.between(longest/5, longest)) != nil {
			return
		}
		pick, chosen := n.rng.IntN(sum), 0
		for i, f := range kinds {
			if pick -= f.weight; pick < 0 {
				chosen = i
				break
			}
		}
		f := kinds[chosen]
		apply := f.plan(n)
		done := make(chan struct{})
		n.work.Go(func() {
			defer close(done)
			n.c.opts.Logger.Info("fault", "kind", f.name)
			begin := time.Now()
			if apply(ctx) {
				n.count(f.name)
			}
			n.over(f.name, begin, f.few)
			n.c.opts.Logger.Info("fault is over", "kind", f.name)
		})
		if n.rng.IntN(4) > 0 { // else the next one comes on top
			<-done
		}
	}
}

// over notes what has just ended.
func (n *nemesis) over(kind string, begin time.Time, few bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.spans = append(n.spans, span{kind, begin, time.Now(), few})
}

func (n *nemesis) count(kind string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.applied[kind]++
}

// between draws a time.
func (n *nemesis) between(least, most time.Duration) time.Duration {
	return least + time.Duration(n.rng.Int64N(int64(most-least)+1))
}

// server draws one.
func (n *nemesis) server() *server {
	list := n.c.list()
	return list[n.rng.IntN(len(list))]
}

// two draws two different servers, or the same one twice if there is no other yet.
func (n *nemesis) two() (a, b *server) {
	list := n.c.list()
	i := n.rng.IntN(len(list))
	j := (i + 1 + n.rng.IntN(max(len(list)-1, 1))) % len(list)
	return list[i], list[j]
}

// shuffled is all servers in any order.
func (n *nemesis) shuffled() []*server {
	list := append([]*server(nil), n.c.list()...)
	n.rng.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list
}

// hold waits for d, less if ctx ends. It reports whether that was at least a second of it, or all.
func hold(ctx context.Context, d time.Duration) bool {
	begin := time.Now()
	return sleep(ctx, d) == nil || time.Since(begin) >= time.Second
}
