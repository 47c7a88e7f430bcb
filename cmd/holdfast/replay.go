package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/counter"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// replay asks of a log of the past what a policy would have denied.
type replay struct {
	algorithm, key, calendar, policy string
	rate, burst                      uint32
	window                           float64
	top, callers                     int
	live                             bool
}

func newReplay(c *cli) *cobra.Command {
	var r replay
	cmd := &cobra.Command{
		Use:   "replay FILE",
		Short: "What would a policy have denied? Runs an access log through it",
		Long: `replay reads an access log in Combined Log Format and decides on every request, at the log's own time, with the
very state machine that serves. Lines are taken in the order of their times; fixed windows are aligned to the epoch.
FILE may be - for standard input.

With --live every line is sent as a check to the running cluster instead, as fast as it takes them, at the time of
now; the policy is made for the run and deleted after it, or is one that exists, with --policy.`,
		Example: `  holdfast limit replay access.log --algorithm fixed_window --rate 10 --window 60 --key ip
  holdfast limit replay access.log --rate 30 --window 60 --burst 60 -o json
  holdfast limit replay access.log --rate 100 --window 1 --live`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return c.replay(cmd.Context(), &r, args[0]) },
	}
	f := cmd.Flags()
	f.StringVar(&r.algorithm, "algorithm", "token_bucket", "token_bucket, sliding_window, sliding_log, fixed_window or leaky_bucket")
	f.Uint32Var(&r.rate, "rate", 0, "requests per window")
	f.Float64Var(&r.window, "window", 60, "length of the window in seconds")
	f.Uint32Var(&r.burst, "burst", 0, "requests at once, for token_bucket (default: the rate) and leaky_bucket (default: 1)")
	f.StringVar(&r.calendar, "calendar", "", "minute, hour, day, week, month or year in UTC instead of --window, for fixed_window")
	f.StringVar(&r.key, "key", "ip", "what is a client: ip, user, path or user-agent")
	f.IntVar(&r.top, "top", 10, "clients to list")
	f.BoolVar(&r.live, "live", false, "send every line as a check to the running cluster")
	f.StringVar(&r.policy, "policy", "", "with --live: the policy to apply, by id or name")
	f.IntVar(&r.callers, "callers", 256, "with --live: checks under way at the same time")
	return cmd
}

// params are the rules to try.
func (r *replay) params() (counter.Params, error) {
	p := counter.Params{Rate: r.rate, Window: fsm.Millis(math.Round(r.window * 1000)), Burst: r.burst}
	var ok bool
	if p.Algorithm, ok = counter.ParseAlgorithm(r.algorithm); !ok || p.Algorithm == counter.Concurrency {
		return p, usageErrorf("--algorithm %q: use token_bucket, sliding_window, sliding_log, fixed_window or leaky_bucket", r.algorithm)
	}
	if p.Calendar, ok = counter.ParseCalendar(r.calendar); !ok {
		return p, usageErrorf("--calendar %q: use minute, hour, day, week, month or year", r.calendar)
	}
	if p.Calendar != counter.None {
		p.Window = p.Calendar.Window()
	}
	switch {
	case p.Burst != 0 && !p.Algorithm.Bursts():
		return p, usageErrorf("--burst is for token_bucket and leaky_bucket: %s has none", p.Algorithm)
	case p.Burst != 0:
	case p.Algorithm == counter.TokenBucket:
		p.Burst = p.Rate
	case p.Algorithm == counter.LeakyBucket:
		p.Burst = 1
	}
	if err := p.Validate(); err != nil {
		return p, usageErrorf("%w", err)
	}
	return p, nil
}

// request is one line of the log.
type request struct {
	at     fsm.Time
	client string
}

