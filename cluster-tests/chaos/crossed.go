package chaos

import (
	"context"
	"fmt"
	"time"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/cluster-tests/history"
	"github.com/holdfastdb/holdfast/cluster-tests/models"
)

// bounds are what a counter may hold: what was acknowledged, and of what nobody knows, nothing or all.
type bounds struct{ least, most uint64 }

func (b bounds) allow(n uint64) bool { return b.least <= n && n <= b.most }

// checks counts, by address, the checks that took from counters of two shards: those that were allowed. One that was denied
// by the one shard must have taken nothing from the other.
func checks(ops []history.Op) map[string]bounds {
	all := make(map[string]bounds)
	for _, o := range ops {
		in := o.Input.(models.LimitOp)
		if in.Kind != models.KindCheck || in.Request.Resource != crossed {
			continue
		}
		b := all[in.Request.IP]
		switch d, _ := o.Output.(client.Decision); {
		case o.Outcome == history.Unknown:
			b.most++
		case o.Outcome == history.Definite && d.Allowed:
			b.least++
			b.most++
		}
		all[in.Request.IP] = b
	}
	return all
}

// countCrossed compares the counters by address with what clients were told. What a node that died had only reserved is
// given back when the reservation ends.
func (r *run) countCrossed() {
	want := checks(r.w.history.Ops())
	err := r.c.wait(reservationsEnd, "agreement of counters of two shards", func() error {
		for _, address := range r.w.addresses {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			d, err := r.w.clients[0].Limits().Peek(ctx, client.Request{IP: address, Resource: crossed})
			cancel()
			if err != nil || len(d.Limits) != 1 {
				return fmt.Errorf("count of %s: %d limits, %w", address, len(d.Limits), err)
			}
			if b, n := want[address], uint64(d.Limits[0].Used); !b.allow(n) {
				return fmt.Errorf("%s is counted %d times, but from %d to %d checks were allowed", address, n, b.least, b.most)
			}
		}
		return nil
	})
	if err != nil {
		r.violate("%v", err)
	}
	for _, b := range want {
		r.crossed += int(b.least)
	}
	if r.crossed == 0 {
		r.violate("no check took from counters of two shards")
	}
}

// reservationsEnd is later than any reservation of a check over several shards.
const reservationsEnd = 2 * time.Minute
