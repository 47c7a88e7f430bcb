package rpc

import (
	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/counter"
	"github.com/holdfastdb/holdfast/fsm/session"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// dataType is a type of data as the stream of the SDKs knows it.
type dataType struct {
	fsm.Type
	// methods names the operations in data frames.
	methods map[uint32]string
	// prepare turns an operation into a call.
	prepare func(x *stream, o *op, in *pb.Op, q *pb.PackedFrame)
}

// dataTypes is THE list of data types that shards hold.
var dataTypes = []dataType{
	{counter.Type(), limitMethods, (*stream).prepareLimit},
	{session.Type(), sessionMethods, (*stream).prepareSession},
}

// Types lists the data types for state machines.
func Types() []fsm.Type {
	list := make([]fsm.Type, len(dataTypes))
	for i := range dataTypes {
		list[i] = dataTypes[i].Type
	}
	return list
}

// dataTypeOf finds a type by its number, nil if there is none.
func dataTypeOf(id uint32) *dataType {
	for i := range dataTypes {
		if uint32(dataTypes[i].ID) == id {
			return &dataTypes[i]
		}
	}
	return nil
}
