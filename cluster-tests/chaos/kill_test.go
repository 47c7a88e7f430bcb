package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/holdfastdb/holdfast/client"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// policy makes a policy with fixed windows so long that none ends during a test, for one resource.
func policy(t *testing.T, cl *client.Client, resource string, rate uint32) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	policies := pb.NewPoliciesClient(cl.Conn())
	p, err := policies.CreatePolicy(ctx, &pb.CreatePolicyRequest{
		Name: resource, Algorithm: "fixed_window", RateLimit: rate, TimeWindow: 360 * 24 * 3600, Resource: resource,
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = policies.AssignClients(ctx, &pb.AssignClientsRequest{PolicyId: p.PolicyId, ClientIds: []string{"*"}})
	if err != nil {
		t.Fatal(err)
	}
}

// used sums up what the counters of so many clients hold.
func used(t *testing.T, cl *client.Client, resource string, clients int) (sum uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for i := range clients {
		d, err := cl.Limits().Peek(ctx, client.Request{Client: fmt.Sprint("client-", i), Resource: resource})
		if err != nil {
			t.Fatal(err)
		}
		if len(d.Limits) != 1 {
			t.Fatalf("client %d has %d limits", i, len(d.Limits))
		}
		sum += uint64(d.Limits[0].Used)
	}
	return sum
}

// tally counts what callers were told.
type tally struct {
	mu                       sync.Mutex
	allowed, denied, unknown uint64
	failed                   map[string]int // errors that say that nothing happened
	last                     time.Time      // of the newest decision
	gap                      time.Duration  // the longest time without one
}

func (y *tally) add(d client.Decision, err error) {
	y.mu.Lock()
	defer y.mu.Unlock()
	switch {
	case err == nil:
		now := time.Now()
		if !y.last.IsZero() {
			y.gap = max(y.gap, now.Sub(y.last))
		}
		y.last = now
		if d.Allowed {
			y.allowed++
		} else {
			y.denied++
		}
	case errors.Is(err, client.ErrOutcomeUnknown):
		y.unknown++
	default:
		y.failed[err.Error()]++
	}
}

// callers check until ctx ends.
func callers(ctx context.Context, n int, cl *client.Client, resource string, clients int) *tally {
	y := &tally{failed: make(map[string]int)}
	var working sync.WaitGroup
	for caller := range n {
		working.Go(func() {
			for i := caller; ctx.Err() == nil; i++ {
				// The call has a deadline of its own: what has begun is seen through.
				d, err := cl.Limits().Check(context.WithoutCancel(ctx), client.Request{Client: fmt.Sprint("client-", i%clients), Resource: resource})
				y.add(d, err)
			}
		})
	}
	working.Wait()
	return y
}

// between checks that the counters hold all that was acknowledged and nothing that nobody asked for.
func between(t *testing.T, what string, counted, definite, unknown uint64) {
	t.Helper()
	t.Logf("%s: %d decisions acknowledged, %d of unknown outcome, %d counted", what, definite, unknown, counted)
	switch {
	case definite < 100:
		t.Errorf("%s: only %d decisions: nothing was tried", what, definite)
	case counted < definite:
		t.Errorf("%s: %d decisions are lost", what, definite-counted)
	case counted > definite+unknown:
		t.Errorf("%s: %d decisions are doubled", what, counted-definite-unknown)
	}
}

// Killing the leader in the middle of load loses and doubles no decision, and the cluster goes on by itself.
func TestKillLeaderUnderLoad(t *testing.T) {
	c := Start(t, 3)
	cl := c.Dial()
	const clients, small = 20, 50
	policy(t, cl, "sdk", 10_000_000)
	policy(t, cl, "bench", 10_000_000)
	policy(t, cl, "small", small)

	ctx, cancel := context.WithTimeout(context.Background(), 12*time.Second)
	defer cancel()
	bench := c.Command(context.Background(), "bench", "limit-check", "--clients", "32", "--keys", fmt.Sprint(clients),
		"--duration", "10s", "--warmup", "0s", "--resource", "bench", "-o", "json")
	var working sync.WaitGroup
	var counted, limited *tally
	var printed []byte
	var benchErr error
	working.Go(func() { counted = callers(ctx, 8, cl, "sdk", clients) })
	working.Go(func() { limited = callers(ctx, 4, cl, "small", 1) })
	working.Go(func() { printed, benchErr = bench.Output() })

	victim := c.Nodes[0]
	for round := range 2 {
		<-time.After(2 * time.Second)
		if round > 0 {
			victim.Start()
			victim.WaitReady(20 * time.Second)
		}
		victim = c.BusiestLeader()
		victim.Kill()
		t.Logf("killed %s", victim.Name)
	}
	working.Wait()
	victim.Start()
	victim.WaitReady(30 * time.Second)
	c.WaitHealthy(30 * time.Second)

	t.Logf("longest time without a decision: %v", counted.gap.Round(time.Millisecond))
	if counted.gap > 10*time.Second {
		t.Errorf("no decision for %v", counted.gap)
	}
	if len(counted.failed) > 0 {
		t.Errorf("checks failed, though two of three nodes were up: %v", counted.failed)
	}
	between(t, "SDK", used(t, cl, "sdk", clients), counted.allowed, counted.unknown)
	if limited.allowed > small || limited.allowed+limited.unknown < small {
		t.Errorf("a limit of %d let %d pass, %d of unknown outcome", small, limited.allowed, limited.unknown)
	}
	if n := used(t, cl, "small", 1); n > small {
		t.Errorf("a limit of %d counts %d", small, n)
	}

	var result struct{ Ops, Errors, Unknown uint64 }
	if benchErr != nil {
		t.Fatalf("bench: %v\n%s", benchErr, printed)
	}
	if err := json.Unmarshal(printed, &result); err != nil {
		t.Fatalf("bench printed %q: %v", printed, err)
	}
	if result.Errors > 0 {
		t.Errorf("bench: %d errors", result.Errors)
	}
	between(t, "bench", used(t, cl, "bench", clients), result.Ops, result.Unknown)
}

// What was acknowledged is there when all nodes come back from a kill at the same moment.
func TestKillAllUnderLoad(t *testing.T) {
	c := Start(t, 3)
	cl := c.Dial()
	const clients = 20
	policy(t, cl, "sdk", 10_000_000)
	ctx, cancel := context.WithTimeout(context.Background(), 6*time.Second)
	defer cancel()
	var y *tally
	var working sync.WaitGroup
	working.Go(func() { y = callers(ctx, 8, cl, "sdk", clients) })
	<-time.After(2 * time.Second)
	var killing sync.WaitGroup
	for _, n := range c.Nodes {
		killing.Go(n.Kill)
	}
	killing.Wait()
	for _, n := range slices.Backward(c.Nodes) {
		n.Start()
	}
	for _, n := range c.Nodes {
		n.WaitReady(30 * time.Second)
	}
	working.Wait()
	c.WaitHealthy(30 * time.Second)
	t.Logf("longest time without a decision: %v, errors that say that nothing happened: %v", y.gap.Round(time.Millisecond), y.failed)
	between(t, "SDK", used(t, cl, "sdk", clients), y.allowed, y.unknown)
}
