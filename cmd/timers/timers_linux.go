// Package timers says how exact the timers of a process must be.
package timers

import (
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Kernel is how late Linux lets the timers of a process be that has not asked for anything else.
const Kernel = 50 * time.Microsecond

// Slack lets the kernel fire this process's timers late by up to d, to fire several together. Call it first thing.
//
// While anything goes on, Go's runtime has a thread that sleeps for 20 µs at a time, to see whether a system call takes
// long; with several busy processes on a machine, and on virtual machines where every wake-up is dear, that is a tenth of
// all that they do. Threads have the slack of the thread that made them, and the runtime makes that one before main, so
// the program starts itself again: slack survives that, see prctl(2). It is passed on to processes that this one starts,
// too.
func Slack(d time.Duration) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if now, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0); err != nil || now == int(d) {
		return
	}
	program, err := os.Executable()
	if err != nil || unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(d), 0, 0, 0) != nil {
		return
	}
	_ = syscall.Exec(program, os.Args, os.Environ()) // or all goes on as it is
}
