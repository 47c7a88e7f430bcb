package rpc

import (
	"errors"
	"net/netip"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/session"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
	"github.com/holdfastdb/holdfast/rpc/seal"
	"github.com/holdfastdb/holdfast/rpc/sessiontoken"
)

var errSessionID = invalidf("the session_id is not one that a login gave")

// planValidate makes the query behind a validation; or it refuses the token at once.
func (s *sessions) planValidate(q *pb.ValidateSessionRequest) (*sessionStep, *pb.ValidateSessionResponse, error) {
	var ip netip.Addr
	if q.Ip != "" {
		var err error
		if ip, err = parseIP(q.Ip); err != nil {
			return nil, nil, err
		}
	}
	if err := checkDevice(q.Device); err != nil { // it may become what the session says of its device
		return nil, nil, err
	}
	token, err := sessiontoken.Parse(q.Token, sessiontoken.Access, s.cluster())
	if err != nil {
		return nil, &pb.ValidateSessionResponse{Reason: tokenReason(err)}, nil
	}
	k := keyOf(token.Session)
	c := session.ValidateRequest{Session: k, Token: token.Secret.Hash(), Attributes: !q.WithoutAttributes}
	device := deviceHash(q.Device)
	presented := presentation{ip: ip, device: device, request: q}
	return &sessionStep{
		slot: k.User.Slot(), call: sessionCall(session.OpValidate, &c),
		finish: func(r fsm.Result, now fsm.Time) (proto.Message, error) {
			if err := r.Err(); err != nil {
				return nil, err
			}
			var i session.Info
			if err := i.Decode(r.Body); err != nil {
				return nil, err
			}
			return s.judged(&i, &presented, now)
		},
	}, nil, nil
}

// presentation is from where, and on what, a token was presented.
type presentation struct {
	ip      netip.Addr
	device  uint64
	request *pb.ValidateSessionRequest
}

// judged answers a validation from what the shard says of the token and what the session says of its user.
func (s *sessions) judged(i *session.Info, p *presentation, now fsm.Time) (*pb.ValidateSessionResponse, error) {
	m := &pb.ValidateSessionResponse{}
	if i.Verdict != session.Valid {
		m.Reason = verdictReasons[i.Verdict]
		if i.Verdict == session.UnknownToken || i.Verdict == session.RotatedAway {
			return m, nil // nothing is told to who does not hold a token of now
		}
		var err error
		m.Session, _, err = s.message(i)
		return m, err
	}
	about, profile, err := s.message(i)
	if err != nil {
		return nil, err
	}
	m.Session = about
	policy := s.policies.of(i.Kind)
	sameDevice := p.device == 0 || deviceHash(profile.Device) == 0 || p.device == deviceHash(profile.Device)
	sameNetwork := true
	if p.ip.IsValid() && profile.Ip != "" {
		from, err := parseIP(profile.Ip)
		if err != nil {
			return nil, err
		}
		sameNetwork = network(from) == network(p.ip)
		if profile.IpBinding == bindingExact && from != p.ip || profile.IpBinding == bindingSubnet && !sameNetwork {
			m.Reason = "ip_mismatch"
			return m, nil
		}
	} else if profile.IpBinding != bindingOff && profile.IpBinding != "" {
		m.Reason = "ip_mismatch" // where it is presented must be told
		return m, nil
	}
	if profile.DeviceBinding && (p.device == 0 || !sameDevice) {
		m.Reason = "device_mismatch"
		return m, nil
	}
	switch {
	case !sameDevice && s.acts(i, policy.onDevice, now):
		m.Reason = s.suspect(i, session.DeviceChanged, policy.onDevice, profile, p)
	case !sameNetwork && s.acts(i, policy.onNetwork, now):
		m.Reason = s.suspect(i, session.NetworkChanged, policy.onNetwork, profile, p)
	}
	if m.Valid = m.Reason == ""; m.Valid {
		s.uses.note(i, now)
	}
	return m, nil
}

