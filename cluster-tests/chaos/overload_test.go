package chaos

import (
	"cmp"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfastdb/holdfast/cluster-tests/results"
)

const (
	peakFrames     = 6                // under way in each shard, which is when the cluster does most
	peakTime       = 30 * time.Second // as the host does not give the same all the time
	overloadFactor = 3
	begunLeast     = 2.5 // times the peak
	overloadTime   = 60 * time.Second
	goodputLeast   = 0.8 // of the peak, the mean of before and after
	afterLeast     = 0.7 // of the peak before: what lasts must not lower what is asked for
	normalWithin   = 10 * time.Second
	watched        = 2 * normalWithin
)

// cpuTime is what this process has used.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0 // cannot fail for oneself
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// More load than the cluster can carry costs those who are too many, not those who can be served; and when it is over, so
// is its effect. It is tried again as long as there is time: no two minutes of a machine are the same.
func TestOverload(t *testing.T) {
	s := readSettings(t)
	if s.minutes == 0 || !s.wants(overloaded) {
		t.Skip("two minutes with both CPUs busy: make chaos runs it")
	}
	end := time.Now()
	if len(s.kinds) == 1 { // the others have the time otherwise
		end = end.Add(time.Duration(s.minutes * float64(time.Minute)))
	}
	var runs []overload
	for n := 0; n == len(runs) && (n == 0 || time.Now().Before(end)); n++ { // not after one that did not come to its end
		t.Run(fmt.Sprint("run ", n+1), func(t *testing.T) { runs = append(runs, tooMuch(t, &s)) })
	}
	if s.out != "" && len(runs) > 0 {
		if err := results.Write(s.out, "overload", page(runs)); err != nil {
			t.Error(err)
		}
	}
}

