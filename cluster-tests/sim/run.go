package sim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/holdfastdb/holdfast/cluster-tests/check"
	"github.com/holdfastdb/holdfast/cluster-tests/history"
)

// Report is what happened in a run.
type Report struct {
	Seed     uint64
	Virtual  time.Duration
	Faults   map[string]int
	Ops      map[history.Outcome]int
	Refusals map[string]int // why operations had no effect
	Terms    int            // elections that led to a leader, over all groups
	Installs int            // states sent to replicas that were too far behind
	Entries  int
	Checked  int // operations that were compared with the models
	// Messages that the network lost, repeated or delayed.
	Messages uint64
}

// FaultCount is the number of faults of all kinds.
func (r *Report) FaultCount() (sum int) {
	for _, n := range r.Faults {
		sum += n
	}
	return sum
}

func (r *Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d: %v of virtual time, %d faults, %d operations done, %d refused, %d of unknown outcome, %d checked one by one, %d entries, %d elections, %d states sent, %d messages tampered with\n",
		r.Seed, r.Virtual.Round(time.Second), r.FaultCount(), r.Ops[history.Definite], r.Ops[history.Failed], r.Ops[history.Unknown], r.Checked, r.Entries, r.Terms, r.Installs, r.Messages)
	for _, kind := range slices.Sorted(maps.Keys(r.Faults)) {
		fmt.Fprintf(&b, "  %4d  %s\n", r.Faults[kind], kind)
	}
	for _, why := range slices.Sorted(maps.Keys(r.Refusals)) {
		fmt.Fprintf(&b, "  %4d  refused: %s\n", r.Refusals[why], why)
	}
	return b.String()
}

// shorten is the beginning of a text, without what differs each time.
func shorten(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line[:min(len(line), 90)]
}

const (
	// startTimeout bounds how long a cluster may take to be whole.
	startTimeout = 5 * time.Minute
	// settle is longer than any reservation and any lease lasts.
	settle = 2 * time.Minute
)

// Run simulates a cluster, inside a bubble, and returns what is wrong with it.
func Run(opts Options) (*Report, error) {
	begin := time.Now()
	c := New(opts)
	r := &Report{Seed: opts.Seed}
	err := c.simulate(r)
	err = errors.Join(err, c.Stop())
	r.Virtual, r.Terms, r.Installs = time.Since(begin), c.record.terms(), c.record.installs
	for group := range opts.Shards + 1 {
		r.Entries += len(c.record.entries(group))
	}
	net := c.net.Stats()
	r.Messages = net.Lost + net.Repeated + c.frame.lost.Load() + c.frame.repeated.Load() + c.frame.late.Load()
	return r, errors.Join(err, errors.Join(c.record.conflicts...), r.enough())
}

// enough tells whether something was tried at all.
func (r *Report) enough() error {
	done, all := r.Ops[history.Definite], 0
	for _, n := range r.Ops {
		all += n
	}
	switch {
	case r.FaultCount() == 0:
		return errors.New("no fault was applied")
	case done < 100 || done*2 < all:
		return fmt.Errorf("only %d of %d operations were done", done, all)
	}
	return nil
}

func (c *Cluster) simulate(r *Report) error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	if err := c.Start(ctx); err != nil {
		return err
	}
	l, err := startLoad(ctx, c)
	if err != nil {
		return err
	}
	trouble, cancel := context.WithTimeout(context.Background(), c.opts.Duration)
	defer cancel()
	n := newNemesis(c)
	c.work.Go(func() { n.run(trouble) })
	l.run(trouble)
	n.work.Wait()
	r.Faults, r.Ops, r.Refusals = n.applied, make(map[history.Outcome]int), make(map[string]int)
	for _, op := range append(l.history.Ops(), l.others.Ops()...) {
		r.Ops[op.Outcome]++
		if op.Outcome == history.Failed {
			r.Refusals[shorten(op.Error)]++
		}
	}
	err = c.judge(l, r)
	return errors.Join(err, l.close())
}

// judge heals everything, waits, and looks at what is there.
func (c *Cluster) judge(l *load, r *Report) error {
	c.net.HealAll()
	for _, s := range c.list() {
		s.start()
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	if err := c.WaitHealthy(ctx); err != nil {
		return err
	}
	time.Sleep(settle)
	return errors.Join(l.checkSums(ctx), c.checkAgreement(ctx), c.replay(l, r))
}

// mostViolations is how many are told in words.
const mostViolations = 10

// replay has every operation judged by what the shards' logs say.
func (c *Cluster) replay(l *load, r *Report) error {
	logs := make(map[uint32][]check.Entry)
	for shard := uint32(1); shard <= c.opts.Shards; shard++ {
		for _, e := range c.record.entries(shard) {
			logs[shard] = append(logs[shard], check.Entry{Index: e.Index, Term: e.Term, Type: e.Type, Data: e.Data})
		}
	}
	judged := check.Replay(logs, l.history.Ops())
	r.Checked = judged.Checked
	var errs []error
	for _, v := range judged.Violations[:min(mostViolations, len(judged.Violations))] {
		errs = append(errs, errors.New(v.String()))
	}
	if more := len(judged.Violations) - mostViolations; more > 0 {
		errs = append(errs, fmt.Errorf("and %d more violations", more))
	}
	return errors.Join(errs...)
}
