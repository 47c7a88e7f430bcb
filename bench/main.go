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
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/holdfastdb/holdfast/client/load"
	"github.com/holdfastdb/holdfast/cmd/procs"
	"github.com/holdfastdb/holdfast/cmd/timers"
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

// settings are the flags.
type settings struct {
	dir, out         string
	duration, warmup time.Duration
	rounds           int
	systems          []string
	shards           int
}

func run(ctx context.Context, args []string) error {
	var s settings
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	serve := flags.Int("serve-etcd", -1, "run etcd node `N` in this process (the benchmark starts itself with it)")
	flags.StringVar(&s.dir, "dir", "", "directory for the data of all servers (default: a temporary one, removed at the end)")
	flags.StringVar(&s.out, "out", "", "Markdown `file` in which to replace the table for this number of shards")
	flags.DurationVar(&s.duration, "duration", 10*time.Second, "length of each measurement")
	flags.DurationVar(&s.warmup, "warmup", 2*time.Second, "time before each measurement")
	flags.IntVar(&s.rounds, "rounds", 3, "how often each system has its turn; the median counts")
	flags.IntVar(&s.shards, "shards", 8, "shards of the Holdfast cluster")
	work := flags.String("work", "limits", "limits or sessions")
	systems := flags.String("systems", "holdfast,etcd,redis", "which systems, in which order")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *serve >= 0 {
		return serveEtcd(ctx, *serve, 3, s.dir)
	}
	timers.Slack(load.Slack)
	load.CollectLess()
	processors := procs.New()
	processors.Follow(ctx)
	defer processors.Close()
	s.systems = strings.Split(*systems, ",")
	if s.dir == "" {
		temporary, err := os.MkdirTemp("", "holdfast-bench-*")
		if err != nil {
			return err
		}
		defer func() { _ = os.RemoveAll(temporary) }()
		s.dir = temporary
	}
	if *work == "sessions" {
		return s.measureSessions(ctx)
	}
	return s.measure(ctx)
}

const (
	// manyKeys are the clients whose limits are checked.
	manyKeys = 10_000
	// manyCounters is how many live at the end, to see what they take.
	manyCounters = 1_000_000
)

// system is one of the things compared.
type system struct {
	name   string
	check  load.Work // one exact, durable decision
	single load.Work // the cheapest durable write that the system has
	// sessions says how it is used as a store of sessions.
	sessions func(*store)
	close    func()
	many     []load.Result // by round
	one      []load.Result
}

func (s *settings) start(ctx context.Context) (systems []*system, h *holdfastPeer, err error) {
	for _, name := range s.systems {
		switch name {
		case "holdfast":
			if h, err = startHoldfast(ctx, s.dir, s.shards); err != nil {
				return systems, nil, err
			}
			systems = append(systems, &system{name: name, check: h.check, single: h.check, sessions: h.sessions, close: h.close})
		case "etcd":
			p, err := startEtcd(ctx, s.dir)
			if err != nil {
				return systems, h, err
			}
			systems = append(systems, &system{name: name, check: p.increment, single: p.put, sessions: p.sessions, close: p.close})
		case "redis":
			p, err := startRedis(ctx, s.dir)
			if err != nil {
				return systems, h, err
			}
			systems = append(systems, &system{name: name, check: p.check, single: p.check, sessions: p.sessions, close: p.close})
		default:
			return systems, h, fmt.Errorf("unknown system %q: use holdfast, etcd or redis", name)
		}
	}
	return systems, h, nil
}

func (s *settings) measure(ctx context.Context) error {
	systems, h, err := s.start(ctx)
	stop := func(which func(*system) bool) {
		for _, sys := range systems {
			if which(sys) && sys.close != nil {
				sys.close()
				sys.close = nil
			}
		}
	}
	defer stop(func(*system) bool { return true })
	if err != nil {
		return err
	}
	many := load.Load{Callers: 256, Keys: manyKeys, Warmup: s.warmup, Duration: s.duration}
	one := load.Load{Callers: 1, Keys: manyKeys, Warmup: s.warmup, Duration: s.duration}
	for round := range s.rounds {
		for _, sys := range systems {
			sys.many = append(sys.many, many.Run(ctx, sys.check))
			fmt.Printf("round %d  %-8s  check, 256 callers  %s\n", round+1, sys.name, describe(sys.many[round]))
			sys.one = append(sys.one, one.Run(ctx, sys.single))
			fmt.Printf("round %d  %-8s  one caller          %s\n", round+1, sys.name, describe(sys.one[round]))
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
	}
	t := &report{settings: s, systems: systems}
	if h != nil {
		stop(func(sys *system) bool { return sys.name != "holdfast" }) // even idle ones take their share
		if err := t.alone(ctx, h); err != nil {
			return err
		}
	}
	text := t.markdown()
	fmt.Print("\n", text)
	if s.out != "" {
		return writeSection(s.out, fmt.Sprintf("--shards %d", s.shards), text)
	}
	return nil
}

func describe(r load.Result) string {
	text := fmt.Sprintf("%9.0f/s  p50 %8v  p99 %8v  max %8v", r.PerSecond,
		r.P50.Round(time.Microsecond), r.P99.Round(time.Microsecond), r.Max.Round(time.Microsecond))
	if r.Errors+r.Unknown > 0 {
		text += fmt.Sprintf("  %d errors, one: %v", r.Errors+r.Unknown, r.FirstError)
	}
	return text
}

func perSecond(r load.Result) float64 { return r.PerSecond }
func p50(r load.Result) float64       { return float64(r.P50) }
func p99(r load.Result) float64       { return float64(r.P99) }

// medianOf is the median of what value says of the rounds.
func medianOf(rounds []load.Result, value func(load.Result) float64) float64 {
	values := make([]float64, len(rounds))
	for i, r := range rounds {
		values[i] = value(r)
	}
	slices.Sort(values)
	return values[len(values)/2]
}
