// Package timers says how exact the timers of a process must be.
package timers

import (
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// kernel is how late Linux lets the timers of a process be that has not asked for anything else.
const kernel = 50 * time.Microsecond

// Slack lets the kernel fire this process's timers late by up to d, if it does not already, to fire several together.
//
// While anything goes on, Go's runtime has a thread that sleeps for 20 µs at a time, to see whether a system call takes
// long; with several busy processes on a machine, and on virtual machines where every wake-up is dear, that is a tenth of
// all that they do. Threads have the slack of the thread that made them, and the runtime makes that one before main, so
// the program starts itself again: slack survives that, see prctl(2).
func Slack(d time.Duration) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if now, ok := slack(); !ok || now >= d || !set(d) {
		return
	}
	program, err := os.Executable()
	if err != nil {
		return
	}
	_ = syscall.Exec(program, os.Args, os.Environ()) // or all goes on as it is
}

// Usual calls start, which starts a process, so that its timers are as exact as the kernel has them, and not as this
// process asked for its own.
func Usual(start func() error) error {
	runtime.LockOSThread() // a process has the slack of the thread that starts it
	defer runtime.UnlockOSThread()
	if own, ok := slack(); ok && set(kernel) {
		defer set(own)
	}
	return start()
}

// slack is that of the calling thread.
func slack() (time.Duration, bool) {
	ns, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	return time.Duration(ns), err == nil
}

// set changes that of the calling thread. Those of real-time threads do not, and nothing says so but the value.
func set(d time.Duration) bool {
	err := unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(d), 0, 0, 0)
	now, ok := slack()
	return err == nil && ok && now == d
}
