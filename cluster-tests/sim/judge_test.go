package sim

import (
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/cluster-tests/check"
	"github.com/holdfastdb/holdfast/cluster-tests/history"
	"github.com/holdfastdb/holdfast/cluster-tests/sim/disk"
	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/node"
)

// Shard time is the true one, as far as clocks may differ, unless a leader has said that its clock is wrong.
func TestShardTimesByNoRightClockAreFound(t *testing.T) {
	begin := time.Unix(1_700_000_000, 0)
	op := func(told time.Duration, query bool) history.Op {
		return history.Op{
			Call: time.Minute, Return: time.Minute + time.Second, Outcome: history.Definite,
			Trace: client.Trace{Shard: 1, Index: 9, Query: query, Time: begin.Add(told)},
		}
	}
	said := []wrongLead{{at: begin.Add(time.Minute), ahead: time.Hour, behind: 30 * time.Second}}
	for _, test := range []struct {
		name  string
		op    history.Op
		leads []wrongLead
		found bool
	}{
		{"as called", op(time.Minute, false), nil, false},
		{"as answered", op(time.Minute+1400*time.Millisecond, false), nil, false},
		{"ahead", op(time.Minute+1600*time.Millisecond, false), nil, true},
		{"behind", op(time.Minute-600*time.Millisecond, false), nil, true},
		{"a question on an old state", op(time.Second, true), nil, false},
		{"a question ahead", op(time.Hour, true), nil, true},
		{"ahead by a clock that is said to be wrong", op(time.Hour, false), said, false},
		{"behind by a clock that is said to be wrong", op(30*time.Second, false), said, false},
		{"behind all clocks", op(20*time.Second, false), said, true},
		{"ahead of all clocks", op(2*time.Hour, false), said, true},
		{"before the wrong clock led", op(time.Hour, false), []wrongLead{{at: begin.Add(time.Hour), ahead: time.Hour}}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			judged, excused, found := judgeClocks([]history.Op{test.op}, begin, test.leads)
			if judged != 1 || (len(found) > 0) != test.found || (excused > 0) != (test.leads != nil && !test.found) {
				t.Errorf("judged %d, excused %d, found %v", judged, excused, found)
			}
		})
	}
}

// While at most one server is in trouble, nobody waits for long.
func TestOperationsThatWaitThoughAMajorityIsThereAreFound(t *testing.T) {
	begin := time.Unix(1_700_000_000, 0)
	trouble := func(from, to time.Duration, few bool) span {
		return span{"x", begin.Add(from * time.Second), begin.Add(to * time.Second), few}
	}
	waits := func(from, to time.Duration) history.Op {
		return history.Op{Call: from * time.Second, Return: time.Hour, Ended: to * time.Second, Outcome: history.Definite}
	}
	nothing := func(*history.Op) bool { return false }
	for _, test := range []struct {
		name  string
		op    history.Op
		spans []span
		calm  time.Duration
	}{
		{"no fault", waits(10, 31), nil, 21},
		{"not long", waits(10, 29), nil, 19},
		{"one server", waits(10, 40), []span{trouble(5, 50, true)}, 30},
		{"all servers", waits(10, 40), []span{trouble(5, 50, false)}, 0},
		{"before and after", waits(10, 40), []span{trouble(18, 25, false)}, 15},
		{"two faults at once", waits(10, 40), []span{trouble(5, 50, true), trouble(15, 36, true)}, 5},
		{"two faults, one after the other", waits(10, 40), []span{trouble(5, 20, true), trouble(20, 50, true)}, 30},
		{"another one later", waits(10, 40), []span{trouble(50, 60, false)}, 30},
	} {
		t.Run(test.name, func(t *testing.T) {
			longest, found := judgeService([]history.Op{test.op}, begin, test.spans, nothing)
			if longest != test.calm*time.Second || (len(found) > 0) != (longest > mostCalm) {
				t.Errorf("it waited for %v, want %v; found %v", longest, test.calm*time.Second, found)
			}
		})
	}
}

