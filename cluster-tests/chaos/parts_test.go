package chaos

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/cluster-tests/check"
	"github.com/holdfastdb/holdfast/cluster-tests/history"
	"github.com/holdfastdb/holdfast/cluster-tests/results"
	"github.com/holdfastdb/holdfast/fsm"
)

// The page has a row for each kind of history, and a run of one kind replaces that one only.
func TestPublish(t *testing.T) {
	path := t.TempDir() + "/page.md"
	if err := os.WriteFile(path, []byte("before\n<!-- measured: chaos -->\nold\n<!-- end: chaos -->\nafter\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	one := &Result{
		Name: "kill-leader", Nodes: 3, Definite: 10, Unknown: 1, Faults: []Fault{{Kind: "kill-leader", Led: []uint32{1}}},
		Gaps: map[string][]time.Duration{"kill-leader": {time.Second, 3 * time.Second, 2 * time.Second}}, Network: "a network",
	}
	all := &Result{Name: "kill-all", Nodes: 5, Definite: 20, Failed: 2, Faults: []Fault{{Kind: "kill-all", Led: []uint32{1, 2}}}, Violations: []string{"x"}}
	shows := func(kind string, histories []*Result, want ...string) {
		t.Helper()
		y := newTally()
		for _, r := range histories {
			y.add(r)
		}
		if err := publish(path, kind, y); err != nil {
			t.Fatal(err)
		}
		page, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range append(want, "before\n<!-- measured: chaos -->\n", "<!-- end: chaos -->\nafter\n", results.Commit()) {
			if !strings.Contains(string(page), text) {
				t.Errorf("no %q in:\n%s", text, page)
			}
		}
	}
	shows("kill-leader", []*Result{one}, "| kill-leader | 1 | 1 | 0 | 10 | 1 | 0 | 0 |", "Not measured yet: kill-follower, kill-all,")
	shows("kill-all", []*Result{all}, "| kill-leader | 1 | 1 | 0 | 10 | 1 | 0 | 0 |", "| kill-all | 1 | 1 | 0 | 20 | 0 | 2 | 0 |",
		"| **all** | 2 | 2 | 0 | 30 | 1 | 2 | 0 |", "| 1 |  |\n", "6 processes were killed with SIGKILL; 2 times the victims led", "a network",
		"| kill-leader | 1s | 3 | 2s | too few | 3s | p99 ≤ 4s: met |")
	shows("kill-all", []*Result{all, all}, "| kill-all | 2 | 2 | 0 | 40 | 0 | 4 | 0 |", "| **all** | 3 | 3 | 0 | 50 | 1 | 4 | 0 |")
}

// A 99th percentile is one of a hundred. Of fewer the longest is compared with the goal.
func TestGoals(t *testing.T) {
	few := &tally{Heartbeat: lanTiming, Gaps: map[string][]time.Duration{"kill-leader": {time.Second, 1600 * time.Millisecond}}}
	many := &tally{Gaps: map[string][]time.Duration{"transfer": slices.Repeat([]time.Duration{90 * time.Millisecond}, 199)}}
	many.Gaps["transfer"] = append(many.Gaps["transfer"], time.Second)
	page := figures{"lan": few, "transfer": many}.page()
	for _, want := range []string{
		"| kill-leader | 300ms | 2 | 1.6s | too few | 1.6s | p99 ≤ 1.5s: missed |", "| transfer | 1s | 200 | 90ms | 90ms | 1s | p99 ≤ 250ms: met |",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("no %q in:\n%s", want, page)
		}
	}
}

// asked is an operation of the tests' own data type.
type asked string

func (asked) DataType() string   { return "asked" }
func (a asked) Describe() string { return string(a) }

// operation is one from call to end, in milliseconds.
func operation(call, end int, outcome history.Outcome) history.Op {
	return history.Op{Call: time.Duration(call) * time.Millisecond, Return: time.Duration(end) * time.Millisecond, Outcome: outcome, Input: asked("what")}
}

// The pause that counts is the one that begins with the fault.
func TestGaps(t *testing.T) {
	r := &run{faults: []Fault{{Kind: "kill-leader", From: 100 * time.Millisecond, Led: []uint32{1}}}}
	var ops []history.Op
	for _, end := range []int{10, 90, 110, 2110, 2120, 9000} {
		op := operation(0, end, history.Definite)
		op.Trace.Shard = 1
		ops = append(ops, op)
	}
	if got := r.gaps(ops)["kill-leader"]; len(got) != 1 || got[0] != 2*time.Second {
		t.Errorf("got %v", got)
	}
}

