package chaos

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfastdb/holdfast/cluster-tests/history"
)

// Result is what one history showed.
type Result struct {
	Name  string `json:"name"`
	Nodes int    `json:"nodes"`
	Seed  uint64 `json:"seed"`
	// Heartbeat is the nodes' setting, 0 for the default.
	Heartbeat time.Duration `json:"heartbeat,omitempty"`
	Network   string        `json:"network"`
	Length    time.Duration `json:"length"`

	// Operations by what their callers were told.
	Definite int `json:"definite"`
	Unknown  int `json:"unknown"`
	Failed   int `json:"failed"`
	// Dropped are those of unknown outcome or failed whose clients were patient, Excused those of them that met a fault
	// that leaves no majority.
	Dropped int `json:"dropped"`
	Excused int `json:"excused"`
	// Errors are the texts of those that failed or are unknown, with how many there were of each.
	Errors map[string]int `json:"errors,omitempty"`

	Faults []Fault  `json:"faults"`
	Notes  []string `json:"notes,omitempty"`
	// Gaps are, by kind of fault, how long shards took no write whose leader was hit or changed on purpose.
	Gaps      map[string][]time.Duration `json:"gaps"`
	Elections int                        `json:"elections"`
	// Entries of all replicas' logs were compared, and Sums times the states of all replicas of a shard. Replayed operations
	// were compared with what the logs make of them, sampled ones by porcupine, which could have been given the Unsampled too.
	Entries   int `json:"entries"`
	Sums      int `json:"sums"`
	Replayed  int `json:"replayed"`
	Unclear   int `json:"unclear"` // of the replayed
	Sampled   int `json:"sampled"`
	Unsampled int `json:"unsampled"`
	// Received are the whole states that replicas were sent because the logs did not have what they lacked any more.
	Received int `json:"received,omitempty"`

	Violations []string `json:"violations"`

	// Lent are decisions of holders that were compared with what they had been lent, Looked what else the data types' own
	// checks looked at.
	Lent   int            `json:"lent"`
	ByType map[string]int `json:"by_type,omitempty"` // what of Replayed and Lent was about each data type
	Looked map[string]int `json:"looked"`
}

// minPerSecond is how many operations must succeed for a history to mean something.
const minPerSecond = 30

// newResult is a result before anything was judged.
func (r *run) newResult() *Result {
	return &Result{
		Name: r.plan.Name, Nodes: r.plan.Nodes, Seed: r.plan.Seed, Heartbeat: r.plan.Heartbeat,
		Errors: make(map[string]int), Faults: []Fault{}, Gaps: make(map[string][]time.Duration),
	}
}

// unbegun is the result of a history that was none.
func (r *run) unbegun(err error) *Result {
	res := r.newResult()
	res.Violations = []string{fmt.Sprintf("the history did not begin: %v", err)}
	if r.c == nil {
		return res
	}
	for _, n := range r.c.Nodes {
		res.Violations = append(res.Violations, n.Surprises()...)
	}
	return res
}

// finish checks the history, and keeps it.
func (r *run) finish(within time.Duration) *Result {
	settled := r.lastLook(within)
	ops := r.w.history.Ops()
	res := r.newResult()
	res.Network, res.Length, res.Faults, res.Notes, res.Received = r.c.net.String(), r.w.now(), r.faults, r.notes, r.received
	for _, o := range ops {
		switch o.Outcome {
		case history.Definite:
			res.Definite++
		case history.Unknown:
			res.Unknown++
		case history.Failed:
			res.Failed++
		}
		if o.Error != "" {
			res.Errors[o.Error]++
			if strings.HasPrefix(o.Process, hasty) || r.w.mayFail(&o) {
				continue
			}
			res.Dropped++
			if excused(&o, r.faults) {
				res.Excused++
			}
		}
	}
	res.Gaps = r.gaps(ops)
	if len(r.faults) == 0 {
		r.violate("no fault was applied")
	}
	if least := int(minPerSecond * res.Length.Seconds()); res.Definite < least {
		r.violate("only %d operations succeeded, a history needs %d", res.Definite, least)
	}
	if n := res.Dropped - res.Excused; n > 0 {
		r.violate("%d operations did not succeed, though a majority was there all the time and their clients patient: %v", n, res.Errors)
	}
	for _, n := range r.c.Nodes {
		for _, s := range n.Surprises() {
			r.violate("%s", s)
		}
	}
	r.judge(res, ops, r.dumpLogs(), settled)
	changes, err := r.leaderChanges()
	if err != nil {
		r.violate("read the nodes' logs: %v", err)
	}
	res.Elections = len(changes)
	res.Violations = append([]string{}, r.violations...)
	if err := r.keep(res, ops, changes); err != nil {
		r.t.Errorf("keep the history: %v", err)
	}
	r.t.Logf("%d operations, %d of unknown outcome, %d failed, %d of them of patient clients; %d faults, %d elections; checked: %d operations by replay, %d by porcupine, %d log entries",
		res.Definite, res.Unknown, res.Failed, res.Dropped, len(res.Faults), res.Elections, res.Replayed, res.Sampled, res.Entries)
	for kind, gaps := range res.Gaps {
		r.t.Logf("shards took no write at %s, %s", kind, spread(gaps))
	}
	return res
}

