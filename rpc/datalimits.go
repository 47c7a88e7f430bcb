package rpc

import (
	"context"
	"encoding/binary"

	"github.com/zeebo/xxh3"
	"google.golang.org/protobuf/proto"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/counter"
	"github.com/holdfastdb/holdfast/rpc/codec"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
	"github.com/holdfastdb/holdfast/storage/plant"
)

// The methods of the limits in data frames. Part of the protocol, see Op in data.proto.
const (
	methodCheck   = 1
	methodReset   = 2
	methodReserve = 3
	methodCommit  = 4
	methodRefund  = 5
	methodRelease = 6
	methodLease   = 7
	methodPeek    = 64
	methodStatus  = 65
)

var limitMethods = map[uint32]string{
	methodCheck: "check", methodReset: "reset", methodReserve: "reserve", methodCommit: "commit", methodRefund: "refund",
	methodRelease: "release", methodLease: "lease", methodPeek: "peek", methodStatus: "status",
}

// prepareLimit turns an operation on limits into a call.
func (x *stream) prepareLimit(o *op, in *pb.Op, q *pb.PackedFrame) {
	if (in.Method >= methodPeek) != q.Query {
		o.fail(invalidf("method %d of limits does not go into this kind of frame", in.Method))
		return
	}
	switch in.Method {
	case methodCheck:
		x.prepareCheck(o, in, q)
		return
	case methodLease:
		x.s.prepareLease(o, in, q)
		return
	case methodPeek, methodStatus:
		x.s.prepareQuery(o, in, q)
		return
	}
	// The others are rare: they run as the plain calls do, one after the other.
	run := x.s.limitMethod(in)
	if run == nil {
		o.fail(invalidf("no method %d of limits", in.Method))
		return
	}
	o.elsewhere = func(ctx context.Context, q *pb.PackedFrame, i int) (proto.Message, error) {
		return run(withFrame(ctx, q, i))
	}
}

func (x *stream) prepareCheck(o *op, in *pb.Op, q *pb.PackedFrame) {
	s := x.s
	x.check.Reset() // the plan keeps nothing of it but texts
	if err := codec.Unmarshal(in.Request, &x.check); err != nil {
		o.fail(invalidf("malformed check: %v", err))
		return
	}
	w := x.preparing
	p := w.plan()
	err := s.limits.planCheckIn(p, &x.check)
	o.check = p
	switch {
	case err != nil:
		*p = plan{}
		o.fail(err)
	case len(p.parts) == 0 || q.Seq%32 == 0 && plant.On(plant.FailOpen):
		o.finish = func(fsm.Result, fsm.Time) (proto.Message, error) { return s.limits.answer(p, true, nil, 0), nil }
	case len(p.parts) == 1 && p.parts[0].group == q.Shard:
		o.call, w.bodies = p.appendTake(w.bodies)
	}
	// Or some counters are not on the subject's shard: the frame holds the operation's place, and with it its number,
	// while it is carried out in the other groups.
}

// checkElsewhere carries out a check that the frame's shard did not decide.
func (s *data) checkElsewhere(ctx context.Context, q *pb.PackedFrame, i int, p *plan) (proto.Message, error) {
	d, err := decide(ctx, p, framed(s.node, q, i))
	return s.checked(new(answerRoom), p, d, err)
}

func (s *data) checked(room *answerRoom, p *plan, d decision, err error) (proto.Message, error) {
	if err != nil {
		return nil, err
	}
	m := s.limits.answerIn(room, p, d.allowed, d.results, d.now)
	m.ReleaseToken = encodeToken(slots, d.holds)
	return m, nil
}

func (s *data) prepareLease(o *op, in *pb.Op, q *pb.PackedFrame) {
	var request pb.LeaseRequest
	if err := codec.Unmarshal(in.Request, &request); err != nil {
		o.fail(invalidf("malformed lease: %v", err))
		return
	}
	p, call, err := s.limits.planLease(&request)
	if err != nil {
		o.fail(err)
		return
	}
	if call.Type != 0 && p.parts[0].group == q.Shard {
		o.call = call
	}
	o.finish = func(r fsm.Result, now fsm.Time) (proto.Message, error) {
		if r.Code == fsm.Skipped {
			return s.limits.noLease(p), nil
		}
		if err := r.Err(); err != nil {
			return nil, err
		}
		return s.limits.leaseAnswer(p, r.Body, now)
	}
}

