// Command holdfast is the server and the command line of Holdfast. The wiring of the packages happens here and nowhere
// else; see root.go for the list of verbs.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/client/load"
	"github.com/holdfastdb/holdfast/cmd/timers"
)

// The exit codes are promises to scripts.
const (
	exitDone        = 0
	exitRefused     = 1 // refused, denied or failed
	exitUsage       = 2 // the command line makes no sense
	exitUnreachable = 3 // the cluster does not answer, or not in time: the outcome may be unknown
)

// exitError carries an exit code with an error.
type exitError struct {
	code     int
	err      error
	answered bool // by a node
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// errDenied ends a command whose answer was printed already: a denied check.
var errDenied = &exitError{code: exitRefused}

// answered tells that the failure is a node's own answer.
func answered(err error) bool {
	var exit *exitError
	return errors.As(err, &exit) && exit.answered || errors.Is(err, client.ErrOutcomeUnknown)
}

func usageErrorf(format string, args ...any) error {
	return &exitError{code: exitUsage, err: fmt.Errorf(format, args...)}
}

// serverSlack is how late timers of a server may be: nothing in it needs time more exactly.
const serverSlack = 5 * time.Millisecond

func main() {
	prepare(os.Args[1:])
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// prepare makes the process what its command needs. It may start the program again, and so is no part of the commands: tests
// run these, and the program would be the test.
func prepare(args []string) {
	switch commandOf(args) {
	case "holdfast start", "holdfast dev":
		timers.Slack(serverSlack)
	case "holdfast bench":
		timers.Slack(load.Slack)
		load.CollectLess()
	}
}

// commandOf is the command that a command line names, behind flags, too; empty if there is none, which run tells.
func commandOf(args []string) string {
	cmd, _, err := newRoot(io.Discard, io.Discard).Find(args)
	if err != nil {
		return ""
	}
	return cmd.CommandPath()
}

// run executes one command line and returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot(stdout, stderr)
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitDone
	}
	code := exitCode(err)
	if !errors.Is(err, errDenied) {
		fmt.Fprintln(stderr, "holdfast:", withoutSecrets(strings.TrimPrefix(err.Error(), "holdfast: "))) // errors of the SDK say so themselves
		switch code {
		case exitUsage:
			fmt.Fprintf(stderr, "See: %s --help\n", cmd.CommandPath())
		case exitUnreachable:
			if answered(err) {
				break
			}
			fmt.Fprintln(stderr, "Is a node running? Start one with: holdfast dev. Other addresses: --addr or $HOLDFAST_ADDR.")
		}
	}
	return code
}
