//go:build unix

package procs

import (
	"time"

	"golang.org/x/sys/unix"
)

// used is the CPU time of this process.
func used() (time.Duration, bool) {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0, false
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), true
}
