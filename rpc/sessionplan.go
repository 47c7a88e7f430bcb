package rpc

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"

	vtstruct "github.com/planetscale/vtprotobuf/types/known/structpb"
	"github.com/zeebo/xxh3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/session"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
	"github.com/holdfastdb/holdfast/rpc/sessiontoken"
)

// step of a session: one command for one shard, and how its result becomes an answer. Frames and plain calls share it.
type sessionStep struct {
	slot uint16
	call fsm.Call
	// finish builds the answer.
	finish func(r fsm.Result, now fsm.Time) (proto.Message, error)
	// again builds it when the command was executed before and its answer, with tokens in it, was lost; nil if finish does.
	again func(ctx context.Context, r fsm.Result, at fsm.Time) (proto.Message, error)
}

// sessionCallBytes is what a question about a session takes. More is no error.
const sessionCallBytes = 64

func sessionCall(op uint8, q interface{ Append([]byte) []byte }) fsm.Call {
	return fsm.Call{Type: session.TypeID, Op: op, Body: q.Append(make([]byte, 0, sessionCallBytes))}
}

// slotOf is the slot of a routing key.
func slotOf(key string) uint16 { return uint16(xxh3.HashString(key) >> 48) }

func userKey(user string) session.UserKey { return session.NewUserKey(slotOf(user), user) }

func keyOf(id sessiontoken.ID) session.Key { return session.DecodeKey(id[:]) }

func idOf(k session.Key) (id sessiontoken.ID) {
	copy(id[:], k.Append(nil))
	return id
}

// secret makes the part of a token that nobody can guess.
func secret() (s sessiontoken.Secret) {
	_, _ = rand.Read(s[:]) // never fails: crypto/rand stops the process instead
	return s
}

// The bounds of what a login says.
const (
	maxUserBytes   = 512
	maxDeviceBytes = 2 << 10
	maxAttributes  = 16 << 10
	maxNames       = 64
)

// planCreate checks a login and makes its command. family is the secret that its refresh tokens share.
func (s *sessions) planCreate(q *pb.CreateSessionRequest, family sessiontoken.Secret) (*sessionStep, error) {
	kind := session.Web
	if q.Type != "" {
		if kind = kindNamed(q.Type); kind == 0 {
			return nil, errKindName(q.Type)
		}
	}
	policy := s.policies.of(kind)
	if err := checkUser(q.UserId); err != nil {
		return nil, err
	}
	c := session.CreateRequest{
		User: userKey(q.UserId), Kind: kind, Sessions: policy.Sessions, Devices: policy.Devices,
		Device: deviceHash(q.Device), Group: nameHash(q.Login), Evict: policy.OnLimit == onLimitEvict,
	}
	var err error
	if c.Idle, err = span("idle_timeout", q.IdleTimeout, policy.Idle, true); err != nil {
		return nil, err
	}
	if c.Life, err = span("absolute_timeout", q.AbsoluteTimeout, policy.Absolute, false); err != nil {
		return nil, err
	}
	if q.OnLimit != "" {
		if err := checkOnLimit(q.OnLimit); err != nil {
			return nil, invalidf("on_limit %v", err)
		}
		c.Evict = q.OnLimit == onLimitEvict
	}
	if q.MaxSessions != nil {
		c.Sessions = *q.MaxSessions
	}
	if c.Sessions > session.MaxSessions {
		return nil, errMaxSessions
	}
	if q.MaxDevices != nil {
		c.Devices = *q.MaxDevices
	}
	if c.Devices > 0 && c.Device == 0 {
		return nil, invalidf("the device is missing: a user of %s sessions may have %d", policy.Type, c.Devices)
	}
	profile, err := profileOf(q, policy)
	if err != nil {
		return nil, err
	}
	if c.Profile, err = s.seal(profile, c.User, profilePart); err != nil {
		return nil, err
	}
	if len(c.Profile) > session.MaxProfile {
		return nil, invalidf("what is said of the user, the device and the login has %d bytes, at most %d are allowed", len(c.Profile), session.MaxProfile)
	}
	if len(q.Attributes.GetFields()) > 0 {
		if err := checkAttributes(q.Attributes); err != nil {
			return nil, err
		}
		if c.Attributes, err = s.seal(q.Attributes, c.User, attributesPart); err != nil {
			return nil, err
		}
	}
	t := tokens{cluster: s.cluster(), access: secret()}
	c.Access = t.access.Hash()
	if q.RememberMe {
		if c.RefreshLife, err = span("refresh_timeout", q.RefreshTimeout, policy.Refresh, false); err != nil {
			return nil, err
		}
		t.refresh, t.family, t.both = secret(), family, true
		c.Refresh, c.Family = t.refresh.Hash(), t.family.Hash()
	} else if q.RefreshTimeout != nil {
		return nil, invalidf("refresh_timeout is for sessions with remember_me")
	}
	finish := func(r fsm.Result, t tokens) (proto.Message, error) {
		if err := r.Err(); err != nil {
			return nil, err
		}
		var made session.CreateResult
		if err := made.Decode(r.Body); err != nil {
			return nil, err
		}
		m := t.message(made.Session, made.Until, made.RefreshUntil)
		m.Evicted = made.Evicted
		return m, nil
	}
	return &sessionStep{
		slot: c.User.Slot(), call: sessionCall(session.OpCreate, &c),
		finish: func(r fsm.Result, _ fsm.Time) (proto.Message, error) { return finish(r, t) },
		again: func(ctx context.Context, r fsm.Result, at fsm.Time) (proto.Message, error) {
			var made session.CreateResult
			if r.Code == fsm.OK {
				if err := made.Decode(r.Body); err != nil {
					return nil, err
				}
				if err := s.reissue(ctx, made.Session, at, &t); err != nil {
					return nil, err
				}
			}
			return finish(r, t)
		},
	}, nil
}

