package chaos

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	// memoryGroups is where the kernel bounds the memory of groups of processes (cgroup v1, controller "memory").
	memoryGroups = "/sys/fs/cgroup/memory"
	// memoryLeft is what a node gets beside the memory that it has: what it had before is not counted.
	memoryLeft = 8 << 20
	// starveTime is how long a node that works may live on that.
	starveTime = 10 * time.Second
)

// memoryGroup is the directory of a group of processes.
type memoryGroup string

// newMemoryGroup makes a group below this process's own.
func newMemoryGroup(limit int) (memoryGroup, error) {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(own)) {
		_, path, ok := strings.Cut(strings.TrimSpace(line), ":memory:")
		if !ok {
			continue
		}
		dir, err := os.MkdirTemp(filepath.Join(memoryGroups, path), "holdfast-chaos-*")
		if err != nil {
			return "", err
		}
		g := memoryGroup(dir)
		if err := g.set("memory.limit_in_bytes", limit); err != nil {
			return "", errors.Join(err, g.close())
		}
		return g, nil
	}
	return "", errors.New("the kernel does not bound memory by cgroup v1")
}

func (g memoryGroup) set(file string, value int) error {
	return os.WriteFile(filepath.Join(string(g), file), []byte(strconv.Itoa(value)), 0)
}

// take puts a process into the group.
func (g memoryGroup) take(pid int) error { return g.set("cgroup.procs", pid) }

// killed tells how many processes of the group the kernel has ended.
func (g memoryGroup) killed() (n int, err error) {
	text, err := os.ReadFile(filepath.Join(string(g), "memory.oom_control"))
	if err != nil {
		return 0, err
	}
	_, last, _ := bytes.Cut(text, []byte("oom_kill "))
	_, err = fmt.Sscan(string(last), &n)
	return n, err
}

// close removes the group. What lives in it goes back to where it was.
func (g memoryGroup) close() error {
	pids, err := os.ReadFile(filepath.Join(string(g), "cgroup.procs"))
	if err != nil {
		return err
	}
	for pid := range strings.FieldsSeq(string(pids)) {
		if n, err := strconv.Atoi(pid); err == nil {
			_ = memoryGroup(filepath.Dir(string(g))).take(n) // it may have ended
		}
	}
	return os.Remove(string(g))
}

// missingForMemory tells why the memory of nodes cannot be bounded here, nil if it can.
func missingForMemory() error {
	g, err := newMemoryGroup(memoryLeft)
	if err != nil {
		return fmt.Errorf("memory that runs out needs root and cgroup v1: %w", err)
	}
	return g.close()
}

// starve leaves a node hardly more memory than it has, and waits until the kernel ends it: in the midst of whatever it does
// when it takes more.
func (r *run) starve(n *Node) (func() error, error) {
	g, err := newMemoryGroup(memoryLeft)
	if err != nil {
		return nil, err
	}
	r.describe(fmt.Sprintf("%s gets %d MiB of memory beside what it has", n.Name, memoryLeft>>20), n)
	ended := n.doom()
	if err := g.take(n.pid()); err != nil {
		return nil, errors.Join(err, g.close())
	}
	select {
	case <-ended:
		r.faults[len(r.faults)-1].From = r.w.now() // the pause in writes begins here
	case <-time.After(starveTime):
		if err := errors.Join(g.close(), n.revive()); err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("%w: %s lives on the memory that it has", errNothingDone, n.Name)
	}
	killed, err := g.killed()
	if err == nil && killed == 0 {
		err = fmt.Errorf("%s ended, but not by the kernel", n.Name)
	}
	if err := errors.Join(err, g.close()); err != nil {
		return nil, err
	}
	return n.Start, nil
}
