package sim

import (
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfastdb/holdfast/cluster-tests/check"
	"github.com/holdfastdb/holdfast/cluster-tests/history"
	"github.com/holdfastdb/holdfast/cluster-tests/results"
)

// totals sums up the runs of a test.
type totals struct {
	mu       sync.Mutex
	runs     int
	first    uint64 // seed
	last     uint64
	faults   map[string]int
	ops      map[history.Outcome]int
	sum      Report // of the numbers
	sampled  check.Sampled
	violated map[string]int
	used     time.Duration // of the CPU, for all of it
}

func newTotals() *totals {
	return &totals{faults: make(map[string]int), ops: make(map[history.Outcome]int), violated: make(map[string]int)}
}

func (s *totals) add(r *Report, sampled *check.Sampled) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.runs++; s.runs == 1 {
		s.first, s.last = r.Seed, r.Seed
	}
	s.first, s.last = min(s.first, r.Seed), max(s.last, r.Seed)
	for kind, n := range r.Faults {
		s.faults[kind] += n
	}
	for outcome, n := range r.Ops {
		s.ops[outcome] += n
	}
	for _, v := range r.Violations {
		s.violated[v.Kind]++
	}
	t := &s.sum
	t.Faulted += r.Faulted
	t.Calm, t.Healed = max(t.Calm, r.Calm), max(t.Healed, r.Healed)
	for to, from := range map[*int]int{
		&t.Terms: r.Terms, &t.Installs: r.Installs, &t.Entries: r.Entries, &t.Checked: r.Checked, &t.Lent: r.Lent,
		&t.Timed: r.Timed, &t.Excused: r.Excused, &t.Queries: r.Queries, &t.Unclear: r.Unclear, &t.Watched: r.Watched, &t.Sums: r.Sums,
		&s.sampled.Keys: sampled.Keys, &s.sampled.Operations: sampled.Operations, &s.sampled.Skipped: sampled.Skipped, &s.sampled.Left: sampled.Left,
	} {
		*to += from
	}
	t.Messages += r.Messages
	if t.Looked == nil {
		t.Looked, t.ByType = make(map[string]int), make(map[string]int)
	}
	for name, n := range r.ByType {
		t.ByType[name] += n
	}
	for what, n := range r.Looked {
		t.Looked[what] += n
	}
}

func (s *totals) faultCount() (sum int) {
	for _, n := range s.faults {
		sum += n
	}
	return sum
}

// goalSpeed is how much virtual time a processor shall get through, in its own.
const goalSpeed = 100

// page is the figures as they are published.
func (s *totals) page() string {
	var b strings.Builder
	cuts := 0
	for kind, n := range s.faults {
		if strings.HasPrefix(kind, "power cut") {
			cuts += n
		}
	}
	fmt.Fprintf(&b, "| figure | |\n| --- | --- |\n")
	row := func(what, format string, args ...any) {
		fmt.Fprintf(&b, "| %s | %s |\n", what, fmt.Sprintf(format, args...))
	}
	row("seeds", "%d, from %d to %d", s.runs, s.first, s.last)
	row("virtual time under faults", "%.1f hours", s.sum.Faulted.Hours())
	speed, verdict := s.sum.Faulted.Minutes()/max(s.used.Minutes(), 1e-9), "missed"
	if speed >= goalSpeed {
		verdict = "met"
	}
	row(fmt.Sprintf("virtual minutes in a minute of one processor's time (goal: %d)", goalSpeed), "%.0f: %s", speed, verdict)
	row("faults that had an effect", "%d", s.faultCount())
	row("of these, power cuts", "%d", cuts)
	row("messages lost, repeated or delayed", "%d", s.sum.Messages)
	row("elections; states sent to replicas", "%d; %d", s.sum.Terms, s.sum.Installs)
	row("operations done; refused; of unknown outcome", "%d; %d; %d", s.ops[history.Definite], s.ops[history.Failed], s.ops[history.Unknown])
	row("answers compared with the models, by the logs", "%d; %d of %d questions were unclear", s.sum.Checked, s.sum.Unclear, s.sum.Queries)
	row("by porcupine", "%d of %d counters; %d operations and %d counters were left out", s.sampled.Operations, s.sampled.Keys, s.sampled.Left, s.sampled.Skipped)
	row("decisions from leases compared with what was lent", "%d", s.sum.Lent)
	for _, name := range slices.Sorted(maps.Keys(s.sum.ByType)) {
		row("of both, operations on "+name, "%d", s.sum.ByType[name])
	}
	for _, what := range slices.Sorted(maps.Keys(s.sum.Looked)) {
		row(what, "%d", s.sum.Looked[what])
	}
	row("shard times compared with the true one", "%d; %d by a clock that was said to be wrong", s.sum.Timed, s.sum.Excused)
	row("changes of the catalog as nodes saw them", "%d", s.sum.Watched)
	row("sums of states compared", "%d", s.sum.Sums)
	row("longest wait with all but one server at work", "%v", s.sum.Calm.Round(time.Millisecond))
	row("all well again after the last fault", "%v at most", s.sum.Healed.Round(time.Millisecond))
	violations := 0
	for _, n := range s.violated {
		violations += n
	}
	row("violations", "%d", violations)
	for _, kind := range slices.Sorted(maps.Keys(s.violated)) {
		row("of these, "+kind, "%d", s.violated[kind])
	}
	fmt.Fprintf(&b, "\n| fault | times |\n| --- | --- |\n")
	for _, kind := range slices.Sorted(maps.Keys(s.faults)) {
		row(kind, "%d", s.faults[kind])
	}
	fmt.Fprintf(&b, "\n%s, %s, commit %s.\n", runtime.Version(), time.Now().Format(time.DateOnly), results.Commit())
	return b.String()
}

func TestFigures(t *testing.T) {
	s := newTotals()
	r := &Report{
		Seed: 7, Faulted: 90 * time.Minute, Faults: map[string]int{"kill": 2, "power cut of all": 3}, Ops: map[history.Outcome]int{history.Unknown: 4},
		Checked: 55, ByType: map[string]int{"sessions": 5}, Looked: map[string]int{"sums": 3}, Violations: []check.Violation{{Kind: check.KindLost}},
	}
	s.add(r, &check.Sampled{Operations: 9})
	s.add(&Report{Seed: 8, Checked: 1}, &check.Sampled{})
	s.used = 3 * time.Minute
	text := s.page()
	for _, want := range []string{
		"| seeds | 2, from 7 to 8 |", "| 1.5 hours |", "(goal: 100) | 30: missed |", "power cuts | 3 |", "| 0; 0; 4 |", "models, by the logs | 56;", "| sums | 3 |", "| of both, operations on sessions | 5 |", "| violations | 1 |", "| of these, lost | 1 |", "| kill | 2 |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %q:\n%s", want, text)
		}
	}
}
