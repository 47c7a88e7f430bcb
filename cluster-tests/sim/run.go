package sim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfastdb/holdfast/cluster-tests/check"
	"github.com/holdfastdb/holdfast/cluster-tests/history"
	"github.com/holdfastdb/holdfast/cluster-tests/models"
)

// Report is what happened in a run.
type Report struct {
	Seed     uint64
	Faulted  time.Duration // virtual time under faults and load
	Calm     time.Duration // the longest that an operation waited while all but one server could work
	Healed   time.Duration // how long it took until all was well after the last fault
	Faults   map[string]int
	Ops      map[history.Outcome]int
	Refusals map[string]int // why operations had no effect
	Terms    int            // elections that led to a leader, over all groups
	Installs int            // states sent to replicas that were too far behind
	Entries  int
	Checked  int            // operations that were compared with the models
	Lent     int            // decisions of holders that were compared with what they had been lent
	ByType   map[string]int // of Checked and Lent, by data type
	Looked   map[string]int // how much the data types' own checks had to look at
	Timed    int            // answers whose shard time was compared with the true one
	// Excused are those whose time was that of a leader that had said that its clock is wrong.
	Excused int
	Queries int // those that asked a shard
	Unclear int // of those that a model should have been able to judge, those that it could not
	Watched int // changes of the catalog that nodes were seen to see
	Sums    int // sums of states that were compared with another replica's
	// Messages that the network lost, repeated or delayed.
	Messages uint64
	history  []history.Op  // for Sample
	parts    []models.Load // the same
	// Violations are the promises that were broken, by the check that found it.
	Violations []check.Violation
}

// found notes that a check found something.
func (r *Report) found(kind string, errs ...error) {
	for _, err := range errs {
		if err != nil {
			r.Violations = append(r.Violations, check.Violation{Kind: kind, Detail: err.Error()})
		}
	}
}

// err tells of the violations, of the first ones in words.
func (r *Report) err() error {
	var errs []error
	for _, v := range r.Violations[:min(mostViolations, len(r.Violations))] {
		errs = append(errs, errors.New(v.String()))
	}
	if more := len(r.Violations) - mostViolations; more > 0 {
		errs = append(errs, fmt.Errorf("and %d more violations", more))
	}
	return errors.Join(errs...)
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
	fmt.Fprintf(&b, "seed %d: %v of virtual time under faults, %d faults, an operation waited %v at most with all but one server at work, all well after %v, %d operations done, %d refused, %d of unknown outcome, %d entries, %d elections, %d states sent, %d messages tampered with\n",
		r.Seed, r.Faulted.Round(time.Second), r.FaultCount(), r.Calm.Round(time.Millisecond), r.Healed.Round(time.Millisecond), r.Ops[history.Definite], r.Ops[history.Failed], r.Ops[history.Unknown], r.Entries, r.Terms, r.Installs, r.Messages)
	fmt.Fprintf(&b, "  checked: %d answers by the models, %d of %d questions were unclear, %d decisions by what was lent, %d shard times, %d of them excused, %d changes as seen by nodes, %d sums\n",
		r.Checked, r.Unclear, r.Queries, r.Lent, r.Timed, r.Excused, r.Watched, r.Sums)
	for _, what := range slices.Sorted(maps.Keys(r.Looked)) {
		fmt.Fprintf(&b, "  %4d  %s\n", r.Looked[what], what)
	}
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
	// mostHealing bounds how long it may take after the last fault.
	mostHealing = time.Minute
	// settle is longer than any reservation and any lease lasts.
	settle = 2 * time.Minute
)

// Run simulates a cluster, inside a bubble, and returns what is wrong with it.
func Run(opts Options) (*Report, error) {
	c := New(opts)
	r := &Report{Seed: opts.Seed}
	r.found(check.KindHealth, c.simulate(r))
	r.found(check.KindNode, c.Stop())
	r.Terms, r.Installs = c.record.terms(), c.record.installs
	for group := range opts.Shards + 1 {
		r.Entries += len(c.record.entries(group))
	}
	net := c.net.Stats()
	r.Messages = net.Lost + net.Repeated + c.frame.lost.Load() + c.frame.repeated.Load() + c.frame.late.Load()
	c.judgeWatches(r)
	r.Violations = append(r.Violations, c.damage()...)
	return r, errors.Join(r.err(), r.enough())
}

// damage is what the servers and their disks show of it when all have stopped.
func (c *Cluster) damage() []check.Violation {
	var r Report
	r.found(check.KindAgreement, c.record.conflicts...)
	for _, s := range c.list() {
		r.found(check.KindDurable, s.currentDisk().Lost()...)
	}
	return append(r.Violations, c.broken...)
}

