package models

import (
	"testing"
	"time"
)

// What holders may do with what they were lent, and the least that is too much.
func TestSpendingBeyondLoansIsFound(t *testing.T) {
	const ms = time.Millisecond
	lent := func(from, to time.Duration, n int64) step { return step{from * ms, to * ms, -n} }
	spent := func(call, returned time.Duration, n int64) step { return step{returned * ms, call * ms, n} }
	for _, test := range []struct {
		name   string
		steps  []step
		broken bool
	}{
		{"nothing", nil, false},
		{"all of a loan", []step{lent(10, 100, 5), spent(20, 20, 3), spent(100, 100, 2)}, false},
		{"one more", []step{lent(10, 100, 5), spent(20, 20, 3), spent(50, 60, 3)}, true},
		{"before it", []step{lent(10, 100, 5), spent(9, 9, 1)}, true},
		{"asked for before, told after", []step{lent(10, 100, 5), spent(2, 11, 1)}, false},
		{"after its end", []step{lent(10, 100, 5), spent(101, 102, 1)}, true},
		{"begun before its end", []step{lent(10, 100, 5), spent(99, 140, 5)}, false},
		{"of two loans", []step{lent(10, 100, 5), lent(50, 150, 5), spent(60, 60, 10)}, false},
		{"of the next one", []step{lent(10, 100, 5), lent(150, 250, 5), spent(60, 60, 6)}, true},
		{"what the first did not use", []step{lent(10, 100, 5), lent(150, 250, 5), spent(160, 160, 6)}, true},
		{"in the midst", []step{lent(10, 100, 5), lent(150, 250, 5), lent(300, 400, 5), spent(20, 20, 1), spent(200, 201, 6), spent(350, 350, 1)}, true},
		{"from nothing", []step{spent(1, 2, 1)}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			if err := covered(test.steps); (err != nil) != test.broken {
				t.Errorf("broken is %v, want %v: %v", err != nil, test.broken, err)
			}
		})
	}
}
