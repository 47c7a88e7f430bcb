package client_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/holdfastdb/holdfast/client"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// A lease lasts for a second and costs one round trip; what it has is given out without another.
func TestAsyncAnswersAtOnceFromALease(t *testing.T) {
	q := limit(t, yearly(1000))
	// With the network down nothing but a lease can allow a request as if nothing had happened. On a machine that stops
	// for most of a second between the two calls the lease is over by then: that round does not count.
	eventually(t, "an answer without a network", func() bool {
		c, n := dialCluster(t, 300*time.Millisecond)
		began := time.Now()
		first, err := c.Limits().Async(t.Context(), q)
		if err != nil || !first.Allowed || first.Fallback || first.Limits != nil {
			t.Fatalf("%+v, %v", first, err)
		}
		n.cut()
		d, err := c.Limits().Async(t.Context(), q)
		if time.Since(began) > 900*time.Millisecond {
			return false
		}
		if err != nil || !d.Allowed || d.Fallback || d.Remaining != first.Remaining-1 {
			t.Fatalf("%+v, %v", d, err)
		}
		return true
	})
}

func TestAllHoldersOfLeasesTogetherNeverPassTheLimit(t *testing.T) {
	admin, _ := dialCluster(t, 0)
	q := limit(t, yearly(300))
	const holders, callers = 3, 4
	var mu sync.Mutex
	passed := 0
	began := time.Now()
	var running sync.WaitGroup
	clients := make([]*client.Client, holders)
	for i := range clients {
		clients[i], _ = dialCluster(t, 0)
		for range callers {
			running.Go(func() {
				for range 60 { // 720 in all
					d, err := clients[i].Limits().Async(t.Context(), q)
					if err != nil || d.Fallback {
						t.Errorf("%+v, %v", d, err)
						return
					}
					if !d.Allowed && d.RetryAfter <= 0 {
						t.Errorf("denied without a time to wait: %+v", d)
					}
					if d.Allowed {
						mu.Lock()
						passed++
						mu.Unlock()
					}
				}
			})
		}
	}
	running.Wait()
	if passed > 300 || passed == 0 {
		t.Fatalf("%d passed a limit of 300", passed)
	}
	// Who closes gives back what was not used, so that all the rest can be had, and no more than that.
	for _, c := range clients {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	// Only what a lease had when it ended by itself, after about a second, is lost.
	took := time.Since(began)
	if sum := passed + int(left(t, admin, q)); sum > 300 || sum < 300 && took < 800*time.Millisecond {
		t.Errorf("%d passed, and what is left adds up to %d of 300, after %v", passed, sum, took)
	}
}

func TestCloseGivesBackWhatALeaseHasLeft(t *testing.T) {
	admin, _ := dialCluster(t, 0)
	q := limit(t, yearly(10_000))
	// A lease that ended by itself before the close has nothing to give back: then the next round counts.
	eventually(t, "a close in time", func() bool {
		before := left(t, admin, q)
		c, _ := dialCluster(t, 0)
		began := time.Now()
		for range 3 {
			if d, err := c.Limits().Async(t.Context(), q); err != nil || !d.Allowed || d.Remaining < 3 {
				t.Fatalf("%+v, %v", d, err)
			}
		}
		held := before - left(t, admin, q)
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if time.Since(began) > 800*time.Millisecond {
			return false
		}
		if gone := before - left(t, admin, q); held <= 3 || gone != 3 {
			t.Fatalf("three were used; the lease took %d, and after the close %d are gone", held, gone)
		}
		return true
	})
}

func TestAsyncDeniesWhatIsMoreThanTheLimit(t *testing.T) {
	c, _ := dialCluster(t, 0)
	q := limit(t, yearly(10))
	q.Weight = 11
	if d, err := c.Limits().Async(t.Context(), q); err != nil || d.Allowed || d.RetryAfter <= 0 || d.Fallback {
		t.Errorf("%+v, %v", d, err)
	}
}

// The shard leases half of what is free. What is more than that is not denied for it.
func TestAsyncAllowsALargePartOfAnUnusedQuota(t *testing.T) {
	for _, weight := range []uint32{60, 100} {
		t.Run(fmt.Sprint(weight), func(t *testing.T) {
			c, _ := dialCluster(t, 0)
			q := limit(t, yearly(100))
			q.Weight = weight
			if d, err := c.Limits().Async(t.Context(), q); err != nil || !d.Allowed {
				t.Errorf("%+v, %v", d, err)
			}
			if d, err := c.Limits().Async(t.Context(), q); err != nil || d.Allowed {
				t.Errorf("more than is left: %+v, %v", d, err)
			}
		})
	}
}

// Slots cannot be leased, and their policy decides all the same.
func TestThePolicyOfALimitThatCannotBeLeasedDecidesToo(t *testing.T) {
	for mode, allowed := range map[string]bool{"allow": true, "deny": false} {
		t.Run(mode, func(t *testing.T) {
			c, n := dialCluster(t, 300*time.Millisecond)
			q := limit(t, &pb.CreatePolicyRequest{Algorithm: "concurrency", RateLimit: 1, TimeWindow: 600, OnUnavailable: mode})
			if d, err := c.Limits().Async(t.Context(), q); err != nil || !d.Allowed || d.Fallback {
				t.Fatalf("while the cluster is there: %+v, %v", d, err)
			}
			n.cut()
			if d, err := c.Limits().Async(t.Context(), q); err != nil || d.Allowed != allowed || !d.Fallback {
				t.Errorf("%+v, %v", d, err)
			}
		})
	}
}

// lose gets a client to know a policy, and then to find that the cluster is unreachable.
func lose(t *testing.T, c *client.Client, n *network, q client.Request) {
	t.Helper()
	if d, err := c.Limits().Async(t.Context(), q); err != nil || !d.Allowed || d.Fallback {
		t.Fatalf("while the cluster is there: %+v, %v", d, err)
	}
	n.cut()
	eventually(t, "the fallback decides", func() bool {
		d, err := c.Limits().Async(t.Context(), q)
		if err != nil {
			t.Fatalf("the policy is known, and the error is %v", err)
		}
		return d.Fallback
	})
}

func TestThePolicyDecidesWhileTheClusterIsUnreachable(t *testing.T) {
	const rate = 50 // per second
	policy := func(mode string) *pb.CreatePolicyRequest {
		return &pb.CreatePolicyRequest{Algorithm: "fixed_window", RateLimit: rate, TimeWindow: 1, OnUnavailable: mode}
	}
	// decide counts decisions of the fallback until enough says that there were enough.
	decide := func(t *testing.T, c *client.Client, q client.Request, enough func(allowed, denied int) bool) (allowed, denied int) {
		t.Helper()
		eventually(t, "enough decisions", func() bool {
			d, err := c.Limits().Async(t.Context(), q)
			switch {
			case err != nil || !d.Fallback:
				t.Fatalf("the cluster is unreachable: %+v, %v", d, err)
			case d.Allowed:
				allowed++
			case d.RetryAfter <= 0:
				t.Fatalf("denied without a time to wait: %+v", d)
			default:
				denied++
			}
			return enough(allowed, denied)
		})
		return allowed, denied
	}
	t.Run("allow", func(t *testing.T) {
		c, n := dialCluster(t, 300*time.Millisecond)
		q := limit(t, policy("allow"))
		lose(t, c, n, q)
		q.Weight = 10 * rate // far beyond the limit
		if _, denied := decide(t, c, q, func(allowed, denied int) bool { return allowed+denied == 100 }); denied > 0 {
			t.Errorf("%d of 100 denied", denied)
		}
	})
	t.Run("deny", func(t *testing.T) {
		c, n := dialCluster(t, 300*time.Millisecond)
		q := limit(t, policy("deny"))
		lose(t, c, n, q)
		if allowed, _ := decide(t, c, q, func(allowed, denied int) bool { return allowed+denied == 100 }); allowed > 0 {
			t.Errorf("%d of 100 allowed", allowed)
		}
	})
	t.Run("local", func(t *testing.T) {
		c, n := dialCluster(t, 300*time.Millisecond)
		q := limit(t, policy("local"))
		began := time.Now()
		lose(t, c, n, q)
		// The bucket starts empty, so that the client may not take the limit twice, and fills at the policy's rate.
		allowed, denied := decide(t, c, q, func(allowed, denied int) bool { return allowed >= 20 && denied > 0 })
		if most := time.Since(began).Seconds()*rate + 1; float64(allowed) > most {
			t.Errorf("%d allowed, %d denied; at that rate at most %.0f", allowed, denied, most)
		}
	})
}

func TestTheClusterDecidesAgainWhenItIsBack(t *testing.T) {
	c, n := dialCluster(t, 300*time.Millisecond)
	p := yearly(1000)
	p.OnUnavailable = "deny"
	q := limit(t, p)
	lose(t, c, n, q)
	n.heal()
	eventually(t, "a decision that is not the fallback's", func() bool {
		d, err := c.Limits().Async(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		return d.Allowed && !d.Fallback
	})
}

// Nothing is known of a policy that was never seen, so there is nothing to fall back to.
func TestAnUnreachableClusterIsAnErrorForASubjectNeverSeen(t *testing.T) {
	c, n := dialCluster(t, 300*time.Millisecond)
	q := limit(t, yearly(10))
	n.cut()
	eventually(t, "the error", func() bool { // a first call may have been sent into the dying connection
		d, err := c.Limits().Async(t.Context(), q)
		if err == nil || d.Allowed {
			t.Fatalf("%+v, %v", d, err)
		}
		return errors.Is(err, client.ErrUnavailable)
	})
	if _, err := c.Limits().Check(t.Context(), q); !errors.Is(err, client.ErrUnavailable) {
		t.Errorf("check: %v", err)
	}
}

// Whatever ends the wait for a lease, the error is one of those of the package.
func TestTheWaitForALeaseEndsWithAnErrorOfThePackage(t *testing.T) {
	q := limit(t, yearly(100))
	c, n := dialCluster(t, 0)
	n.cut()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Limits().Async(ctx, q); !errors.Is(err, client.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("at the caller's deadline: %v", err)
	}
	waited := make(chan error, 1)
	go func() {
		_, err := c.Limits().Async(t.Context(), client.Request{Client: "never seen"})
		waited <- err
	}()
	time.Sleep(50 * time.Millisecond)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-waited; !errors.Is(err, client.ErrClosed) {
		t.Errorf("at Close: %v", err)
	}
}