// network is the part of an address that all of one household share.
func network(a netip.Addr) netip.Prefix {
	bits := networkBits6
	if a.Is4() {
		bits = networkBits4
	}
	n, _ := a.Prefix(bits) // of an address that is valid, and is longer
	return n
}

// acts tells whether a sign leads to something. A session that is flagged is not flagged again before its next use is due to
// be written: one that is used in two places would be written with each validation.
func (s *sessions) acts(i *session.Info, act session.Act, now fsm.Time) bool {
	again := i.Flagged && act == session.Flag
	return act != 0 && !(again && (i.Idle == 0 || now < i.Seen+fsm.Time(useDue(i.Idle))))
}

// suspect acts on a sign and tells why the token does not count for that; "" if it does.
func (s *sessions) suspect(i *session.Info, sign session.Sign, act session.Act, profile *pb.SessionProfile, p *presentation) string {
	q := session.MarkRequest{Session: i.Session, Sign: sign, Act: act}
	if act != session.EndSession { // the next one from there is no news, at the latest when the user has proved who they are
		next := proto.Clone(profile).(*pb.SessionProfile)
		if sign == session.NetworkChanged {
			next.Ip = p.ip.String()
		} else {
			next.Device = p.request.Device
		}
		sealed, err := s.seal(next, i.Session.User, profilePart)
		if err == nil && len(sealed) <= session.MaxProfile {
			q.Profile = sealed
		}
	}
	s.uses.mark(q)
	switch act {
	case session.AskAgain:
		return verdictReasons[session.StepUp]
	case session.EndSession:
		return verdictReasons[session.Ended]
	}
	return ""
}

// message tells of a session as users see it.
func (s *sessions) message(i *session.Info) (*pb.Session, *pb.SessionProfile, error) {
	profile := &pb.SessionProfile{}
	if err := s.open(i.Profile, i.Session.User, profilePart, profile); err != nil {
		return nil, nil, err
	}
	m := &pb.Session{
		SessionId: idOf(i.Session).String(), UserId: profile.UserId, Type: sessionKinds[i.Kind].name,
		CreatedAt: timestamp(i.Created), LastSeenAt: timestamp(i.Seen), ExpiresAt: timestamp(i.Until),
		Device: profile.Device, Ip: profile.Ip, IpBinding: profile.IpBinding, DeviceBinding: profile.DeviceBinding,
		Login: profile.Login, Service: profile.Service, Impersonator: profile.Impersonator,
		Flagged: i.Flagged, StepUpRequired: i.StepUp, AttributesVersion: uint32(i.Version), IdleTimeout: float64(i.Idle) / 1000,
	}
	if i.RefreshUntil != 0 {
		m.RefreshExpiresAt = timestamp(i.RefreshUntil)
	}
	if len(i.Attributes) > 0 {
		m.Attributes = &structpb.Struct{}
		if err := s.open(i.Attributes, i.Session.User, attributesPart, m.Attributes); err != nil {
			return nil, nil, err
		}
	}
	if i.Verdict == session.Ended {
		m.Ended, m.EndedAt, m.ExpiresAt = i.Reason.String(), timestamp(i.Until), nil
	}
	return m, profile, nil
}

// planGet asks for one session.
func (s *sessions) planGet(q *pb.GetSessionRequest) (*sessionStep, error) {
	id, err := sessiontoken.ParseID(q.SessionId)
	if err != nil {
		return nil, errSessionID
	}
	return &sessionStep{
		slot: id.Slot(), call: sessionCall(session.OpGet, &session.GetRequest{Session: keyOf(id)}),
		finish: func(r fsm.Result, _ fsm.Time) (proto.Message, error) {
			if err := r.Err(); err != nil {
				return nil, err
			}
			var i session.Info
			if err := i.Decode(r.Body); err != nil {
				return nil, err
			}
			m, _, err := s.message(&i)
			return m, err
		},
	}, nil
}

