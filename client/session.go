package client

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfastdb/holdfast/rpc/codec"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
	"github.com/holdfastdb/holdfast/rpc/sessiontoken"
)

// SessionType is what a session is for. Its timeouts follow from it, unless the login has its own.
type SessionType string

// The types.
const (
	WebSession    SessionType = "web"
	MobileSession SessionType = "mobile"
	APISession    SessionType = "api"
)

// IPBinding tells from where else than its login a session counts.
type IPBinding string

// The bindings.
const (
	BindOff    IPBinding = "off"
	BindSubnet IPBinding = "subnet"
	BindExact  IPBinding = "exact"
)

// OnLimit tells what becomes of a login with which a user would have too many sessions or devices.
type OnLimit string

// The ways.
const (
	RefuseLogin OnLimit = "refuse" // with an ErrExhausted
	EvictOldest OnLimit = "evict_oldest"
)

// Reason is why a token does not count.
type Reason string

// The reasons.
const (
	ReasonMalformed Reason = "malformed" // not a token, or not a whole one
	ReasonForeign   Reason = "foreign"   // of another cluster
	ReasonUnknown   Reason = "unknown"   // made up, or of a session that is long gone
	ReasonExpired   Reason = "expired"
	ReasonIdle      Reason = "idle"    // not used for too long
	ReasonRotated   Reason = "rotated" // there is a newer one
	ReasonEnded     Reason = "ended"   // Session.Ended tells why
	ReasonStepUp    Reason = "step_up_required"
	ReasonIP        Reason = "ip_mismatch"
	ReasonDevice    Reason = "device_mismatch"
)

// EndReason is why a session ended.
type EndReason string

// The reasons.
const (
	EndedLogout     EndReason = "logged_out" // by its user
	EndedRevoked    EndReason = "revoked"    // by somebody else
	EndedIdle       EndReason = "idle"
	EndedExpired    EndReason = "expired"
	EndedEvicted    EndReason = "evicted"       // by a newer one
	EndedReuse      EndReason = "refresh_reuse" // a refresh token was used twice: one of two holders has stolen it
	EndedSuspicious EndReason = "suspicious"
	EndedErased     EndReason = "erased" // with all data of its user
)

// NoIdleTimeout is for sessions that end at their absolute timeout only.
const NoIdleTimeout time.Duration = -1

// NoLimit is for users who may have as many sessions or devices as the system allows.
const NoLimit = -1

// limitOf tells no limit, which is 0, from that of the type, which is none.
func limitOf(n int) *uint32 {
	if n == 0 {
		return nil
	}
	m := uint32(max(n, 0))
	return &m
}

// Login describes a session to begin. All but UserID may be left out.
type Login struct {
	UserID string
	// Type is WebSession if empty.
	Type SessionType
	// Device is what is known of it, with values as in JSON. Its "fingerprint", or else its "id", tells it from others.
	Device map[string]any
	IP     string
	// RememberMe asks for a refresh token too, which outlives the access token; for how long, RefreshTimeout tells.
	RememberMe     bool
	RefreshTimeout time.Duration
	// IdleTimeout is after how long without use the session ends; the type's if 0, and see NoIdleTimeout.
	IdleTimeout time.Duration
	// AbsoluteTimeout is how long the access token counts at most; the type's if 0.
	AbsoluteTimeout time.Duration
	Attributes      map[string]any
	// IPBinding and DeviceBinding tell from where else, and on which other devices, the session counts.
	IPBinding     IPBinding
	DeviceBinding bool
	// Login is the name of a login with which sessions at several services begin, Service the one of this session.
	Login, Service string
	// Impersonator is who acts as the user.
	Impersonator string
	// MaxSessions and MaxDevices are how many the user may have with this one, as many as the type says if 0, and see NoLimit;
	// OnLimit is what to do if it is one too many.
	MaxSessions, MaxDevices int
	OnLimit                 OnLimit
}

