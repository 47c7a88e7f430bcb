package models

import (
	"testing"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/counter"
)

// What each algorithm promises, and the least that breaks it.
func TestAdmissionsBeyondThePromiseAreFound(t *testing.T) {
	bucket := counter.Params{Algorithm: counter.TokenBucket, Rate: 2, Window: 1000, Burst: 3}
	leaky := bucket
	leaky.Algorithm = counter.LeakyBucket
	sliding := counter.Params{Algorithm: counter.SlidingWindow, Rate: 3, Window: 1000}
	log := counter.Params{Algorithm: counter.SlidingLog, Rate: 3, Window: 1000}
	fixed := counter.Params{Algorithm: counter.FixedWindow, Rate: 3, Window: 1000}
	slots := counter.Params{Algorithm: counter.Concurrency, Rate: 2, Window: 1000}
	point := func(at fsm.Time, n int64) admission { return admission{at, at, n} }
	for _, test := range []struct {
		name   string
		rules  counter.Params
		all    []admission
		broken bool
	}{
		{"a burst", bucket, []admission{point(5, 3)}, false},
		{"more than a burst", bucket, []admission{point(5, 4)}, true},
		{"more than a burst in one moment", bucket, []admission{point(5, 2), point(5, 2)}, true},
		{"what has flowed in", bucket, []admission{point(5, 3), point(1005, 2)}, false},
		{"a millisecond early", bucket, []admission{point(5, 3), point(1004, 2)}, true},
		{"an interval in the middle", bucket, []admission{point(0, 1), point(90_000, 3), point(90_499, 1), point(200_000, 1)}, true},
		{"the same just in time", bucket, []admission{point(0, 1), point(90_000, 3), point(90_500, 1), point(200_000, 1)}, false},
		{"a loan that ends before", leaky, []admission{{0, 400, 2}, point(1400, 3)}, false},
		{"a loan that may be used late", leaky, []admission{{0, 1400, 2}, point(1400, 3)}, true},
		{"a loan that came too early", leaky, []admission{point(0, 3), {400, 9000, 1}}, true},
		{"two loans at the same time", leaky, []admission{{0, 5000, 2}, {4000, 9000, 2}}, true},
		{"a loan from before", leaky, []admission{{0, 1000, 2}, {1500, 9000, 2}}, false},
		{"used at an unknown moment", bucket, []admission{{1005, 5, 3}, point(1005, 2)}, false},
		{"used at an unknown moment, surely too much", bucket, []admission{{1005, 5, 3}, point(1005, 3)}, true},
		{"used at an unknown moment, later", bucket, []admission{point(5, 3), {1405, 905, 2}}, false},
		{"used at an unknown moment, surely too early", bucket, []admission{point(5, 3), {1005, 505, 3}}, true},
		{"sliding window", sliding, []admission{point(999, 3), point(1999, 3)}, false},
		{"sliding window, too much", sliding, []admission{point(999, 3), point(1998, 3)}, true},
		{"log", log, []admission{point(10, 3), point(1010, 3)}, false},
		{"log, a millisecond early", log, []admission{point(10, 1), point(500, 2), point(1009, 1)}, true},
		{"log, a loan at its end", log, []admission{{10, 500, 1}, point(1499, 3)}, true},
		{"window by window", fixed, []admission{point(999, 3), point(1000, 3)}, false},
		{"too much in a window", fixed, []admission{point(1000, 3), point(1999, 1)}, true},
		{"a loan beyond its window", fixed, []admission{{900, 1000, 1}}, true},
		{"a window, and at an unknown moment that window or the one before", fixed, []admission{{1400, 900, 1}, point(1500, 3)}, false},
		{"a window, and at an unknown moment of it", fixed, []admission{{1800, 1300, 1}, point(1500, 3)}, true},
		{"slots", slots, []admission{{0, 9, 2}, {10, 20, 2}}, false},
		{"slots that overlap", slots, []admission{{0, 10, 2}, {10, 20, 1}}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := newAdmissions(test.rules)
			a.all = test.all
			if err := a.check(); (err != nil) != test.broken {
				t.Errorf("broken is %v, want %v: %v", err != nil, test.broken, err)
			}
		})
	}
}

// Each way in which tokens come back makes room, once.
func TestAdmissionsFollowReservationsAndLeases(t *testing.T) {
	a := newAdmissions(counter.Params{Algorithm: counter.TokenBucket, Rate: 1, Window: 1000, Burst: 3})
	a.reserve(1, 3, 0)
	a.reserve(2, 3, 0)
	a.settle(2, 2, 100)
	a.add(3, 3, 0, 50_000)
	a.giveBack(3, 2, 10)
	if err := a.check(); err != nil {
		t.Errorf("a reservation that came back, 2 of another, 1 of a lease: %v", err)
	}
	a.settle(1, 1, 200)
	if err := a.check(); err == nil {
		t.Error("4 of 3 tokens")
	}
}