// readRequests reads the log and sorts it by time: servers write a line when the answer is out, so lines are not in the
// order of the requests.
func (c *cli) readRequests(path, key string) ([]request, int, error) {
	var in io.Reader = os.Stdin
	var size int64
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, 0, usageErrorf("%w", err)
		}
		defer f.Close()
		in = f
		info, err := f.Stat()
		if err != nil {
			return nil, 0, usageErrorf("%w", err)
		}
		if info.IsDir() {
			return nil, 0, usageErrorf("%s is a directory: name an access log in it, or - for standard input", path)
		}
		size = info.Size()
	}
	bar := c.progress("reading", size)
	defer bar.done()
	var list []request
	skipped, err := readLog(in, func(l *logLine, bytes int) error {
		list = append(list, request{fsm.Time(l.at.UnixMilli()), l.key(key)})
		bar.add(int64(bytes))
		return nil
	})
	if err != nil {
		return nil, skipped, err
	}
	if len(list) == 0 && skipped > 0 {
		return nil, skipped, fmt.Errorf("%s: none of %d lines can be read: %w", path, skipped, errLogLine)
	}
	slices.SortStableFunc(list, func(a, b request) int { return cmp.Compare(a.at, b.at) })
	return list, skipped, nil
}

// denials are those of one client.
type denials struct {
	Client string    `json:"client"`
	Denied int       `json:"denied"`
	First  time.Time `json:"first"`
	Last   time.Time `json:"last"`
}

// verdict is what replay prints.
type verdict struct {
	Requests  int       `json:"requests"`
	Clients   int       `json:"clients"`
	Allowed   int       `json:"allowed"`
	Denied    int       `json:"denied"`
	TopDenied []denials `json:"top_denied"`
	Skipped   int       `json:"skipped"`
	// Of a live run.
	Errors    int     `json:"errors,omitempty"`
	Seconds   float64 `json:"seconds,omitempty"`
	PerSecond float64 `json:"per_second,omitempty"`

	clients map[string]*denials
}

func (v *verdict) count(q request, allowed bool) {
	v.Requests++
	d := v.clients[q.client]
	if d == nil {
		d = &denials{Client: q.client}
		v.clients[q.client] = d
	}
	if allowed {
		v.Allowed++
		return
	}
	v.Denied++
	at := time.UnixMilli(int64(q.at)).UTC()
	if d.Denied == 0 || at.Before(d.First) {
		d.First = at
	}
	if at.After(d.Last) {
		d.Last = at
	}
	d.Denied++
}

// finish sorts out who was denied most.
func (v *verdict) finish(top int) {
	v.Clients = len(v.clients)
	v.TopDenied = []denials{}
	for _, d := range v.clients {
		if d.Denied > 0 {
			v.TopDenied = append(v.TopDenied, *d)
		}
	}
	slices.SortFunc(v.TopDenied, func(a, b denials) int {
		return cmp.Or(cmp.Compare(b.Denied, a.Denied), cmp.Compare(a.Client, b.Client))
	})
	v.TopDenied = v.TopDenied[:min(len(v.TopDenied), top)]
}

func (c *cli) replay(ctx context.Context, r *replay, path string) error {
	if !slices.Contains(logKeys, r.key) {
		return usageErrorf("--key %q: use ip, user, path or user-agent", r.key)
	}
	if r.policy != "" && !r.live {
		return usageErrorf("--policy needs --live: the rules of a policy are in the cluster; without it give them with --rate")
	}
	if r.top < 0 {
		return usageErrorf("--top must be 0 or more")
	}
	if r.callers < 1 {
		return usageErrorf("--callers must be at least 1")
	}
	if r.rate == 0 && r.policy == "" {
		return usageErrorf("say how many requests a window admits: --rate N")
	}
	var params counter.Params
	if r.policy == "" {
		var err error
		if params, err = r.params(); err != nil {
			return err
		}
	}
	requests, skipped, err := c.readRequests(path, r.key)
	if err != nil {
		return err
	}
	v := &verdict{Skipped: skipped, clients: make(map[string]*denials)}
	if r.live {
		err = c.replayLive(ctx, r, requests, v)
	} else {
		c.replayPast(params, requests, v)
	}
	if err != nil {
		return err
	}
	v.finish(r.top)
	return c.printer().value(v, v.table())
}

// replayPast decides at the log's own times.
func (c *cli) replayPast(params counter.Params, requests []request, v *verdict) {
	bar := c.progress("deciding", int64(len(requests)))
	defer bar.done()
	sim := counter.NewSimulator()
	limit := []counter.Limit{{Policy: 1, Params: params}}
	for _, q := range requests {
		sum := sha256.Sum256([]byte(q.client))
		copy(limit[0].Key[:], sum[:])
		v.count(q, sim.Take(q.at, limit, 1).Allowed)
		bar.add(1)
	}
}

