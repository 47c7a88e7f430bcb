package raftnet

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// An append to a replica to which the last one failed waits, and what ends the wait is told from the error.
func TestAnAppendToASilentReplicaWaits(t *testing.T) {
	follows, leadsAgain := RaftState(leadState{state: raft.Follower}), RaftState(leadState{fixedState: fixedState{term: 2}, state: raft.Leader})
	append1 := &raft.AppendEntriesRequest{RPCHeader: header, Term: 1, PrevLogEntry: 1}
	for name, tc := range map[string]struct {
		end  func(n *Net, g *GroupTransport) // after 700 ms
		want error
		took time.Duration
	}{
		"until it is heard; then it is sent, and fails as nobody is there": {
			end: func(_ *Net, g *GroupTransport) { g.silent.end("c/1") }, want: ErrNoAddress, took: 700 * time.Millisecond,
		},
		"until its transport is closed": {end: func(_ *Net, g *GroupTransport) { _ = g.Close() }, want: ErrClosed, took: 700 * time.Millisecond},
		"until the network is closed":   {end: func(n *Net, _ *GroupTransport) { n.Close() }, want: ErrClosed, took: 700 * time.Millisecond},
		"until its own replica leads in a newer term": {
			end: func(_ *Net, g *GroupTransport) { g.attached.Store(&leadsAgain) }, want: errNotLeader, took: 750 * time.Millisecond,
		},
		"until its own replica leads no more": {
			end: func(_ *Net, g *GroupTransport) { g.attached.Store(&follows) }, want: errNotLeader, took: 750 * time.Millisecond,
		},
		"for some minutes if nothing happens":    {end: func(*Net, *GroupTransport) {}, want: errTimeout, took: silenceLimit},
		"whoever else is heard in the same time": {end: func(_ *Net, g *GroupTransport) { g.silent.end("b/1") }, want: errTimeout, took: silenceLimit},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := New(Config{NodeID: "a", Resolve: func(string) (string, bool) { return "", false }})
				defer n.Close()
				g := n.Group(group, "a/1", nil)
				g.Attach(leadState{state: raft.Leader})
				begin := time.Now()
				if err := g.AppendEntries("c/1", "c/1", append1, &raft.AppendEntriesResponse{}); !errors.Is(err, ErrNoAddress) || time.Since(begin) != 0 {
					t.Fatalf("the first one: %v after %v", err, time.Since(begin))
				}
				time.AfterFunc(700*time.Millisecond, func() { tc.end(n, g) })
				err := g.AppendEntries("c/1", "c/1", append1, &raft.AppendEntriesResponse{})
				if took := time.Since(begin); !errors.Is(err, tc.want) || took != tc.took {
					t.Errorf("%v after %v, want %v after %v", err, took, tc.want, tc.took)
				}
				if errors.Is(tc.want, ErrNoAddress) && g.silent.heard("c/1", 1) == nil {
					t.Error("it failed again and nobody waits")
				}
				if g.silent.heard("c/1", 2) != nil {
					t.Error("who leads again waits for what was silent in another term")
				}
			})
		})
	}
}

// A state for a silent replica is not kept until it is back: Raft is told then, and makes a newer one.
func TestAStateForASilentReplicaIsLetGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(Config{NodeID: "a", Resolve: func(string) (string, bool) { return "", false }})
		defer n.Close()
		g := n.Group(group, "a/1", nil)
		g.Attach(leadState{state: raft.Leader})
		send := func(data io.Reader) error {
			return g.InstallSnapshot("c/1", "c/1", stateOf(1), &raft.InstallSnapshotResponse{}, data)
		}
		if err := send(&copyOnDisk{}); !errors.Is(err, ErrNoAddress) {
			t.Fatalf("the first one: %v", err)
		}
		data, begin := &copyOnDisk{}, time.Now()
		time.AfterFunc(time.Second, func() {
			if !data.closed {
				t.Error("the copy waits with the append")
			}
			g.silent.end("c/1")
		})
		if err := send(data); !errors.Is(err, errWasSilent) || time.Since(begin) != time.Second {
			t.Errorf("the second one: %v after %v", err, time.Since(begin))
		}
		if data = (&copyOnDisk{}); !errors.Is(send(data), ErrNoAddress) || data.closed {
			t.Errorf("the third one was not sent")
		}
	})
}

// copyOnDisk is a state that knows whether it was let go.
type copyOnDisk struct {
	nobody
	closed bool
}

func (c *copyOnDisk) Close() error {
	c.closed = true
	return nil
}

