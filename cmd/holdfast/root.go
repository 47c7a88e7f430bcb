package main

import (
	"errors"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// cli is what all verbs share.
type cli struct {
	stdout, stderr io.Writer
	addrs          []string
	format         string
}

func (c *cli) printer() *printer { return &printer{out: c.stdout, format: c.format} }

// newRoot lists the verb groups.
func newRoot(stdout, stderr io.Writer) *cobra.Command {
	c := &cli{stdout: stdout, stderr: stderr}
	root := &cobra.Command{
		Use:   "holdfast",
		Short: "A replicated store for rate limits, sessions, flags, queues and short URLs",
		Long: `Holdfast keeps the state that backends usually glue together from a cache and a database:
replicated by Raft, sharded by hash, exactly-once, durable on a quorum.

Start here:
  holdfast dev                                      a node on this machine, ready in seconds
  holdfast policy create --name api --rate 100 --window 60
  holdfast policy assign api alice
  holdfast limit check alice`,
		SilenceErrors: true, SilenceUsage: true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if !slices.Contains([]string{"table", "json", "yaml"}, c.format) {
				return usageErrorf("-o %q: use table, json or yaml", c.format)
			}
			return nil
		},
	}
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageErrorf("%w", err) })
	root.PersistentFlags().StringSliceVar(&c.addrs, "addr", defaultAddrs(), "gRPC addresses of the cluster; $HOLDFAST_ADDR")
	root.PersistentFlags().StringVarP(&c.format, "output", "o", "table", "table, json or yaml")
	root.AddCommand(newDev(c), newStart(c), newCluster(c), newPolicy(c), newLimit(c), newBench(c), newDebug(c), newVersion(c))
	root.InitDefaultCompletionCmd() // before Execute makes them, so that what follows is about them too
	root.InitDefaultHelpCmd()
	for _, sub := range root.Commands() {
		if sub.Name() == "help" {
			sub.Args = func(_ *cobra.Command, args []string) error {
				_, _, err := root.Find(args)
				return err
			}
		}
	}
	usageOnBadArgs(root)
	return root
}

func defaultAddrs() []string {
	if v := os.Getenv(envPrefix + "ADDR"); v != "" {
		return strings.Split(v, ",")
	}
	return []string{"127.0.0.1:7400"}
}

// usageOnBadArgs makes wrong positional arguments, and verbs that do not exist, wrong usage.
func usageOnBadArgs(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return usageErrorf("%w\nUsage: %s", err, cmd.UseLine())
			}
			return nil
		}
	}
	if cmd.RunE == nil && cmd.Run == nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageErrorf("%q is not a verb of %s", args[0], cmd.CommandPath())
			}
			return cmd.Help()
		}
	}
	for _, sub := range cmd.Commands() {
		usageOnBadArgs(sub)
	}
}

// exitCode maps an error to the exit code that interface promises.
func exitCode(err error) int {
	var exit *exitError
	if errors.As(err, &exit) {
		return exit.code
	}
	if s, ok := status.FromError(errors.Unwrap(err)); ok && s.Code() == codes.Unavailable {
		return exitUnreachable
	}
	if status.Code(err) == codes.Unavailable {
		return exitUnreachable
	}
	for _, words := range []string{"unknown ", "required flag"} { // cobra has no types for them
		if strings.HasPrefix(err.Error(), words) {
			return exitUsage
		}
	}
	return exitRefused
}
