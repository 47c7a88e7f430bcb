package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/cluster-tests/history"
	"github.com/holdfastdb/holdfast/cluster-tests/models"
)

// clientIPs are the machines of the SDKs. The last one is for those who only read: an SDK that also writes hears of a new
// leader soon.
var clientIPs = []string{"10.0.1.1", "10.0.1.2", "10.0.1.3", "10.0.1.4"}

// load is the callers of all data types and what they were told.
type load struct {
	c       *Cluster
	history *history.History
	clients []*client.Client
	parts   []models.Load // one for each data type that has any
}

// startLoad connects the SDKs and readies the cluster. Also with an error it is to be closed.
func startLoad(ctx context.Context, c *Cluster) (*load, error) {
	l := &load{c: c, history: history.New()}
	for _, ip := range clientIPs {
		cl, err := c.Dial(ctx, ip)
		if err != nil {
			return l, err
		}
		l.clients = append(l.clients, cl)
	}
	first := l.process("w0", l.clients[0], c.random())
	for _, t := range c.opts.Types {
		if t.Sim == nil {
			continue
		}
		part := t.Sim()
		l.parts = append(l.parts, part)
		if err := part.Begin(ctx, first); err != nil {
			return l, fmt.Errorf("begin with %s: %w", t.Name, err)
		}
	}
	return l, nil
}

func (l *load) process(name string, cl *client.Client, rng *rand.Rand) *models.Process {
	return &models.Process{Name: name, Client: cl, Rand: rng, History: l.history, Patience: patience}
}

// mostHaste bounds how long those wait who have little patience.
const mostHaste = 500 * time.Millisecond

// patience is how long a caller waits. Some have little.
func patience(rng *rand.Rand) time.Duration {
	if rng.IntN(20) == 0 {
		return time.Duration(rng.Int64N(int64(mostHaste)))
	}
	return 30 * time.Second
}

// run calls until ctx ends, and returns when all calls have.
func (l *load) run(ctx context.Context) {
	var working sync.WaitGroup
	i := 0
	for _, part := range l.parts {
		for _, caller := range part.Callers() {
			cl := l.clients[i%(len(l.clients)-1)]
			if caller.Reads {
				cl = l.clients[len(l.clients)-1]
			}
			w := l.process(fmt.Sprintf("w%d", i+1), cl, rand.New(rand.NewPCG(l.c.opts.Seed, uint64(100+i))))
			i++
			working.Go(func() {
				for ctx.Err() == nil {
					_ = caller.Step(w) // the history has it
					hold(ctx, time.Duration(w.Rand.ExpFloat64()*float64(l.c.opts.Think)))
				}
			})
		}
	}
	working.Wait()
}

// end has each data type look at what the cluster has.
func (l *load) end(ctx context.Context) (j models.Judged) {
	for _, part := range l.parts {
		j.Add(part.End(ctx, l.process("end", l.clients[0], l.c.random())))
	}
	return j
}

// mayFail tells of an operation that may be refused though a majority is there.
func (l *load) mayFail(op *history.Op) bool {
	return slices.ContainsFunc(l.parts, func(part models.Load) bool { return part.MayFail(op) })
}

func (l *load) close() error {
	var first error
	for _, c := range l.clients {
		if err := c.Close(); err != nil && first == nil {
			first = err
		}
	}
	return first
}
