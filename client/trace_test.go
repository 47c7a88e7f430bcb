package client_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/holdfastdb/holdfast/client"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

func TestATraceTellsWhereAnOperationWasDecided(t *testing.T) {
	c, _ := dialCluster(t, 0)
	q := limit(t, yearly(10))
	var first, second, peek client.Trace
	begin := time.Now()
	for _, trace := range []*client.Trace{&first, &second} {
		if _, err := c.Limits().Check(client.WithTrace(t.Context(), trace), q); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Limits().Peek(client.WithTrace(t.Context(), &peek), q); err != nil {
		t.Fatal(err)
	}
	switch {
	case first.Shard == 0 || first.Shard != second.Shard || first.Client == [16]byte{} || first.Client != second.Client:
		t.Errorf("two operations of one client on one subject: %+v, %+v", first, second)
	case first.Seq != 1 || second.Seq != 2 || first.Query:
		t.Errorf("frames %d and %d, query %v", first.Seq, second.Seq, first.Query)
	case first.Index == 0 || second.Index <= first.Index:
		t.Errorf("index %d after %d", second.Index, first.Index)
	case second.Time.Before(first.Time) || first.Time.Before(begin.Add(-time.Second)) || first.Time.After(time.Now().Add(time.Second)):
		t.Errorf("shard time %s, then %s", first.Time, second.Time)
	case !peek.Query || peek.Seq != 0 || peek.Index < second.Index || peek.Shard != first.Shard:
		t.Errorf("the query: %+v after %+v", peek, second)
	}
}

// The place of an operation with unknown outcome is known, so that the log can tell.
func TestATraceOfAnUnknownOutcomeNamesItsFrame(t *testing.T) {
	f := newFake(t, "a")
	c := f.client(time.Second)
	f.on("a", always(silence))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	trace := client.Trace{Index: 7}
	_, err := c.Limits().Check(client.WithTrace(ctx, &trace), subject(1))
	if !errors.Is(err, client.ErrOutcomeUnknown) {
		t.Fatal(err)
	}
	sent := f.log()[0]
	if trace.Client != [16]byte(sent.Client) || trace.Seq != sent.Seq || trace.Shard != sent.Shard || trace.Index != 0 || !trace.Time.IsZero() {
		t.Errorf("%+v of frame %d in shard %d", trace, sent.Seq, sent.Shard)
	}
}

func TestATraceOfAnOperationThatNoShardSawIsZero(t *testing.T) {
	f := newFake(t, "a")
	c := f.client(time.Second)
	f.on("a", func(*pb.FrameRequest) reaction { return silence })
	blocked, stop := context.WithCancel(t.Context())
	first := startCheck(blocked, c, subject(1)) // the next waits for its answer
	f.await("a frame", func() bool { return len(f.log()) == 1 })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	trace := client.Trace{Index: 7}
	if _, err := c.Limits().Check(client.WithTrace(ctx, &trace), subject(1)); !errors.Is(err, client.ErrUnavailable) {
		t.Fatal(err)
	}
	if trace != (client.Trace{}) {
		t.Errorf("%+v", trace)
	}
	stop()
	if _, err := first.wait(t); !errors.Is(err, client.ErrOutcomeUnknown) {
		t.Error(err)
	}
}
