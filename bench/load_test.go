package main

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestHistogramQuantilesAreCloseFromAbove(t *testing.T) {
	for _, d := range []time.Duration{0, 1, 31, 32, 33, 63, 64, 1000, 123456, time.Millisecond, 3 * time.Second, time.Hour} {
		top := bucketTop(bucketOf(d))
		if top < d || float64(top) > float64(d)*1.04+1 {
			t.Errorf("%v is in a bucket up to %v", d, top)
		}
	}
	var h histogram
	for i := 1; i <= 1000; i++ {
		h.add(time.Duration(i) * time.Microsecond)
	}
	if p := h.quantile(0.5); p < 500*time.Microsecond || p > 520*time.Microsecond {
		t.Errorf("median %v", p)
	}
	if p := h.quantile(1); p != time.Millisecond {
		t.Errorf("maximum %v", p)
	}
}

func TestTheLoopCountsOnlyAfterTheWarmUpAndReportsErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := load{callers: 4, keys: 10, warmup: time.Second, duration: 2 * time.Second}
		boom := errors.New("boom")
		r := l.run(t.Context(), func(_ context.Context, caller, key int) error {
			time.Sleep(10 * time.Millisecond)
			if key < 0 || key >= 10 {
				t.Errorf("key %d", key)
			}
			if caller == 3 {
				return boom
			}
			return nil
		})
		if r.ops != 600 || r.errors != 200 || r.perSecond != 300 || !errors.Is(r.firstError, boom) {
			t.Errorf("got %+v", r)
		}
		if r.p50 < 10*time.Millisecond || r.p50 > 11*time.Millisecond {
			t.Errorf("median %v", r.p50)
		}
	})
}