// An answered heartbeat is the sign that lets an append go.
func TestAnAnsweredHeartbeatEndsTheSilence(t *testing.T) {
	b := &book{addrs: map[string]string{}}
	a, c := startNode(t, b, "a", Config{}), startNode(t, b, "c", Config{})
	defer a.close()
	defer c.close()
	from, to := a.Group(group, "a/1", nil), c.Group(group, "c/1", nil)
	from.Attach(leadState{state: raft.Leader})
	to.Attach(fixedState{term: 9, last: 40})
	addr, _ := b.find("c")
	b.set("c", unusedAddress(t))
	if err := from.InstallSnapshot("c/1", "c/1", stateOf(1), &raft.InstallSnapshotResponse{}, nobody{}); err == nil {
		t.Fatal("a state got to nobody")
	}
	b.set("c", addr)
	beat := &raft.AppendEntriesRequest{RPCHeader: header, Term: 9}
	sent := make(chan error, 1)
	go func() {
		sent <- from.AppendEntries("c/1", "c/1", &raft.AppendEntriesRequest{RPCHeader: header, Term: 9, PrevLogEntry: 1}, &raft.AppendEntriesResponse{})
	}()
	select {
	case rpc := <-to.Consumer():
		t.Fatalf("%T was sent to a silent replica", rpc.Command)
	case <-time.After(50 * time.Millisecond):
	}
	eventually(t, "a heartbeat is answered", func() bool {
		return from.AppendEntries("c/1", "c/1", beat, &raft.AppendEntriesResponse{}) == nil
	})
	for { // the heartbeats get there too
		rpc := <-to.Consumer()
		if q, ok := rpc.Command.(*raft.AppendEntriesRequest); ok && q.PrevLogEntry == 1 {
			rpc.Respond(&raft.AppendEntriesResponse{Term: 9, Success: true}, nil)
			break
		}
	}
	if err := <-sent; err != nil {
		t.Fatalf("the append: %v", err)
	}
}

// A heartbeat waits for those of other groups, but not one to a replica that is silent: an append waits for its answer.
func TestAHeartbeatToASilentReplicaGoesAtOnce(t *testing.T) {
	const timeout = 3 * time.Second
	patience := newQueue(timeout * 3 / 10).patience
	b := &book{addrs: map[string]string{}}
	a, c := startNode(t, b, "a", Config{Heartbeat: timeout}), startNode(t, b, "c", Config{})
	defer a.close()
	defer c.close()
	from, to := a.Group(group, "a/1", nil), c.Group(group, "c/1", nil)
	from.Attach(leadState{state: raft.Leader})
	to.Attach(fixedState{term: 9, last: 40})
	beat := func() time.Duration {
		begin := time.Now()
		err := from.AppendEntries("c/1", "c/1", &raft.AppendEntriesRequest{RPCHeader: header, Term: 9}, &raft.AppendEntriesResponse{})
		if err != nil {
			t.Fatal(err)
		}
		return time.Since(begin)
	}
	go func() {
		for {
			select {
			case rpc := <-to.Consumer():
				rpc.Respond(&raft.AppendEntriesResponse{Term: 9, Success: true}, nil)
			case <-t.Context().Done():
				return
			}
		}
	}()
	beat() // connects
	from.silent.begin("c/1", 9)
	if took := beat(); took >= patience {
		t.Errorf("to a silent replica: after %v", took)
	}
	if from.silent.heard("c/1", 9) != nil {
		t.Error("its answer is no sign of life")
	}
	if took := beat(); took < patience {
		t.Errorf("to one that is heard: after %v", took)
	}
}

// Who has stepped down sends no heartbeats and no entries any more, though Raft asks for it: followers would be loyal.
func TestALeaderThatSteppedDownIsNotHeard(t *testing.T) {
	b := &book{addrs: map[string]string{}}
	a, c := startNode(t, b, "a", Config{}), startNode(t, b, "c", Config{})
	defer a.close()
	defer c.close()
	from, to := a.Group(group, "a/1", nil), c.Group(group, "c/1", nil)
	to.Attach(fixedState{term: 9, last: 40})
	for name, state := range map[string]RaftState{
		"a follower": leadState{fixedState{term: 9}, raft.Follower}, "a candidate": leadState{fixedState{term: 9}, raft.Candidate},
		"a leader in a newer term": leadState{fixedState{term: 10}, raft.Leader},
	} {
		from.Attach(state)
		for what, q := range map[string]*raft.AppendEntriesRequest{
			"a heartbeat": {RPCHeader: header, Term: 9}, "entries": {RPCHeader: header, Term: 9, PrevLogEntry: 1},
		} {
			if err := from.AppendEntries("c/1", "c/1", q, &raft.AppendEntriesResponse{}); !errors.Is(err, errNotLeader) {
				t.Errorf("%s of %s: %v", what, name, err)
			}
		}
	}
	select {
	case rpc := <-to.Consumer():
		t.Errorf("%T got through", rpc.Command)
	case <-time.After(200 * time.Millisecond): // longer than heartbeats wait for others
	}
}

// nobody reads nothing.
type nobody struct{}

func (nobody) Read([]byte) (int, error) { return 0, context.Canceled }

// unusedAddress is one where nobody listens.
func unusedAddress(t *testing.T) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lis.Close() }()
	return lis.Addr().String()
}
