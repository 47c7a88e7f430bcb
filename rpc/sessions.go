package rpc

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/session"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
	"github.com/holdfastdb/holdfast/rpc/seal"
	"github.com/holdfastdb/holdfast/rpc/sessiontoken"
)

// sessions implements holdfast.v1.Sessions.
type sessions struct {
	pb.UnimplementedSessionsServer
	node     Node
	limits   *limits // whose callers these are
	sealer   *seal.Sealer
	policies *sessionPolicies
	uses     *uses
	mark     atomic.Pointer[clusterMark]
	// closing is closed when streams shall end.
	closing chan struct{}
	streams sync.WaitGroup // the readers of Follow
}

// clusterMark is the mark of a cluster in tokens, kept because making it is a hash, and each token is compared with it.
type clusterMark struct {
	id   string
	mark sessiontoken.Cluster
}

// cluster is the mark of this cluster in tokens.
func (s *sessions) cluster() sessiontoken.Cluster {
	t := s.node.Topology()
	if t == nil {
		return sessiontoken.Cluster{}
	}
	known := s.mark.Load()
	if known == nil || known.id != t.Cluster.ID {
		known = &clusterMark{t.Cluster.ID, sessiontoken.ClusterOf(t.Cluster.ID)}
		s.mark.Store(known)
	}
	return known.mark
}

// group is the shard of a slot.
func (s *sessions) group(slot uint16) (uint32, error) {
	if t := s.node.Topology(); t != nil {
		for i := range t.Shards {
			if x := &t.Shards[i]; slot >= x.First && slot <= x.Last {
				return x.ID, nil
			}
		}
	}
	return 0, errNoTopology
}

// do executes one command where a slot is, and returns the body of its result.
func (s *sessions) do(ctx context.Context, slot uint16, call fsm.Call) ([]byte, error) {
	group, err := s.group(slot)
	if err != nil {
		return nil, err
	}
	out, err := s.node.Do(ctx, group, []fsm.Call{call})
	if err != nil {
		return nil, err
	}
	return only(out)
}

// ask runs one query where a slot is.
func (s *sessions) ask(ctx context.Context, slot uint16, call fsm.Call) (fsm.Result, fsm.Time, error) {
	group, err := s.group(slot)
	if err != nil {
		return fsm.Result{}, 0, err
	}
	results, applied, err := s.node.Query(ctx, group, []fsm.Call{call})
	if err != nil {
		return fsm.Result{}, 0, err
	}
	return results[0], applied.Time, nil
}

// run carries a step out for a plain call.
func (s *sessions) run(ctx context.Context, q proto.Message, step *sessionStep, err error) (proto.Message, error) {
	if err != nil {
		return nil, statusOf(err)
	}
	group, err := s.group(step.slot)
	if err != nil {
		return nil, statusOf(err)
	}
	if step.call.Op >= session.OpValidate {
		r, now, err := s.ask(ctx, step.slot, step.call)
		if err != nil {
			return nil, statusOf(err)
		}
		m, err := step.finish(r, now)
		return m, statusOf(err)
	}
	c, err := s.limits.caller(ctx, q)
	if err != nil {
		return nil, statusOf(err)
	}
	out, err := c.propose(ctx, group, firstStep, step.call)
	if err == nil {
		err = out.Err()
	}
	if err == nil && len(out.Results) != 1 {
		err = fmt.Errorf("%d results for one call", len(out.Results))
	}
	if err != nil {
		return nil, statusOf(err)
	}
	var m proto.Message
	if out.Replayed && step.again != nil {
		m, err = step.again(ctx, out.Results[0], out.Time)
	} else {
		m, err = step.finish(out.Results[0], out.Time)
	}
	return m, statusOf(err)
}

// typed gives the answer of run its type.
func typed[M proto.Message](m proto.Message, err error) (M, error) {
	if err != nil {
		var none M
		return none, err
	}
	return m.(M), nil
}

// firstStep is the number of the only step of a request.
var firstStep = step{number: 1}

// Create implements the service.
func (s *sessions) Create(ctx context.Context, q *pb.CreateSessionRequest) (*pb.SessionTokens, error) {
	step, err := s.planCreate(q, familyOfKey(idempotencyKey(ctx)))
	return typed[*pb.SessionTokens](s.run(ctx, q, step, err))
}

