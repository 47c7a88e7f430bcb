package chaos

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/holdfastdb/holdfast/cluster-tests/results"
	"github.com/holdfastdb/holdfast/storage/plant"
)

// oracle is a check, known by a text that its violations have.
type oracle struct{ name, says string }

var (
	byCounts    = oracle{"counts", ", but it was at least"}
	byPorcupine = oracle{"porcupine", "have no order that explains them"}
	byReplay    = oracle{"replay", "the model says"}
	byLogs      = oracle{"logs", "it was acknowledged, and the log does not have it"}
	byStates    = oracle{"comparison of states", "is not that of the other replicas"}
)

// plantedBugs are bugs, each with the checks that all must find it.
var plantedBugs = []struct {
	bug   plant.Bug
	name  string
	kinds []string
	by    []oracle
}{
	{plant.SkipDedup, "a repeated frame is executed again", []string{"kill-leader", "vanish-leader", "kill-leader", "kill-leader", "vanish-leader", "kill-leader"}, []oracle{byCounts, byPorcupine, byReplay}},
	{plant.AckBeforeQuorum, "what no follower has yet is acknowledged", []string{"partition-leader", "vanish-leader"}, []oracle{byCounts, byPorcupine, byLogs}},
	{plant.LocalClock, "a state machine asks the clock", []string{"kill-follower"}, []oracle{byStates}},
}

// Checks that never failed prove nothing: real processes with a bug are found out, too.
func TestPlantedBugs(t *testing.T) {
	s := readSettings(t)
	if s.minutes == 0 || !s.wants(planted) {
		t.Skip("builds the program again for each bug, four minutes: make chaos runs it, alone with CHAOS_KINDS=planted")
	}
	var page strings.Builder
	line(&page, "bug", "faults", "violations", "found by, and how often")
	line(&page, "---", "---", "---", "---")
	for i, b := range plantedBugs {
		t.Run(strings.ReplaceAll(b.name, " ", "-"), func(t *testing.T) {
			res := Run(t, Plan{
				Name: planted, Kinds: b.kinds, Each: true, Nodes: 3, Seed: s.seed + uint64(i), Heartbeat: lanTiming, Bug: b.bug,
				Dir: artefacts(t, s.dir, fmt.Sprintf("planted-%d", i)),
			})
			var found []string
			for _, o := range b.by {
				n := 0
				for _, v := range res.Violations {
					if !strings.Contains(v, o.says) {
						continue
					}
					if n++; n == 1 {
						t.Logf("found by %s: %.300s", o.name, v)
					}
				}
				if n == 0 {
					t.Errorf("none of %d violations is of the %s: %.2000s", len(res.Violations), o.name, res.Violations)
				}
				found = append(found, fmt.Sprintf("%s: %d", o.name, n))
			}
			line(&page, b.name, strings.Join(b.kinds, ", "), len(res.Violations), strings.Join(found, ", "))
		})
	}
	if s.out != "" {
		fmt.Fprintf(&page, "\n%s, commit %s.\n", time.Now().UTC().Format(time.DateOnly), results.Commit())
		if err := results.Write(s.out, planted, page.String()); err != nil {
			t.Error(err)
		}
	}
}
