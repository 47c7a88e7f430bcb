package main

import (
	"context"
	"math/bits"
	"sync"
	"time"
)

// work is one operation of a workload, called by caller number caller for a key.
type work func(ctx context.Context, caller, key int) error

// load is a closed loop: each caller starts its next operation when the one before it was answered.
type load struct {
	callers  int
	keys     int
	warmup   time.Duration
	duration time.Duration
}

// result is what one run gave.
type result struct {
	ops, errors   uint64
	perSecond     float64
	p50, p99, max time.Duration
	firstError    error
}

// run executes the load. Operations that begin in the warm-up are not counted.
func (l load) run(ctx context.Context, do work) result {
	ctx, cancel := context.WithTimeout(ctx, l.warmup+l.duration+30*time.Second)
	defer cancel()
	begin := time.Now()
	from, to := begin.Add(l.warmup), begin.Add(l.warmup+l.duration)
	parts := make([]histogram, l.callers)
	failures := make([]error, l.callers)
	var wg sync.WaitGroup
	for caller := range l.callers {
		wg.Go(func() {
			h := &parts[caller]
			// A full-period step through the keys, different for each caller, instead of a random generator.
			key, step := caller*7919%l.keys, 1+2*(caller%50)
			for {
				start := time.Now()
				if !start.Before(to) {
					return
				}
				key = (key + step) % l.keys
				err := do(ctx, caller, key)
				if start.Before(from) {
					continue
				}
				if err != nil {
					h.errors++
					failures[caller] = err
					continue
				}
				h.add(time.Since(start))
			}
		})
	}
	wg.Wait()
	var all histogram
	r := result{}
	for i := range parts {
		all.merge(&parts[i])
		if r.firstError == nil {
			r.firstError = failures[i]
		}
	}
	r.ops, r.errors = all.count, all.errors
	r.perSecond = float64(all.count) / l.duration.Seconds()
	r.p50, r.p99, r.max = all.quantile(0.50), all.quantile(0.99), all.max
	return r
}

// histogram counts latencies in buckets of 1/32 of a power of two, so that a quantile is off by at most about 3 %.
type histogram struct {
	buckets       [64 * 32]uint64
	count, errors uint64
	max           time.Duration
}

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

func (h *histogram) add(d time.Duration) {
	h.buckets[bucketOf(d)]++
	h.count++
	h.max = max(h.max, d)
}

func (h *histogram) merge(o *histogram) {
	for i, n := range o.buckets {
		h.buckets[i] += n
	}
	h.count += o.count
	h.errors += o.errors
	h.max = max(h.max, o.max)
}

func (h *histogram) quantile(q float64) time.Duration {
	rank, seen := uint64(q*float64(h.count)), uint64(0)
	for b, n := range h.buckets {
		seen += n
		if seen > rank {
			return min(bucketTop(b), h.max)
		}
	}
	return h.max
}
