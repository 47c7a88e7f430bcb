package rpc

import (
	"bytes"
	"context"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/rpc/codec"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// op is one operation of a frame on its way.
type op struct {
	of     *dataType // nil if there is no such type
	method uint32
	call   fsm.Call // a placeholder for one that is not for this shard alone
	// check is the plan of a check. It is the usual operation, and needs no closures, but for finish if it takes nothing.
	check *plan
	// finish builds the answer from the shard's result; for a placeholder it ignores it.
	finish func(r fsm.Result, now fsm.Time) (proto.Message, error)
	// again builds the answer if the frame was executed before and the answer was lost, where finish cannot; see sessionStep.
	again func(ctx context.Context, r fsm.Result, at fsm.Time) (proto.Message, error)
	place int // in its frame
	// elsewhere carries the operation out in several groups.
	elsewhere func(ctx context.Context, q *pb.PackedFrame, i int) (proto.Message, error)
}

// repeat has the answer built again, from the result of the first time.
func (o *op) repeat(r fsm.Result, at fsm.Time) {
	again := o.again
	r.Body = bytes.Clone(r.Body)
	o.elsewhere = func(ctx context.Context, _ *pb.PackedFrame, _ int) (proto.Message, error) { return again(ctx, r, at) }
}

// goesElsewhere tells whether the operation is still to be carried out. What the shard answered decides, not the plan:
// a frame that is sent again may have been executed under other policies, and then what it took is all that it takes.
func (o *op) goesElsewhere(code fsm.Code) bool {
	return code == fsm.Skipped && (o.elsewhere != nil || o.check != nil && o.finish == nil)
}

// What a usual check takes in a frame and its result in the answer, and what the answer to a question takes. More is no
// error.
const (
	callBytes   = 48
	resultBytes = 96
	answerBytes = 224
)

// prepare turns an operation into a call.
func (x *stream) prepare(o *op, packed []byte, q *pb.PackedFrame) {
	o.call = fsm.Noop()
	in := &x.in // nothing keeps it, but its request
	in.Reset()
	if err := codec.Unmarshal(packed, in); err != nil {
		o.fail(invalidf("malformed operation: %v", err))
		return
	}
	o.method = in.Method
	if o.of = dataTypeOf(in.Type); o.of == nil {
		o.fail(invalidf("no data type %d", in.Type))
		return
	}
	o.of.prepare(x, o, in, q)
}

// fail makes the operation answer with an error.
func (o *op) fail(err error) {
	o.call = fsm.Noop()
	o.finish = func(r fsm.Result, _ fsm.Time) (proto.Message, error) {
		if r.Code != fsm.Skipped { // it made sense under the rules of then, and was executed
			return nil, fmt.Errorf("%w: it came before, and now is refused: %s", fsm.ErrOutcomeUnknown, err.Error())
		}
		return nil, err
	}
}

// finish builds the answer of an operation from the shard's result, in room if it is a check.
func (s *data) finish(room *answerRoom, o *op, shard uint32, r fsm.Result, now fsm.Time) (proto.Message, error) {
	if o.check == nil || o.finish != nil && r.Code == fsm.Skipped {
		return o.finish(r, now)
	}
	if err := r.Err(); err != nil {
		return nil, err
	}
	d, err := decided(o.check, shard, r.Body, now)
	return s.checked(room, o.check, d, err)
}

// appendResult fills a result in, with its message in buf.
func appendResult(buf []byte, r *pb.OpResult, m proto.Message, err error) []byte {
	if err == nil {
		begin := len(buf)
		if buf, err = codec.Append(buf, m); err == nil {
			r.Response = buf[begin:len(buf):len(buf)]
			return buf
		}
	}
	r.Code, r.Message = uint32(resultCode(kindOf(err))), err.Error()
	return buf
}

// resultCode is the code by which an SDK knows a failure. Of what had no effect it says no more than that.
func resultCode(k kind) codes.Code {
	if k == expired || k == overloaded {
		return unavailable.code
	}
	return k.code
}
