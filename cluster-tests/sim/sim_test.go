package sim

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// totals sums up the runs of a test.
type totals struct {
	mu      sync.Mutex
	virtual time.Duration
	faults  int
	checked int
}

func (s *totals) add(r *Report) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.virtual += r.Faulted
	s.faults += r.FaultCount()
	s.checked += r.Checked
}

// simulate runs a seed in a bubble of its own. With SIM_DIR it leaves the nodes' log and the history there.
func simulate(t *testing.T, seed uint64, sum *totals) {
	t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
		t.Parallel()
		opts := FromSeed(seed)
		opts.Logger = slog.New(slog.DiscardHandler)
		if dir := os.Getenv("SIM_DIR"); dir != "" {
			opts.Dir = filepath.Join(dir, fmt.Sprintf("seed-%d", seed))
			if err := os.MkdirAll(opts.Dir, 0o755); err != nil {
				t.Fatal(err)
			}
			f, err := os.Create(filepath.Join(opts.Dir, "log.txt"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			opts.Logger = slog.New(slog.NewTextHandler(f, nil))
		}
		wall := time.Now()
		synctest.Test(t, func(t *testing.T) {
			r, err := Run(opts)
			sum.add(r)
			t.Log(r)
			if err != nil {
				t.Errorf("make sim SIM_SEED=%d (the same faults, mostly the same trouble): %v", seed, err)
			}
		})
		t.Logf("%v of real time", time.Since(wall).Round(time.Millisecond))
	})
}

func number(t *testing.T, name string) (n float64, ok bool) {
	text := os.Getenv(name)
	if text == "" {
		return 0, false
	}
	n, err := strconv.ParseFloat(text, 64)
	if err != nil || n < 0 {
		t.Fatalf("%s=%s: not a number", name, text)
	}
	return n, true
}

// cpu is the time that this process has computed.
func cpu() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// A part of all seeds, or as much as is asked for: SIM_SEED alone runs that one, SIM_HOURS so many hours of virtual time
// from there on, or from a seed of the moment.
func TestSimulation(t *testing.T) {
	first, seeds := uint64(1), 6
	seed, chosen := number(t, "SIM_SEED")
	hours, long := number(t, "SIM_HOURS")
	switch {
	case long:
		first, seeds = uint64(time.Now().Unix()), int(hours*float64(time.Hour)/float64(runTime))+1
		if chosen {
			first = uint64(seed)
		}
	case chosen:
		first, seeds = uint64(seed), 1
	}
	before := cpu()
	var sum totals
	t.Run("runs", func(t *testing.T) {
		for i := range seeds {
			simulate(t, first+uint64(i), &sum)
		}
	})
	used := cpu() - before
	t.Logf("%v of virtual time, %d faults, %d operations checked one by one; %.0f virtual minutes in a minute of CPU",
		sum.virtual.Round(time.Second), sum.faults, sum.checked, sum.virtual.Minutes()/max(used.Minutes(), 1e-9))
	if !chosen && !long && (sum.virtual < time.Hour || sum.faults < 60) {
		t.Error("less than an hour and 60 faults were simulated")
	}
}
