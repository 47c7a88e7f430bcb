package raftnet

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/holdfastdb/holdfast/storage/wire"
)

func appendOf(prev uint64, sizes ...int) *raft.AppendEntriesRequest {
	q := &raft.AppendEntriesRequest{RPCHeader: header, Term: 9, PrevLogEntry: prev, PrevLogTerm: 1, LeaderCommitIndex: prev + 2}
	for i, size := range sizes {
		q.Entries = append(q.Entries, &raft.Log{Index: prev + uint64(i) + 1, Term: 2 + uint64(i), Data: make([]byte, size)})
	}
	return q
}

func TestPiecesOfAnAppendAreAppends(t *testing.T) {
	q := appendOf(10, 100, 100, 5000, 1, 1, 900)
	var entries []*raft.Log
	prev, prevTerm := q.PrevLogEntry, q.PrevLogTerm
	list := pieces(q, 1000)
	for i, p := range list {
		if p.PrevLogEntry != prev || p.PrevLogTerm != prevTerm || p.Term != q.Term || len(p.Entries) == 0 {
			t.Fatalf("piece %d is %+v after entry %d of term %d", i, p, prev, prevTerm)
		}
		if len(p.Entries) > 1 && appendBytes(p) > 1000 {
			t.Errorf("piece %d has %d bytes", i, appendBytes(p))
		}
		last := p.Entries[len(p.Entries)-1]
		if i < len(list)-1 && p.LeaderCommitIndex > last.Index {
			t.Errorf("piece %d commits up to %d, its last entry is %d", i, p.LeaderCommitIndex, last.Index)
		}
		prev, prevTerm = last.Index, last.Term
		entries = append(entries, p.Entries...)
	}
	if len(list) < 3 || !reflect.DeepEqual(entries, q.Entries) || list[len(list)-1].LeaderCommitIndex != q.LeaderCommitIndex {
		t.Fatalf("%d pieces of %d entries", len(list), len(entries))
	}
	if whole := pieces(appendOf(3), 1000); len(whole) != 1 || len(whole[0].Entries) != 0 {
		t.Fatalf("an empty append became %d", len(whole))
	}
}