func checkUser(user string) error {
	if user == "" {
		return invalidf("user_id is missing")
	}
	return checkLongText("user_id", user, maxUserBytes)
}

// span checks a number of seconds, and takes the default if there is none. Zero means never where it may.
func span(name string, seconds *float64, or fsm.Millis, never bool) (fsm.Millis, error) {
	if seconds == nil {
		return or, nil
	}
	if *seconds == 0 && never {
		return 0, nil
	}
	ms := math.Round(*seconds * 1000)
	if !(ms >= 1000 && ms <= float64(session.MaxLife)) {
		return 0, invalidf("%s must be 1 to %d seconds", name, session.MaxLife/1000)
	}
	return fsm.Millis(ms), nil
}

// profileOf is what a session says of its user.
func profileOf(q *pb.CreateSessionRequest, policy *sessionPolicy) (*pb.SessionProfile, error) {
	if err := checkDevice(q.Device); err != nil {
		return nil, err
	}
	device, err := encoded(q.Device)
	if err != nil {
		return nil, err
	}
	p := &pb.SessionProfile{
		UserId: q.UserId, Device: device, DeviceHash: deviceHash(q.Device), Ip: q.Ip, IpBinding: q.IpBinding, DeviceBinding: q.DeviceBinding,
		Login: q.Login, Service: q.Service, Impersonator: q.Impersonator,
	}
	for _, f := range [...]struct{ name, value string }{
		{"login", q.Login}, {"service", q.Service}, {"impersonator", q.Impersonator},
	} {
		if err := checkText(f.name, f.value); err != nil {
			return nil, err
		}
	}
	if q.Ip != "" {
		if _, err := parseIP(q.Ip); err != nil {
			return nil, err
		}
	}
	if p.IpBinding == "" {
		p.IpBinding = policy.IPBinding
	}
	if err := checkBinding(p.IpBinding); err != nil {
		return nil, invalidf("ip_binding %v", err)
	}
	switch {
	case p.IpBinding != bindingOff && q.Ip == "":
		return nil, invalidf("ip_binding %s needs the ip", p.IpBinding)
	case q.DeviceBinding && p.DeviceHash == 0:
		return nil, invalidf("device_binding needs the device")
	}
	return p, nil
}

// encoded encodes what is said of a device, to nothing if that is nothing.
func encoded(d *structpb.Struct) ([]byte, error) {
	if len(d.GetFields()) == 0 {
		return nil, nil
	}
	b, err := (*vtstruct.Struct)(d).MarshalVT()
	if err != nil {
		return nil, invalidf("device: %v", err)
	}
	return b, nil
}

func checkDevice(d *structpb.Struct) error {
	if size := proto.Size(d); size > maxDeviceBytes {
		return invalidf("device has %d bytes, at most %d are allowed", size, maxDeviceBytes)
	}
	return checkStruct("device", d)
}

func parseIP(text string) (netip.Addr, error) {
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" {
		return a, invalidf("ip %q is not an address", text[:min(len(text), 64)])
	}
	return a.Unmap(), nil
}

