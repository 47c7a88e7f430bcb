package chaos

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
)

// report is what many histories showed, for the page of figures.
func report(results []*Result) string {
	var b strings.Builder
	row := func(cells ...any) {
		for _, c := range cells {
			fmt.Fprintf(&b, "| %v ", c)
		}
		b.WriteString("|\n")
	}
	row("histories of", "histories", "faults", "operations", "unknown outcome", "failed", "patient, not served", "replayed", "by porcupine", "log entries compared", "well again, longest", "violations")
	row("---", "---", "---", "---", "---", "---", "---", "---", "---", "---", "---", "---")
	var names []string
	for _, r := range results {
		if !slices.Contains(names, r.Name) {
			names = append(names, r.Name)
		}
	}
	slices.Sort(names)
	var all tally
	for _, name := range names {
		var sum tally
		for _, r := range results {
			if r.Name == name {
				sum.add(r)
			}
		}
		row(name, sum.histories, sum.faults, sum.definite, sum.unknown, sum.failed, sum.dropped, sum.replayed, sum.sampled, sum.entries, sum.healing.Round(10*time.Millisecond), sum.violations)
	}
	for _, r := range results {
		all.add(r)
	}
	row("**all**", all.histories, all.faults, all.definite, all.unknown, all.failed, all.dropped, all.replayed, all.sampled, all.entries, all.healing.Round(10*time.Millisecond), all.violations)

	b.WriteString("\n")
	row("a shard takes no write", "`--heartbeat`", "times", "p50", "p99", "longest")
	row("---", "---", "---", "---", "---", "---")
	for _, n := range nemeses {
		for _, heartbeat := range []time.Duration{0, lanTiming} {
			var gaps []time.Duration
			for _, r := range results {
				if r.Heartbeat == heartbeat {
					gaps = append(gaps, r.Gaps[n.name]...)
				}
			}
			if len(gaps) > 0 {
				row(n.name, cmp.Or(heartbeat, time.Second), len(gaps), quantile(gaps, 0.5).Round(time.Millisecond),
					quantile(gaps, 0.99).Round(time.Millisecond), slices.Max(gaps).Round(time.Millisecond))
			}
		}
	}
	fmt.Fprintf(&b, "\n%d processes were killed with SIGKILL, %d of them while they led. %d CPUs, %s, %s; %s.\n",
		all.kills, all.leaderKills, runtime.NumCPU(), runtime.Version(), time.Now().UTC().Format("2006-01-02"), all.network)
	return b.String()
}

// lanTiming is the heartbeat of the profile for one data centre.
const lanTiming = 300 * time.Millisecond

// tally sums histories up.
type tally struct {
	histories, faults, definite, unknown, failed, dropped, replayed, sampled, entries, violations, kills, leaderKills int
	healing                                                                                                           time.Duration
	network                                                                                                           string
}

func (y *tally) add(r *Result) {
	y.histories++
	y.network = cmp.Or(y.network, r.Network)
	y.faults += len(r.Faults)
	y.definite += r.Definite
	y.unknown += r.Unknown
	y.failed += r.Failed
	y.dropped += r.Dropped
	y.replayed += r.Replayed
	y.sampled += r.Sampled
	y.entries += r.Entries
	y.violations += len(r.Violations)
	for _, f := range r.Faults {
		y.healing = max(y.healing, f.Healing())
		switch f.Kind {
		case "kill-all":
			y.kills += r.Nodes
		case "kill-leader", "kill-follower", "wipe":
			y.kills++
		default:
			continue
		}
		if len(f.Led) > 0 {
			y.leaderKills++
		}
	}
}

// verdict tells whether a goal was met.
func verdict(met bool) string {
	if met {
		return "met"
	}
	return "missed"
}

// commit names what was tested, as far as git can tell. A + says that there were changes beside it.
var commit = sync.OnceValue(func() string {
	head, err := exec.Command("git", "rev-parse", "--short", "HEAD").Output()
	if err != nil {
		return "unknown"
	}
	name := strings.TrimSpace(string(head))
	if changes, err := exec.Command("git", "status", "--porcelain", "--untracked-files=no", "--", ":/", ":!/docs").Output(); err != nil || len(changes) > 0 {
		name += "+"
	}
	return name
})

// writeSection replaces what stands between the marks of a section of a page, or appends it.
func writeSection(path, name, text string) error {
	begin, end := "<!-- measured: "+name+" -->\n", "<!-- end: "+name+" -->\n"
	section := begin + text + end
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	doc := string(old)
	i, j := strings.Index(doc, begin), strings.Index(doc, end)
	if i < 0 || j < i {
		doc += section
	} else {
		doc = doc[:i] + section + doc[j+len(end):]
	}
	return os.WriteFile(path, []byte(doc), 0o644)
}
