package client_test

import (
	"context"
	"testing"
	"time"

	"github.com/holdfastdb/holdfast/client"
)

func TestAValidationFromMemoryAllocatesNothing(t *testing.T) {
	f := newFake(t, "n1")
	token, _ := newRegister(f).login("alice", nil)
	c := f.client(0)
	ctx := context.Background()
	validate(t, c, token, client.MaxStale(time.Hour))
	n := testing.AllocsPerRun(100, func() {
		v, err := c.Sessions().Validate(ctx, token, client.MaxStale(time.Hour), client.FromIP(""))
		if err != nil || !v.Valid {
			t.Fatalf("%+v, %v", v, err)
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// BenchmarkValidateFromMemory is how fast one process validates with MaxStale.
func BenchmarkValidateFromMemory(b *testing.B) {
	const users = 10_000
	f := newFake(b, "n1")
	r := newRegister(f)
	tokens := make([]string, users)
	c := f.client(0)
	for i := range tokens {
		tokens[i], _ = r.login("alice", nil)
		if _, err := c.Sessions().Validate(b.Context(), tokens[i], client.MaxStale(time.Hour)); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(p *testing.PB) {
		ctx := context.Background()
		for i := 0; p.Next(); i++ {
			v, err := c.Sessions().Validate(ctx, tokens[i%users], client.MaxStale(time.Hour))
			if err != nil || !v.Valid {
				b.Fatal(v, err)
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "validations/s")
}
