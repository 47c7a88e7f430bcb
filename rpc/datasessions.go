package rpc

import (
	"context"

	"google.golang.org/protobuf/proto"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/session"
	"github.com/holdfastdb/holdfast/rpc/codec"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// The methods of sessions in data frames. Part of the protocol, see Op in data.proto.
const (
	methodCreateSession  = 1
	methodRefreshSession = 2
	methodRotateSession  = 3
	methodLogout         = 4
	methodRevokeSession  = 5
	methodSetAttributes  = 6
	methodRevokeUser     = 7
	methodEraseUser      = 8
	methodSave           = 9
	methodDrop           = 10
	methodValidate       = 64
	methodGetSession     = 65
	methodListSessions   = 66
	methodHistory        = 67
	methodFindSaved      = 68
	methodScanSaved      = 69
)

var sessionMethods = map[uint32]string{
	methodCreateSession: "create", methodRefreshSession: "refresh", methodRotateSession: "rotate", methodLogout: "logout",
	methodRevokeSession: "revoke", methodSetAttributes: "set_attributes", methodRevokeUser: "revoke_user",
	methodEraseUser: "erase_user", methodSave: "save", methodDrop: "drop", methodValidate: "validate",
	methodGetSession: "get", methodListSessions: "list", methodHistory: "history", methodFindSaved: "find_saved",
	methodScanSaved: "scan_saved",
}

// prepareSession turns an operation on sessions into a call.
func (x *stream) prepareSession(o *op, in *pb.Op, q *pb.PackedFrame) {
	if (in.Method >= methodValidate) != q.Query {
		o.fail(invalidf("method %d of sessions does not go into this kind of frame", in.Method))
		return
	}
	s := x.s.sessions
	if in.Method == methodSetAttributes { // it reads first
		request := in.Request
		o.elsewhere = func(ctx context.Context, q *pb.PackedFrame, i int) (proto.Message, error) {
			return method(request, &pb.SetAttributesRequest{}, s.SetAttributes)(withFrame(ctx, q, i))
		}
		return
	}
	step, err := s.planFrame(in, q, o.place)
	if err != nil {
		o.fail(err)
		return
	}
	o.finish = step.finish
	if step.call.Type == 0 { // answered already
		return
	}
	group, err := s.group(step.slot)
	if err != nil {
		o.fail(err)
		return
	}
	if in.Method != methodScanSaved && group != q.Shard {
		o.fail(invalidf("the session belongs to shard %d", group))
		return
	}
	o.call, o.again = step.call, step.again
}

// planFrame reads an operation and makes its step.
func (s *sessions) planFrame(in *pb.Op, q *pb.PackedFrame, place int) (*sessionStep, error) {
	switch in.Method {
	case methodCreateSession:
		var m pb.CreateSessionRequest
		if err := unmarshal(in, &m); err != nil {
			return nil, err
		}
		return s.planCreate(&m, familyOf(q, place))
	case methodRefreshSession:
		return planned(in, &pb.RefreshSessionRequest{}, s.planRefresh)
	case methodRotateSession:
		return planned(in, &pb.RotateSessionRequest{}, s.planRotate)
	case methodLogout:
		return planned(in, &pb.LogoutRequest{}, s.planLogout)
	case methodRevokeSession:
		return planned(in, &pb.RevokeSessionRequest{}, planRevoke)
	case methodRevokeUser:
		return planned(in, &pb.RevokeUserRequest{}, planRevokeUser)
	case methodEraseUser:
		return planned(in, &pb.EraseUserRequest{}, planErase)
	case methodSave:
		return planned(in, &pb.SavedSession{}, s.planSave)
	case methodDrop:
		return planned(in, &pb.SavedSession{}, planDrop)
	case methodValidate:
		var m pb.PresentedToken
		if err := unmarshal(in, &m); err != nil {
			return nil, err
		}
		step, refusal, err := s.planValidate(&m)
		if refusal != nil {
			return &sessionStep{finish: func(fsm.Result, fsm.Time) (proto.Message, error) { return refusal, nil }}, nil
		}
		return step, err
	case methodGetSession:
		return planned(in, &pb.GetSessionRequest{}, s.planGet)
	case methodListSessions:
		return planned(in, &pb.ListSessionsRequest{}, func(m *pb.ListSessionsRequest) (*sessionStep, error) {
			return s.planList(m, session.OpList)
		})
	case methodHistory:
		return planned(in, &pb.ListSessionsRequest{}, func(m *pb.ListSessionsRequest) (*sessionStep, error) {
			return s.planList(m, session.OpHistory)
		})
	case methodFindSaved:
		return planned(in, &pb.SavedSession{}, s.planFindSaved)
	case methodScanSaved:
		return planned(in, &pb.ScanSavedRequest{}, s.planScanSaved)
	}
	return nil, invalidf("no method %d of sessions", in.Method)
}

func unmarshal(in *pb.Op, m proto.Message) error {
	if err := codec.Unmarshal(in.Request, m); err != nil {
		return invalidf("malformed request: %v", err)
	}
	return nil
}

func planned[Q proto.Message](in *pb.Op, m Q, plan func(Q) (*sessionStep, error)) (*sessionStep, error) {
	if err := unmarshal(in, m); err != nil {
		return nil, err
	}
	return plan(m)
}