// planList asks for the sessions of a user, those of now or those of before.
func (s *sessions) planList(q *pb.ListSessionsRequest, op uint8) (*sessionStep, error) {
	if err := checkUser(q.UserId); err != nil {
		return nil, err
	}
	user := userKey(q.UserId)
	return &sessionStep{
		slot: user.Slot(), call: sessionCall(op, &session.ListRequest{User: user}),
		finish: func(r fsm.Result, _ fsm.Time) (proto.Message, error) {
			if err := r.Err(); err != nil {
				return nil, err
			}
			var list session.Infos
			if err := list.Decode(r.Body); err != nil {
				return nil, err
			}
			m := &pb.ListSessionsResponse{Sessions: make([]*pb.Session, len(list.List))}
			for i := range list.List {
				var err error
				m.Sessions[i], _, err = s.message(&list.List[i])
				if errors.Is(err, seal.ErrUnreadable) { // it can be seen and revoked all the same
					list.List[i].Profile, list.List[i].Attributes = nil, nil
					m.Sessions[i], _, err = s.message(&list.List[i])
				}
				if err != nil {
					return nil, err
				}
			}
			return m, nil
		},
	}, nil
}

// revoking is a step that ends sessions.
func revoking(slot uint16, call fsm.Call) *sessionStep {
	return &sessionStep{slot: slot, call: call, finish: func(r fsm.Result, _ fsm.Time) (proto.Message, error) {
		if err := r.Err(); err != nil {
			return nil, err
		}
		var c session.Count
		if err := c.Decode(r.Body); err != nil {
			return nil, err
		}
		return &pb.RevokedSessions{Revoked: c.N}, nil
	}}
}

func planRevoke(q *pb.RevokeSessionRequest) (*sessionStep, error) {
	id, err := sessiontoken.ParseID(q.SessionId)
	if err != nil {
		return nil, errSessionID
	}
	c := session.RevokeRequest{Reason: session.Revoked, Sessions: []session.Key{keyOf(id)}}
	return revoking(id.Slot(), sessionCall(session.OpRevoke, &c)), nil
}

func planRevokeUser(q *pb.RevokeUserRequest) (*sessionStep, error) {
	if err := checkUser(q.UserId); err != nil {
		return nil, err
	}
	c := session.RevokeUserRequest{User: userKey(q.UserId), Reason: session.Revoked, Group: nameHash(q.Login)}
	if q.Except != "" {
		id, err := sessiontoken.ParseID(q.Except)
		if err != nil {
			return nil, errSessionID
		}
		k := keyOf(id)
		if k.User != c.User {
			return nil, invalidf("except is a session of another user")
		}
		c.Except = k.Number
	}
	return revoking(c.User.Slot(), sessionCall(session.OpRevokeUser, &c)), nil
}

func planErase(q *pb.EraseUserRequest) (*sessionStep, error) {
	if err := checkUser(q.UserId); err != nil {
		return nil, err
	}
	user := userKey(q.UserId)
	return revoking(user.Slot(), sessionCall(session.OpPurgeUser, &session.PurgeUserRequest{User: user})), nil
}

// planLogout ends the session of a token, if it counts. That it is over already is no error.
func (s *sessions) planLogout(q *pb.LogoutRequest) (*sessionStep, error) {
	token, err := sessiontoken.Parse(q.Token, sessiontoken.Access, s.cluster())
	if err != nil {
		return nil, refuse(tokenReason(err))
	}
	c := session.LogoutRequest{Session: keyOf(token.Session), Token: token.Secret.Hash()}
	switch {
	case q.Everywhere:
		c.Scope = session.Everywhere
	case q.WholeLogin:
		c.Scope = session.WholeLogin
	}
	return &sessionStep{slot: token.Session.Slot(), call: sessionCall(session.OpLogout, &c), finish: func(r fsm.Result, _ fsm.Time) (proto.Message, error) {
		if err := r.Err(); err != nil {
			return nil, err
		}
		var done session.LogoutResult
		if err := done.Decode(r.Body); err != nil {
			return nil, err
		}
		if done.Verdict == session.UnknownToken || done.Verdict == session.RotatedAway {
			return nil, refuse(verdictReasons[done.Verdict])
		}
		return &pb.RevokedSessions{Revoked: done.Ended.N}, nil
	}}, nil
}
