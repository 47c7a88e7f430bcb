package raftnet

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/storage/wire"
)

func stateOf(size int) *raft.InstallSnapshotRequest {
	return &raft.InstallSnapshotRequest{RPCHeader: header, SnapshotVersion: 1, Term: 9, Configuration: configuration, Size: int64(size)}
}

// drain plays a Raft that reads a state and reports what it got. It closes began when it has the request.
func drain(t *testing.T, g *GroupTransport, began chan<- struct{}) <-chan error {
	done := make(chan error, 1)
	go func() {
		rpc := <-g.Consumer()
		close(began)
		n, err := io.Copy(io.Discard, rpc.Reader)
		if err == nil && n != rpc.Command.(*raft.InstallSnapshotRequest).Size {
			err = io.ErrShortBuffer
		}
		if _, again := io.Copy(io.Discard, rpc.Reader); err != nil && again == nil {
			t.Error("an error was forgotten")
		}
		rpc.Respond(&raft.InstallSnapshotResponse{Term: 9, Success: err == nil}, err)
		done <- err
	}()
	return done
}

type blocked struct{ until <-chan struct{} }

func (b blocked) Read([]byte) (int, error) {
	<-b.until
	return 0, io.EOF
}

func TestInstall(t *testing.T) {
	defer func(d time.Duration) { installStall = d }(installStall)
	installStall = 300 * time.Millisecond
	b := &book{addrs: map[string]string{}}
	a, c := startNode(t, b, "a", Config{}), startNode(t, b, "c", Config{})
	defer c.close()
	defer a.close()
	from, to := a.Group(group, "a/1", nil), c.Group(group, "c/1", nil)
	to.Attach(fixedState{term: 9})
	install := func(q *raft.InstallSnapshotRequest, data io.Reader) (error, error) {
		began := make(chan struct{})
		got := drain(t, to, began)
		if r, ok := data.(*readFails); ok {
			r.after = began
		}
		from.silent.end("c/1") // it answers heartbeats
		var answer raft.InstallSnapshotResponse
		err := from.InstallSnapshot("c/1", "c/1", q, &answer, data)
		if err == nil && !answer.Success {
			t.Error("no success and no error")
		}
		return err, <-got
	}
	const size = 3*chunkBytes + 7
	if err, got := install(stateOf(size), bytes.NewReader(make([]byte, size))); err != nil || got != nil {
		t.Fatalf("sent with %v, received with %v", err, got)
	}
	if err, got := install(stateOf(size), bytes.NewReader(make([]byte, size-1))); err == nil || !errors.Is(got, io.ErrUnexpectedEOF) {
		t.Errorf("cut short: sent with %v, received with %v", err, got)
	}
	if err, got := install(stateOf(size), bytes.NewReader(make([]byte, size+1))); err == nil || !errors.Is(got, wire.ErrCorrupt) {
		t.Errorf("too long: sent with %v, received with %v", err, got)
	}
	unreadable := errors.New("unreadable")
	if err, got := install(stateOf(size), &readFails{err: unreadable}); !errors.Is(err, unreadable) || got == nil {
		t.Errorf("unreadable: sent with %v, received with %v", err, got)
	}
	release := make(chan struct{})
	from.silent.end("c/1")
	got := drain(t, to, make(chan struct{}))
	sent := make(chan error, 1)
	go func() {
		sent <- from.InstallSnapshot("c/1", "c/1", stateOf(size), &raft.InstallSnapshotResponse{}, blocked{release})
	}()
	if err := <-got; err == nil {
		t.Error("a state that never came was received")
	}
	close(release)
	if err := <-sent; err == nil {
		t.Error("a state that never came was sent")
	}
}

// readFails fails when the receiver has begun: a failure before cancels the request, which then may never arrive.
type readFails struct {
	err   error
	after <-chan struct{}
}

func (r *readFails) Read([]byte) (int, error) {
	<-r.after
	return 0, r.err
}

// leadState is a Raft instance that says whether it leads.
type leadState struct {
	fixedState
	state raft.RaftState
}

func (s leadState) State() raft.RaftState { return s.state }

// Raft waits for its transfers when it shuts down: they must end with its leadership though the other side reads nothing.
func TestATransferEndsWithLeadership(t *testing.T) {
	defer func(d time.Duration) { installStall = d }(installStall)
	installStall = 4 * time.Second
	b := &book{addrs: map[string]string{}}
	a, c := startNode(t, b, "a", Config{}), startNode(t, b, "c", Config{})
	defer a.close()
	defer c.close()
	from, to := a.Group(group, "a/1", nil), c.Group(group, "c/1", nil)
	from.Attach(leadState{state: raft.Leader})
	to.Attach(fixedState{term: 9})
	done := make(chan error, 1)
	go func() {
		done <- from.InstallSnapshot("c/1", "c/1", stateOf(1), &raft.InstallSnapshotResponse{}, strings.NewReader("x"))
	}()
	<-to.Consumer() // all is there, and is not answered
	from.Attach(leadState{state: raft.Shutdown})
	select {
	case err := <-done:
		if !errors.Is(err, errNotLeader) {
			t.Fatalf("error %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the transfer goes on")
	}
}

// Closing the sender's transport ends what it waits for.
func TestWaitsEndWithTheTransport(t *testing.T) {
	b := &book{addrs: map[string]string{}}
	a, c := startNode(t, b, "a", Config{}), startNode(t, b, "c", Config{})
	defer c.close()
	from, to := a.Group(group, "a/1", nil), c.Group(group, "c/1", nil)
	to.Attach(fixedState{term: 1})
	done := make(chan error, 1)
	ask := func() {
		done <- from.AppendEntries("c/1", "c/1", &raft.AppendEntriesRequest{RPCHeader: header, Term: 1, PrevLogEntry: 1}, &raft.AppendEntriesResponse{})
	}
	go ask()
	<-to.Consumer()
	if err := from.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Fatalf("after closing the transport: %v", err)
	}
	from.Attach(fixedState{term: 1})
	go ask()
	eventually(t, "the append is under way", func() bool { // the first one's lane waits for its answer until its stream ends
		p, err := a.peer("c")
		if err != nil {
			t.Fatal(err)
		}
		s, err := p.open(entryConn)
		if err != nil {
			t.Fatal(err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.calls) == 1
	})
	a.close()
	if err := <-done; err == nil {
		t.Fatal("success after closing the network")
	}
	if _, err := a.Call(context.Background(), "c", "echo", nil); !errors.Is(err, ErrClosed) {
		t.Fatalf("call after closing: %v", err)
	}
	if err := from.AppendEntries("c/1", "c/1", &raft.AppendEntriesRequest{Term: 1}, &raft.AppendEntriesResponse{}); !errors.Is(err, ErrClosed) {
		t.Fatalf("heartbeat after closing: %v", err)
	}
	if _, err := from.AppendEntriesPipeline("c/1", "c/1"); !errors.Is(err, ErrClosed) {
		t.Fatalf("pipeline after closing: %v", err)
	}
}
