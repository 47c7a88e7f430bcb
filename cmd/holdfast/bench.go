package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/client/load"
	"github.com/holdfastdb/holdfast/cmd/procs"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// benchRun is what the flags of bench say.
type benchRun struct {
	clients, keys    int
	duration, warmup time.Duration
	zipf, rate       float64
	resource         string
	cached           time.Duration
}

// benchResult is what bench prints; the names are promises.
type benchResult struct {
	Workload  string  `json:"workload"`
	Clients   int     `json:"clients"`
	DurationS float64 `json:"duration_s"`
	Ops       uint64  `json:"ops"`
	OpsPerS   float64 `json:"ops_per_s"`
	Errors    uint64  `json:"errors"`
	Unknown   uint64  `json:"unknown"`
	P50       float64 `json:"p50_us"`
	P95       float64 `json:"p95_us"`
	P99       float64 `json:"p99_us"`
	P999      float64 `json:"p999_us"`
}

// workload prepares the cluster and returns one operation; cleanup undoes what it made.
type workload func(ctx context.Context, cl *client.Client, r *benchRun) (do load.Work, cleanup func(context.Context) error, err error)

// workloads have a number of keys by default that is theirs.
var workloads = map[string]struct {
	make workload
	keys int
}{
	"limit-check":      {benchCheck, 10_000},
	"limit-lease":      {benchLease, 16}, // leases are for hot keys
	"session-validate": {benchValidate, 10_000},
	"session-create":   {benchCreate, 100_000},
}

func workloadNames() []string { return slices.Sorted(maps.Keys(workloads)) }

func newBench(c *cli) *cobra.Command {
	var r benchRun
	cmd := &cobra.Command{
		Use:   "bench WORKLOAD",
		Short: "Put load on the cluster and measure it",
		Long: `bench puts load on a running cluster and measures it from the callers' side.

Workloads:
  limit-check        durable, exactly-once rate-limit checks
  limit-lease        checks decided from leases of this process
  session-validate   linearizable validations of --keys sessions, or from this process's memory with --cached
  session-create     logins of --keys users`,
		Example: `  holdfast bench limit-check --clients 256 --duration 10s
  holdfast bench limit-check --clients 1 -o json
  holdfast bench limit-check --rate 20000        at a fixed rate, for latencies below the peak
  holdfast bench session-validate --clients 256
  holdfast bench session-validate --cached 500ms`,
		Args:      cobra.ExactArgs(1),
		ValidArgs: workloadNames(),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := r.complete(args[0], cmd.Flags().Changed("keys")); err != nil {
				return err
			}
			return c.bench(cmd.Context(), args[0], &r)
		},
	}
	f := cmd.Flags()
	f.IntVar(&r.clients, "clients", 64, "callers at the same time")
	f.IntVar(&r.keys, "keys", 0, "different clients of the limits, sessions or users (default 10000; 16 for limit-lease, 100000 for session-create)")
	f.DurationVar(&r.duration, "duration", 10*time.Second, "how long to measure")
	f.DurationVar(&r.warmup, "warmup", 2*time.Second, "how long to run before")
	f.Float64Var(&r.zipf, "zipf", 0, "skew of the keys, above 1; 0 uses all alike")
	f.StringVar(&r.resource, "resource", "", "check against the policies of this resource, instead of one made for the run")
	f.DurationVar(&r.cached, "cached", 0, "with session-validate: accept answers that are at most so old")
	f.Float64Var(&r.rate, "rate", 0, "operations per second; 0 is as fast as possible")
	return cmd
}

// complete gives the keys their default, which is the workload's, and refuses what cannot be run.
func (r *benchRun) complete(name string, keysGiven bool) error {
	w, ok := workloads[name]
	if !ok {
		return usageErrorf("no workload %q: use %s", name, strings.Join(workloadNames(), ", "))
	}
	if !keysGiven {
		r.keys = w.keys
	}
	switch {
	case r.clients < 1:
		return usageErrorf("--clients must be at least 1")
	case r.keys < 1:
		return usageErrorf("--keys must be at least 1")
	case r.duration <= 0:
		return usageErrorf("--duration must be more than 0, as in 10s")
	case r.warmup < 0:
		return usageErrorf("--warmup must be 0 or more, as in 2s")
	case r.cached < 0:
		return usageErrorf("--cached must be 0 or more, as in 500ms")
	case r.cached > 0 && name != "session-validate":
		return usageErrorf("--cached is for session-validate")
	case r.zipf != 0 && !isAbove(r.zipf, 1):
		return usageErrorf("--zipf must be 0 or a number above 1")
	case r.rate != 0 && !isAbove(r.rate, 0):
		return usageErrorf("--rate must be 0 or a number of operations per second above it")
	}
	return nil
}

// isAbove also says no to what is not a number, or no finite one.
func isAbove(x, bound float64) bool { return x > bound && !math.IsInf(x, 1) }

