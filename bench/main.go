// Command bench runs the same work on Holdfast and on the systems that people use for it today, on the same machine, in
// turns, and writes a table.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	serve := flags.Int("serve-etcd", -1, "run etcd node `N` in this process (the benchmark starts itself with it)")
	dir := flags.String("dir", "", "directory for the data of all servers (default: a temporary one, removed at the end)")
	duration := flags.Duration("duration", 10*time.Second, "length of each measurement")
	warmup := flags.Duration("warmup", 2*time.Second, "time before each measurement")
	rounds := flags.Int("rounds", 3, "how often each system has its turn; the median counts")
	peers := flags.String("systems", "etcd,redis", "which systems, in which order")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *serve >= 0 {
		return serveEtcd(ctx, *serve, 3, *dir)
	}
	if *dir == "" {
		temporary, err := os.MkdirTemp("", "holdfast-bench-*")
		if err != nil {
			return err
		}
		defer os.RemoveAll(temporary)
		*dir = temporary
	}
	systems, err := startSystems(ctx, strings.Split(*peers, ","), *dir)
	defer func() {
		for _, s := range systems {
			s.close()
		}
	}()
	if err != nil {
		return err
	}
	many := load{callers: 256, keys: 10_000, warmup: *warmup, duration: *duration}
	one := load{callers: 1, keys: 10_000, warmup: *warmup, duration: *duration}
	for round := range *rounds {
		for _, s := range systems {
			fmt.Printf("round %d  %-8s check, 256 callers  %s\n", round+1, s.name, describe(many.run(ctx, s.check)))
			fmt.Printf("round %d  %-8s check, 1 caller     %s\n", round+1, s.name, describe(one.run(ctx, s.single)))
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
	}
	return nil
}

func describe(r result) string {
	text := fmt.Sprintf("%9.0f/s  p50 %8v  p99 %8v  max %8v", r.perSecond,
		r.p50.Round(time.Microsecond), r.p99.Round(time.Microsecond), r.max.Round(time.Microsecond))
	if r.errors > 0 {
		text += fmt.Sprintf("  %d errors, one: %v", r.errors, r.firstError)
	}
	return text
}

// system is one of the things compared.
type system struct {
	name   string
	check  work // one exact, durable decision
	single work // the cheapest durable write that the system has
	close  func()
}

func startSystems(ctx context.Context, names []string, dir string) ([]system, error) {
	var systems []system
	for _, name := range names {
		switch name {
		case "etcd":
			p, err := startEtcd(ctx, dir)
			if err != nil {
				return systems, err
			}
			systems = append(systems, system{name: name, check: p.increment, single: p.put, close: p.close})
		case "redis":
			p, err := startRedis(ctx, dir)
			if err != nil {
				return systems, err
			}
			systems = append(systems, system{name: name, check: p.check, single: p.check, close: p.close})
		default:
			return systems, fmt.Errorf("unknown system %q: use etcd or redis", name)
		}
	}
	return systems, nil
}
