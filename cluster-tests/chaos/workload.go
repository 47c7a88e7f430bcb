package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/cluster-tests/history"
	"github.com/holdfastdb/holdfast/cluster-tests/models"
)

// think is the time between two steps of a client, on average.
const think = 8 * time.Millisecond

// workload is what clients do during a history, with all data types, and what they were told.
type workload struct {
	begin   time.Time
	history *history.History
	clients []*client.Client
	parts   []models.Load // one for each data type that has any
}

// hasty begins the name of a process whose client gives up sooner than leaders are elected. So there are operations of
// unknown outcome, of which nobody may complain.
const (
	hasty        = "hasty-"
	hastyTimeout = 700 * time.Millisecond
)

// newWorkload connects the clients and readies the cluster.
func newWorkload(c *Cluster, types []models.Type) (*workload, error) {
	w := &workload{history: history.New()}
	for _, patience := range []time.Duration{0, 0, hastyTimeout} {
		cl, err := c.Dial(patience)
		if err != nil {
			return nil, err
		}
		w.clients = append(w.clients, cl)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, t := range types {
		if t.Chaos == nil {
			continue
		}
		part := t.Chaos()
		if err := part.Begin(ctx, w.process("first", w.clients[0], nil)); err != nil {
			return nil, fmt.Errorf("begin with %s: %w", t.Name, err)
		}
		w.parts = append(w.parts, part)
	}
	w.begin = w.history.Start()
	return w, nil
}

// now is the time since the begin.
func (w *workload) now() time.Duration { return time.Since(w.begin) }

// process is a caller whose patience is its SDK's.
func (w *workload) process(name string, cl *client.Client, rng *rand.Rand) *models.Process {
	return &models.Process{Name: name, Client: cl, Rand: rng, History: w.history}
}

// run lets all clients work until ctx ends, and what has begun be seen through.
func (w *workload) run(ctx context.Context, seed uint64) {
	var working sync.WaitGroup
	n := uint64(0)
	for _, part := range w.parts {
		for _, caller := range part.Callers() {
			n++
			cl, name := w.clients[n%uint64(len(w.clients))], fmt.Sprint("p", n)
			if cl == w.clients[2] {
				name = hasty + name
			}
			by := w.process(name, cl, rand.New(rand.NewPCG(seed, n)))
			working.Go(func() {
				for ctx.Err() == nil {
					_ = caller.Step(by) // the history has it
					time.Sleep(time.Duration(by.Rand.ExpFloat64() * float64(think)))
				}
			})
		}
	}
	working.Wait()
}

// mayFail tells of an operation that may be refused though its client is patient and a majority is there.
func (w *workload) mayFail(op *history.Op) bool {
	for _, part := range w.parts {
		if part.MayFail(op) {
			return true
		}
	}
	return false
}
