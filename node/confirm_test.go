package node

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/node/shard"
	"github.com/holdfastdb/holdfast/rpc/raftnet"
)

// peers answers questions for terms: by replica, with what it knows, or an error.
type peers struct {
	delay time.Duration
	terms map[string]uint64

	mu    sync.Mutex
	calls map[string][]int // by node: how many questions each call had
}

var errUnreachable = errors.New("unreachable")

func (p *peers) ask(ctx context.Context, nodeID string, queries []raftnet.TermQuery) ([]uint64, error) {
	p.mu.Lock()
	if p.calls == nil {
		p.calls = make(map[string][]int)
	}
	p.calls[nodeID] = append(p.calls[nodeID], len(queries))
	p.mu.Unlock()
	select {
	case <-time.After(p.delay):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	terms := make([]uint64, len(queries))
	for i, q := range queries {
		term, ok := p.terms[q.Replica]
		if !ok {
			return nil, errUnreachable
		}
		terms[i] = term
	}
	return terms, nil
}

func check(voters ...string) shard.TermCheck {
	return shard.TermCheck{Group: 1, Term: 5, Self: "a/1", Voters: voters}
}

func TestATermIsConfirmedByAMajority(t *testing.T) {
	for name, tt := range map[string]struct {
		check shard.TermCheck
		terms map[string]uint64
		says  string // of the error, "" for none
	}{
		"alone":                       {check("a/1"), nil, ""},
		"one of two others":           {check("a/1", "b/1", "c/1"), map[string]uint64{"b/1": 5}, ""},
		"the other of two":            {check("a/1", "b/1", "c/1"), map[string]uint64{"b/1": 6, "c/1": 5}, ""},
		"both know a newer term":      {check("a/1", "b/1", "c/1"), map[string]uint64{"b/1": 6, "c/1": 6}, "a replica is in term 6"},
		"nobody answers":              {check("a/1", "b/1", "c/1"), nil, "unreachable"},
		"a replica that is not there": {check("a/1", "b/1", "c/1"), map[string]uint64{"b/1": 0, "c/1": 0}, "term 0"},
		"two of five are not enough":  {check("a/1", "b/1", "c/1", "d/1", "e/1"), map[string]uint64{"b/1": 5}, "unreachable"},
		"three of five are":           {check("a/1", "b/1", "c/1", "d/1", "e/1"), map[string]uint64{"b/1": 5, "e/1": 5}, ""},
		"two of two":                  {check("a/1", "b/1"), map[string]uint64{"b/1": 5}, ""},
		"one of two":                  {check("a/1", "b/1"), nil, "unreachable"},
		"this replica has no vote":    {check("b/1", "c/1", "d/1"), map[string]uint64{"b/1": 5}, "unreachable"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &peers{terms: tt.terms, delay: time.Millisecond}
				c := newConfirmer("a", p.ask)
				err := c.confirm(t.Context(), tt.check)
				if (err == nil) != (tt.says == "") || err != nil && !strings.Contains(err.Error(), tt.says) {
					t.Errorf("got %v, want %q", err, tt.says)
				}
			})
		})
	}
}

// A read that begins while a call is under way must not be answered by it: the leader may have been deposed between the
// two. All that begin meanwhile share the next call.
func TestReadsShareTheCallAfterTheOneUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &peers{terms: map[string]uint64{"b/1": 5, "c/1": 5}, delay: 10 * time.Millisecond}
		c := newConfirmer("a", p.ask)
		var running sync.WaitGroup
		confirm := func() {
			running.Go(func() {
				if err := c.confirm(t.Context(), check("a/1", "b/1", "c/1")); err != nil {
					t.Error(err)
				}
			})
		}
		begin := time.Now()
		confirm()
		synctest.Wait()
		time.Sleep(time.Millisecond)
		for range 100 {
			confirm()
		}
		running.Wait()
		if took := time.Since(begin); took != 20*time.Millisecond {
			t.Errorf("took %v, two calls take 20 ms", took)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, node := range []string{"b", "c"} {
			if calls := p.calls[node]; len(calls) != 2 || calls[0] != 1 || calls[1] != 1 {
				t.Errorf("node %s got calls of %v questions, one each is enough", node, calls)
			}
		}
	})
}

// The terms are asked again after they changed: what was true of an earlier call counts for nothing.
func TestAnAnswerFromBeforeTheReadDoesNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &peers{terms: map[string]uint64{"b/1": 5}, delay: 10 * time.Millisecond}
		c := newConfirmer("a", func(ctx context.Context, node string, q []raftnet.TermQuery) ([]uint64, error) {
			terms, err := p.ask(ctx, node, q)
			p.terms = map[string]uint64{"b/1": 6} // elected right after the first answer was given
			return terms, err
		})
		first := make(chan error, 1)
		go func() { first <- c.confirm(t.Context(), check("a/1", "b/1")) }()
		synctest.Wait()
		if err := c.confirm(t.Context(), check("a/1", "b/1")); err == nil {
			t.Error("confirmed by an answer to an earlier question")
		}
		if err := <-first; err != nil {
			t.Errorf("the read before: %v", err)
		}
	})
}

func TestASilentNodeDelaysNobodyForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &peers{terms: map[string]uint64{"b/1": 5}, delay: time.Hour}
		c := newConfirmer("a", p.ask)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		begin := time.Now()
		if err := c.confirm(ctx, check("a/1", "b/1")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		if took := time.Since(begin); took != 50*time.Millisecond {
			t.Errorf("the context ended it after %v", took)
		}
		begin = time.Now()
		if err := c.confirm(t.Context(), check("a/1", "b/1")); err == nil {
			t.Error("confirmed by nobody")
		}
		if took := time.Since(begin); took > 2*confirmTimeout {
			t.Errorf("without a deadline of its own it took %v", took)
		}
	})
}

func TestWhatGroupsAskTravelsTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &peers{terms: map[string]uint64{"b/1": 5}, delay: 10 * time.Millisecond}
		c := newConfirmer("a", p.ask)
		var running sync.WaitGroup
		for i := range 30 {
			q := check("a/1", "b/1")
			q.Group = uint32(1 + i%10)
			running.Go(func() {
				if err := c.confirm(t.Context(), q); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		running.Wait()
		if calls := p.calls["b"]; len(calls) != 2 || calls[1] != 10 {
			t.Errorf("calls of %v questions about 10 groups", calls)
		}
	})
}

// The bubble of the test ends only when no goroutine is left.
func TestNothingOutlivesAClosedConfirmer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &peers{terms: map[string]uint64{"b/1": 5}, delay: time.Hour}
		c := newConfirmer("a", p.ask)
		waiting := make(chan error, 1)
		go func() { waiting <- c.confirm(t.Context(), check("a/1", "b/1")) }()
		synctest.Wait()
		begin := time.Now()
		c.close()
		if err := <-waiting; err == nil {
			t.Error("confirmed by nobody")
		}
		if err := c.confirm(t.Context(), check("a/1", "b/1")); !errors.Is(err, fsm.ErrClosed) {
			t.Errorf("after it was closed: %v", err)
		}
		if took := time.Since(begin); took > 0 {
			t.Errorf("it took %v", took)
		}
	})
}