func (l *Login) message() (*pb.CreateSessionRequest, error) {
	device, err := object("device", l.Device)
	if err != nil {
		return nil, err
	}
	attributes, err := object("attributes", l.Attributes)
	if err != nil {
		return nil, err
	}
	return &pb.CreateSessionRequest{
		UserId: l.UserID, Type: string(l.Type), Device: device, Ip: l.IP, RememberMe: l.RememberMe,
		IdleTimeout: seconds(l.IdleTimeout), AbsoluteTimeout: seconds(l.AbsoluteTimeout),
		RefreshTimeout: seconds(l.RefreshTimeout), Attributes: attributes, IpBinding: string(l.IPBinding),
		DeviceBinding: l.DeviceBinding, Login: l.Login, Service: l.Service, Impersonator: l.Impersonator,
		MaxSessions: limitOf(l.MaxSessions), MaxDevices: limitOf(l.MaxDevices), OnLimit: string(l.OnLimit),
	}, nil
}

// Tokens are what a login, a refresh or a rotation gives out. The cluster keeps nothing from which they could be made
// again.
type Tokens struct {
	SessionID string
	// Token is the access token.
	Token string
	// RefreshToken is empty without RememberMe.
	RefreshToken string
	// ExpiresAt is when the access token ends at the latest.
	ExpiresAt, RefreshExpiresAt time.Time
	// Evicted is how many sessions ended for this one.
	Evicted int
}

func tokens(m *pb.SessionTokens) Tokens {
	return Tokens{
		SessionID: m.SessionId, Token: m.Token, RefreshToken: m.GetRefreshToken(), ExpiresAt: moment(m.ExpiresAt),
		RefreshExpiresAt: moment(m.RefreshExpiresAt), Evicted: int(m.Evicted),
	}
}

// Session is what is known of a session.
type Session struct {
	ID, UserID string
	Type       SessionType
	CreatedAt  time.Time
	// LastSeenAt is its last use, as far as it was noted: not every one is.
	LastSeenAt time.Time
	// ExpiresAt is when it ends unless it is used before.
	ExpiresAt        time.Time
	RefreshExpiresAt time.Time
	IdleTimeout      time.Duration // 0 for none
	Device           map[string]any
	IP               string
	IPBinding        IPBinding
	DeviceBinding    bool
	Login, Service   string
	Impersonator     string
	// Flagged tells of something suspicious, StepUpRequired that the user has to prove again who they are.
	Flagged, StepUpRequired bool
	Attributes              map[string]any
	// AttributesVersion is 0 if there are no attributes.
	AttributesVersion uint32
	// Ended tells why it ended; empty if it has not.
	Ended   EndReason
	EndedAt time.Time
}

// session keeps nothing of the frame in which m came.
func session(m *pb.HeldSession) (*Session, error) {
	if m == nil {
		return nil, nil
	}
	var id sessiontoken.ID
	if copy(id[:], m.SessionId) != len(id) || len(m.SessionId) != len(id) {
		return nil, fmt.Errorf("holdfast: unreadable answer: a session id of %d bytes", len(m.SessionId))
	}
	p := pb.SessionProfileFromVTPool() // its texts are of the clone, and stay
	defer p.ReturnToVTPool()
	if err := codec.Unmarshal(slices.Clone(m.Profile), p); err != nil {
		return nil, fmt.Errorf("holdfast: unreadable answer: %w", err)
	}
	s := &Session{
		ID: id.String(), UserID: p.UserId, Type: typeNamed(m.Type), CreatedAt: shardTime(m.CreatedAtMs),
		LastSeenAt: shardTime(m.LastSeenAtMs), ExpiresAt: shardTime(m.ExpiresAtMs), RefreshExpiresAt: shardTime(m.RefreshExpiresAtMs),
		IdleTimeout: time.Duration(m.IdleTimeoutMs) * time.Millisecond, IP: p.Ip, IPBinding: IPBinding(p.IpBinding),
		DeviceBinding: p.DeviceBinding, Login: p.Login, Service: p.Service, Impersonator: p.Impersonator, Flagged: m.Flagged,
		StepUpRequired: m.StepUpRequired, AttributesVersion: m.AttributesVersion, Ended: EndReason(strings.Clone(m.Ended)),
		EndedAt: shardTime(m.EndedAtMs),
	}
	var err error
	if s.Device, err = decodeObject(p.Device); err == nil {
		s.Attributes, err = decodeObject(slices.Clone(m.Attributes))
	}
	return s, err
}

// typeNamed is a type of session by its name, which is not kept if it is known.
func typeNamed(name string) SessionType {
	for _, t := range [...]SessionType{WebSession, MobileSession, APISession} {
		if name == string(t) {
			return t
		}
	}
	return SessionType(strings.Clone(name))
}

// shardTime is a time as shards have it, in milliseconds, 0 for none.
func shardTime(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}
