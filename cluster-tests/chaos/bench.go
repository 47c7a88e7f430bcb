package chaos

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/cluster-tests/models"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// benchKeys are the clients that holdfast bench uses, benched the resource.
const (
	benchKeys = 20
	benched   = "benched"
)

// readyBench makes the limit of what is measured, which never denies, so that its counters count what was done.
func readyBench(cl *client.Client) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	_, err := models.MakePolicy(ctx, cl, &pb.CreatePolicyRequest{Name: benched, Algorithm: "fixed_window", RateLimit: 10_000_000, TimeWindow: 360 * 24 * 3600})
	return err
}

// bench runs holdfast bench beside the other clients: as a process of its own, which knows nothing of the faults. What it
// says of its operations must fit what is counted.
func (r *run) bench() {
	const length = 10 * time.Second
	cmd := r.c.command("bench", "limit-check", "--clients", "8", "--keys", fmt.Sprint(benchKeys), "--duration", length.String(),
		"--warmup", "0s", "--resource", benched, "-o", "json")
	printed, err := cmd.Output()
	if err != nil {
		r.violate("holdfast bench: %v\n%s", err, printed)
		return
	}
	var said struct{ Ops, Errors, Unknown uint64 }
	if err := json.Unmarshal(printed, &said); err != nil {
		r.violate("holdfast bench printed %q: %v", printed, err)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var counted uint64
	for i := range benchKeys {
		d, err := r.w.clients[0].Limits().Peek(ctx, client.Request{Client: fmt.Sprint("client-", i), Resource: benched})
		if err != nil || len(d.Limits) != 1 {
			r.violate("count of client %d: %d limits, %v", i, len(d.Limits), err)
			return
		}
		counted += uint64(d.Limits[0].Used)
	}
	r.t.Logf("holdfast bench: %d operations, %d of unknown outcome, %d failed; %d counted", said.Ops, said.Unknown, said.Errors, counted)
	if said.Ops < 100 || said.Errors > 0 || counted < said.Ops || counted > said.Ops+said.Unknown {
		r.violate("holdfast bench tells of %d operations, %d of unknown outcome and %d failed, but %d are counted", said.Ops, said.Unknown, said.Errors, counted)
	}
}