func (c *cli) bench(ctx context.Context, name string, r *benchRun) (err error) {
	processors := procs.New()
	processors.Follow(ctx)
	defer processors.Close()
	cl, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer func() { err = plain(errors.Join(err, cl.Close())) }()
	do, cleanup, err := workloads[name].make(ctx, cl, r)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cleanup(context.WithoutCancel(ctx))) }()
	bar := c.progress("measuring "+name, int64(r.warmup+r.duration))
	ticking, stop := context.WithCancel(ctx)
	go func() {
		for ticking.Err() == nil {
			bar.add(int64(100 * time.Millisecond))
			time.Sleep(100 * time.Millisecond)
		}
	}()
	l := load.Load{
		Callers: r.clients, Keys: r.keys, Warmup: r.warmup, Duration: r.duration, Zipf: r.zipf, PerSecond: r.rate,
		Unknown: func(err error) bool { return errors.Is(err, client.ErrOutcomeUnknown) },
	}
	if name == "limit-lease" || r.cached > 0 {
		l.Sample = 64
	}
	got := l.Run(ctx, do)
	stop()
	bar.done()
	if got.FirstError != nil {
		fmt.Fprintln(c.stderr, "one of the errors:", got.FirstError)
	}
	return c.printer().value(resultOf(name, r, got), resultTable(name, r, got))
}

func resultOf(name string, r *benchRun, got load.Result) benchResult {
	us := func(d time.Duration) float64 { return math.Round(float64(d)/100) / 10 }
	return benchResult{
		Workload: name, Clients: r.clients, DurationS: r.duration.Seconds(), Ops: got.Ops, OpsPerS: math.Round(got.PerSecond),
		Errors: got.Errors, Unknown: got.Unknown, P50: us(got.P50), P95: us(got.P95), P99: us(got.P99), P999: us(got.P999),
	}
}

func resultTable(name string, r *benchRun, got load.Result) *table {
	t := &table{header: []string{"workload", "clients", "ops/s", "p50", "p95", "p99", "p99.9", "errors", "unknown"}}
	short := func(d time.Duration) string {
		if d < time.Millisecond {
			return d.Round(time.Nanosecond).String()
		}
		return d.Round(10 * time.Microsecond).String()
	}
	t.add(name, strconv.Itoa(r.clients), fmt.Sprintf("%.0f", got.PerSecond), short(got.P50), short(got.P95), short(got.P99),
		short(got.P999), strconv.FormatUint(got.Errors, 10), strconv.FormatUint(got.Unknown, 10))
	return t
}

// benchPolicy makes a policy for one resource that never denies, unless there is a resource to use.
func benchPolicy(ctx context.Context, cl *client.Client, given string) (resource string, cleanup func(context.Context) error, err error) {
	if given != "" {
		return given, func(context.Context) error { return nil }, nil
	}
	policies := pb.NewPoliciesClient(cl.Conn())
	resource = "bench-" + strconv.FormatInt(time.Now().UnixNano(), 36)
	p, err := policies.CreatePolicy(ctx, &pb.CreatePolicyRequest{
		Name: resource, Algorithm: "token_bucket", RateLimit: 1_000_000_000, TimeWindow: 1, Resource: resource,
		Description: "made by holdfast bench",
	})
	if err != nil {
		return "", nil, err
	}
	cleanup = func(ctx context.Context) error {
		_, err := policies.DeletePolicy(ctx, &pb.DeletePolicyRequest{PolicyId: p.PolicyId})
		return err
	}
	if _, err := policies.AssignClients(ctx, &pb.AssignClientsRequest{PolicyId: p.PolicyId, ClientIds: []string{"*"}}); err != nil {
		return "", nil, errors.Join(err, cleanup(ctx))
	}
	return resource, cleanup, nil
}

// keyNames are made once: what is measured is the cluster.
func keyNames(n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = "client-" + strconv.Itoa(i)
	}
	return names
}

func benchCheck(ctx context.Context, cl *client.Client, r *benchRun) (load.Work, func(context.Context) error, error) {
	resource, cleanup, err := benchPolicy(ctx, cl, r.resource)
	if err != nil {
		return nil, nil, err
	}
	names, limits := keyNames(r.keys), cl.Limits()
	return func(ctx context.Context, _, key int) error {
		d, err := limits.Check(ctx, client.Request{Client: names[key], Resource: resource})
		if err == nil && (!d.Allowed || d.Policy == "") {
			return fmt.Errorf("a check was not allowed by the bench's policy: %+v", d)
		}
		return err
	}, cleanup, nil
}

func benchLease(ctx context.Context, cl *client.Client, r *benchRun) (load.Work, func(context.Context) error, error) {
	resource, cleanup, err := benchPolicy(ctx, cl, r.resource)
	if err != nil {
		return nil, nil, err
	}
	names, limits := keyNames(r.keys), cl.Limits()
	return func(ctx context.Context, _, key int) error {
		d, err := limits.Async(ctx, client.Request{Client: names[key], Resource: resource})
		if err == nil && (!d.Allowed || d.Fallback) {
			return fmt.Errorf("a check was not allowed by the bench's policy: %+v", d)
		}
		return err
	}, cleanup, nil
}