func TestRequestsThatRaftWouldPanicOverAreRefused(t *testing.T) {
	bad := map[string]any{
		"type":               &raft.AppendEntriesRequest{Entries: []*raft.Log{{Index: 1, Type: raft.LogRemovePeerDeprecated}}},
		"gap":                &raft.AppendEntriesRequest{PrevLogEntry: 4, Entries: []*raft.Log{{Index: 6}}},
		"configuration":      &raft.AppendEntriesRequest{Entries: []*raft.Log{{Index: 1, Type: raft.LogConfiguration, Data: []byte("?")}}},
		"state's":            &raft.InstallSnapshotRequest{SnapshotVersion: 1, Configuration: []byte("?")},
		"no configuration":   &raft.InstallSnapshotRequest{SnapshotVersion: 1},
		"term of entries":    &raft.AppendEntriesRequest{Term: maxTerm + 1},
		"term of a vote":     &raft.RequestVoteRequest{Term: 1<<64 - 1},
		"term of a pre-vote": &raft.RequestPreVoteRequest{Term: maxTerm + 1},
		"term of a state":    &raft.InstallSnapshotRequest{SnapshotVersion: 1, Configuration: configuration, Term: maxTerm + 1},
		"a state's bad size": &raft.InstallSnapshotRequest{SnapshotVersion: 1, Configuration: configuration, Size: -1},
	}
	for name, q := range bad {
		k, b := appendRequest(nil, q)
		if got, err := decodeRequest(k, b); !errors.Is(err, wire.ErrCorrupt) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	for name, a := range map[string]any{ // Raft takes over what answers say, too
		"entries": &raft.AppendEntriesResponse{Term: maxTerm + 1}, "vote": &raft.RequestVoteResponse{Term: maxTerm + 1},
		"pre-vote": &raft.RequestPreVoteResponse{Term: maxTerm + 1}, "state": &raft.InstallSnapshotResponse{Term: maxTerm + 1},
	} {
		b, err := appendAnswer(nil, a)
		if err != nil {
			t.Fatal(err)
		}
		if err := decodeAnswer(b, a); !errors.Is(err, wire.ErrCorrupt) {
			t.Errorf("term of an answer about %s: %v", name, err)
		}
	}
}

func TestForgedCountsAllocateLittle(t *testing.T) {
	h := appendHeader(nil, raft.RPCHeader{})
	forged := append(h, 1, 0, 0, 0)
	forged = binary.AppendUvarint(forged, 1<<20)
	forged = append(forged, make([]byte, minLogBytes<<20)...) // as many entries as announced, all empty
	if _, err := decodeRequest(kindAppend, forged); !errors.Is(err, wire.ErrCorrupt) {
		t.Fatalf("entries: %v", err)
	}
	queries := binary.AppendUvarint(nil, 1<<20)
	if _, err := decodeTermQueries(append(queries, make([]byte, 2<<20)...)); !errors.Is(err, wire.ErrCorrupt) {
		t.Fatalf("questions: %v", err)
	}
	if err := newQueue(0).push(&frame{body: make([]byte, maxBody+1)}); !errors.Is(err, errTooLarge) {
		t.Fatalf("too large a frame: %v", err)
	}
	if _, err := (*Net)(nil).ConfirmTerms(t.Context(), "b", make([]TermQuery, maxQueries+1)); !errors.Is(err, errTooLarge) {
		t.Fatalf("too many questions: %v", err)
	}
}

// sendFrames opens a stream to a node by hand and returns how it ends.
func sendFrames(t *testing.T, from *node, to string, frames ...frame) error {
	t.Helper()
	p, err := from.peer(to)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := p.conn(entryConn)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(from.outgoing(t.Context(), to), 10*time.Second)
	defer cancel()
	st, err := conn.NewStream(ctx, &framesDesc, methodFrames)
	if err != nil {
		t.Fatal(err)
	}
	for i := range frames {
		b := frames[i].append([]byte{formatVersion})
		if err := st.SendMsg(&b); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
	}
	for {
		var b []byte
		if err := st.RecvMsg(&b); err != nil {
			return err
		}
	}
}

func TestForgedFramesEndTheStream(t *testing.T) {
	b := &book{addrs: map[string]string{}}
	a, c := startNode(t, b, "a", Config{}), startNode(t, b, "c", Config{})
	defer a.close()
	defer c.close()
	g := c.Group(group, "c/1", nil)
	g.Attach(fixedState{term: 1})
	_, vote := appendRequest(nil, &raft.RequestVoteRequest{RPCHeader: header})
	_, state := appendRequest(nil, &raft.InstallSnapshotRequest{RPCHeader: header, SnapshotVersion: 1, Configuration: configuration})
	for name, f := range map[string]frame{
		"a replica of another node asks": {kind: kindVote, group: group, to: "c/1", from: "x/1", body: vote},
		"another node asks for terms":    {kind: kindTerms, from: "x", body: appendTermQueries(nil, nil)},
		"a state comes in a frame":       {kind: kindSnapshot, group: group, to: "c/1", from: "a/1", body: state},
	} {
		if err := sendFrames(t, a, "c", f); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	select {
	case rpc := <-g.Consumer():
		t.Fatalf("Raft got %+v", rpc.Command)
	default:
	}
}

// A question for terms that cannot be read is refused, and the stream goes on with the others' requests.
func TestAnUnreadableQuestionForTermsIsRefused(t *testing.T) {
	b := &book{addrs: map[string]string{}}
	a, c := startNode(t, b, "a", Config{}), startNode(t, b, "c", Config{})
	defer a.close()
	defer c.close()
	c.Group(group, "c/1", nil).Attach(fixedState{term: 5})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := a.askTerms(ctx, "c", []byte{1}); err == nil || !strings.Contains(err.Error(), "questions for terms") {
		t.Errorf("half a question: %v", err)
	}
	asked := []TermQuery{{Group: group, Replica: "c/1"}, {Group: group, Replica: "c/2"}}
	if terms, err := a.ConfirmTerms(ctx, "c", asked); err != nil || !slices.Equal(terms, []uint64{5, 0}) {
		t.Errorf("the next one: %v, %v", terms, err)
	}
	c.server.Stop()
	if _, err := a.ConfirmTerms(ctx, "c", asked); err == nil {
		t.Error("a node that is gone answered")
	}
}

// A node that accepts connections and says nothing holds up only who asks it, and those only for their own deadlines.
func TestASilentNodeHoldsNobodyUp(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	b := &book{addrs: map[string]string{"mute": lis.Addr().String(), "none": ""}}
	a := startNode(t, b, "a", Config{})
	defer a.close()
	start := time.Now()
	errs := make(chan error, 64)
	for i := range cap(errs) {
		go func() {
			errs <- a.Group(uint32(i), "a/1", nil).AppendEntries("mute/1", "mute/1", &raft.AppendEntriesRequest{Term: 1}, &raft.AppendEntriesResponse{})
		}()
	}
	for range cap(errs) {
		if err := <-errs; err == nil {
			t.Error("nobody answered, with success")
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := a.Call(ctx, "mute", "echo", nil); err == nil {
		t.Error("nobody answered a call, with success")
	}
	if took := time.Since(start); took > connectTimeout {
		t.Errorf("64 heartbeats to a silent node took %v; one may take %v", took, a.cfg.Heartbeat)
	}
	if _, err := a.Call(t.Context(), "none", "echo", nil); !errors.Is(err, ErrNoAddress) {
		t.Errorf("no address: %v", err)
	}
}

func TestANodeAtAnothersAddressIsNotTakenForIt(t *testing.T) {
	b := &book{addrs: map[string]string{}}
	a, c := startNode(t, b, "a", Config{}), startNode(t, b, "c", Config{})
	defer a.close()
	defer c.close()
	addr, _ := b.find("c")
	b.set("gone", addr)
	c.Handle("echo", func(context.Context, string, []byte) ([]byte, error) { return nil, nil })
	if _, err := a.Call(t.Context(), "gone", "echo", nil); err == nil || !strings.Contains(err.Error(), "this is node c") {
		t.Fatalf("error %v", err)
	}
	if _, err := a.Call(t.Context(), "c", "nothing", nil); !errors.Is(err, ErrNoMethod) {
		t.Fatalf("unknown method: %v", err)
	}
}