// Refresh implements the service.
func (s *sessions) Refresh(ctx context.Context, q *pb.RefreshSessionRequest) (*pb.SessionTokens, error) {
	step, err := s.planRefresh(q)
	return typed[*pb.SessionTokens](s.run(ctx, q, step, err))
}

// Rotate implements the service.
func (s *sessions) Rotate(ctx context.Context, q *pb.RotateSessionRequest) (*pb.SessionTokens, error) {
	step, err := s.planRotate(q)
	return typed[*pb.SessionTokens](s.run(ctx, q, step, err))
}

// Validate implements the service.
func (s *sessions) Validate(ctx context.Context, q *pb.ValidateSessionRequest) (*pb.ValidateSessionResponse, error) {
	device, err := encoded(q.Device)
	if err != nil {
		return nil, statusOf(err)
	}
	step, _, err := s.planValidate(&pb.PresentedToken{Token: q.Token, Ip: q.Ip, Device: device, WithoutAttributes: q.WithoutAttributes})
	held, err := typed[*pb.HeldValidation](s.run(ctx, q, step, err))
	if err != nil {
		return nil, err
	}
	about, err := shown(held.Session)
	return &pb.ValidateSessionResponse{Valid: held.Valid, Reason: held.Reason, Session: about}, statusOf(err)
}

// Get implements the service.
func (s *sessions) Get(ctx context.Context, q *pb.GetSessionRequest) (*pb.Session, error) {
	step, err := s.planGet(q)
	held, err := typed[*pb.HeldSession](s.run(ctx, q, step, err))
	if err != nil {
		return nil, err
	}
	m, err := shown(held)
	return m, statusOf(err)
}

// List implements the service.
func (s *sessions) List(ctx context.Context, q *pb.ListSessionsRequest) (*pb.ListSessionsResponse, error) {
	return s.list(ctx, q, session.OpList)
}

// History implements the service.
func (s *sessions) History(ctx context.Context, q *pb.ListSessionsRequest) (*pb.ListSessionsResponse, error) {
	return s.list(ctx, q, session.OpHistory)
}

func (s *sessions) list(ctx context.Context, q *pb.ListSessionsRequest, op uint8) (*pb.ListSessionsResponse, error) {
	step, err := s.planList(q, op)
	held, err := typed[*pb.HeldSessions](s.run(ctx, q, step, err))
	if err != nil {
		return nil, err
	}
	m, err := shownAll(held)
	return m, statusOf(err)
}

// Revoke implements the service.
func (s *sessions) Revoke(ctx context.Context, q *pb.RevokeSessionRequest) (*pb.RevokedSessions, error) {
	step, err := planRevoke(q)
	return typed[*pb.RevokedSessions](s.run(ctx, q, step, err))
}

// RevokeUser implements the service.
func (s *sessions) RevokeUser(ctx context.Context, q *pb.RevokeUserRequest) (*pb.RevokedSessions, error) {
	step, err := planRevokeUser(q)
	return typed[*pb.RevokedSessions](s.run(ctx, q, step, err))
}

// EraseUser implements the service.
func (s *sessions) EraseUser(ctx context.Context, q *pb.EraseUserRequest) (*pb.RevokedSessions, error) {
	step, err := planErase(q)
	return typed[*pb.RevokedSessions](s.run(ctx, q, step, err))
}

// Logout implements the service.
func (s *sessions) Logout(ctx context.Context, q *pb.LogoutRequest) (*pb.RevokedSessions, error) {
	step, err := s.planLogout(q)
	return typed[*pb.RevokedSessions](s.run(ctx, q, step, err))
}

// SetAttributes implements the service.
func (s *sessions) SetAttributes(ctx context.Context, q *pb.SetAttributesRequest) (*pb.SetAttributesResponse, error) {
	c, err := s.limits.caller(ctx, q)
	if err != nil {
		return nil, statusOf(err)
	}
	m, err := s.setAttributes(ctx, q, c)
	return m, statusOf(err)
}

// attributeTries bounds how often a change without a version is made again from what others wrote meanwhile.
const attributeTries = 16

