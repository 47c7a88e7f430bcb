package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/holdfastdb/holdfast/client"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// Connect once and keep the client; then ask before each request whether it may pass.
func Example() {
	defer cluster.Quota("of-alice", "client", "alice", 2)()
	ctx := context.Background()

	c, err := client.Dial(ctx, client.Config{Addrs: cluster.Addrs()})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	for range 3 {
		d, err := c.Limits().Check(ctx, client.Request{Client: "alice", Resource: "/orders"})
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println("allowed:", d.Allowed, "left:", d.Remaining)
	}
	// Output:
	// allowed: true left: 1
	// allowed: true left: 0
	// allowed: false left: 0
}

// Dial returns when a node has answered, or with its context. Errors tell whether an operation may have had an effect.
func ExampleDial() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := client.Dial(ctx, client.Config{Addrs: cluster.Addrs(), Timeout: 2 * time.Second})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	d, err := c.Limits().Check(ctx, client.Request{Client: "somebody without a policy"})
	switch {
	case errors.Is(err, client.ErrOutcomeUnknown):
		log.Fatal("the tokens may have been taken: ", err)
	case err != nil:
		log.Fatal("nothing was taken: ", err)
	}
	fmt.Println("allowed:", d.Allowed, "unlimited:", d.Remaining == client.Unlimited)
	// Output: allowed: true unlimited: true
}

// What the SDK has no methods for is called through the generated clients, here to make a policy.
func ExampleClient_Conn() {
	ctx := context.Background()
	c, err := client.Dial(ctx, client.Config{Addrs: cluster.Addrs()})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	policies := pb.NewPoliciesClient(c.Conn())
	p, err := policies.CreatePolicy(ctx, &pb.CreatePolicyRequest{
		Name: "api", Algorithm: "token_bucket", RateLimit: 100, TimeWindow: 60, OnUnavailable: "allow",
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(p.Name, "gives", p.RateLimit, "tokens in", p.TimeWindow, "seconds")

	_, err = policies.DeletePolicy(ctx, &pb.DeletePolicyRequest{PolicyId: p.PolicyId})
	if err != nil {
		log.Fatal(err)
	}
	// Output: api gives 100 tokens in 60 seconds
}

// A request may cost more than one token. The decision has a row for each limit that applied.
func ExampleLimits_Check() {
	defer cluster.Quota("of-bob", "client", "bob", 10)()
	ctx := context.Background()
	c, err := client.Dial(ctx, client.Config{Addrs: cluster.Addrs()})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	d, err := c.Limits().Check(ctx, client.Request{Client: "bob", Weight: 4})
	if err != nil {
		log.Fatal(err)
	}
	for _, s := range d.Limits {
		fmt.Printf("%s: %d of %d used, counted by %s\n", s.PolicyName, s.Used, s.Limit, s.Scope)
	}
	d, err = c.Limits().Check(ctx, client.Request{Client: "bob", Weight: 7})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("allowed:", d.Allowed, "wait:", d.RetryAfter > 0)
	// Output:
	// of-bob: 4 of 10 used, counted by client
	// allowed: false wait: true
}

// A leased decision needs no round trip: the client holds tokens for a moment and fetches more behind its back. A
// decision from a lease has no rows, and what it says is left are the tokens here.
func ExampleLimits_Async() {
	defer cluster.Quota("of-carol", "client", "carol", 1000)()
	ctx := context.Background()
	c, err := client.Dial(ctx, client.Config{Addrs: cluster.Addrs()})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close() // gives back what was not used

	allowed := 0
	for range 100 {
		d, err := c.Limits().Async(ctx, client.Request{Client: "carol"})
		if err != nil {
			log.Fatal(err)
		}
		if d.Allowed {
			allowed++
		}
	}
	fmt.Println(allowed, "of 100 allowed")
	// Output: 100 of 100 allowed
}

// The cost of some work is known only afterwards, such as the tokens of an answer that a model has yet to write: reserve
// an estimate, then settle.
func ExampleLimits_Reserve() {
	defer cluster.Quota("of-dave", "client", "dave", 1000)()
	ctx := context.Background()
	c, err := client.Dial(ctx, client.Config{Addrs: cluster.Addrs()})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	r, err := c.Limits().Reserve(ctx, client.Request{Client: "dave", Weight: 400}, time.Minute)
	if err != nil {
		log.Fatal(err)
	}
	if !r.Allowed {
		log.Fatal("come back in ", r.RetryAfter)
	}
	fmt.Println("left with the estimate taken:", r.Remaining)

	if err := r.Commit(ctx, 250); err != nil {
		log.Fatal(err)
	}
	d, err := c.Limits().Peek(ctx, client.Request{Client: "dave"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("left after the work:", d.Remaining)
	// Output:
	// left with the estimate taken: 600
	// left after the work: 750
}

// Work that did not happen costs nothing.
func ExampleReservation_Refund() {
	defer cluster.Quota("of-erin", "client", "erin", 1000)()
	ctx := context.Background()
	c, err := client.Dial(ctx, client.Config{Addrs: cluster.Addrs()})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	r, err := c.Limits().Reserve(ctx, client.Request{Client: "erin", Weight: 400}, time.Minute)
	if err != nil {
		log.Fatal(err)
	}
	if err := r.Refund(ctx); err != nil {
		log.Fatal(err)
	}
	d, err := c.Limits().Peek(ctx, client.Request{Client: "erin"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("left:", d.Remaining)
	// Output: left: 1000
}

// A concurrency limit gives slots that are freed when the work is done.
func ExampleLimits_Release() {
	ctx := context.Background()
	c, err := client.Dial(ctx, client.Config{Addrs: cluster.Addrs()})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	policies := pb.NewPoliciesClient(c.Conn())
	p, err := policies.CreatePolicy(ctx, &pb.CreatePolicyRequest{
		Name: "one-job", Algorithm: "concurrency", RateLimit: 1, TimeWindow: 600, // a slot is lost after ten minutes
	})
	if err != nil {
		log.Fatal(err)
	}
	defer policies.DeletePolicy(ctx, &pb.DeletePolicyRequest{PolicyId: p.PolicyId})

	q := client.Request{Client: "frank", Policies: []string{"one-job"}}
	first, err := c.Limits().Check(ctx, q)
	if err != nil {
		log.Fatal(err)
	}
	second, err := c.Limits().Check(ctx, q)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(first.Allowed, second.Allowed)

	if err := c.Limits().Release(ctx, q, first.ReleaseToken); err != nil {
		log.Fatal(err)
	}
	third, err := c.Limits().Check(ctx, q)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(third.Allowed)
	// Output:
	// true false
	// true
}