func checkAttributes(a *structpb.Struct) error {
	switch {
	case len(a.Fields) > maxNames:
		return invalidf("there are %d attributes, at most %d are allowed", len(a.Fields), maxNames)
	case proto.Size(a) > maxAttributes:
		return invalidf("the attributes have %d bytes, at most %d are allowed", proto.Size(a), maxAttributes)
	}
	return checkStruct("attributes", a)
}

// maxDepth bounds how deep values may be in values.
const maxDepth = 16

// checkStruct refuses what could be stored and not be shown: numbers that are none, values without a type.
func checkStruct(name string, s *structpb.Struct) error {
	for field, v := range s.GetFields() {
		if err := checkValue(v, maxDepth); err != nil {
			return invalidf("%s: %q %v", name, field[:min(len(field), 64)], err)
		}
	}
	return nil
}

func checkValue(v *structpb.Value, depth int) error {
	if depth == 0 {
		return errors.New("has too many values in values")
	}
	switch v := v.GetKind().(type) {
	case nil:
		return errors.New("has no value")
	case *structpb.Value_NumberValue:
		if math.IsNaN(v.NumberValue) || math.IsInf(v.NumberValue, 0) {
			return errors.New("is not a number")
		}
	case *structpb.Value_ListValue:
		for _, one := range v.ListValue.GetValues() {
			if err := checkValue(one, depth-1); err != nil {
				return err
			}
		}
	case *structpb.Value_StructValue:
		for _, one := range v.StructValue.GetFields() {
			if err := checkValue(one, depth-1); err != nil {
				return err
			}
		}
	}
	return nil
}

// deviceHash tells devices apart: by their fingerprint, their id, or all that is said of them. 0 for none.
func deviceHash(d *structpb.Struct) uint64 {
	if len(d.GetFields()) == 0 {
		return 0
	}
	for _, name := range [...]string{"fingerprint", "id"} {
		if text := d.Fields[name].GetStringValue(); text != "" {
			return nameHash(text)
		}
	}
	text, err := proto.MarshalOptions{Deterministic: true}.Marshal(d)
	if err != nil {
		return 0
	}
	return nameHash(string(text))
}

// nameHash is a short name for a text that the shard compares and need not know, 0 for none.
func nameHash(text string) uint64 {
	if text == "" {
		return 0
	}
	sum := sha256.Sum256([]byte(text))
	return max(binary.BigEndian.Uint64(sum[:]), 1)
}

// tokens are the secrets that a step makes.
type tokens struct {
	cluster         sessiontoken.Cluster
	access, refresh sessiontoken.Secret
	family          sessiontoken.Secret
	both            bool // there is a refresh token
}

func (t *tokens) message(k session.Key, until, refreshUntil fsm.Time) *pb.SessionTokens {
	id := idOf(k)
	access := sessiontoken.Token{Kind: sessiontoken.Access, Cluster: t.cluster, Session: id, Secret: t.access}
	m := &pb.SessionTokens{SessionId: id.String(), Token: access.String(), ExpiresAt: timestamp(until)}
	if t.both {
		refresh := sessiontoken.Token{Kind: sessiontoken.Refresh, Cluster: t.cluster, Session: id, Secret: t.refresh, Family: t.family}
		text := refresh.String()
		m.RefreshToken, m.RefreshExpiresAt = &text, timestamp(refreshUntil)
	}
	return m
}

// reissue has a session accept the tokens of a step whose answer was lost. If the session is over, they count for nothing,
// as the lost ones do: that is no failure of the step, which was executed.
func (s *sessions) reissue(ctx context.Context, k session.Key, at fsm.Time, t *tokens) error {
	q := session.ReissueRequest{Session: k, At: at, Access: t.access.Hash()}
	if t.both {
		q.Refresh = t.refresh.Hash()
	}
	if _, err := s.do(ctx, k.User.Slot(), sessionCall(session.OpReissue, &q)); err != nil {
		return fmt.Errorf("%w: its answer was lost, and no other could be made: %w", fsm.ErrOutcomeUnknown, err)
	}
	return nil
}

// refusals of tokens, as an error or as a reason.
var tokenReasons = []struct {
	err    error
	reason string
}{
	{sessiontoken.ErrMalformed, "malformed"}, {sessiontoken.ErrKind, "malformed"}, {sessiontoken.ErrForeign, "foreign"},
}