// prepareQuery has a question that this shard alone answers asked in the frame's own view: the position in the answer is
// then that of what it tells.
func (s *data) prepareQuery(o *op, in *pb.Op, q *pb.PackedFrame) {
	p, answer, err := s.limits.planQuery(in)
	switch {
	case err != nil:
		o.fail(err)
	case len(p.parts) == 1 && p.parts[0].group == q.Shard:
		take := counter.TakeRequest{Weight: p.weight, Limits: p.parts[0].limits}
		o.call = fsm.Call{Type: counter.TypeID, Op: counter.OpPeek, Body: take.Append(nil)}
		o.finish = func(r fsm.Result, now fsm.Time) (proto.Message, error) {
			if err := r.Err(); err != nil {
				return nil, err
			}
			d, err := decided(p, q.Shard, r.Body, now)
			return answer(d), err
		}
	default:
		o.elsewhere = func(ctx context.Context, _ *pb.PackedFrame, _ int) (proto.Message, error) {
			d, err := s.limits.peek(ctx, p)
			return answer(d), err
		}
	}
}

// limitMethod returns how a rare method is carried out, nil if there is none.
func (s *data) limitMethod(in *pb.Op) func(context.Context) (proto.Message, error) {
	switch in.Method {
	case methodReset:
		return method(in.Request, &pb.LimitResetRequest{}, s.limits.Reset)
	case methodReserve:
		return method(in.Request, &pb.ReserveRequest{}, s.limits.Reserve)
	case methodCommit:
		return method(in.Request, &pb.CommitRequest{}, s.limits.Commit)
	case methodRefund:
		return method(in.Request, &pb.RefundRequest{}, s.limits.Refund)
	case methodRelease:
		return method(in.Request, &pb.ReleaseRequest{}, s.limits.Release)
	}
	return nil
}

func method[Q, R proto.Message](request []byte, q Q, run func(context.Context, Q) (R, error)) func(context.Context) (proto.Message, error) {
	return func(ctx context.Context) (proto.Message, error) {
		if err := codec.Unmarshal(request, q); err != nil {
			return nil, invalidf("malformed request: %v", err)
		}
		return run(ctx, q)
	}
}

// framed executes the calls of one operation of a frame in other groups, under a client id that follows from the
// operation: a repeated frame repeats them without effect.
func framed(node Node, q *pb.PackedFrame, i int) caller {
	hash := operationHash([16]byte(q.Client), q.Shard, q.Seq, i)
	client := fsm.OneShot(hash.Bytes())
	return caller{id: hash.Lo, named: true, propose: func(ctx context.Context, group uint32, s step, call fsm.Call) (fsm.FrameOutcome, error) {
		deadline := fsm.Time(q.DeadlineMs)
		if s.choice != 0 { // what was begun in time is finished
			deadline += fsm.Time(requestTimeout.Milliseconds())
		}
		return node.Propose(ctx, group, &fsm.Frame{
			Client: client, Seq: s.number, Fingerprint: s.choice, Deadline: deadline, Calls: []fsm.Call{call},
		})
	}}
}

// OperationClient is the client id under which an operation of a frame is carried out if it cannot be a part of the frame.
// Its commands are numbered from 1 in each group.
func OperationClient(client [16]byte, shard uint32, seq uint64, op int) [16]byte {
	return fsm.OneShot(operationHash(client, shard, seq, op).Bytes())
}

func operationHash(client [16]byte, shard uint32, seq uint64, op int) xxh3.Uint128 {
	b := append(make([]byte, 0, 32), client[:]...)
	b = binary.BigEndian.AppendUint32(b, shard)
	b = binary.BigEndian.AppendUint64(b, seq)
	return xxh3.Hash128(binary.BigEndian.AppendUint32(b, uint32(op)))
}

// frameOp is an operation of a frame, for the plain calls that carry it out.
type frameOp struct {
	q *pb.PackedFrame
	i int
}

type frameKey struct{}

func withFrame(ctx context.Context, q *pb.PackedFrame, i int) context.Context {
	return context.WithValue(ctx, frameKey{}, frameOp{q, i})
}
