package raftnet

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Only members of the cluster take part in Raft and call each other. Who is in none yet may ask to join.
func TestWhoIsNotOfTheClusterIsRefused(t *testing.T) {
	in := func(cluster string) Config { return Config{ClusterID: func() string { return cluster }} }
	b := &book{addrs: map[string]string{}}
	c, joining := startNode(t, b, "c", in("one")), startNode(t, b, "joining", in(""))
	defer c.close()
	defer joining.close()
	var lines bytes.Buffer
	c.log = slog.New(slog.NewTextHandler(&lines, nil))
	g := c.Group(group, "c/1", nil)
	g.Attach(fixedState{term: 1})
	early := joining.Group(group, "joining/1", nil)
	early.Attach(fixedState{term: 1})
	echo := func(_ context.Context, _ string, q []byte) ([]byte, error) { return q, nil }
	c.HandleOpen("join", echo)
	c.Handle("echo", echo)
	_, vote := appendRequest(nil, &raft.RequestVoteRequest{RPCHeader: header, Term: 2})
	_, state := appendRequest(nil, &raft.InstallSnapshotRequest{RPCHeader: header, SnapshotVersion: 1, Configuration: configuration})
	for name, cluster := range map[string]string{"foreign": "two", "none": ""} {
		t.Run(name, func(t *testing.T) {
			from := startNode(t, b, name, in(cluster))
			defer from.close()
			if err := sendFrames(t, from, "c", frame{kind: kindVote, group: group, to: "c/1", from: name + "/1", body: vote}); status.Code(err) != codes.FailedPrecondition {
				t.Errorf("a vote: %v", err)
			}
			p, err := from.peer("c")
			if err != nil {
				t.Fatal(err)
			}
			conn, err := p.conn(entryConn)
			if err != nil {
				t.Fatal(err)
			}
			st, err := conn.NewStream(from.outgoing(t.Context(), "c"), &installDesc, methodInstall)
			if err != nil {
				t.Fatal(err)
			}
			announced := (&frame{kind: kindSnapshot, group: group, to: "c/1", from: name + "/1", body: state}).append([]byte{formatVersion})
			_ = st.SendMsg(&announced) // the stream may have ended
			var answer []byte
			if err := st.RecvMsg(&answer); status.Code(err) != codes.FailedPrecondition {
				t.Errorf("a state: %v", err)
			}
			if _, err := from.Call(t.Context(), "c", "echo", nil); err == nil || !strings.Contains(err.Error(), "belongs to cluster one") {
				t.Errorf("a call: %v", err)
			}
			if _, err := from.Call(t.Context(), "c", "join", nil); (err == nil) != (cluster == "") {
				t.Errorf("to join: %v", err)
			}
		})
	}
	if err := sendFrames(t, c, "joining", frame{kind: kindVote, group: group, to: "joining/1", from: "c/1", body: vote}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("to a node that is in no cluster yet: %v", err)
	}
	for _, replica := range []*GroupTransport{g, early} {
		select {
		case rpc := <-replica.Consumer():
			t.Errorf("Raft got %+v", rpc.Command)
		default:
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := strings.Count(lines.String(), "refused a request between nodes"); n != 1 || c.refusals.count == 0 {
		t.Errorf("%d lines for %d refusals more:\n%s", n, c.refusals.count, lines.String())
	}
}
