package chaos

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/holdfastdb/holdfast/cluster-tests/results"
)

// lanTiming is the heartbeat of the profile for one data centre.
const lanTiming = 300 * time.Millisecond

// figures are what histories showed, by kind: for each, the sums of the last run that had it.
type figures map[string]*tally

// tally sums histories of one kind up.
type tally struct {
	Date, Commit, Machine, Network string

	Heartbeat time.Duration

	Histories, Faults, Kills, LeaderKills                          int
	Definite, Unknown, Failed, Dropped                             int
	Replayed, Sampled, Unsampled, Entries, Sums, Elected, Received int
	Violations                                                     int
	Healing                                                        time.Duration // the longest

	Gaps   map[string][]time.Duration // by kind of fault
	Looked map[string]int             // what the data types' own checks looked at
	ByType map[string]int             // operations that were compared with the models, by data type
}

func newTally() *tally {
	return &tally{
		Date: time.Now().UTC().Format(time.DateOnly), Commit: results.Commit(), Gaps: make(map[string][]time.Duration), Looked: make(map[string]int), ByType: make(map[string]int),
		Machine: fmt.Sprintf("%d CPUs, %s", runtime.NumCPU(), runtime.Version()),
	}
}

func (y *tally) add(r *Result) {
	y.Network, y.Heartbeat = cmp.Or(r.Network, y.Network), r.Heartbeat
	y.Histories++
	y.Faults += len(r.Faults)
	y.Definite += r.Definite
	y.Unknown += r.Unknown
	y.Failed += r.Failed
	y.Dropped += r.Dropped
	y.Replayed += r.Replayed
	y.Sampled += r.Sampled
	y.Unsampled += r.Unsampled
	y.Entries += r.Entries
	y.Sums += r.Sums
	y.Elected += r.Elections
	y.Received += r.Received
	for what, n := range r.Looked {
		y.Looked[what] += n
	}
	for name, n := range r.ByType {
		y.ByType[name] += n
	}
	y.Violations += len(r.Violations)
	for kind, gaps := range r.Gaps {
		y.Gaps[kind] = append(y.Gaps[kind], gaps...)
	}
	for _, f := range r.Faults {
		y.Healing = max(y.Healing, f.Healing())
		switch f.Kind {
		case "kill-all":
			y.Kills += r.Nodes
		case "kill-leader", "kill-follower", "out-of-memory", "wipe", "fall-behind", "join":
			y.Kills++
		default:
			continue
		}
		if len(f.Led) > 0 {
			y.LeaderKills++
		}
	}
}

// sum adds up what all kinds of histories showed.
func (f figures) sum() (all tally) {
	all.Looked, all.ByType = make(map[string]int), make(map[string]int)
	for _, y := range f {
		all.Histories += y.Histories
		all.Faults += y.Faults
		all.Kills += y.Kills
		all.LeaderKills += y.LeaderKills
		all.Definite += y.Definite
		all.Unknown += y.Unknown
		all.Failed += y.Failed
		all.Dropped += y.Dropped
		all.Replayed += y.Replayed
		all.Sampled += y.Sampled
		all.Unsampled += y.Unsampled
		all.Entries += y.Entries
		all.Sums += y.Sums
		all.Elected += y.Elected
		all.Received += y.Received
		for what, n := range y.Looked {
			all.Looked[what] += n
		}
		for name, n := range y.ByType {
			all.ByType[name] += n
		}
		all.Violations += y.Violations
		all.Healing = max(all.Healing, y.Healing)
	}
	return all
}

// line is a line of a table.
func line(b *strings.Builder, cells ...any) {
	for _, c := range cells {
		fmt.Fprintf(b, "| %v ", c)
	}
	b.WriteString("|\n")
}

func (y *tally) line(b *strings.Builder, name, from string) {
	line(b, name, y.Histories, y.Faults, y.Elected, y.Definite, y.Unknown, y.Failed, y.Dropped, y.Replayed, y.Sampled, y.Unsampled, y.Sums, y.Entries,
		y.Healing.Round(10*time.Millisecond), y.Violations, from)
}

