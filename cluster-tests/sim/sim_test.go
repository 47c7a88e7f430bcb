package sim

import (
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"testing"
	"testing/synctest"
	"time"
)

// simulate runs one seed in a bubble of its own.
func simulate(t *testing.T, opts Options) {
	t.Run(fmt.Sprintf("seed %d", opts.Seed), func(t *testing.T) {
		t.Parallel()
		opts.Logger = slog.New(slog.DiscardHandler)
		if name := os.Getenv("SIM_LOG"); name != "" {
			f, err := os.Create(name)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			opts.Logger = slog.New(slog.NewTextHandler(f, nil))
		}
		wall := time.Now()
		synctest.Test(t, func(t *testing.T) {
			r, err := Run(opts)
			t.Log(r)
			if err != nil {
				t.Errorf("replay with SIM_SEED=%d: %v", opts.Seed, err)
			}
		})
		t.Logf("%v of real time", time.Since(wall).Round(time.Millisecond))
	})
}

func TestSim(t *testing.T) {
	seed := uint64(1)
	if text := os.Getenv("SIM_SEED"); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seed = n
	}
	simulate(t, Options{Seed: seed, Nodes: 3, Shards: 2, Duration: 10 * time.Minute, Think: time.Second, TrailingEntries: 64})
}