// While at most one server is in trouble, and has been for a while, what a patient caller asks for is done.
func TestOperationsThatComeToNothingInPeaceAreFound(t *testing.T) {
	begin := time.Unix(1_700_000_000, 0)
	fails := func(outcome history.Outcome, took time.Duration) history.Op {
		return history.Op{Call: time.Minute, Return: time.Hour, Ended: time.Minute + took, Outcome: outcome}
	}
	storm := func(from, to time.Duration) []span { return []span{{"x", begin.Add(from), begin.Add(to), false}} }
	for _, test := range []struct {
		name    string
		op      history.Op
		spans   []span
		mayFail bool
		found   bool
	}{
		{"refused", fails(history.Failed, time.Second), nil, false, true},
		{"unknown", fails(history.Unknown, time.Second), nil, false, true},
		{"done", fails(history.Definite, time.Second), nil, false, false},
		{"it may be refused", fails(history.Failed, time.Second), nil, true, false},
		{"its caller had no patience", fails(history.Failed, mostHaste), nil, false, false},
		{"one server", fails(history.Failed, time.Second), []span{{"x", begin, begin.Add(time.Hour), true}}, false, true},
		{"all servers", fails(history.Failed, time.Second), storm(0, time.Hour), false, false},
		{"all servers until not long ago", fails(history.Failed, time.Second), storm(0, 50*time.Second), false, false},
		{"all servers, long ago", fails(history.Failed, time.Second), storm(0, 30*time.Second), false, true},
		{"all servers, later", fails(history.Failed, time.Second), storm(2*time.Minute, 3*time.Minute), false, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, found := judgeService([]history.Op{test.op}, begin, test.spans, func(*history.Op) bool { return test.mayFail })
			if (len(found) > 0) != test.found {
				t.Errorf("found %v", found)
			}
		})
	}
}

// Of what a node cannot go on for, only what its disk has refused is an excuse.
func TestOnlyWhatTheDiskRefusedIsAnExcuse(t *testing.T) {
	l := &life{disk: disk.New().Reopen(nil)}
	if l.excuses(disk.EIO) {
		t.Error("nothing was refused")
	}
	l.disk.Fail(disk.EIO)
	if _, err := l.disk.Create("x", vfs.WriteCategoryUnspecified); !errors.Is(err, disk.EIO) {
		t.Fatal(err)
	}
	if !l.excuses(fmt.Errorf("apply: %w", disk.EIO)) || !l.excuses(fmt.Errorf("%w for 21s", node.ErrDiskHangs)) || l.excuses(errors.New("the states differ")) {
		t.Error("the wrong one is excused")
	}
}

// Replicas that hash to different states, and a node that ends behind the others, are found.
func TestNodesThatShowDifferentThingsAreFound(t *testing.T) {
	kinds := func(does func(c *Cluster)) (kinds []string) {
		c := New(Options{Nodes: 3, Shards: 1, Logger: slog.New(slog.DiscardHandler)})
		does(c)
		r := &Report{}
		c.judgeWatches(r)
		for _, v := range append(r.Violations, c.broken...) {
			kinds = append(kinds, v.Kind)
		}
		return kinds
	}
	sums := func(last uint64) func(c *Cluster) {
		return func(c *Cluster) {
			c.compareSum("n1", 1, fsm.Sum{Index: 5, Hash: 7})
			c.compareSum("n2", 1, fsm.Sum{Index: 6, Hash: 8})
			c.compareSum("n2", 0, fsm.Sum{Index: 5, Hash: 8})
			c.compareSum("n3", 1, fsm.Sum{Index: 5, Hash: last})
		}
	}
	if found := kinds(sums(7)); len(found) != 0 {
		t.Errorf("equal sums: %v", found)
	}
	if found := kinds(sums(9)); len(found) != 1 || found[0] != check.KindAgreement {
		t.Errorf("different sums: %v", found)
	}
	ends := func(followers ...check.Follower) func(c *Cluster) {
		return func(c *Cluster) {
			for i, f := range followers {
				c.watch.lives = append(c.watch.lives, &watchedLife{name: c.servers[i].name, server: c.servers[i], follower: f})
			}
		}
	}
	whole := check.FollowerAt
	if found := kinds(ends(whole(3), whole(3))); len(found) != 0 {
		t.Errorf("equal ends: %v", found)
	}
	if found := kinds(ends(whole(3), whole(2))); len(found) != 1 || found[0] != check.KindWatch {
		t.Errorf("different ends: %v", found)
	}
}

// A run in which a check had nothing to look at proves nothing.
func TestARunWithoutEnoughToJudgeFails(t *testing.T) {
	good := func() *Report {
		return &Report{
			Faults: map[string]int{"kill": 1}, Ops: map[history.Outcome]int{history.Definite: 1000, history.Unknown: 10},
			Checked: 900, Lent: 1, Looked: map[string]int{"sums": 1}, Timed: 1, Watched: 1, Sums: 1, Queries: 100, Unclear: 1,
		}
	}
	if err := good().enough(); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]func(r *Report){
		"no fault": func(r *Report) { r.Faults = nil }, "few done": func(r *Report) { r.Ops[history.Unknown] = 200 },
		"unclear": func(r *Report) { r.Unclear = 2 }, "no leases": func(r *Report) { r.Lent = 0 }, "a data type's check had nothing": func(r *Report) { r.Looked["sums"] = 0 },
		"no sums": func(r *Report) { r.Sums = 0 },
	} {
		r := good()
		if spoil(r); r.enough() == nil {
			t.Errorf("%s is enough", name)
		}
	}
	r := &Report{}
	r.found(check.KindNode, errors.New("one"), nil)
	if r.err() == nil || len(r.Violations) != 1 {
		t.Errorf("%v", r.Violations)
	}
}
