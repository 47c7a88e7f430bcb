package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/holdfastdb/holdfast/client/load"
)

// report is the table that comes out.
type report struct {
	settings *settings
	systems  []*system

	half     []load.Result // at half of the peak just before, by round
	leased   load.Result
	resident int64
	bytesPer float64
	idle     float64 // share of one core
}

// alone measures what only Holdfast is asked for.
func (t *report) alone(ctx context.Context, h *holdfastPeer) error {
	s := t.settings
	for round := range s.rounds {
		many := load.Load{Callers: 256, Keys: manyKeys, Warmup: s.warmup, Duration: s.duration / 2}
		peak := many.Run(ctx, h.check)
		fmt.Printf("alone %d  holdfast  check, 256 callers  %s\n", round+1, describe(peak))
		// Enough callers that one who waits does not delay what is due after: the rate is kept, whatever happens.
		half := load.Load{Callers: 512, Keys: manyKeys, Warmup: s.warmup, Duration: s.duration, PerSecond: peak.PerSecond / 2}
		t.half = append(t.half, half.Run(ctx, h.check))
		fmt.Printf("alone %d  holdfast  half of that        %s\n", round+1, describe(t.half[round]))
	}
	leased := load.Load{Callers: 2 * runtime.NumCPU(), Keys: 16, Warmup: s.warmup, Duration: s.duration, Sample: 64}
	t.leased = leased.Run(ctx, h.lease)
	fmt.Printf("holdfast  leased check        %s\n", describe(t.leased))

	var err error
	if t.idle, err = rest(ctx, h); err != nil {
		return err
	}
	fmt.Println("holdfast  making 1,000,000 counters")
	if err := touchAll(ctx, h); err != nil {
		return err
	}
	if _, t.resident, err = h.usage(); err != nil {
		return err
	}
	t.bytesPer, err = bytesPerCounter(ctx, s.dir)
	return err
}

// rest measures what the nodes use when nobody asks them anything, as a share of one core.
func rest(ctx context.Context, h *holdfastPeer) (float64, error) {
	// Counters that were used last are swept after a minute.
	const settle, length = 75 * time.Second, 30 * time.Second
	fmt.Println("holdfast  idle for 105 s")
	sleep := func(d time.Duration) error {
		select {
		case <-time.After(d):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := sleep(settle); err != nil {
		return 0, err
	}
	before, _, err := h.usage()
	if err == nil {
		err = sleep(length)
	}
	if err != nil {
		return 0, err
	}
	after, _, err := h.usage()
	return float64(after-before) / float64(length), err
}

// touchAll takes from a million different counters once.
func touchAll(ctx context.Context, h *holdfastPeer) error {
	return inParallel(manyCounters, func(i int) error { return h.touch(ctx, i) })
}

func (t *report) find(name string) *system {
	for _, s := range t.systems {
		if s.name == name {
			return s
		}
	}
	return nil
}

// markdown writes the table.
func (t *report) markdown() string {
	var b strings.Builder
	row := func(cells ...string) { fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | ")) }
	row("work", "system", "ops/s", "p50", "p99", "Holdfast compared")
	row("---", "---", "---", "---", "---", "---")
	hf := t.find("holdfast")
	for _, s := range t.systems {
		ratio := ""
		if hf != nil && s != hf {
			ratio = fmt.Sprintf("%.1f×", medianOf(hf.many, perSecond)/medianOf(s.many, perSecond))
		}
		row("check, 256 callers, 10,000 keys", s.name, fmt.Sprintf("%.0f", medianOf(s.many, perSecond)), short(time.Duration(medianOf(s.many, p50))), short(time.Duration(medianOf(s.many, p99))), ratio)
	}
	for _, s := range t.systems {
		what := "check, one caller"
		if s.name == "etcd" {
			what = "put, one caller"
		}
		ratio := ""
		if hf != nil && s != hf {
			ratio = fmt.Sprintf("%.2f of its p50", medianOf(hf.one, p50)/medianOf(s.one, p50))
		}
		row(what, s.name, fmt.Sprintf("%.0f", medianOf(s.one, perSecond)), short(time.Duration(medianOf(s.one, p50))), short(time.Duration(medianOf(s.one, p99))), ratio)
	}
	if hf != nil {
		row("check at half of the peak, the peers stopped", "holdfast", fmt.Sprintf("%.0f", medianOf(t.half, perSecond)), short(time.Duration(medianOf(t.half, p50))), short(time.Duration(medianOf(t.half, p99))), "")
		row("leased check, one process", "holdfast", fmt.Sprintf("%.0f", t.leased.PerSecond), short(t.leased.P50), short(t.leased.P99), "")
		fmt.Fprintf(&b, "\n| Holdfast alone | |\n| --- | --- |\n")
		row("a counter on disk, of a million, after compaction", fmt.Sprintf("%.1f bytes", t.bytesPer))
		row("largest node with a million live counters, resident", fmt.Sprintf("%d MB", t.resident/1_000_000))
		row(fmt.Sprintf("three idle nodes with --shards %d, share of one core together", t.settings.shards), fmt.Sprintf("%.1f %%", 100*t.idle))
	}
	fmt.Fprintf(&b, "\n%d CPUs, %s, %s; %d rounds of %v each, medians; Holdfast with --shards %d; every system is three processes on loopback with every write synced.\n",
		runtime.NumCPU(), runtime.Version(), time.Now().UTC().Format("2006-01-02"), t.settings.rounds, t.settings.duration, t.settings.shards)
	return b.String()
}

// writeSection replaces what stands between the marks of a section, or appends it.
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

func short(d time.Duration) string {
	if d < 100*time.Microsecond {
		return d.String()
	}
	return d.Round(10 * time.Microsecond).String()
}
