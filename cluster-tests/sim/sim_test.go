package sim

import (
	"context"
	"log/slog"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfastdb/holdfast/client"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

func TestSpike(t *testing.T) {
	wall := time.Now()
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		logger := slog.New(slog.DiscardHandler)
		if os.Getenv("SIM_LOG") != "" {
			logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
		}
		begin := time.Now()
		c := New(Options{Seed: 1, Nodes: 3, Shards: 2, Logger: logger})
		start, cancel := context.WithTimeout(ctx, 2*time.Minute)
		defer cancel()
		if err := c.Start(start); err != nil {
			t.Fatal(err)
		}
		t.Log("healthy after", time.Since(begin))
		cl, err := c.Dial(start, "10.0.1.1")
		if err != nil {
			t.Fatal(err)
		}
		policies := pb.NewPoliciesClient(cl.Conn())
		p, err := policies.CreatePolicy(ctx, &pb.CreatePolicyRequest{
			Name: "sum", Algorithm: "fixed_window", RateLimit: 1_000_000, TimeWindow: 360 * 24 * 3600, Resource: "sum",
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := policies.AssignClients(ctx, &pb.AssignClientsRequest{PolicyId: p.PolicyId, ClientIds: []string{"*"}}); err != nil {
			t.Fatal(err)
		}
		var working sync.WaitGroup
		load, cancel := context.WithTimeout(ctx, 10*time.Minute)
		defer cancel()
		var ok, bad int
		working.Go(func() {
			for load.Err() == nil {
				if _, err := cl.Limits().Check(ctx, client.Request{Client: "a", Resource: "sum"}); err == nil {
					ok++
				} else {
					t.Log(err)
					bad++
				}
				time.Sleep(100 * time.Millisecond)
			}
		})
		for i := range 18 {
			time.Sleep(25 * time.Second)
			s := c.servers[i%3]
			if i%2 == 0 {
				s.kill()
			} else {
				s.powerCut(0)
			}
			time.Sleep(5 * time.Second)
			s.start()
		}
		working.Wait()
		d, err := cl.Limits().Peek(ctx, client.Request{Client: "a", Resource: "sum"})
		t.Log(ok, bad, d.Limits, err, time.Since(begin))
		cl.Close()
		if err := c.Stop(); err != nil {
			t.Fatal(err)
		}
	})
	t.Log("wall", time.Since(wall))
}
