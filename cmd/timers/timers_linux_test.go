package timers

import (
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"
)

// What a child says of its own slack, started plainly and through Usual, by a thread with slack of its own.
func TestAProcessIsStartedWithTheKernelsSlack(t *testing.T) {
	runtime.LockOSThread() // and not unlocked: the thread ends with the test
	if !set(3 * time.Millisecond) {
		t.Skip("the kernel did not change the slack, as for threads of a real-time scheduler (chrt -f), which have none: nothing to pass on")
	}
	child := func(start func(*exec.Cmd) error) string {
		var out strings.Builder
		cmd := exec.Command("cat", "/proc/self/timerslack_ns")
		cmd.Stdout = &out
		if err := start(cmd); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out.String())
	}
	if got := child((*exec.Cmd).Start); got != "3000000" {
		t.Errorf("a child has %s ns, not its parent's", got)
	}
	if got := child(func(cmd *exec.Cmd) error { return Usual(cmd.Start) }); got != "50000" {
		t.Errorf("a child has %s ns, not the kernel's", got)
	}
	if now, _ := slack(); now != 3*time.Millisecond {
		t.Errorf("the thread has %v after it", now)
	}
}
