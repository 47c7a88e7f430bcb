package chaos

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/client/load"
)

const (
	peakCallers     = 4096            // frames are full, which is when the cluster does most
	mostAtOnce      = 4 * peakCallers // calls under way; what is due beyond that is refused by the load itself
	overloadFactor  = 3
	overloadTime    = 60 * time.Second
	overloadPatient = time.Second // how long each caller waits for its answer
	goodputLeast    = 0.8         // of the peak
	normalWithin    = 10 * time.Second
)

// offered is what came of checks that were begun at a fixed rate, whatever became of those before.
type offered struct {
	mu            sync.Mutex
	begun, good   int
	unbegun       int
	under         atomic.Int64
	refused, late int
	took          []time.Duration // of the good ones
}

// offer begins checks at a rate for some time. Callers that have waited long enough leave.
func offer(ctx context.Context, cl *client.Client, perSecond float64, length time.Duration) *offered {
	o := &offered{}
	var running sync.WaitGroup
	begin := time.Now()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for now := begin; now.Sub(begin) < length && ctx.Err() == nil; now = <-tick.C {
		// Those who begin together leave together: a timer for each would take more of the CPU than the calls.
		patient, cancel := context.WithTimeout(ctx, overloadPatient)
		running.Go(func() {
			<-patient.Done()
			cancel()
		})
		for due := int(now.Sub(begin).Seconds() * perSecond); o.begun < due; o.begun++ {
			if o.under.Load() >= mostAtOnce {
				o.unbegun++
				continue
			}
			o.under.Add(1)
			key := o.begun % 1000
			running.Go(func() { o.one(patient, cl, key) })
		}
	}
	running.Wait()
	return o
}

func (o *offered) one(ctx context.Context, cl *client.Client, key int) {
	begin := time.Now()
	_, err := cl.Limits().Check(ctx, client.Request{Client: fmt.Sprint("client-", key), Resource: counted})
	took := time.Since(begin)
	o.under.Add(-1)
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case err == nil:
		o.good++
		o.took = append(o.took, took)
	case errors.Is(err, client.ErrExhausted):
		o.refused++
	default:
		o.late++
	}
}

// cpuTime is what this process has used.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0 // cannot fail for oneself
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// More load than the cluster can carry costs those who are too many, not those who can be served; and when it is over, so
// is its effect.
func TestOverload(t *testing.T) {
	s := readSettings(t)
	if s.minutes == 0 {
		t.Skip("two minutes with both CPUs busy: make chaos runs it")
	}
	c, err := Start(t, Options{Nodes: 3, Dir: artefacts(t, s.dir, "overload")})
	if err != nil {
		t.Fatal(err)
	}
	cl, err := c.Dial(0)
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range endless {
		if err := makePolicy(cl, q); err != nil {
			t.Fatal(err)
		}
	}
	ctx := t.Context()
	closed := load.Load{Callers: peakCallers, Keys: 1000, Warmup: 2 * time.Second, Duration: 10 * time.Second}
	peak := closed.Run(ctx, func(ctx context.Context, _, key int) error {
		_, err := cl.Limits().Check(ctx, client.Request{Client: fmt.Sprint("client-", key), Resource: counted})
		return err
	}).PerSecond
	before := offer(ctx, cl, peak/2, 5*time.Second)
	usual := quantile(before.took, 0.99)
	t.Logf("peak %.0f/s; at half of that p99 %v", peak, usual)

	spent := cpuTime()
	over := offer(ctx, cl, overloadFactor*peak, overloadTime)
	own := float64(cpuTime()-spent) / float64(overloadTime) / float64(runtime.NumCPU())
	goodput := float64(over.good) / overloadTime.Seconds()
	t.Logf("offered %.0f/s for %v: %.0f/s served in time (%.0f %% of the peak), p99 %v; %d refused, %d too late; the load took %.0f %% of all CPUs for itself",
		overloadFactor*peak, overloadTime, goodput, 100*goodput/peak, quantile(over.took, 0.99), over.refused+over.unbegun, over.late, 100*own)

	normal := time.Duration(-1)
	for begin := time.Now(); normal < 0 && time.Since(begin) < 2*normalWithin; {
		at := time.Since(begin)
		second := offer(ctx, cl, peak/2, time.Second)
		p99 := quantile(second.took, 0.99)
		t.Logf("%.0f s after: %d of %d served, p99 %v", at.Seconds(), second.good, second.begun, p99)
		if second.good*100 >= second.begun*99 && p99 <= max(3*usual, 50*time.Millisecond) {
			normal = at
		}
	}
	if goodput < goodputLeast*peak {
		t.Errorf("goodput is %.0f %% of the peak, at least %.0f %% are promised", 100*goodput/peak, 100*goodputLeast)
	}
	if normal < 0 || normal > normalWithin {
		t.Errorf("it is not as before within %v", normalWithin)
	}
	if s.out != "" {
		text := fmt.Sprintf("| overload: %d times the peak for %v, callers wait %v | |\n| --- | --- |\n"+
			"| peak, %d callers, closed loop | %.0f/s |\n| offered | %.0f/s |\n| served in time | %.0f/s, %.0f %% of the peak |\n"+
			"| p99 of those served | %v |\n| refused at once, too late | %d, %d |\n| back to normal after | ≤ %v |\n\n"+
			"%d CPUs, of which the load took %.0f %% for itself; %s, %s.\n",
			overloadFactor, overloadTime, overloadPatient, peakCallers, peak, overloadFactor*peak, goodput, 100*goodput/peak,
			quantile(over.took, 0.99).Round(time.Millisecond), over.refused+over.unbegun, over.late, (normal + time.Second).Round(time.Second),
			runtime.NumCPU(), 100*own, runtime.Version(), time.Now().UTC().Format("2006-01-02"))
		if err := writeSection(s.out, "overload", text); err != nil {
			t.Error(err)
		}
	}
}
