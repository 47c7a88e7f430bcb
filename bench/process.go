package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/holdfastdb/holdfast/cmd/timers"
)

// process is a server that the benchmark started.
type process struct {
	cmd    *exec.Cmd
	exited chan struct{}
}

// startProcess starts a server. Its output goes to the benchmark's standard error.
func startProcess(ctx context.Context, name string, args ...string) (*process, error) {
	return startProcessTo(ctx, os.Stderr, name, args...)
}

func startProcessTo(ctx context.Context, out io.Writer, name string, args ...string) (*process, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = out, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	if err := timers.Usual(cmd.Start); err != nil { // as it comes, not as this process has it for its load
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &process{cmd: cmd, exited: make(chan struct{})}
	go func() {
		defer close(p.exited)
		_ = cmd.Wait() // how a server ends when told to is its own affair
	}()
	return p, nil
}

// stop ends the server, by force if it does not end by itself within 10 s.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // an error means that it ended before
	select {
	case <-p.exited:
	case <-time.After(10 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.exited
	}
}