// replayLive sends every request to the cluster.
func (c *cli) replayLive(ctx context.Context, r *replay, requests []request, v *verdict) (err error) {
	cl, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer func() { err = plain(errors.Join(err, cl.Close())) }()
	policies := pb.NewPoliciesClient(cl.Conn())
	name := r.policy
	about := func(q request) client.Request { return client.Request{Client: q.client} }
	if name != "" {
		p, err := policies.GetPolicy(ctx, &pb.GetPolicyRequest{PolicyId: name})
		if err != nil {
			return err
		}
		switch {
		case p.Scope == "ip" && r.key == "ip":
			about = func(q request) client.Request { return client.Request{IP: q.client} }
		case p.Scope == "resource" && r.key == "path":
			about = func(q request) client.Request { return client.Request{Resource: q.client} }
		}
	} else {
		p, err := policies.CreatePolicy(ctx, &pb.CreatePolicyRequest{
			Name: "replay-" + strconv.FormatInt(time.Now().UnixNano(), 36), Algorithm: r.algorithm, RateLimit: r.rate,
			TimeWindow: r.window, BurstCapacity: r.burst, Calendar: r.calendar, Description: "made by holdfast limit replay --live",
		})
		if err != nil {
			return err
		}
		defer func() {
			_, deleteErr := policies.DeletePolicy(context.WithoutCancel(ctx), &pb.DeletePolicyRequest{PolicyId: p.PolicyId})
			err = errors.Join(err, deleteErr)
		}()
		name = p.PolicyId
	}
	bar := c.progress("checking", int64(len(requests)))
	defer bar.done()
	next := make(chan request)
	var mu sync.Mutex
	var failure error
	var callers sync.WaitGroup
	begin := time.Now()
	for range r.callers {
		callers.Go(func() {
			for q := range next {
				m := about(q)
				m.Policies = []string{name}
				d, err := cl.Limits().Check(ctx, m)
				mu.Lock()
				if err != nil {
					v.Errors++
					failure = err
				} else {
					v.count(q, d.Allowed)
				}
				mu.Unlock()
				bar.add(1)
			}
		})
	}
	for _, q := range requests {
		if q.client == "" {
			q.client = "-"
		}
		select {
		case next <- q:
			continue
		case <-ctx.Done():
		}
		break
	}
	close(next)
	callers.Wait()
	v.Seconds = time.Since(begin).Seconds()
	v.PerSecond = math.Round(float64(v.Requests) / v.Seconds)
	if v.Requests == 0 && failure != nil {
		return failure
	}
	if failure != nil {
		fmt.Fprintf(c.stderr, "%d checks failed, one: %v\n", v.Errors, failure)
	}
	return ctx.Err()
}

func (v *verdict) table() *table {
	share := func(n int) string {
		if v.Requests == 0 {
			return ""
		}
		return fmt.Sprintf("%.1f %%", 100*float64(n)/float64(v.Requests))
	}
	t := &table{}
	t.add("requests", strconv.Itoa(v.Requests))
	t.add("clients", strconv.Itoa(v.Clients))
	t.add("allowed", strconv.Itoa(v.Allowed), share(v.Allowed))
	t.add("denied", strconv.Itoa(v.Denied), share(v.Denied))
	if v.Skipped > 0 {
		t.add("unreadable lines", strconv.Itoa(v.Skipped))
	}
	if v.Seconds > 0 {
		t.add("time", fmt.Sprintf("%.2f s", v.Seconds), fmt.Sprintf("%.0f/s", v.PerSecond))
	}
	if len(v.TopDenied) > 0 {
		t.add()
		t.add("CLIENT", "DENIED", "FIRST", "LAST")
		for _, d := range v.TopDenied {
			name := d.Client
			if len(name) > 60 {
				name = name[:57] + "..."
			}
			t.add(name, strconv.Itoa(d.Denied), d.First.Format(time.RFC3339), d.Last.Format(time.RFC3339))
		}
	}
	return t
}