func (s *sessions) setAttributes(ctx context.Context, q *pb.SetAttributesRequest, c caller) (*pb.SetAttributesResponse, error) {
	id, err := sessiontoken.ParseID(q.SessionId)
	if err != nil {
		return nil, errSessionID
	}
	if len(q.Set.GetFields())+len(q.Remove) == 0 {
		return nil, invalidf("nothing to set and nothing to remove")
	}
	for try := uint64(1); ; try++ {
		m, err := s.tryAttributes(ctx, keyOf(id), q, c, step{number: try})
		if codeOf(err) != fsm.Conflict || q.Version != nil || try == attributeTries {
			return m, err
		}
	}
}

// tryAttributes changes the attributes from the version that is there now. The shard has the last word, also where what was
// read says enough: a request that is sent again may have been executed before, and then it is answered as the first time.
func (s *sessions) tryAttributes(ctx context.Context, k session.Key, q *pb.SetAttributesRequest, c caller, try step) (*pb.SetAttributesResponse, error) {
	group, err := s.group(k.User.Slot())
	if err != nil {
		return nil, err
	}
	i, err := s.attributesOf(ctx, k)
	if err != nil {
		if c.named {
			err = fmt.Errorf("%w: read the attributes: %w", fsm.ErrOutcomeUnknown, err)
		}
		return nil, err
	}
	if q.Version != nil && uint64(*q.Version) > i.Version && i.Verdict == session.Valid {
		return nil, fsm.Errorf(fsm.Conflict, "the attributes are at version %d, not %d", i.Version, *q.Version)
	}
	change := session.SetAttributesRequest{Session: k, Version: i.Version}
	if q.Version != nil {
		change.Version = uint64(*q.Version)
	}
	before, after := &structpb.Struct{}, &structpb.Struct{}
	if err := s.openAs(i.Attributes, k.User, attributesPart, before); err != nil {
		return nil, err
	}
	after.Fields = maps.Clone(before.Fields)
	if after.Fields == nil {
		after.Fields = make(map[string]*structpb.Value)
	}
	maps.Copy(after.Fields, q.Set.GetFields())
	for _, name := range q.Remove {
		delete(after.Fields, name)
	}
	if err := checkAttributes(after); err != nil {
		return nil, err
	}
	if change.Sealed, err = s.seal(after, k.User, attributesPart); err != nil {
		return nil, err
	}
	out, err := c.propose(ctx, group, try, sessionCall(session.OpSetAttributes, &change))
	if err != nil {
		return nil, err
	}
	body, err := only(out)
	if err != nil {
		return nil, err
	}
	var v session.Version
	if err := v.Decode(body); err != nil {
		return nil, err
	}
	m := &pb.SetAttributesResponse{Version: uint32(v.V), Attributes: after}
	if out.Replayed {
		if m.Attributes = before; i.Version != v.V {
			m.Attributes = nil // somebody has changed them since, or the session is over
		}
	}
	return m, nil
}

// attributesOf reads a session with its attributes. Of one that is not there it tells that it has ended.
func (s *sessions) attributesOf(ctx context.Context, k session.Key) (i session.Info, err error) {
	r, _, err := s.ask(ctx, k.User.Slot(), sessionCall(session.OpGet, &session.GetRequest{Session: k}))
	if err != nil {
		return i, err
	}
	if r.Code == fsm.NotFound {
		return session.Info{Verdict: session.Ended}, nil
	}
	return i, errors.Join(r.Err(), i.Decode(r.Body))
}

// Stats implements the service.
func (s *sessions) Stats(ctx context.Context, _ *pb.SessionStatsRequest) (*pb.SessionStats, error) {
	t := s.node.Topology()
	if t == nil {
		return nil, statusOf(errNoTopology)
	}
	m := &pb.SessionStats{Active: map[string]float64{}, Created: map[string]float64{}, Ended: map[string]float64{}}
	for i := range t.Shards {
		r, _, err := s.node.Query(ctx, t.Shards[i].ID, []fsm.Call{sessionCall(session.OpCounts, &session.CountsRequest{})})
		if err != nil {
			return nil, statusOf(err)
		}
		var c session.Counts
		if err := errors.Join(r[0].Err(), c.Decode(r[0].Body)); err != nil {
			return nil, statusOf(err)
		}
		for kind := session.Web; int(kind) < len(sessionKinds); kind++ {
			m.Active[sessionKinds[kind].name] += float64(c.Active[kind])
			m.Created[sessionKinds[kind].name] += float64(c.Created[kind])
		}
		for reason, n := range c.Ended {
			m.Ended[reason.String()] += float64(n)
		}
	}
	return m, nil
}
