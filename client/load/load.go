// Package load makes load for benchmarks and measures what comes of it.
package load

import (
	"context"
	"math/bits"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

// Slack is how late the timers of a process that makes load may be. Exact ones are a seventh of what such a process does. At a
// fixed rate, operations begin late by up to that, and it counts: their time is from when they were due.
const Slack = 500 * time.Microsecond

// CollectLess has the garbage of a process that makes load collected less often, unless $GOGC says how often: it keeps next to
// nothing, and would look through that for every 4 MB of garbage, thirty times a second, as no service does that has data
// of its own.
func CollectLess() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
}

// Work is one operation, called by caller number caller for a key, 0 to Keys-1.
type Work func(ctx context.Context, caller, key int) error

// Load says how much work to do. By default it is a closed loop: each caller starts its next operation when the one
// before it was answered.
type Load struct {
	Callers, Keys    int
	Warmup, Duration time.Duration
	// Zipf above 1 prefers some keys to others by that exponent; 0 uses all alike.
	Zipf float64
	// PerSecond, if not 0, is the rate at which operations are due, all callers together. The time of an operation
	// then counts from when it was due, so that waiting for a slow one before it counts too.
	PerSecond float64
	// Sample measures the time of every so manieth operation only, for those that take less than reading a clock.
	Sample int
	// Unknown tells errors that leave the outcome open from others.
	Unknown func(error) bool
}

// Result is what one run gave. Operations that began in the warm-up are not counted.
type Result struct {
	Ops, Errors, Unknown     uint64
	PerSecond                float64
	P50, P95, P99, P999, Max time.Duration
	FirstError               error
}

// Run does the work. ctx ends it early.
func (l Load) Run(ctx context.Context, do Work) Result {
	begin := time.Now()
	times := make([]histogram, min(l.Callers, histograms))
	tallies := make([]tally, l.Callers)
	var running sync.WaitGroup
	for caller := range l.Callers {
		running.Go(func() { tallies[caller] = l.caller(ctx, begin, caller, do, &times[caller%len(times)]) })
	}
	running.Wait()
	var r Result
	for i := range tallies {
		t := &tallies[i]
		r.Ops, r.Errors, r.Unknown, r.Max = r.Ops+t.done, r.Errors+t.errors, r.Unknown+t.unknown, max(r.Max, t.max)
		if r.FirstError == nil {
			r.FirstError = t.failure
		}
	}
	var all histogram
	for i := range times {
		all.merge(&times[i])
	}
	quantile := func(q float64) time.Duration { return min(all.quantile(q), r.Max) }
	r.P50, r.P95, r.P99, r.P999 = quantile(0.50), quantile(0.95), quantile(0.99), quantile(0.999)
	r.PerSecond = float64(r.Ops) / l.Duration.Seconds()
	return r
}

// tally is what one caller counts.
type tally struct {
	done, errors, unknown uint64
	max                   time.Duration
	failure               error // the last
}

// caller is one of the loops.
func (l Load) caller(ctx context.Context, begin time.Time, caller int, do Work, h *histogram) (t tally) {
	from, to := begin.Add(l.Warmup), begin.Add(l.Warmup+l.Duration)
	next := l.keys(caller)
	sample := max(l.Sample, 1)
	start := time.Now()
	for n := 0; ; n++ {
		switch {
		case l.PerSecond > 0:
			start = begin.Add(time.Duration((float64(n*l.Callers) + float64(caller)) / l.PerSecond * float64(time.Second)))
			if pause(ctx, time.Until(start)) != nil {
				return t
			}
		case n%sample == 0:
			start = time.Now()
		}
		if !start.Before(to) || ctx.Err() != nil {
			return t
		}
		err := do(ctx, caller, next())
		switch {
		case start.Before(from):
		case err == nil:
			t.done++
			if n%sample == 0 || l.PerSecond > 0 {
				d := time.Since(start)
				h.add(d)
				t.max = max(t.max, d)
			}
		case l.Unknown != nil && l.Unknown(err):
			t.unknown++
			t.failure = err
		default:
			t.errors++
			t.failure = err
		}
	}
}

// keys returns a source of keys.
func (l Load) keys(caller int) func() int {
	keys := max(l.Keys, 1)
	if l.Zipf > 1 {
		z := rand.NewZipf(rand.New(rand.NewPCG(uint64(caller), 1)), l.Zipf, 1, uint64(keys-1))
		return func() int { return int(z.Uint64()) }
	}
	// A step through the keys, different for each caller, instead of a random generator.
	key, step := caller*7919%keys, 1+2*(caller%50)
	return func() int {
		key = (key + step) % keys
		return key
	}
}

func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// histogram counts latencies in buckets of 1/32 of a power of two, so that a quantile is off by at most about 3 %.
type histogram struct{ buckets [64 * 32]atomic.Uint64 }

// histograms is how many there are at most: one for each of many callers would be in no processor's cache when it is needed,
// and one for all of few callers in that of another.
const histograms = 8

func bucketOf(d time.Duration) int {
	v := uint64(max(d, 0))
	if v < 32 {
		return int(v)
	}
	shift := bits.Len64(v) - 6
	return (shift+1)*32 + int(v>>shift) - 32
}

// bucketTop is the largest duration of a bucket.
func bucketTop(b int) time.Duration {
	if b < 32 {
		return time.Duration(b)
	}
	shift := b/32 - 1
	return time.Duration((uint64(b%32)+33)<<shift - 1)
}

func (h *histogram) add(d time.Duration) { h.buckets[bucketOf(d)].Add(1) }

func (h *histogram) merge(o *histogram) {
	for i := range o.buckets {
		h.buckets[i].Add(o.buckets[i].Load())
	}
}

// quantile is the top of the bucket in which it is.
func (h *histogram) quantile(q float64) time.Duration {
	var count, seen uint64
	for i := range h.buckets {
		count += h.buckets[i].Load()
	}
	rank := min(uint64(q*float64(count))+1, count)
	for i := range h.buckets {
		if seen += h.buckets[i].Load(); seen > 0 && seen >= rank {
			return bucketTop(i)
		}
	}
	return 0 // there are none
}