// A page of a history with everything in it can be drawn.
func TestTimeline(t *testing.T) {
	path := t.TempDir() + "/timeline.html"
	res := &Result{
		Name: "kill-leader", Nodes: 3, Length: 10 * time.Second, Violations: []string{"a <violation>"}, Errors: map[string]int{"gone": 1}, Notes: []string{"a note"},
		Faults: []Fault{{Kind: "kill-leader", What: "kill -9 n1", From: time.Second, To: 2 * time.Second, Recovered: 3 * time.Second, Led: []uint32{1}}},
	}
	ops := []history.Op{
		operation(10, 20, history.Definite), operation(30, 9999, history.Unknown),
		operation(40, 50, history.Failed),
	}
	if err := writeTimeline(path, res, ops, []leaderChange{{at: 0, shard: 1, term: 2, node: "n1"}, {at: 2 * time.Second, shard: 1, term: 3, node: "n2"}}); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"kill -9 n1", "a &lt;violation&gt;", "n2, term 3", "1 × gone", "what, asked at 30ms", "a note", "<polyline"} {
		if !strings.Contains(string(page), want) {
			t.Errorf("no %q on the page", want)
		}
	}
	for _, foreign := range []string{"http://", "https://", "src=", "ZgotmplZ", "NaN"} {
		if strings.Contains(string(page), foreign) {
			t.Errorf("%q on the page", foreign)
		}
	}
}

// Only the entries count that tell what most replicas had: the first of all does not.
func TestComparisons(t *testing.T) {
	sum := func(agreed uint64) check.Entry {
		e := fsm.Entry{Kind: fsm.Checksum, Agreed: fsm.Sum{Index: agreed}}
		return check.Entry{Data: e.Append(nil)}
	}
	if n := comparisons([]check.Entry{sum(0), {}, sum(1), sum(3), {Type: raft.LogNoop, Data: sum(3).Data}}); n != 2 {
		t.Errorf("got %d", n)
	}
}

// While a majority is there, patient clients are served, whatever else the history has.
func TestExcused(t *testing.T) {
	faults := []Fault{
		{Kind: "kill-leader", From: 0, To: 2 * time.Second, Recovered: 3 * time.Second, Serving: true},
		{Kind: "kill-all", From: 20 * time.Second, To: 21 * time.Second, Recovered: 25 * time.Second},
	}
	for _, tt := range []struct {
		call, end int // in milliseconds
		outcome   history.Outcome
		excused   bool
	}{
		{1_000, 2_000, history.Failed, false},
		{1_000, 60_000, history.Unknown, false}, // its client has left long before
		{15_000, 60_000, history.Unknown, true},
		{15_000, 20_500, history.Failed, true},
		{24_000, 26_000, history.Failed, true},
		{26_000, 27_000, history.Failed, false},
	} {
		op := operation(tt.call, tt.end, tt.outcome)
		if got := excused(&op, faults); got != tt.excused {
			t.Errorf("called at %d ms: excused is %v", tt.call, got)
		}
	}
}

// A node that is told to stop has to end well, and one that nobody told not to end at all.
func TestHowNodesEnd(t *testing.T) {
	for name, test := range map[string]struct {
		script    string
		stops     bool // it is told to
		well      bool
		surprises int
	}{
		"in peace":         {"trap 'exit 0' TERM; echo up; while :; do sleep 0.01; done", true, true, 0},
		"with an error":    {"trap 'exit 3' TERM; echo up; while :; do sleep 0.01; done", true, false, 0},
		"by itself":        {"echo up; exit 0", false, true, 1},
		"with a complaint": {"echo up; exit 1", false, true, 1},
	} {
		t.Run(name, func(t *testing.T) {
			n := &Node{Name: "n1", log: filepath.Join(t.TempDir(), "log")}
			if err := n.start(exec.CommandContext(t.Context(), "sh", "-c", test.script)); err != nil {
				t.Fatal(err)
			}
			for said := []byte(nil); len(said) == 0; time.Sleep(time.Millisecond) { // it is ready
				said, _ = os.ReadFile(n.log)
			}
			if !test.stops {
				<-n.finished
			}
			if err := n.Stop(10 * time.Second); (err == nil) != test.well {
				t.Errorf("Stop: %v", err)
			}
			if got := n.Surprises(); len(got) != test.surprises {
				t.Errorf("%d surprises are told: %v", len(got), got)
			}
		})
	}
}

func TestCrashesAreKnownByTheirFirstLine(t *testing.T) {
	for line, want := range map[string]bool{
		"panic: runtime error: index out of range": true, "fatal error: concurrent map writes": true, "WARNING: DATA RACE": true,
		"holdfast: the state of replica n1/1 is not that of the others": false, "	panic: in the midst": false, "": false,
	} {
		if crashed([]byte(line)) != want {
			t.Errorf("%q: %v", line, !want)
		}
	}
}
