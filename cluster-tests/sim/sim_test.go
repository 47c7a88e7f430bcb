package sim

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfastdb/holdfast/cluster-tests/results"
)

// keeper is the directory of a seed, and whether it was asked for.
func keeper(seed uint64) (dir string, chosen bool, err error) {
	if all := os.Getenv("SIM_DIR"); all != "" {
		dir = filepath.Join(all, fmt.Sprintf("seed-%d", seed))
		return dir, true, os.MkdirAll(dir, 0o755)
	}
	dir, err = os.MkdirTemp("", fmt.Sprintf("holdfast-sim-%d-*", seed))
	return dir, false, err
}

// simulate runs a seed in a bubble of its own. It leaves the nodes' log, the history and what porcupine drew if it fails, or
// if SIM_DIR says where.
func simulate(t *testing.T, seed uint64, sum *totals) {
	t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
		t.Parallel()
		dir, chosen, err := keeper(seed)
		if err != nil {
			t.Fatal(err)
		}
		log, err := os.Create(filepath.Join(dir, "log.txt"))
		if err != nil {
			t.Fatal(err)
		}
		defer log.Close()
		opts := FromSeed(seed)
		level := slog.LevelInfo
		if chosen {
			level = slog.LevelDebug
		}
		opts.Logger = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: level}))
		wall := time.Now()
		var r *Report
		synctest.Test(t, func(*testing.T) { r, err = Run(opts) })
		t.Log(r)
		if err != nil { // told here: a bubble that fails ends the test, and what was found would be in no sum
			t.Errorf("make sim SIM_SEED=%d (the same faults, mostly the same trouble): %v", seed, err)
		}
		sampled := r.Sample(dir, chosen)
		for _, v := range sampled.Violations {
			t.Errorf("make sim SIM_SEED=%d: %s", seed, v)
		}
		sum.add(r, &sampled)
		t.Logf("by porcupine: %d operations of %d counters; %d operations and %d counters were left out", sampled.Operations, sampled.Keys, sampled.Left, sampled.Skipped)
		t.Logf("%v of real time", time.Since(wall).Round(time.Millisecond))
		if !chosen && !t.Failed() {
			_ = os.RemoveAll(dir)
			return
		}
		t.Logf("the nodes' log and the history are in %s", dir)
		if err := r.Save(dir); err != nil {
			t.Error(err)
		}
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
	// The garbage is short-lived and the heap small: collecting it less often takes a tenth less time of the CPU.
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	before := cpu()
	sum := newTotals()
	t.Run("runs", func(t *testing.T) {
		for i := range seeds {
			simulate(t, first+uint64(i), sum)
		}
	})
	sum.used = cpu() - before
	t.Log("\n" + sum.page())
	if out := os.Getenv("SIM_OUT"); out != "" {
		if err := results.Write(out, "sim", sum.page()); err != nil {
			t.Error(err)
		}
	}
	if !chosen && !long && (sum.sum.Faulted < time.Hour || sum.faultCount() < 60) {
		t.Error("less than an hour and 60 faults were simulated")
	}
	// What follows an operation of unknown outcome cannot be judged in most counters.
	if s := &sum.sampled; !chosen && (s.Operations < 500*seeds || s.Left*10 > s.Operations+s.Left) {
		t.Errorf("porcupine judged %d operations of %d runs and left out %d", s.Operations, seeds, s.Left)
	}
}
