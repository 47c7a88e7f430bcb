package main

import (
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// timerSlack is how late the kernel may fire a timer of this process, to fire several together. Linux's own default is
// 50 µs.
const timerSlack = 5_000_000 // nanoseconds

// relaxTimers allows timers to be late by timerSlack. While anything goes on, Go's runtime has a thread that sleeps for
// 20 µs at a time, to see whether a system call takes long; with several nodes on a machine, and on virtual machines
// where every wake-up is dear, that is a tenth of all that they do. Nothing here needs time that exactly. Threads have
// the slack of the thread that made them, and that one is made before main, so the program starts itself again: slack
// survives that, see prctl(2).
func relaxTimers() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if slack, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0); err != nil || slack >= timerSlack {
		return
	}
	program, err := os.Executable()
	if err != nil || unix.Prctl(unix.PR_SET_TIMERSLACK, timerSlack, 0, 0, 0) != nil {
		return
	}
	_ = syscall.Exec(program, os.Args, os.Environ()) // or all goes on as it is
}
