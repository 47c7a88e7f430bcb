package chaos

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/holdfastdb/holdfast/cluster-tests/models"
)

// A history that cannot begin is one with a violation, and not one that nobody hears of.
func TestAHistoryThatDoesNotBeginHasAResult(t *testing.T) {
	res := Run(t, Plan{Name: "none", Kinds: []string{"earthquake"}, Nodes: 3})
	if len(res.Violations) != 1 || !strings.Contains(res.Violations[0], `no fault is named "earthquake"`) {
		t.Errorf("got %q", res.Violations)
	}
	y := newTally()
	y.add(res)
	if page := (figures{"none": y}).page(); !strings.Contains(page, "| none | 1 |") || y.Violations != 1 {
		t.Errorf("not on the page:\n%s", page)
	}
}

// One that cannot go on is judged by what there is, too.
func TestAHistoryThatBreaksOffIsJudged(t *testing.T) {
	r := &run{t: t, plan: Plan{Name: "broken off", Nodes: 3, Heartbeat: lanTiming, Length: time.Second}, rng: rand.New(rand.NewPCG(1, 0)), types: models.Types()}
	if err := r.begin(); err != nil {
		t.Fatal(err)
	}
	r.list = []nemesis{{name: "no end", hold: 300 * time.Millisecond, serving: true, strike: func(r *run) (func() error, error) {
		r.describe("n2 goes for good", r.c.Nodes[1])
		r.c.Nodes[1].Kill()
		return func() error { return errors.New("it is not found") }, nil
	}}}
	res := r.history()
	if len(res.Violations) == 0 || res.Violations[0] != "end of no end: it is not found" {
		t.Errorf("got %q", res.Violations)
	}
	if res.Definite == 0 || res.Entries == 0 || res.Replayed == 0 || res.Sampled == 0 {
		t.Errorf("nothing was judged: %+v", res)
	}
}
