package codec_test

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/holdfastdb/holdfast/rpc/codec"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// What SDKs send and what nodes read are two descriptions of the same bytes.
func TestAPackedFrameIsAFrame(t *testing.T) {
	sent, read := (&pb.FrameRequest{}).ProtoReflect().Descriptor().Fields(), (&pb.PackedFrame{}).ProtoReflect().Descriptor().Fields()
	if sent.Len() != read.Len() {
		t.Errorf("%d fields are sent, %d are read", sent.Len(), read.Len())
	}
	for i := range sent.Len() {
		a := sent.Get(i)
		b := read.ByNumber(a.Number())
		if b == nil || a.Name() != b.Name() || a.Cardinality() != b.Cardinality() || a.Kind() != b.Kind() && a.Name() != "ops" {
			t.Errorf("%v is read as %v", a, b)
		}
	}
	for _, q := range []*pb.FrameRequest{
		{},
		{
			Client: []byte("0123456789abcdef"), Shard: 3, Seq: 1 << 40, AckUpTo: 5, DeadlineMs: 1_700_000_000_000, Query: true, Id: 9, TimeoutMs: 500,
			Ops: []*pb.Op{{Type: 1, Method: 2, Request: []byte("one")}, {}, {Type: 300, Request: make([]byte, 300)}},
		},
	} {
		bytesOf, err := codec.Marshal(q)
		if err != nil {
			t.Fatal(err)
		}
		var p pb.PackedFrame
		if err := codec.Unmarshal(bytes.Clone(bytesOf), &p); err != nil || len(p.Ops) != len(q.Ops) {
			t.Fatalf("%v has %d operations, %v", q, len(p.Ops), err)
		}
		for i, packed := range p.Ops {
			var o pb.Op
			if err := codec.Unmarshal(packed, &o); err != nil || !proto.Equal(&o, q.Ops[i]) {
				t.Errorf("operation %d is %v, %v; want %v", i, &o, err, q.Ops[i])
			}
		}
		if again, err := codec.Marshal(&p); err != nil || !bytes.Equal(again, bytesOf) {
			t.Errorf("%x is written as %x, %v", bytesOf, again, err)
		}
	}
}