func tokenReason(err error) string {
	for _, r := range tokenReasons {
		if errors.Is(err, r.err) {
			return r.reason
		}
	}
	return "malformed"
}

var verdictReasons = [...]string{
	session.UnknownToken: "unknown", session.Ended: "ended", session.IdleTooLong: "idle", session.TimeOver: "expired",
	session.RotatedAway: "rotated", session.StepUp: "step_up_required", session.ReusedToken: "refresh_reuse",
	session.TooManyAtOnce: "too_many_at_once",
}

// refuse is the error of an operation that needs a token that counts.
func refuse(reason string) error {
	if reason == "too_many_at_once" {
		return fsm.Errorf(fsm.Exhausted, "the refresh token was used too many times at once: use what one of the requests got")
	}
	return &tokenRefused{reason}
}

// tokenRefused tells that a token does not count.
type tokenRefused struct{ reason string }

func (e *tokenRefused) Error() string { return "the token does not count: " + e.reason }

// planRefresh exchanges a refresh token.
func (s *sessions) planRefresh(q *pb.RefreshSessionRequest) (*sessionStep, error) {
	old, err := sessiontoken.Parse(q.RefreshToken, sessiontoken.Refresh, s.cluster())
	if err != nil {
		return nil, refuse(tokenReason(err))
	}
	t := tokens{cluster: old.Cluster, access: secret(), refresh: secret(), family: old.Family, both: true}
	c := session.RefreshRequest{
		Session: keyOf(old.Session), Family: old.Family.Hash(), Token: old.Secret.Hash(), Access: t.access.Hash(), Next: t.refresh.Hash(),
	}
	return s.exchange(c.Session, sessionCall(session.OpRefresh, &c), t), nil
}

// planRotate exchanges an access token.
func (s *sessions) planRotate(q *pb.RotateSessionRequest) (*sessionStep, error) {
	old, err := sessiontoken.Parse(q.Token, sessiontoken.Access, s.cluster())
	if err != nil {
		return nil, refuse(tokenReason(err))
	}
	t := tokens{cluster: old.Cluster, access: secret()}
	c := session.RotateRequest{Session: keyOf(old.Session), Token: old.Secret.Hash(), Access: t.access.Hash(), Proved: q.StepUpDone}
	return s.exchange(c.Session, sessionCall(session.OpRotate, &c), t), nil
}

// exchange is a step that exchanges tokens of a session for t.
func (s *sessions) exchange(k session.Key, call fsm.Call, t tokens) *sessionStep {
	decode := func(r fsm.Result) (*session.RefreshResult, error) {
		if err := r.Err(); err != nil {
			return nil, err
		}
		var made session.RefreshResult
		if err := made.Decode(r.Body); err != nil {
			return nil, err
		}
		if made.Verdict != session.Valid {
			return nil, refuse(verdictReasons[made.Verdict])
		}
		return &made, nil
	}
	return &sessionStep{
		slot: k.User.Slot(), call: call,
		finish: func(r fsm.Result, _ fsm.Time) (proto.Message, error) {
			made, err := decode(r)
			if err != nil {
				return nil, err
			}
			return t.message(k, made.Until, made.RefreshUntil), nil
		},
		again: func(ctx context.Context, r fsm.Result, at fsm.Time) (proto.Message, error) {
			made, err := decode(r)
			if err != nil {
				return nil, err
			}
			if err := s.reissue(ctx, k, at, &t); err != nil {
				return nil, err
			}
			return t.message(k, made.Until, made.RefreshUntil), nil
		},
	}
}

// familyOf makes the secret that the refresh tokens of a login share. It follows from the operation of the frame, so that
// the frame that is sent again makes the same: the client's id in it is as good as a key.
func familyOf(q *pb.PackedFrame, i int) (s sessiontoken.Secret) {
	h := sha256.New()
	h.Write([]byte("holdfast refresh family"))
	h.Write(q.Client)
	var b [16]byte
	binary.BigEndian.PutUint32(b[:], q.Shard)
	binary.BigEndian.PutUint64(b[4:], q.Seq)
	binary.BigEndian.PutUint32(b[12:], uint32(i))
	h.Write(b[:])
	h.Sum(s[:0])
	return s
}

// familyOfKey does the same for a request with an idempotency key.
func familyOfKey(key string) (s sessiontoken.Secret) {
	if key == "" {
		return secret()
	}
	return sha256.Sum256([]byte("holdfast refresh family of key " + key))
}
