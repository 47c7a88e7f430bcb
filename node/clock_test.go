package node

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/holdfastdb/holdfast/fsm"
)

func TestAClockIsWrongIfMostAgreeOnAnother(t *testing.T) {
	const s, h = time.Second, time.Hour
	for name, tt := range map[string]struct {
		others []time.Duration
		ahead  time.Duration
		known  bool
	}{
		"alone":                    {nil, 0, false},
		"with two nobody can tell": {[]time.Duration{h}, 0, false},
		"two agree":                {[]time.Duration{s / 10}, 0, true},
		"all agree":                {[]time.Duration{s / 10, -s / 10}, 0, true},
		"another one is wrong":     {[]time.Duration{h, 0}, 0, true},
		"this one is behind":       {[]time.Duration{h, h + s/10}, h, true},
		"this one is ahead":        {[]time.Duration{-s, -s}, -s, true},
		"no two agree":             {[]time.Duration{h, -h}, 0, false},
		"two against two":          {[]time.Duration{h, h, 0}, 0, false},
		"three against two":        {[]time.Duration{h, h, h, 0}, h, true},
	} {
		t.Run(name, func(t *testing.T) {
			if got, known := clockError(tt.others); got != tt.ahead || known != tt.known {
				t.Errorf("the right time is %v ahead, known %t; want %v, %t", got, known, tt.ahead, tt.known)
			}
		})
	}
}

// The nodes never all distrust themselves: whoever has the median clock goes on.
func TestSomeClockIsAlwaysRight(t *testing.T) {
	steps := []time.Duration{0, 300 * time.Millisecond, 600 * time.Millisecond, 900 * time.Millisecond, time.Hour}
	for n := range 5 * 5 * 5 * 5 * 5 {
		clocks := make([]time.Duration, 5)
		for i, rest := 0, n; i < len(clocks); i, rest = i+1, rest/5 {
			clocks[i] = steps[rest%5]
		}
		median := slices.Sorted(slices.Values(clocks))[2]
		self := slices.Index(clocks, median)
		var others []time.Duration
		for i, c := range clocks {
			if i != self {
				others = append(others, c-median)
			}
		}
		if ahead, _ := clockError(others); ahead != 0 {
			t.Fatalf("of clocks at %v the median is taken for wrong, by %v", clocks, ahead)
		}
	}
}

// One node starts with its clock an hour off: it never moves shard time, leads nothing, and its callers are served.
func TestANodeWithAWrongClockLeadsNothingAndServes(t *testing.T) {
	for _, skew := range []time.Duration{time.Hour, -time.Hour} {
		t.Run(fmt.Sprint(skew), func(t *testing.T) {
			nodes := []*Node{startTestNode(t, "n1", t.TempDir(), "")}
			defer func() {
				for _, n := range nodes {
					if err := n.Close(); err != nil {
						t.Error(err)
					}
				}
			}()
			nodes = append(nodes, startTestNode(t, "n2", t.TempDir(), nodes[0].gossip.Addr()))
			wrong := startTestNode(t, "n3", t.TempDir(), nodes[0].gossip.Addr(), func(c *Config) {
				c.Clock = func() time.Time { return time.Now().Add(skew) }
			})
			nodes = append(nodes, wrong)
			eventually(t, "three voters everywhere", func() bool { return allVoters(nodes...) })
			eventually(t, "the node knows", wrong.clockWrong)
			for end := time.Now().Add(4 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
				for group, m := range wrong.members() {
					if m.IsLeader() {
						t.Fatalf("it leads group %d", group)
					}
				}
			}
			if _, err := wrong.Do(t.Context(), 1, []fsm.Call{takeCall('k', 10)}); err != nil {
				t.Errorf("a caller of the node: %v", err)
			}
			for group, m := range nodes[0].members() {
				if d := fsm.Time(time.Now().UnixMilli()) - m.Applied().Time; d < 0 || d > 60_000 {
					t.Errorf("the time of group %d is %d ms behind", group, d)
				}
			}
		})
	}
}

