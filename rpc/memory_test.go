package rpc

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/holdfastdb/holdfast/rpc/codec"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// asking is a frame of queries, of no data type that there is.
func asking(ops int) *pb.PackedFrame {
	q := &pb.PackedFrame{Client: make([]byte, 16), Shard: 1, Query: true}
	for range ops {
		q.Ops = append(q.Ops, packed(&pb.Op{Type: 99, Method: methodPeek, Request: make([]byte, 1<<10)})...)
	}
	return q
}

// stuff sends frames until the stream ends or takes no more.
func stuff(ctx context.Context, s *sdk, q *pb.PackedFrame) {
	for {
		select {
		case s.frames <- q:
		case <-ctx.Done():
			return
		}
	}
}

func TestTheMemoryOfAStreamIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s := newSDK(ctx, 0)
		service := &data{node: &leader{}, metrics: NewMetrics(), closing: make(chan struct{})}
		x := newStream(ctx, service)
		go x.read(s) // nobody writes
		q := asking(200)
		q.Query, q.Seq = false, 1 // proposed, and never answered
		go stuff(ctx, s, q)
		synctest.Wait()
		if n := int64(s.got) * requestMemory(q); n < maxStreamMemory || n > maxStreamMemory+requestMemory(q) || s.got >= maxFrames {
			t.Errorf("%d frames were read, which hold %d bytes", s.got, n)
		}
		if service.memory.Load() != x.held.Load() {
			t.Errorf("the stream holds %d bytes, the node %d", x.held.Load(), service.memory.Load())
		}
		cancel()
	})
}

// What a node does not know of a frame takes memory all the same, in the frame and as a copy.
func TestUnknownFieldsOfAFrameCount(t *testing.T) {
	const size = 1 << 20
	text, err := proto.Marshal(asking(1))
	if err != nil {
		t.Fatal(err)
	}
	var q pb.PackedFrame
	if err := codec.Unmarshal(protowire.AppendBytes(protowire.AppendTag(text, 1000, protowire.BytesType), make([]byte, size)), &q); err != nil {
		t.Fatal(err)
	}
	if more := requestMemory(&q) - requestMemory(asking(1)); more < 2*size {
		t.Errorf("%d bytes more are counted", more)
	}
}

func TestWhenTheNodeHoldsTooMuchFramesAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s := newSDK(ctx, 1)
		node := &leader{}
		service := &data{node: node, metrics: NewMetrics(), closing: make(chan struct{})}
		service.memory.Store(maxMemory) // held by other streams
		go func() { _ = service.Frames(s) }()
		q := asking(1)
		q.Query, q.Seq = false, 1
		s.frames <- q
		if r := <-s.answers; r.Error.GetReason() != pb.FrameError_REASON_OVERLOADED || r.Error.RetryAfterMs == 0 || len(node.frames) != 0 {
			t.Errorf("answer %v, %d frames proposed", r, len(node.frames))
		}
		synctest.Wait()
		if n := service.memory.Load(); n != maxMemory {
			t.Errorf("%d bytes are held after the answer was sent", n-maxMemory)
		}
		service.memory.Store(0)
		s.frames <- q
		synctest.Wait()
		if len(node.frames) != 1 {
			t.Errorf("%d frames proposed when there is room again", len(node.frames))
		}
		cancel()
		service.streams.Wait()
	})
}

// Otherwise a few clients that take no answers would keep the node's memory from all others, for ever.
func TestAStreamEndsWhenItsAnswersAreNotTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s := newSDK(ctx, 0)
		service := &data{node: &leader{}, metrics: NewMetrics(), closing: make(chan struct{})}
		go stuff(ctx, s, asking(200))
		begin := time.Now()
		err := service.Frames(s)
		if status.Code(err) != codes.ResourceExhausted || time.Since(begin) != stallTimeout {
			t.Errorf("it ended with %v after %v", err, time.Since(begin))
		}
		if service.memory.Load() == 0 {
			t.Error("nothing was held")
		}
		cancel() // as gRPC does when the service returns
		service.streams.Wait()
		if n := service.memory.Load(); n != 0 {
			t.Errorf("%d bytes are held after the end", n)
		}
	})
}