// page is the section of the page.
func (f figures) page() string {
	var b strings.Builder
	head := []any{
		"histories of", "histories", "faults", "elections", "operations", "unknown outcome", "failed", "patient, not served", "replayed", "by porcupine", "not sampled",
		"states compared", "log entries compared", "well again, longest", "violations", "measured",
	}
	line(&b, head...)
	line(&b, slices.Repeat([]any{"---"}, len(head))...)
	var machines []string
	for _, name := range slices.Sorted(maps.Keys(f)) {
		y := f[name]
		y.line(&b, name, y.Date+", "+y.Commit)
		if m := y.Machine + "; " + y.Network; !slices.Contains(machines, m) {
			machines = append(machines, m)
		}
	}
	all := f.sum()
	all.line(&b, "**all**", "")
	f.gaps(&b)
	fmt.Fprintf(&b, "\n%d processes were killed with SIGKILL; %d times the victims led. Replicas received %d whole states. On %s.\n",
		all.Kills, all.LeaderKills, all.Received, strings.Join(machines, " and "))
	for _, name := range slices.Sorted(maps.Keys(all.ByType)) {
		fmt.Fprintf(&b, "Compared with the models: %d operations on %s.\n", all.ByType[name], name)
	}
	for _, what := range slices.Sorted(maps.Keys(all.Looked)) {
		fmt.Fprintf(&b, "Judged beside: %d %s.\n", all.Looked[what], what)
	}
	missing := slices.DeleteFunc(allKinds(), func(kind string) bool { return f[kind] != nil })
	if len(missing) > 0 {
		fmt.Fprintf(&b, "Not measured yet: %s.\n", strings.Join(missing, ", "))
	}
	return b.String()
}

// The kinds of histories beside those of one kind of fault.
const (
	mixed = "mixed"
	// lan kills and moves leaders under the timing for one data centre.
	lan = "lan"
	// boltdb kills nodes whose logs are BoltDB's.
	boltdb = "boltdb"
)

// allKinds are one history of each kind of fault, and the others.
func allKinds() []string {
	var kinds []string
	for _, n := range nemeses {
		kinds = append(kinds, n.name)
	}
	return append(kinds, lan, boltdb, mixed)
}

// goals bound how long a shard takes no write, by kind of fault and heartbeat. They are for the 99th percentile.
var goals = map[string]map[time.Duration]time.Duration{
	"kill-leader": {0: 4 * time.Second, lanTiming: 1500 * time.Millisecond},
	"transfer":    {0: 250 * time.Millisecond, lanTiming: 250 * time.Millisecond},
}

// enough samples make a 99th percentile. Of fewer, the longest counts.
const enough = 100

func (f figures) gaps(b *strings.Builder) {
	b.WriteString("\n")
	line(b, "a shard takes no write", "`--heartbeat`", "times", "p50", "p99", "longest", "goal")
	line(b, "---", "---", "---", "---", "---", "---", "---")
	for _, n := range nemeses {
		for _, heartbeat := range []time.Duration{0, lanTiming} {
			var gaps []time.Duration
			for _, name := range slices.Sorted(maps.Keys(f)) {
				if f[name].Heartbeat == heartbeat {
					gaps = append(gaps, f[name].Gaps[n.name]...)
				}
			}
			if len(gaps) == 0 {
				continue
			}
			p99, judged := "too few", slices.Max(gaps)
			if len(gaps) >= enough {
				judged = quantile(gaps, 0.99)
				p99 = judged.Round(time.Millisecond).String()
			}
			goal := ""
			if bound := goals[n.name][heartbeat]; bound > 0 {
				goal = fmt.Sprintf("p99 ≤ %v: %s", bound, verdict(judged <= bound))
			}
			line(b, n.name, cmp.Or(heartbeat, time.Second), len(gaps), quantile(gaps, 0.5).Round(time.Millisecond), p99,
				slices.Max(gaps).Round(time.Millisecond), goal)
		}
	}
}

// publish writes the figures of a kind of history into a page, in place of those of an earlier run, and all into the file
// beside the page from which it is made.
func publish(page, kind string, y *tally) error {
	data := strings.TrimSuffix(page, ".md") + ".json"
	all := make(figures)
	old, err := os.ReadFile(data)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if len(old) > 0 {
		if err := json.Unmarshal(old, &all); err != nil {
			return fmt.Errorf("%s: %w", data, err)
		}
	}
	all[kind] = y
	var b bytes.Buffer
	for i, name := range slices.Sorted(maps.Keys(all)) { // a kind a line, for those who compare two
		text, err := json.Marshal(all[name])
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s\n%q: %s", map[bool]string{true: "{", false: ","}[i == 0], name, text)
	}
	b.WriteString("\n}\n")
	return errors.Join(os.WriteFile(data, b.Bytes(), 0o644), results.Write(page, "chaos", all.page()))
}

// verdict tells whether a goal was met.
func verdict(met bool) string {
	if met {
		return "met"
	}
	return "missed"
}
