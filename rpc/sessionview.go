package rpc

import (
	"crypto/sha256"
	"errors"
	"net/netip"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/session"
	"github.com/holdfastdb/holdfast/rpc/codec"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
	"github.com/holdfastdb/holdfast/rpc/seal"
	"github.com/holdfastdb/holdfast/rpc/sessiontoken"
)

var errSessionID = invalidf("the session_id is not one that a login gave")

// planValidate makes the query behind a validation. A token that cannot be one of this cluster is refused without asking;
// the step with the refusal asks all the same, about a session that nobody has, for who must not tell by the time it takes
// what is wrong with a token.
func (s *sessions) planValidate(q *pb.PresentedToken) (*sessionStep, *pb.HeldValidation, error) {
	var p presentation
	var err error
	if q.Ip != "" {
		if p.ip, err = parseIP(q.Ip); err != nil {
			return nil, nil, err
		}
	}
	if len(q.Device) > 0 { // it may become what the session says of its device
		device := &structpb.Struct{}
		if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(q.Device, device); err != nil {
			return nil, nil, invalidf("device: %v", err)
		}
		if err := checkDevice(device); err != nil {
			return nil, nil, err
		}
		if p.device, err = encoded(device); err != nil {
			return nil, nil, err
		}
		p.hash = deviceHash(device)
	}
	var refusal *pb.HeldValidation
	token, err := sessiontoken.Parse(q.Token, sessiontoken.Access, s.cluster())
	if err != nil {
		refusal = &pb.HeldValidation{Reason: tokenReason(err)}
		token = nobodys(q.Token)
	}
	k := keyOf(token.Session)
	c := session.ValidateRequest{Session: k, Token: token.Secret.Hash(), Attributes: !q.WithoutAttributes}
	return &sessionStep{
		slot: k.User.Slot(), call: sessionCall(session.OpValidate, &c),
		finish: func(r fsm.Result, now fsm.Time) (proto.Message, error) {
			if err := r.Err(); err != nil {
				return nil, err
			}
			if refusal != nil {
				return refusal, nil
			}
			var i session.Info
			if err := i.Decode(r.Body); err != nil {
				return nil, err
			}
			return s.judged(&i, &p, now)
		},
	}, refusal, nil
}

// nobodys is a token in place of a text that is none: always the same for a text, whose shard is asked as that of any other.
// It is of no session, as nobody finds a user whose key is a given hash.
func nobodys(text string) (t sessiontoken.Token) {
	sum := sha256.Sum256([]byte(text[:min(len(text), sessiontoken.MaxText)]))
	copy(t.Session[:], sum[:])
	t.Secret = sum
	return t
}

// presentation is from where, and on what, a token was presented.
type presentation struct {
	ip     netip.Addr
	device []byte // encoded
	hash   uint64 // of the device, 0 for none
}

// judged answers a validation from what the shard says of the token and what the session says of its user.
func (s *sessions) judged(i *session.Info, p *presentation, now fsm.Time) (*pb.HeldValidation, error) {
	room := &struct { // all at once
		answer  pb.HeldValidation
		session pb.HeldSession
		profile pb.SessionProfile
	}{}
	m, profile := &room.answer, &room.profile
	if i.Verdict == session.UnknownToken || i.Verdict == session.RotatedAway {
		m.Reason = verdictReasons[i.Verdict]
		return m, nil // nothing is told to who does not hold a token of now
	}
	m.Session = &room.session
	if err := s.hold(m.Session, i); err != nil {
		return nil, err
	}
	if i.Verdict != session.Valid {
		m.Reason = verdictReasons[i.Verdict]
		return m, nil
	}
	err := codec.Unmarshal(m.Session.Profile, profile)
	if err != nil {
		return nil, err
	}
	if m.Reason, err = s.suspicion(i, profile, p, now); err != nil {
		return nil, err
	}
	if m.Valid = m.Reason == ""; m.Valid {
		s.uses.note(i, now)
	}
	return m, nil
}