// tooMuch offers a cluster more than it can do.
func tooMuch(t *testing.T, s *settings) overload {
	c, err := Start(t, Options{Nodes: 3, Dir: artefacts(t, s.dir, "overload"), Checksum: checksumUsual})
	if err != nil {
		t.Fatal(err)
	}
	cl, err := c.Dial(0)
	if err != nil {
		t.Fatal(err)
	}
	if err := readyBench(cl); err != nil {
		t.Fatal(err)
	}
	w, err := newWire(t.Context(), cl, benched)
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	offer := func(perSecond float64, length time.Duration) *served {
		o, err := w.offer(perSecond, length)
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	w.closed(peakFrames, 2*time.Second) // warm
	peak := w.closed(peakFrames, peakTime)
	usual := quantile(offer(peak/2, 5*time.Second).took, 0.99)
	t.Logf("peak %.0f/s; at half of that p99 %v", peak, usual)

	spent := cpuTime()
	over := offer(overloadFactor*peak, overloadTime)
	f := overload{
		peak: peak, due: overloadFactor * peak, begun: float64(over.begun()) / overloadTime.Seconds(), good: float64(over.good) / over.length.Seconds(),
		p99: quantile(over.took, 0.99), refused: over.refused, late: over.late, unbegun: over.unbegun, normal: -1,
		own: float64(cpuTime()-spent) / float64(overloadTime) / float64(runtime.NumCPU()),
	}
	for begin := time.Now(); f.normal < 0 && time.Since(begin) < watched; {
		second := offer(peak/2, time.Second)
		p99 := quantile(second.took, 0.99)
		at := time.Since(begin)
		t.Logf("%.0f s after: %d of %d served, p99 %v", at.Seconds(), second.good, second.due, p99)
		if second.good*100 >= second.due*99 && p99 <= max(3*usual, 50*time.Millisecond) {
			f.normal = at
		}
	}
	f.after = w.closed(peakFrames, peakTime)
	t.Logf("\n%s", page([]overload{f}))
	if f.begun < begunLeast*peak || f.refused == 0 {
		t.Errorf("it was no overload: %.1f times the peak was begun, and the cluster refused %d", f.begun/peak, f.refused)
	}
	if f.ofPeak() < goodputLeast {
		t.Errorf("goodput is %.0f %% of the mean of both peaks, at least %.0f %% are promised", 100*f.ofPeak(), 100*goodputLeast)
	}
	if f.after < afterLeast*peak {
		t.Errorf("when all was over the peak is %.0f/s, before it was %.0f/s", f.after, peak)
	}
	if f.normal < 0 || f.normal > normalWithin {
		t.Errorf("it is not as before within %v", normalWithin)
	}
	for _, n := range c.Nodes {
		for _, s := range n.Surprises() {
			t.Error(s)
		}
	}
	return f
}

// overload is what came of too much load. Rates are a second's.
type overload struct {
	peak, after            float64 // what the cluster could do before, and when all was over
	due, begun, good       float64
	p99                    time.Duration
	refused, late, unbegun int
	normal                 time.Duration // the end of the first second after that was as usual, -1 if there was none
	own                    float64       // share of all CPUs that the load took
}

// ofPeak is which part of what the cluster can do it did. What that is changes with the host from minute to minute: the mean of
// before and after counts.
func (f *overload) ofPeak() float64 { return f.good / ((f.peak + f.after) / 2) }

// page is the section of the page: of the worst run, and what was served in all of them.
func page(runs []overload) string {
	runs = slices.SortedFunc(slices.Values(runs), func(a, b overload) int { return cmp.Compare(a.ofPeak(), b.ofPeak()) })
	f := runs[0]
	var b strings.Builder
	row := func(what, figure string, args ...any) {
		fmt.Fprintf(&b, "| %s | %s |\n", what, fmt.Sprintf(figure, args...))
	}
	row(fmt.Sprintf("%d times the peak for %v, callers wait %v", overloadFactor, overloadTime, overloadPatient), "")
	row("---", "---")
	row(fmt.Sprintf("peak of checks, %d frames of %d under way in each of four shards; again when all was over", peakFrames, frameOps), "%.0f/s; %.0f/s", f.peak, f.after)
	row("due", "%.0f/s", f.due)
	row("begun", "%.0f/s, %.1f times the peak", f.begun, f.begun/f.peak)
	row(fmt.Sprintf("served in time (goal: %.0f %% of the mean of both)", 100*goodputLeast), "%.0f/s, %.0f %%: %s", f.good, 100*f.ofPeak(), verdict(f.ofPeak() >= goodputLeast))
	row("p99 of those served", "%v", f.p99.Round(time.Millisecond))
	row("refused by the cluster", "%d", f.refused)
	row("too late", "%d", f.late)
	row(fmt.Sprintf("due, but not begun: %d frames were under way in a shard", wireSenders), "%d", f.unbegun)
	normal := fmt.Sprintf("not within %v: missed", watched)
	if f.normal >= 0 {
		normal = fmt.Sprintf("%v: %s", f.normal.Round(time.Second), verdict(f.normal <= normalWithin))
	}
	row(fmt.Sprintf("normal again after (goal: %v)", normalWithin), "%s", normal)
	if len(runs) > 1 {
		b.WriteString("\nThat is the worst of the runs, which served")
		separator := ""
		for _, f := range runs {
			fmt.Fprintf(&b, "%s %.0f %%", separator, 100*f.ofPeak())
			separator = ","
		}
		b.WriteString(" of the mean in time.\n")
	}
	fmt.Fprintf(&b, "\n%d CPUs, of which the load took %.0f %% for itself; %s, %s, commit %s.\n",
		runtime.NumCPU(), 100*f.own, runtime.Version(), time.Now().UTC().Format(time.DateOnly), results.Commit())
	return b.String()
}

// The page does not call normal what was not, nor refused what never got to the cluster.
func TestOverloadPage(t *testing.T) {
	f := overload{peak: 1100, after: 900, due: 3300, begun: 1650, good: 700, refused: 3, late: 4, unbegun: 5, normal: -1}
	for _, want := range []string{
		"| 1100/s; 900/s |", "| due | 3300/s |", "| begun | 1650/s, 1.5 times the peak |", "700/s, 70 %: missed", "| refused by the cluster | 3 |", "| too late | 4 |",
		"in a shard | 5 |", "| not within 20s: missed |",
	} {
		if page := page([]overload{f}); !strings.Contains(page, want) {
			t.Errorf("no %q in:\n%s", want, page)
		}
	}
	other := f
	f.normal, f.good = 2*time.Second, 900
	if page := page([]overload{f, other}); !strings.Contains(page, "700/s, 70 %: missed") || !strings.Contains(page, "served 70 %, 90 % of") {
		t.Errorf("the worse of two is not shown:\n%s", page)
	}
	for _, want := range []string{"90 %: met", "| 2s: met |"} {
		if page := page([]overload{f}); !strings.Contains(page, want) {
			t.Errorf("no %q in:\n%s", want, page)
		}
	}
}
