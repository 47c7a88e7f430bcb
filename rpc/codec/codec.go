// Package codec encodes gRPC messages with the functions that protoc-gen-go-vtproto generated, where there are any: they
// take a fraction of the time that reflection does. The bytes are the same.
package codec

import (
	"slices"

	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

type marshaler interface{ MarshalVT() ([]byte, error) }

// The texts and bytes of a message that was decoded this way point into the encoding, which must not change after.
type unmarshaler interface{ UnmarshalVTUnsafe([]byte) error }

// Marshal encodes a message.
func Marshal(m proto.Message) ([]byte, error) {
	if v, ok := m.(marshaler); ok {
		return v.MarshalVT()
	}
	return proto.Marshal(m)
}

type sizedMarshaler interface {
	SizeVT() int
	MarshalToSizedBufferVT([]byte) (int, error)
}

// Append appends the encoding of a message.
func Append(dst []byte, m proto.Message) ([]byte, error) {
	v, ok := m.(sizedMarshaler)
	if !ok {
		return proto.MarshalOptions{}.MarshalAppend(dst, m)
	}
	begin, size := len(dst), v.SizeVT()
	dst = slices.Grow(dst, size)[:begin+size]
	if _, err := v.MarshalToSizedBufferVT(dst[begin:]); err != nil {
		return dst[:begin], err
	}
	return dst, nil
}

// Unmarshal decodes a message, which keeps b.
func Unmarshal(b []byte, m proto.Message) error {
	if v, ok := m.(unmarshaler); ok {
		return v.UnmarshalVTUnsafe(b)
	}
	return proto.Unmarshal(b, m)
}

// maxPooled bounds what goes into gRPC's buffers, which it empties before each use: above it they have a megabyte.
const maxPooled = 32 << 10

// GRPC is for grpc.ForceCodecV2 and grpc.ForceServerCodecV2.
type GRPC struct{}

var _ encoding.CodecV2 = GRPC{}

// Name implements encoding.CodecV2: on the wire it is the usual one.
func (GRPC) Name() string { return grpcproto.Name }

// Marshal implements encoding.CodecV2.
func (GRPC) Marshal(v any) (mem.BufferSlice, error) {
	m, ok := v.(sizedMarshaler)
	if !ok {
		return encoding.GetCodecV2(grpcproto.Name).Marshal(v)
	}
	size := m.SizeVT()
	if mem.IsBelowBufferPoolingThreshold(size) || size > maxPooled {
		b := make([]byte, size)
		if _, err := m.MarshalToSizedBufferVT(b); err != nil {
			return nil, err
		}
		return mem.BufferSlice{mem.SliceBuffer(b)}, nil
	}
	pool := mem.DefaultBufferPool() // gRPC gives it back when it is written
	b := pool.Get(size)
	if _, err := m.MarshalToSizedBufferVT((*b)[:size]); err != nil {
		pool.Put(b)
		return nil, err
	}
	return mem.BufferSlice{mem.NewBuffer(b, pool)}, nil
}

// Tried is a message to decode into, for who wants to answer bytes that are none: gRPC sees no error.
type Tried struct {
	Message any
	Err     error
}

// Unmarshal implements encoding.CodecV2.
func (c GRPC) Unmarshal(data mem.BufferSlice, v any) error {
	if t, ok := v.(*Tried); ok {
		t.Err = c.Unmarshal(data, t.Message)
		return nil
	}
	m, ok := v.(unmarshaler)
	if !ok {
		return encoding.GetCodecV2(grpcproto.Name).Unmarshal(data, v)
	}
	return m.UnmarshalVTUnsafe(data.Materialize())
}