// suspicion tells why a token does not count where it was presented, "" if it does, and acts on what is unusual about it.
func (s *sessions) suspicion(i *session.Info, profile *pb.SessionProfile, p *presentation, now fsm.Time) (string, error) {
	policy := s.policies.of(i.Kind)
	sameDevice := p.hash == 0 || profile.DeviceHash == 0 || p.hash == profile.DeviceHash
	var own, there netip.Prefix
	if p.ip.IsValid() && profile.Ip != "" {
		from, err := parseIP(profile.Ip)
		if err != nil {
			return "", err
		}
		own, there = network(from), network(p.ip)
		if profile.IpBinding == bindingExact && from != p.ip || profile.IpBinding == bindingSubnet && own != there {
			return "ip_mismatch", nil
		}
	} else if profile.IpBinding != bindingOff && profile.IpBinding != "" {
		return "ip_mismatch", nil // where it is presented must be told
	}
	if profile.DeviceBinding && (p.hash == 0 || p.hash != profile.DeviceHash) {
		return "device_mismatch", nil
	}
	// Where a binding refuses a token, its session is not: who tries a stolen one there does not make its user suspicious.
	inTurns := policy.onTwoNetworks != 0 && own.IsValid() && s.uses.places.seen(i.Session, own, there, now)
	moved := own != there && s.acts(i, policy.onNetwork, now)
	switch {
	case !sameDevice && s.acts(i, policy.onDevice, now):
		return s.suspect(i, session.DeviceChanged, policy.onDevice, profile, p), nil
	// The flag may be there for the change that led here, which says less: so that is not what acts asks.
	case inTurns && !(moved && policy.onNetwork > policy.onTwoNetworks) && s.uses.places.tell(i.Session, i.Flagged && policy.onTwoNetworks == session.Flag, now):
		return s.suspect(i, session.TwoNetworks, policy.onTwoNetworks, profile, p), nil
	case moved:
		return s.suspect(i, session.NetworkChanged, policy.onNetwork, profile, p), nil
	}
	return "", nil
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
		if sign == session.DeviceChanged {
			next.Device, next.DeviceHash = p.device, p.hash
		} else {
			next.Ip = p.ip.String()
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

// held tells of a session as frames carry it.
func (s *sessions) held(i *session.Info) (*pb.HeldSession, error) {
	m := &pb.HeldSession{}
	return m, s.hold(m, i)
}

// hold fills in what frames carry of a session.
func (s *sessions) hold(m *pb.HeldSession, i *session.Info) error {
	m.SessionId = i.Session.Append(make([]byte, 0, session.KeyBytes))
	m.Type, m.CreatedAtMs, m.LastSeenAtMs = sessionKinds[i.Kind].name, int64(i.Created), int64(i.Seen)
	m.ExpiresAtMs, m.RefreshExpiresAtMs, m.IdleTimeoutMs = int64(i.Until), int64(i.RefreshUntil), i.Idle
	m.Flagged, m.StepUpRequired, m.AttributesVersion = i.Flagged, i.StepUp, uint32(i.Version)
	if i.Verdict == session.Ended {
		m.Ended, m.EndedAtMs, m.ExpiresAtMs = i.Reason.String(), int64(i.Until), 0
	}
	var err error
	if m.Profile, err = s.open(i.Profile, i.Session.User, profilePart); err != nil {
		return err
	}
	m.Attributes, err = s.open(i.Attributes, i.Session.User, attributesPart)
	return err
}

// shown is a session as users see it.
func shown(h *pb.HeldSession) (*pb.Session, error) {
	if h == nil {
		return nil, nil
	}
	var p pb.SessionProfile
	if err := codec.Unmarshal(h.Profile, &p); err != nil {
		return nil, err
	}
	id := sessiontoken.ID(h.SessionId)
	m := &pb.Session{
		SessionId: id.String(), UserId: p.UserId, Type: h.Type, CreatedAt: timestamp(fsm.Time(h.CreatedAtMs)),
		LastSeenAt: timestamp(fsm.Time(h.LastSeenAtMs)), ExpiresAt: timestamp(fsm.Time(h.ExpiresAtMs)),
		RefreshExpiresAt: timestamp(fsm.Time(h.RefreshExpiresAtMs)), Ip: p.Ip, IpBinding: p.IpBinding,
		DeviceBinding: p.DeviceBinding, Login: p.Login, Service: p.Service, Impersonator: p.Impersonator, Flagged: h.Flagged,
		StepUpRequired: h.StepUpRequired, AttributesVersion: h.AttributesVersion, IdleTimeout: float64(h.IdleTimeoutMs) / 1000,
		Ended: h.Ended, EndedAt: timestamp(fsm.Time(h.EndedAtMs)),
	}
	for _, part := range [...]struct {
		encoded []byte
		to      **structpb.Struct
	}{{p.Device, &m.Device}, {h.Attributes, &m.Attributes}} {
		if len(part.encoded) == 0 {
			continue
		}
		*part.to = &structpb.Struct{}
		if err := proto.Unmarshal(part.encoded, *part.to); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func shownAll(h *pb.HeldSessions) (*pb.ListSessionsResponse, error) {
	m := &pb.ListSessionsResponse{Sessions: make([]*pb.Session, len(h.Sessions))}
	for i, one := range h.Sessions {
		var err error
		if m.Sessions[i], err = shown(one); err != nil {
			return nil, err
		}
	}
	return m, nil
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
			return s.held(&i)
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
			m := &pb.HeldSessions{Sessions: make([]*pb.HeldSession, len(list.List))}
			for i := range list.List {
				var err error
				m.Sessions[i], err = s.held(&list.List[i])
				if errors.Is(err, seal.ErrUnreadable) { // it can be seen and revoked all the same
					list.List[i].Profile, list.List[i].Attributes = nil, nil
					m.Sessions[i], err = s.held(&list.List[i])
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