// enough tells whether something was tried at all.
func (r *Report) enough() error {
	done, all := r.Ops[history.Definite], 0
	for _, n := range r.Ops {
		all += n
	}
	idle := (&models.Judged{Looked: r.Looked}).Idle()
	switch {
	case r.FaultCount() == 0:
		return errors.New("no fault was applied")
	case done < 100 || done*10 < all*9:
		return fmt.Errorf("only %d of %d operations were done", done, all)
	case r.Unclear*100 > r.Queries:
		return fmt.Errorf("%d of %d questions could not be judged", r.Unclear, r.Queries)
	case len(idle) > 0:
		return fmt.Errorf("there were no %s", strings.Join(idle, ", no "))
	case r.Checked == 0 || r.Lent == 0 || r.Timed == 0 || r.Watched == 0 || r.Sums == 0:
		return fmt.Errorf("a check had nothing to look at: %s", r)
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
		return errors.Join(err, l.close())
	}
	trouble, cancel := context.WithTimeout(context.Background(), c.opts.Duration)
	defer cancel()
	n := newNemesis(c)
	var running sync.WaitGroup
	var joins []time.Duration
	for range c.opts.Nodes - c.opts.Begin {
		joins = append(joins, n.between(0, c.opts.Duration/2))
	}
	slices.Sort(joins)
	running.Go(func() { c.grow(trouble, n, joins) })
	running.Go(func() { n.run(trouble) })
	running.Go(func() { l.run(trouble) })
	running.Wait()
	r.Faulted = c.opts.Duration
	var found []check.Violation
	r.Calm, found = judgeService(l.history.Ops(), l.history.Start(), n.spans, l.mayFail)
	r.Violations = append(r.Violations, found...)
	r.Faults, r.Ops, r.Refusals = n.applied, make(map[history.Outcome]int), make(map[string]int)
	for _, op := range l.history.Ops() {
		r.Ops[op.Outcome]++
		if op.Outcome == history.Failed {
			r.Refusals[shorten(op.Error)]++
		}
	}
	return errors.Join(c.judge(l, r), l.close())
}

// judge heals everything, waits, and looks at what is there.
func (c *Cluster) judge(l *load, r *Report) error {
	c.net.HealAll()
	for _, s := range c.list() {
		s.start()
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	begin := time.Now()
	if err := c.WaitHealthy(ctx); err != nil {
		return err
	}
	if r.Healed = time.Since(begin); r.Healed > mostHealing {
		c.violate(check.KindHealth, "it took %v until all was well after the last fault", r.Healed)
	}
	time.Sleep(settle)
	judged := l.end(ctx) // before replicas can be where the others are: who watches a shard has its log go on
	agreed, err := c.checkAgreement(ctx)
	r.found(check.KindAgreement, err)
	c.replay(l, agreed, r, &judged)
	r.Violations = append(r.Violations, judged.Violations...)
	r.Looked = judged.Looked
	return nil
}

// mostViolations is how many are told in words.
const mostViolations = 10

// replay has every operation judged by what the shards' logs say and by itself, and the states at the end by what the models
// hold.
func (c *Cluster) replay(l *load, agreed map[uint32]*state, r *Report, own *models.Judged) {
	begin, ops := l.history.Start(), l.history.Ops()
	r.history, r.parts = ops, l.parts
	logs := make(map[uint32][]check.Entry)
	for shard := uint32(1); shard <= c.opts.Shards; shard++ {
		for _, e := range c.record.log(shard, begin) {
			if at := agreed[shard]; at == nil || e.Index <= at.index {
				logs[shard] = append(logs[shard], e)
			}
		}
	}
	judged := check.Replay(c.opts.Types, logs, ops)
	r.Checked, r.Lent, r.Queries, r.ByType = judged.Checked, judged.Lent, judged.Queries, judged.ByType
	for _, part := range l.parts {
		r.Unclear += part.Unclear(ops, judged.UnclearOps)
		own.Add(part.Judge(ops, c.shardTimes(begin)))
	}
	r.Violations = append(r.Violations, judged.Violations...)
	var found []check.Violation
	r.Timed, r.Excused, found = judgeClocks(ops, begin, c.wrong.leads)
	r.Violations = append(r.Violations, found...)
	for shard, at := range agreed {
		for typeID, n := range judged.Rows[shard] {
			if at.rows[typeID] != n {
				r.found(check.KindRows, fmt.Errorf("shard %d has %d rows of data type %d, the model %d", shard, at.rows[typeID], typeID, n))
			}
		}
	}
}
