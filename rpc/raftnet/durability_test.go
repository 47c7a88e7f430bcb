package raftnet

import (
	"errors"
	"math"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// lateDisk is a log of which the test says what is durable.
type lateDisk struct {
	mu      sync.Mutex
	durable uint64
	waiting map[uint64]func(error)
}

func (d *lateDisk) Durable() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.durable
}

func (d *lateDisk) When(index uint64, done func(error)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.waiting == nil {
		d.waiting = make(map[uint64]func(error))
	}
	d.waiting[index] = done
}

func (d *lateDisk) asked(index uint64) func(error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.waiting[index]
}

// accept answers every request with success, as Raft does once StoreLogs has returned.
func accept(t *testing.T, g *GroupTransport, success bool) {
	done := make(chan struct{})
	t.Cleanup(func() { close(done) })
	go func() {
		for {
			select {
			case rpc := <-g.Consumer():
				rpc.Respond(&raft.AppendEntriesResponse{Term: 1, Success: success, LastLog: 9}, nil)
			case <-done:
				return
			}
		}
	}()
}

// append1 sends one entry and reports the answer, or the failure, when it comes.
func append1(g *GroupTransport, index uint64) <-chan error {
	answered := make(chan error, 1)
	go func() {
		var a raft.AppendEntriesResponse
		err := g.AppendEntries("c/1", "c/1", &raft.AppendEntriesRequest{
			RPCHeader: header, Term: 1, PrevLogEntry: index - 1, PrevLogTerm: 1, Entries: []*raft.Log{{Index: index, Term: 1, Data: []byte("x")}},
		}, &a)
		if err == nil && !a.Success {
			err = errors.New("refused")
		}
		answered <- err
	}()
	return answered
}

func TestAnAnswerWaitsUntilTheEntriesAreOnDisk(t *testing.T) {
	b := &book{addrs: map[string]string{}}
	a, c := startNode(t, b, "a", Config{}), startNode(t, b, "c", Config{})
	defer a.close()
	defer c.close()
	d := new(lateDisk)
	to := c.Group(group, "c/1", d)
	to.Attach(fixedState{term: 1})
	from := a.Group(group, "a/1", nil)
	accept(t, to, true)
	first, second := append1(from, 1), append1(from, 2)
	eventually(t, "both are written before either is on disk", func() bool { return d.asked(1) != nil && d.asked(2) != nil })
	select {
	case err := <-first:
		t.Fatalf("answered %v before the entry was on disk", err)
	case err := <-second:
		t.Fatalf("answered %v before the entry was on disk", err)
	case <-time.After(50 * time.Millisecond):
	}
	d.asked(1)(nil)
	if err := <-first; err != nil {
		t.Errorf("the entry is on disk, and the answer is %v", err)
	}
	d.asked(2)(errors.New("the disk is gone"))
	if err := <-second; err == nil {
		t.Error("success for an entry that is not on disk")
	}
}

func TestARefusalDoesNotWaitForTheDisk(t *testing.T) {
	b := &book{addrs: map[string]string{}}
	a, c := startNode(t, b, "a", Config{}), startNode(t, b, "c", Config{})
	defer a.close()
	defer c.close()
	d := new(lateDisk)
	to := c.Group(group, "c/1", d)
	to.Attach(fixedState{term: 1})
	accept(t, to, false)
	if err := <-append1(a.Group(group, "a/1", nil), 1); err == nil || err.Error() != "refused" {
		t.Errorf("got %v", err)
	}
	if d.asked(1) != nil {
		t.Error("a refused entry was waited for")
	}
}

func TestALeaderTellsOfNoCommitBeyondItsDisk(t *testing.T) {
	b := &book{addrs: map[string]string{}}
	a, c := startNode(t, b, "a", Config{}), startNode(t, b, "c", Config{})
	defer a.close()
	defer c.close()
	d := new(lateDisk)
	from, to := a.Group(group, "a/1", d), c.Group(group, "c/1", nil)
	to.Attach(fixedState{term: 1})
	p, err := from.AppendEntriesPipeline("c/1", "c/1")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for _, test := range []struct{ durable, commit, want uint64 }{
		{7, 9, 7}, {9, 9, 9}, {math.MaxUint64, 9, 9}, {12, 9, 9},
	} {
		d.mu.Lock()
		d.durable = test.durable
		d.mu.Unlock()
		q := &raft.AppendEntriesRequest{RPCHeader: header, Term: 1, PrevLogEntry: 9, PrevLogTerm: 1, LeaderCommitIndex: test.commit}
		told := func() uint64 {
			rpc := <-to.Consumer()
			rpc.Respond(&raft.AppendEntriesResponse{Term: 1, Success: true}, nil)
			return rpc.Command.(*raft.AppendEntriesRequest).LeaderCommitIndex
		}
		if _, err := p.AppendEntries(q, new(raft.AppendEntriesResponse)); err != nil {
			t.Fatal(err)
		}
		if got := told(); got != test.want {
			t.Errorf("%+v: in a pipeline the follower hears of commit %d", test, got)
		}
		done := make(chan error, 1)
		go func() { done <- from.AppendEntries("c/1", "c/1", q, new(raft.AppendEntriesResponse)) }()
		if got := told(); got != test.want {
			t.Errorf("%+v: the follower hears of commit %d", test, got)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if q.LeaderCommitIndex != test.commit {
			t.Errorf("%+v: Raft's own request was changed", test)
		}
	}
}
