package load

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
	if p := h.quantile(1); p < time.Millisecond || p > 1040*time.Microsecond {
		t.Errorf("the last of all %v", p)
	}
	if p := new(histogram).quantile(0.5); p != 0 {
		t.Errorf("the median of nothing %v", p)
	}
}

func TestTheLoopCountsOnlyAfterTheWarmUpAndReportsErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := Load{Callers: 4, Keys: 10, Warmup: time.Second, Duration: 2 * time.Second}
		boom := errors.New("boom")
		r := l.Run(t.Context(), func(_ context.Context, caller, key int) error {
			time.Sleep(10 * time.Millisecond)
			if key < 0 || key >= 10 {
				t.Errorf("key %d", key)
			}
			if caller == 3 {
				return boom
			}
			return nil
		})
		if r.Ops != 600 || r.Errors != 200 || r.PerSecond != 300 || !errors.Is(r.FirstError, boom) {
			t.Errorf("got %+v", r)
		}
		if r.P50 < 10*time.Millisecond || r.P50 > 11*time.Millisecond {
			t.Errorf("median %v", r.P50)
		}
	})
}

// A system that hangs for a second must show it in the latencies, also of the operations that could not be sent then.
func TestPacedLoadCountsTheWaitForASlowAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		l := Load{Callers: 1, Keys: 1, Duration: 10 * time.Second, PerSecond: 100}
		r := l.Run(t.Context(), func(context.Context, int, int) error {
			if n++; n == 100 {
				time.Sleep(time.Second)
			}
			return nil
		})
		if r.Ops != 1000 || r.P50 > time.Millisecond || r.P95 < 400*time.Millisecond || r.Max < time.Second {
			t.Errorf("got %+v", r)
		}
	})
}
