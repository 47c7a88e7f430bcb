package main

import "testing"

// A heap grows to the floor, a large one to twice what lives as ever, and a tiny one not without bounds.
func TestASmallHeapIsLeftAlone(t *testing.T) {
	for live, want := range map[uint64]int{
		0: 400, 1 << 20: 400, 64 << 20: 200, 90 << 20: 113, 96 << 20: 100, 97 << 20: 100, 192 << 20: 100, 1 << 40: 100,
	} {
		if got := gcPercent(live); got != want {
			t.Errorf("%d MiB live: %d %%, want %d %%", live>>20, got, want)
		}
	}
}
