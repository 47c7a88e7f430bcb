//go:build !planted

package plant

// On reports whether a bug is there: never.
func On(Bug) bool { return false }

// Now is for LocalClock.
func Now() int64 { return 0 }
