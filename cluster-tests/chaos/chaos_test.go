package chaos

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// settings come from the environment, as make chaos sets it.
type settings struct {
	minutes float64
	kinds   []string
	nodes   int
	seed    uint64
	length  time.Duration // of a history
	dir     string        // keeps artefacts of every history
	out     string        // the page in which the figures are replaced
}

func readSettings(t *testing.T) settings {
	t.Helper()
	number := func(name string) float64 {
		text := os.Getenv(name)
		if text == "" {
			return 0
		}
		n, err := strconv.ParseFloat(text, 64)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return n
	}
	s := settings{
		minutes: number("CHAOS_MINUTES"), length: time.Duration(number("CHAOS_SECONDS") * float64(time.Second)), nodes: int(number("CHAOS_NODES")), seed: uint64(number("CHAOS_SEED")),
		dir: os.Getenv("CHAOS_DIR"), out: os.Getenv("CHAOS_OUT"),
	}
	if kinds := os.Getenv("CHAOS_KINDS"); kinds != "" {
		s.kinds = strings.Split(kinds, ",")
		for _, kind := range s.kinds {
			if kind != overloaded && kind != planted && !slices.Contains(allKinds(), kind) {
				t.Fatalf("CHAOS_KINDS: there is no %q, only %s, %s and %s", kind, strings.Join(allKinds(), ", "), planted, overloaded)
			}
		}
	}
	s.length = cmp.Or(s.length, historyLength)
	if s.seed == 0 {
		s.seed = uint64(time.Now().UnixNano()) % 1_000_000
	}
	return s
}

// Tests of their own, beside the histories.
const (
	overloaded = "overload"
	planted    = "planted"
)

// wants tells whether a kind was asked for.
func (s *settings) wants(kind string) bool {
	return len(s.kinds) == 0 || slices.Contains(s.kinds, kind)
}

const historyLength = 45 * time.Second

// plan turns a kind of history into a plan.
func (s *settings) plan(kind string, nodes int) *Plan {
	p := &Plan{Name: kind, Kinds: []string{kind}, Nodes: nodes, Length: s.length}
	switch kind {
	case mixed:
		p.Kinds = nil
		for _, n := range nemeses {
			if !n.once && !n.behind && !n.grows && (n.needs == nil || n.needs() == nil) {
				p.Kinds = append(p.Kinds, n.name)
			}
		}
	case boltdb:
		p.Kinds, p.RaftLog = []string{"kill-leader", "kill-follower", "kill-all", "rolling-restart"}, "boltdb"
	case "fall-behind": // and then those lead who have received the state
		p.Kinds, p.Each, p.ShortLogs = []string{"fall-behind", "kill-leader", "kill-leader"}, true, true
	case "join": // and then those lead who have joined
		p.Kinds, p.Each = append(slices.Repeat([]string{"join"}, nodes-1), "kill-leader", "kill-leader"), true
	case lan:
		p.Kinds, p.Heartbeat = []string{"kill-leader", "transfer"}, lanTiming
	}
	return p
}

// missing tells what this machine lacks for a plan, nil if it has all.
func (p *Plan) missing() error {
	list, err := nemesesOf(p.Kinds)
	if err != nil {
		return nil //nolint:nilerr // the history will tell
	}
	for _, n := range list {
		if n.needs != nil {
			if err := n.needs(); err != nil {
				return err
			}
		}
	}
	return nil
}

// Whatever happens to processes, networks and disks, nothing that was acknowledged is lost or doubled, no answer is older
// than another that was given before it was asked for, and the cluster becomes well again by itself.
func TestChaos(t *testing.T) {
	s := readSettings(t)
	if s.minutes == 0 {
		t.Run("short", func(t *testing.T) {
			Run(t, Plan{
				Name: "short", Kinds: []string{"kill-leader", "partition-leader", "kill-all"}, Each: true, Bench: true,
				Nodes: cmp.Or(s.nodes, 3), Seed: s.seed, Heartbeat: lanTiming, Dir: artefacts(t, s.dir, "short"),
			}).complain(t)
		})
		return
	}
	kinds := slices.DeleteFunc(allKinds(), func(kind string) bool {
		if !s.wants(kind) {
			return true
		}
		err := s.plan(kind, 3).missing()
		if err != nil {
			t.Logf("no %s: %v", kind, err)
		}
		return err != nil
	})
	if len(kinds) == 0 {
		t.Skip("none of the kinds that were asked for")
	}
	deadline := time.Now().Add(time.Duration(s.minutes * float64(time.Minute)))
	sums := make(map[string]*tally)
	for i := 0; i < len(kinds) || time.Now().Before(deadline); i++ { // each at least once
		// Every other kind has five nodes, and in the next round the others.
		p := s.plan(kinds[i%len(kinds)], cmp.Or(s.nodes, []int{3, 5}[(i+i/len(kinds)*(len(kinds)+1))%2]))
		p.Seed = s.seed + uint64(i)
		name := fmt.Sprintf("%03d-%s-%d", i, p.Name, p.Nodes)
		t.Logf("history %d, of %d kinds: %s, %d nodes; %v until the last one", i+1, len(kinds), p.Name, p.Nodes, max(0, time.Until(deadline)).Round(time.Second))
		t.Run(name, func(t *testing.T) {
			p.Dir = artefacts(t, s.dir, name)
			res := Run(t, *p)
			res.complain(t)
			if sums[p.Name] == nil {
				sums[p.Name] = newTally()
			}
			sums[p.Name].add(res)
			if s.out == "" {
				return
			}
			if err := publish(s.out, p.Name, sums[p.Name]); err != nil { // now: the next history may be interrupted
				t.Error(err)
			}
		})
	}
}

// artefacts makes the directory of a history.
func artefacts(t *testing.T, dir, name string) string {
	t.Helper()
	if dir == "" {
		return ""
	}
	dir = filepath.Join(dir, name)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}
