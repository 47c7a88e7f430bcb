package codec_test

import (
	"bytes"
	"testing"
	"time"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/holdfastdb/holdfast/rpc/codec"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// messages are some with generated functions and some without.
func messages() map[string]proto.Message {
	weight := uint32(3)
	return map[string]proto.Message{
		"check":  &pb.CheckRequest{ClientId: "c", Resource: "/r", Weight: &weight, Policies: []string{"a", "b"}},
		"empty":  &pb.CheckRequest{},
		"answer": &pb.CheckResponse{Allowed: true, RemainingQuota: 7, ResetTime: &timestamppb.Timestamp{Seconds: 5, Nanos: 6}, Limits: []*pb.LimitState{{PolicyId: "p1", Limit: 9, Window: 0.5}, {}}},
		"frame":  &pb.FrameRequest{Client: make([]byte, 16), Shard: 1, Seq: 2, Ops: []*pb.Op{{Type: 1, Method: 2, Request: []byte("x")}}},
		"packed": &pb.PackedFrame{Client: make([]byte, 16), Shard: 1, Seq: 2, Ops: [][]byte{{8, 1}, {}}},
		"plain":  &pb.CreatePolicyRequest{Name: "n", RateLimit: 5},
	}
}

func TestTheBytesAreThoseOfProtobuf(t *testing.T) {
	for name, m := range messages() {
		t.Run(name, func(t *testing.T) {
			own, err := codec.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			again := m.ProtoReflect().New().Interface()
			if err := proto.Unmarshal(own, again); err != nil || !proto.Equal(m, again) {
				t.Errorf("protobuf reads %v, %v", again, err)
			}
			theirs, err := proto.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			again = m.ProtoReflect().New().Interface()
			if err := codec.Unmarshal(theirs, again); err != nil || !proto.Equal(m, again) {
				t.Errorf("read back: %v, %v", again, err)
			}
			appended, err := codec.Append([]byte("before"), m)
			if err != nil || !bytes.Equal(appended, append([]byte("before"), own...)) {
				t.Errorf("appended: %q, %v", appended, err)
			}
			slices, err := codec.GRPC{}.Marshal(m)
			if err != nil || !bytes.Equal(slices.Materialize(), own) {
				t.Errorf("for gRPC: %q, %v", slices.Materialize(), err)
			}
			again = m.ProtoReflect().New().Interface()
			if err := (codec.GRPC{}).Unmarshal(mem.BufferSlice{mem.SliceBuffer(theirs)}, again); err != nil || !proto.Equal(m, again) {
				t.Errorf("from gRPC: %v, %v", again, err)
			}
		})
	}
}

// gRPC's buffers are used again: what is written must not be what was there before, at any size.
func TestMessagesOfAllSizesAreEncodedForGRPC(t *testing.T) {
	for _, size := range []int{1, 300, 2 << 10, 30 << 10, 40 << 10, 2 << 20} {
		for fill := range byte(3) {
			m := &pb.FrameRequest{Client: make([]byte, 16), Shard: 1, Ops: []*pb.Op{{Request: bytes.Repeat([]byte{fill}, size)}}}
			want, err := codec.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			slices, err := codec.GRPC{}.Marshal(m)
			if err != nil || !bytes.Equal(slices.Materialize(), want) {
				t.Errorf("%d bytes of %d: not what it is without gRPC, %v", size, fill, err)
			}
			slices.Free()
		}
	}
}

func TestAppendUsesTheRoomThereIs(t *testing.T) {
	buf := make([]byte, 0, 1024)
	got, err := codec.Append(buf, messages()["answer"])
	if err != nil || &got[0] != &buf[:1][0] {
		t.Errorf("moved, %v", err)
	}
}

// known is a message without fields that it does not know: ours drops those of timestamps.
func known(t *testing.T, m proto.Message) proto.Message {
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatalf("both decoders accepted it, and it cannot be encoded: %v", err)
	}
	again := m.ProtoReflect().New().Interface()
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, again); err != nil {
		t.Fatal(err)
	}
	return again
}

func FuzzUnmarshal(f *testing.F) {
	for _, m := range messages() {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		// What both decoders accept says the same to both.
		for _, empty := range []proto.Message{&pb.FrameRequest{}, &pb.PackedFrame{}, &pb.FrameResponse{}, &pb.CheckRequest{}, &pb.CheckResponse{}, &pb.LeaseRequest{}} {
			theirs, own := empty.ProtoReflect().New().Interface(), empty.ProtoReflect().New().Interface()
			if codec.Unmarshal(b, own) != nil || proto.Unmarshal(b, theirs) != nil {
				// Ours refuses known fields of another type, which protobuf takes for unknown ones, and accepts text that is
				// not UTF-8, which services refuse.
				continue
			}
			if !proto.Equal(known(t, theirs), known(t, own)) {
				t.Fatalf("%T: %v, want %v", empty, own, theirs)
			}
		}
	})
}

// What a message had before it came back to its pool is not in the next one.
func TestAMessageThatIsUsedAgainIsEmpty(t *testing.T) {
	many := &pb.CheckResponse{Allowed: true, PolicyApplied: "p", ResetTime: timestamppb.New(time.Unix(9, 9)), ReleaseToken: "token"}
	for range 3 {
		many.Limits = append(many.Limits, &pb.LimitState{PolicyId: "p", Scope: "client", Denied: true, Shadow: true, CurrentUsage: 7})
	}
	few := &pb.CheckResponse{Limits: []*pb.LimitState{{Limit: 5}}}
	for _, want := range []*pb.CheckResponse{many, few, many, {}} {
		m := pb.CheckResponseFromVTPool()
		decodeInto(t, m, want)
		m.ReturnToVTPool()
	}
	held := &pb.HeldValidation{Valid: true, Session: &pb.HeldSession{SessionId: []byte("id"), Profile: []byte("profile"), Flagged: true}}
	for _, want := range []*pb.HeldValidation{held, {Reason: "unknown"}, held, {Session: &pb.HeldSession{Type: "web"}}} {
		m := pb.HeldValidationFromVTPool()
		decodeInto(t, m, want)
		m.ReturnToVTPool()
	}
}

func decodeInto(t *testing.T, m, want proto.Message) {
	t.Helper()
	b, err := proto.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if err := codec.Unmarshal(b, m); err != nil || !proto.Equal(m, want) {
		t.Errorf("got %v, want %v (%v)", m, want, err)
	}
}