// A clock that was wrong stays so while nobody can tell: with one other node alive, it would lead again by it. It is right
// as soon as it is set right.
func TestAWrongClockStaysWrongUntilItIsSetOrCompared(t *testing.T) {
	var skew atomic.Int64
	n := &Node{cfg: Config{Clock: func() time.Time { return time.Now().Add(time.Duration(skew.Load())) }}, started: time.Now()}
	skew.Store(int64(-time.Hour))
	n.clockBase.Store(n.clockDrift())
	n.clockAhead.Store(int64(time.Hour))
	if ahead := n.rightTimeAhead().Round(time.Second); ahead != time.Hour {
		t.Errorf("nothing was compared since: the right time is %v ahead", ahead)
	}
	skew.Store(int64(-time.Minute))
	if ahead := n.rightTimeAhead().Round(time.Second); ahead != time.Minute {
		t.Errorf("set on by 59 minutes: the right time is %v ahead", ahead)
	}
	skew.Store(0)
	if n.clockWrong() {
		t.Error("set right, it is wrong")
	}
}

// A clock that is set is not trusted before it is compared: until then, the node would lead by it.
func TestAClockThatIsSetMayBeWrong(t *testing.T) {
	var skew atomic.Int64
	n := startTestNode(t, "n1", t.TempDir(), "", func(c *Config) {
		c.Clock = func() time.Time { return time.Now().Add(time.Duration(skew.Load())) }
	})
	defer func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}()
	for set, wrong := range map[time.Duration]bool{0: false, 400 * time.Millisecond: false, time.Hour: true, -time.Hour: true} {
		skew.Store(int64(set))
		drift := time.Duration(n.clockDrift() - n.clockBase.Load())
		if n.clockWrong() != wrong && (drift-set).Abs() < time.Second { // else it was compared in between
			t.Errorf("set by %v: wrong is %v", set, !wrong)
		}
		skew.Store(0)
	}
}

// What a node knows of its clock outlives its process: with only one other node to compare with, it would lead by a clock
// that was wrong before. Once it agrees with another one, the verdict is gone.
func TestAWrongClockIsWrongAfterARestart(t *testing.T) {
	var skew atomic.Int64
	dirs := []string{t.TempDir(), t.TempDir(), t.TempDir()}
	join := ""
	start := func(i int) *Node {
		return startTestNode(t, fmt.Sprint("n", i+1), dirs[i], join, func(c *Config) {
			if i == 2 {
				c.Clock = func() time.Time { return time.Now().Add(time.Duration(skew.Load())) }
			}
		})
	}
	stop := func(nodes ...*Node) {
		for _, n := range nodes {
			if err := n.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	skew.Store(int64(time.Hour))
	nodes := []*Node{start(0)}
	join = nodes[0].gossip.Addr()
	nodes = append(nodes, start(1), start(2))
	eventually(t, "three voters everywhere", func() bool { return allVoters(nodes...) })
	kept := func() time.Duration {
		ahead, err := keptClock(vfs.Default, dirs[2])
		if err != nil {
			t.Fatal(err)
		}
		return ahead
	}
	eventually(t, "the verdict is kept", func() bool { return (kept() + time.Hour).Abs() < time.Second })
	stop(nodes...)

	wrong := start(2) // alone
	if !wrong.clockWrong() {
		t.Error("it took its clock for right before it could lead")
	}
	join = wrong.gossip.Addr() // the ports are others now
	other := start(0)
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		for group, m := range wrong.members() {
			if m.IsLeader() {
				t.Fatalf("it leads group %d", group)
			}
		}
	}
	eventually(t, "the right one leads", func() bool {
		g, ok := other.Group(1)
		return ok && g.IsLeader()
	})

	skew.Store(0)
	eventually(t, "set right, it is right", func() bool { return !wrong.clockWrong() })
	eventually(t, "and that is kept", func() bool { return kept() == 0 })
	stop(wrong, other)
}

func TestAVerdictThatCannotBeReadIsReplaced(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, clockFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	n := startTestNode(t, "n1", dir, "")
	defer func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}()
	if n.clockWrong() {
		t.Error("of a verdict that cannot be read it made one")
	}
	eventually(t, "there is one that can be read", func() bool {
		_, err := keptClock(vfs.Default, dir)
		return err == nil
	})
}

// A crash leaves the last verdict or the one before.
func TestAVerdictSurvivesAPowerCut(t *testing.T) {
	disk := vfs.NewCrashableMem()
	if err := makeDir(disk, "data"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []time.Duration{time.Hour, -16700 * time.Millisecond, 0} {
		if err := keepClock(disk, "data", want); err != nil {
			t.Fatal(err)
		}
		if got, err := keptClock(disk.CrashClone(vfs.CrashCloneCfg{}), "data"); got != want || err != nil {
			t.Errorf("%v, %v, want %v", got, err, want)
		}
	}
}
