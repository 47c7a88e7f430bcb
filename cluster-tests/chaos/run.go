package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// Plan says what one history shall be.
type Plan struct {
	// Name is what the history is about; usually its one kind of fault.
	Name  string
	Kinds []string // of the faults, see nemeses
	// Each lets each kind strike once, in their order. Else chance chooses, and the time is over at Length.
	Each      bool
	Nodes     int
	Length    time.Duration
	Seed      uint64
	Heartbeat time.Duration // 0 means the default
	Dir       string        // keeps the artefacts; empty means only if the test fails
	Bench     bool          // holdfast bench runs beside the other clients
}

// Fault is one fault of a history. Times count from its begin.
type Fault struct {
	Kind string        `json:"kind"`
	What string        `json:"what"`
	From time.Duration `json:"from"`
	To   time.Duration `json:"to"`
	// Recovered is when all was well again.
	Recovered time.Duration `json:"recovered"`
	// Led are the shards that the victims led.
	Led []uint32 `json:"led,omitempty"`
}

// Lasted is how long the fault was there, Healing how long it took from then until all was well again.
func (f Fault) Lasted() time.Duration  { return f.To - f.From }
func (f Fault) Healing() time.Duration { return f.Recovered - f.To }

// handover is an intended change of a shard's leader.
type handover struct {
	kind  string
	shard uint32
	at    time.Duration
}

// run is one history under way.
type run struct {
	t    testing.TB
	plan Plan
	c    *Cluster
	w    *workload
	rng  *rand.Rand

	faults    []Fault
	handovers []handover
	notes     []string
	wiped     []*Node
}

// Run makes a history and checks it.
func Run(t testing.TB, plan Plan) *Result {
	t.Helper()
	list := nemesesOf(t, plan.Kinds)
	serving, disks := true, false
	for _, n := range list {
		serving, disks = serving && n.serving, disks || n.disks
	}
	r := &run{t: t, plan: plan, rng: rand.New(rand.NewPCG(plan.Seed, 0))}
	r.c = Start(t, Options{
		Nodes: plan.Nodes, Dir: plan.Dir, Disks: disks, Shards: plan.Nodes - 1, Heartbeat: plan.Heartbeat,
		TrailingEntries: 1 << 40, // whole logs can be checked
	})
	t.Logf("%s, %d nodes, seed %d, %v", plan.Name, plan.Nodes, plan.Seed, r.c.net)
	r.w = newWorkload(t, r.c)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var working sync.WaitGroup
	working.Go(func() { r.w.run(ctx, plan.Seed) })
	if plan.Bench {
		working.Go(r.bench)
	}
	if plan.Each {
		for _, n := range list {
			r.strike(n)
		}
	} else {
		for r.w.now() < plan.Length {
			n := list[r.rng.IntN(len(list))]
			r.strike(n)
			if n.once {
				time.Sleep(max(0, plan.Length-r.w.now()))
			}
		}
	}
	time.Sleep(time.Second)
	cancel()
	working.Wait()
	return r.finish(serving)
}

// strike lets a fault happen, ends it and waits until the cluster has recovered.
func (r *run) strike(n nemesis) {
	r.t.Helper()
	time.Sleep(between(r.rng, 700*time.Millisecond))
	r.faults = append(r.faults, Fault{Kind: n.name, From: r.w.now()})
	f := &r.faults[len(r.faults)-1]
	end, err := n.strike(r)
	if err != nil {
		r.t.Fatalf("%s: %v", n.name, err)
	}
	hold := n.hold
	if r.plan.Each { // a short history
		hold /= 2
	}
	time.Sleep(between(r.rng, hold))
	if err := end(); err != nil {
		r.t.Fatalf("end of %s: %v", n.name, err)
	}
	f.To = r.w.now()
	r.recover(60 * time.Second)
	f.Recovered = r.w.now()
	r.t.Logf("%6.2fs  %-18s %s, for %v; well again %v later", f.From.Seconds(), f.Kind, f.What,
		f.Lasted().Round(time.Millisecond), f.Healing().Round(time.Millisecond))
}

// recover waits until the cluster is as it shall be.
func (r *run) recover(within time.Duration) {
	r.t.Helper()
	for _, n := range r.c.Nodes {
		n.WaitReady(within)
	}
	if len(r.wiped) == 0 {
		r.c.WaitHealthy(within)
		return
	}
	// A node that was wiped is another one now. Nobody replaces the replicas of the one that it was before.
	r.c.wait(within, "cluster whose shards have leaders", func() error {
		leads, err := r.c.Leaders(context.Background())
		if err != nil {
			return err
		}
		n := 0
		for _, shards := range leads {
			n += len(shards)
		}
		if n != r.c.opts.Shards {
			return fmt.Errorf("%d of %d shards have a leader", n, r.c.opts.Shards)
		}
		return nil
	})
}

// settle waits until every replica has all that was committed when it is called, and returns how much that is.
func (r *run) settle() map[uint32]uint64 {
	r.t.Helper()
	applied := make(map[uint32]uint64)
	r.c.wait(30*time.Second, "replica that is up to date", func() error {
		s, err := r.c.Status(context.Background())
		if err != nil {
			return err
		}
		for _, shard := range s.Shards {
			id := shard.Info.Shard
			if applied[id] == 0 {
				for _, replica := range shard.Replicas {
					applied[id] = max(applied[id], uint64(replica.CommitIndex))
				}
			}
			for _, replica := range shard.Replicas {
				gone := replica.State == "unreachable" && len(r.wiped) > 0 // for good
				if !gone && uint64(replica.AppliedIndex) < applied[id] {
					return fmt.Errorf("shard %d: a replica is at %.0f of %d", id, replica.AppliedIndex, applied[id])
				}
			}
		}
		return nil
	})
	return applied
}

// describe says what the fault under way is, before it begins to work.
func (r *run) describe(what string, victims ...*Node) {
	leads := r.leads()
	f := &r.faults[len(r.faults)-1]
	f.What = what
	for _, n := range victims {
		f.Led = append(f.Led, leads[n]...)
	}
	f.From = r.w.now()
}

// planned notes that shards are about to get other leaders, on purpose.
func (r *run) planned(shards ...uint32) {
	for _, s := range shards {
		r.handovers = append(r.handovers, handover{r.faults[len(r.faults)-1].Kind, s, r.w.now()})
	}
}

func (r *run) note(text string) {
	r.notes = append(r.notes, fmt.Sprintf("%v: %s", r.w.now().Round(time.Millisecond), text))
}