// patience is how long an SDK tries an operation if nothing else is said.
const patience = 10 * time.Second

// excused tells whether an operation did not succeed in a time in which there was no majority.
func excused(o *history.Op, faults []Fault) bool {
	end := min(o.Return, o.Call+patience+time.Second) // that of an unknown one is the end of the history
	return slices.ContainsFunc(faults, func(f Fault) bool {
		return !f.Serving && o.Call <= f.Recovered && end >= f.From
	})
}

// complain fails the test for what was violated.
func (res *Result) complain(t testing.TB) {
	t.Helper()
	for i, v := range res.Violations {
		if i == 20 {
			t.Errorf("%d violations in all, see result.json", len(res.Violations))
			return
		}
		t.Errorf("violation: %s", v)
	}
}

// lastLook ends the history with a look at what the cluster has of each data type, and returns what every replica had then.
// If the cluster does not become well, it is judged by what there is.
func (r *run) lastLook(within time.Duration) (settled map[uint32]uint64) {
	if err := r.recover(within); err != nil {
		r.violate("at the end: %v", err)
		return nil
	}
	for _, part := range r.w.parts {
		r.judged.Add(part.End(context.Background(), r.w.process("last", r.w.clients[0], r.rng)))
	}
	settled, err := r.settle()
	if err != nil {
		r.violate("at the end: %v", err)
		return settled
	}
	r.compareStates()
	return settled
}

// strikesWithin is how soon after its begin a fault stops writes, if it does; movesWithin the same for a leader that is
// changed on purpose.
const (
	strikesWithin = 1500 * time.Millisecond
	movesWithin   = 500 * time.Millisecond
)

// gaps measures, by kind of fault, the longest pause between two writes of a shard that began when the fault did.
func (r *run) gaps(ops []history.Op) map[string][]time.Duration {
	writes := make(map[uint32][]time.Duration) // when they were acknowledged, by shard
	for _, o := range ops {
		if o.Trace.Shard != 0 && !o.Trace.Query && o.Outcome == history.Definite {
			writes[o.Trace.Shard] = append(writes[o.Trace.Shard], o.Return)
		}
	}
	for _, times := range writes {
		slices.Sort(times)
	}
	gaps := make(map[string][]time.Duration)
	measure := func(kind string, shard uint32, at, within time.Duration) {
		times := writes[shard]
		i, _ := slices.BinarySearch(times, at)
		longest := time.Duration(-1)
		for i = max(1, i); i < len(times) && times[i-1] <= at+within; i++ {
			longest = max(longest, times[i]-times[i-1])
		}
		if longest >= 0 {
			gaps[kind] = append(gaps[kind], longest)
		}
	}
	for _, f := range r.faults {
		for _, shard := range f.Led {
			measure(f.Kind, shard, f.From, strikesWithin)
		}
	}
	for _, h := range r.handovers {
		measure(h.kind, h.shard, h.at, movesWithin)
	}
	return gaps
}

// quantile is a value that the share q of all does not exceed.
func quantile(all []time.Duration, q float64) time.Duration {
	if len(all) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(all))
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

// spread is what people want to know of many durations.
func spread(all []time.Duration) string {
	return fmt.Sprintf("%d times: p50 %v, p99 %v, max %v", len(all), quantile(all, 0.5).Round(time.Millisecond),
		quantile(all, 0.99).Round(time.Millisecond), slices.Max(all).Round(time.Millisecond))
}

// keep writes the history for people and for programs.
func (r *run) keep(res *Result, ops []history.Op, changes []leaderChange) error {
	b, err := json.MarshalIndent(res, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(r.artefact("result.json"), b, 0o644); err != nil {
		return err
	}
	if err := history.Save(r.c.opts.Dir, ops); err != nil {
		return err
	}
	return writeTimeline(r.artefact("timeline.html"), res, ops, changes)
}
