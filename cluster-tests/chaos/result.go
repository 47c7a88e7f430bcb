package chaos

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"sort"
	"time"

	"github.com/holdfastdb/holdfast/client"
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
	// Errors are the texts of those that failed or are unknown, with how many there were of each.
	Errors map[string]int `json:"errors,omitempty"`

	Faults []Fault  `json:"faults"`
	Notes  []string `json:"notes,omitempty"`
	// LeaderGaps are how long shards whose leader was killed took no write, HandoverGaps the same for planned changes.
	LeaderGaps   []time.Duration `json:"leader_gaps,omitempty"`
	HandoverGaps []time.Duration `json:"handover_gaps,omitempty"`
	Elections    int             `json:"elections"`
	// Entries of all replicas' logs were compared.
	Entries    int      `json:"entries"`
	Violations []string `json:"violations"`
}

// minPerSecond is how many operations must succeed for a history to mean something.
const minPerSecond = 30

// finish checks the history, and keeps it.
func (r *run) finish(serving bool) *Result {
	r.t.Helper()
	r.recover(60 * time.Second)
	r.lookAtCounters()
	settled := r.settle()
	ops := r.w.history.Ops()
	res := &Result{
		Name: r.plan.Name, Nodes: r.plan.Nodes, Seed: r.plan.Seed, Heartbeat: r.plan.Heartbeat, Network: r.c.net.String(), Length: r.w.now(),
		Errors: make(map[string]int), Faults: r.faults, Notes: r.notes, Violations: []string{},
	}
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
		}
	}
	res.LeaderGaps, res.HandoverGaps = r.gaps(ops)
	violate := func(format string, args ...any) {
		res.Violations = append(res.Violations, fmt.Sprintf(format, args...))
	}
	if len(r.faults) == 0 {
		violate("no fault was applied")
	}
	if least := int(minPerSecond * res.Length.Seconds()); res.Definite < least {
		violate("only %d operations succeeded, a history needs %d", res.Definite, least)
	}
	if serving && res.Failed > 0 {
		violate("%d operations failed, though a majority was there all the time: %v", res.Failed, res.Errors)
	}
	res.Violations = append(res.Violations, checkCounters(ops)...)
	for _, n := range r.c.Nodes {
		for _, s := range n.Surprises() {
			violate("%s", s)
		}
	}
	logs, problems := r.dumpLogs()
	res.Violations = append(res.Violations, problems...)
	res.Violations = append(res.Violations, checkReplicas(logs, settled)...)
	for _, l := range logs {
		res.Entries += len(l.entries)
	}
	changes, err := r.leaderChanges()
	if err != nil {
		r.t.Errorf("read the nodes' logs: %v", err)
	}
	res.Elections = len(changes)
	if err := r.keep(res, ops, changes); err != nil {
		r.t.Errorf("keep the history: %v", err)
	}
	r.t.Logf("%d operations, %d of unknown outcome, %d failed; %d faults, %d elections, %d log entries; leader gaps %v, handovers %v",
		res.Definite, res.Unknown, res.Failed, len(res.Faults), res.Elections, res.Entries, spread(res.LeaderGaps), spread(res.HandoverGaps))
	for _, v := range res.Violations {
		r.t.Errorf("violation: %s", v)
	}
	return res
}

// lookAtCounters ends the history with a look at every counter.
func (r *run) lookAtCounters() {
	for shard, keys := range r.w.keys {
		for _, key := range keys {
			if _, err := r.w.do(r.w.clients[0], "last", input{read, shard, client.Request{Client: key, Resource: counted}}); err != nil {
				r.t.Errorf("the last look at %s: %v", key, err)
			}
		}
	}
}

// gaps measures how long each write stopped that a killed or a planned change of the leader interrupted.
func (r *run) gaps(ops []history.Op) (killed, planned []time.Duration) {
	writes := make(map[uint32][]time.Duration) // when they were acknowledged, by shard
	for _, o := range ops {
		if in := o.Input.(input); in.Kind == write && o.Outcome == history.Definite {
			writes[in.Shard] = append(writes[in.Shard], o.Return)
		}
	}
	for _, times := range writes {
		slices.Sort(times)
	}
	// gap is the longest pause that begins in the second before or the five after a moment.
	gap := func(shard uint32, at time.Duration) (longest time.Duration, ok bool) {
		times := writes[shard]
		i := sort.Search(len(times), func(i int) bool { return times[i] >= at })
		for i = max(1, i); i < len(times) && times[i-1] <= at+handoverWithin; i++ {
			longest, ok = max(longest, times[i]-times[i-1]), true
		}
		return longest, ok
	}
	for _, f := range r.faults {
		if f.Kind != "kill-leader" {
			continue
		}
		for _, shard := range f.Led {
			if d, ok := gap(shard, f.From); ok {
				killed = append(killed, d)
			}
		}
	}
	for _, h := range r.handovers {
		if d, ok := gap(h.shard, h.at); ok {
			planned = append(planned, d)
		}
	}
	return killed, planned
}

// handoverWithin is how soon after its order a change of the leader is looked for.
const handoverWithin = time.Second

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
	if len(all) == 0 {
		return "none"
	}
	return fmt.Sprintf("%d: p50 %v, p99 %v, max %v", len(all), quantile(all, 0.5).Round(time.Millisecond),
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
	if err := r.w.history.Save(r.c.opts.Dir); err != nil {
		return err
	}
	return writeTimeline(r.artefact("timeline.html"), res, ops, changes)
}
