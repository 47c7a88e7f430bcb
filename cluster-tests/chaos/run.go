package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/holdfastdb/holdfast/cluster-tests/models"
	"github.com/holdfastdb/holdfast/storage/plant"
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
	RaftLog   string        // the nodes' kind of log; empty means the default
	Bug       plant.Bug     // planted into the nodes, for the checks to find
	ShortLogs bool          // which are cut, so that replicas that were away need whole states, and nobody can replay the logs
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
	// Serving says that a majority of every shard was there all the time, so that no patient client has a right to fail.
	Serving bool `json:"serving"`
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
	t     testing.TB
	plan  Plan
	c     *Cluster
	w     *workload
	rng   *rand.Rand
	list  []nemesis // of the plan
	types []models.Type

	faults    []Fault
	handovers []handover
	notes     []string
	wiped     []*Node
	judged    models.Judged // by the data types' own checks
	received  int           // whole states of shards, by replicas that were away for too long

	mu         sync.Mutex
	violations []string
}

// violate notes a promise that was broken.
func (r *run) violate(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.violations = append(r.violations, fmt.Sprintf(format, args...))
}

// Run makes a history and judges it. There always is a result: whatever keeps a history from going on or from ending is a
// violation like any other.
func Run(t testing.TB, plan Plan) *Result {
	t.Helper()
	r := &run{t: t, plan: plan, rng: rand.New(rand.NewPCG(plan.Seed, 0)), types: models.Types()}
	if err := r.begin(); err != nil {
		return r.unbegun(err)
	}
	return r.history()
}

// history is what follows on a good begin.
func (r *run) history() *Result {
	within := recovery
	if err := r.work(); err != nil {
		r.violate("%v", err)
		within = 5 * time.Second // it had its time
	}
	return r.finish(within)
}

// recovery is how long the cluster may take to become well again by itself.
const recovery = time.Minute

// begin starts the cluster and its clients.
func (r *run) begin() (err error) {
	if r.list, err = nemesesOf(r.plan.Kinds); err != nil {
		return err
	}
	opts := Options{
		Nodes: r.plan.Nodes, Dir: r.plan.Dir, Shards: r.plan.Nodes - 1, Heartbeat: r.plan.Heartbeat,
		Disks:           slices.ContainsFunc(r.list, func(n nemesis) bool { return n.disks }),
		TrailingEntries: 1 << 40, // whole logs can be checked
		RaftLog:         r.plan.RaftLog,
		Bug:             r.plan.Bug,
	}
	if slices.ContainsFunc(r.list, func(n nemesis) bool { return n.grows }) {
		opts.Begin = 1
	}
	if r.plan.ShortLogs {
		opts.TrailingEntries, opts.LogLevel = shortLog, "debug" // Raft tells of the states that it received
	}
	r.c, err = Start(r.t, opts)
	if err != nil {
		return err
	}
	r.t.Logf("%s, %d nodes, seed %d, %v", r.plan.Name, r.plan.Nodes, r.plan.Seed, r.c.net)
	if r.w, err = newWorkload(r.c, r.types); err != nil || !r.plan.Bench {
		return err
	}
	return readyBench(r.w.clients[0])
}

// work lets the faults happen while clients work.
func (r *run) work() error {
	ctx, cancel := context.WithCancel(context.Background())
	var working sync.WaitGroup
	defer working.Wait()
	defer cancel()
	working.Go(func() { r.w.run(ctx, r.plan.Seed) })
	if r.plan.Bench {
		working.Go(r.bench)
	}
	if r.plan.Each {
		for _, n := range r.list {
			if err := r.strike(n); err != nil {
				return err
			}
		}
	} else {
		end := r.w.now() + r.plan.Length
		for r.w.now() < end {
			n := r.list[r.rng.IntN(len(r.list))]
			if err := r.strike(n); err != nil {
				return err
			}
			if n.once {
				time.Sleep(max(0, end-r.w.now()))
			}
		}
	}
	time.Sleep(time.Second)
	return nil
}

// strike lets a fault happen, ends it and waits until the cluster has recovered.
func (r *run) strike(n nemesis) error {
	time.Sleep(between(r.rng, 700*time.Millisecond))
	r.faults = append(r.faults, Fault{Kind: n.name, From: r.w.now(), Serving: n.serving})
	f := &r.faults[len(r.faults)-1]
	end, err := n.strike(r)
	if errors.Is(err, errNothingDone) {
		r.note(err.Error())
		r.faults = r.faults[:len(r.faults)-1]
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", n.name, err)
	}
	hold := n.hold
	if r.plan.Each { // a short history
		hold /= 2
	}
	time.Sleep(between(r.rng, hold))
	if err := end(); err != nil {
		return fmt.Errorf("end of %s: %w", n.name, err)
	}
	f.To = r.w.now()
	err = r.recover(recovery)
	f.Recovered = r.w.now()
	if err != nil {
		return fmt.Errorf("after %s (%s): %w", n.name, f.What, err)
	}
	r.t.Logf("%6.2fs  %-18s %s, for %v; well again %v later", f.From.Seconds(), f.Kind, f.What,
		f.Lasted().Round(time.Millisecond), f.Healing().Round(time.Millisecond))
	return nil
}

// recover waits until the cluster is as it shall be.
func (r *run) recover(within time.Duration) error {
	for _, n := range r.c.Nodes {
		if err := n.WaitReady(within); err != nil {
			return err
		}
	}
	if len(r.wiped) == 0 {
		return r.c.WaitHealthy(within)
	}
	// A node that was wiped is another one now. Nobody replaces the replicas of the one that it was before.
	_, err := r.leads()
	return err
}

// settle waits until every replica has all that was committed when it is called, and returns how much that is.
func (r *run) settle() (map[uint32]uint64, error) {
	applied := make(map[uint32]uint64)
	err := r.c.wait(30*time.Second, "replica that is up to date", func() error {
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
	return applied, err
}

// isWiped tells whether a node has lost its data, and with it its replicas.
func (r *run) isWiped(n *Node) bool { return slices.Contains(r.wiped, n) }

// describe says what the fault under way is, before it begins to work.
func (r *run) describe(what string, victims ...*Node) {
	leads, err := r.c.Leaders(context.Background())
	if err != nil {
		r.note("who leads is not known: " + err.Error())
	}
	f := &r.faults[len(r.faults)-1]
	f.What = what
	for _, n := range victims {
		f.Led = append(f.Led, leads[n]...)
	}
	f.From = r.w.now()
}

// planned notes that shards got other leaders on purpose, from then on.
func (r *run) planned(begun time.Duration, shards ...uint32) {
	for _, s := range shards {
		r.handovers = append(r.handovers, handover{r.faults[len(r.faults)-1].Kind, s, begun})
	}
}

func (r *run) note(text string) {
	r.notes = append(r.notes, fmt.Sprintf("%v: %s", r.w.now().Round(time.Millisecond), text))
}
