package raftnet

import (
	"bytes"
	"encoding/hex"
	"flag"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var header = raft.RPCHeader{ProtocolVersion: 3, ID: []byte("n1/1"), Addr: []byte("n1/1")}

var configuration = raft.EncodeConfiguration(raft.Configuration{Servers: []raft.Server{{ID: "n1/1", Address: "n1/1"}}})

// decodeFrames lists what readFrames finds.
func decodeFrames(b []byte) (list []*frame, err error) {
	err = readFrames(b, func(f *frame) error {
		list = append(list, f)
		return nil
	})
	return list, err
}

var requests = []any{
	&raft.AppendEntriesRequest{RPCHeader: header, Term: 7, PrevLogEntry: 300, PrevLogTerm: 6, LeaderCommitIndex: 299, Entries: []*raft.Log{
		{Index: 301, Term: 7, Type: raft.LogCommand, Data: []byte("data"), Extensions: []byte("ext"), AppendedAt: time.Unix(0, 1_700_000_000_000_000_001)},
		{Index: 302, Term: 7, Type: raft.LogNoop},
		{Index: 303, Term: 7, Type: raft.LogConfiguration, Data: configuration},
	}},
	&raft.AppendEntriesRequest{RPCHeader: header, Term: 7},
	&raft.RequestVoteRequest{RPCHeader: header, Term: 8, LastLogIndex: 302, LastLogTerm: 7, LeadershipTransfer: true},
	&raft.RequestPreVoteRequest{RPCHeader: header, Term: 8, LastLogIndex: 302, LastLogTerm: 7},
	&raft.TimeoutNowRequest{RPCHeader: header},
	&raft.InstallSnapshotRequest{
		RPCHeader: header, SnapshotVersion: 1, Term: 8, Leader: []byte("n1/1"), LastLogIndex: 200, LastLogTerm: 5,
		Configuration: configuration, ConfigurationIndex: 4, Peers: []byte("peers"), Size: 1 << 33,
	},
}

var answers = []any{
	&raft.AppendEntriesResponse{RPCHeader: header, Term: 7, LastLog: 302, Success: true, NoRetryBackoff: true},
	&raft.RequestVoteResponse{RPCHeader: header, Term: 8, Granted: true},
	&raft.RequestPreVoteResponse{RPCHeader: header, Term: 8, Granted: true},
	&raft.TimeoutNowResponse{RPCHeader: header},
	&raft.InstallSnapshotResponse{RPCHeader: header, Term: 8, Success: true},
}

// Nodes of two versions talk to each other during an upgrade: the encodings must not change.
func TestEncodingsArePinned(t *testing.T) {
	var lines []string
	for _, q := range requests {
		k, b := appendRequest(nil, q)
		f := frame{kind: k, id: 300, group: 9, to: "n2/1", from: "n1/1", body: b}
		message := f.append([]byte{formatVersion})
		lines = append(lines, hex.EncodeToString(message))
		frames, err := decodeFrames(message)
		if err != nil || len(frames) != 1 || frames[0].id != 300 || frames[0].group != 9 || frames[0].to != "n2/1" || frames[0].from != "n1/1" {
			t.Fatalf("read %+v, %v", frames, err)
		}
		got, err := decodeRequest(frames[0].kind, frames[0].body)
		if err != nil || !reflect.DeepEqual(got, q) {
			t.Errorf("sent %+v, received %+v, %v", q, got, err)
		}
	}
	for _, a := range answers {
		b, err := appendAnswer(nil, a)
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, hex.EncodeToString(b))
		got := reflect.New(reflect.TypeOf(a).Elem()).Interface()
		if err := decodeAnswer(b, got); err != nil || !reflect.DeepEqual(got, a) {
			t.Errorf("sent %+v, received %+v, %v", a, got, err)
		}
	}
	lines = append(lines,
		hex.EncodeToString(appendTermQueries(nil, []TermQuery{{Group: 3, Replica: "n1/2"}})),
		hex.EncodeToString((&frame{kind: kindTerms, id: 300, from: "n1", body: appendTermQueries(nil, []TermQuery{{Group: 3, Replica: "n1/2"}})}).append([]byte{formatVersion})),
		hex.EncodeToString(appendTerms(nil, time.Unix(0, 1), []uint64{9})),
		hex.EncodeToString(encodeCall("join", []byte("x"))))
	got := strings.Join(lines, "\n") + "\n"
	const path = "testdata/codec.golden"
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Fatalf("encodings are\n%swant\n%s", got, want)
	}
}

func FuzzDecode(f *testing.F) {
	for _, q := range requests {
		k, b := appendRequest(nil, q)
		f.Add((&frame{kind: k, id: 1, group: 2, to: "a/1", from: "b/1", body: b}).append([]byte{formatVersion}))
	}
	for _, a := range answers {
		b, _ := appendAnswer(nil, a)
		f.Add(b)
	}
	f.Add(appendTermQueries(nil, []TermQuery{{Group: 3, Replica: "n1/2"}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		frames, err := decodeFrames(b)
		if err == nil {
			for i := range frames {
				q, err := decodeRequest(frames[i].kind, frames[i].body)
				if err != nil {
					continue
				}
				k, again := appendRequest(nil, q)
				q2, err := decodeRequest(k, again)
				if err != nil || !reflect.DeepEqual(q, q2) {
					t.Fatalf("%x decodes to %+v and, encoded again, to %+v: %v", b, q, q2, err)
				}
			}
		}
		for _, a := range answers {
			got := reflect.New(reflect.TypeOf(a).Elem()).Interface()
			_ = decodeAnswer(b, got)
		}
		if queries, err := decodeTermQueries(b); err == nil {
			if again, err := decodeTermQueries(appendTermQueries(nil, queries)); err != nil || !reflect.DeepEqual(again, queries) {
				t.Fatalf("%v becomes %v: %v", queries, again, err)
			}
		}
		_, _, _ = decodeTerms(b)
	})
}

func TestFramesOfOneMessageShareNothing(t *testing.T) {
	q := newQueue(0)
	for i := range uint64(3) {
		if err := q.push(&frame{kind: kindAnswer, id: i, body: bytes.Repeat([]byte{byte(i)}, 10)}); err != nil {
			t.Fatal(err)
		}
	}
	frames, err := decodeFrames(q.take())
	if err != nil || len(frames) != 3 || frames[2].body[0] != 2 {
		t.Fatalf("%+v, %v", frames, err)
	}
	if b := q.take(); len(b) != 0 {
		t.Fatalf("sent twice: %x", b)
	}
}
