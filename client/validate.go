package client

import (
	"context"
	"crypto/sha256"
	"strings"
	"time"

	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
	"github.com/holdfastdb/holdfast/rpc/sessiontoken"
)

// Validation tells whether a token counts.
type Validation struct {
	Valid bool
	// Reason is why not.
	Reason Reason
	// Session is whose token it is; nil if that is nobody's business. Who validates with MaxStale shares it with others:
	// it must not be changed.
	Session *Session
	// Age is how long ago the answer was true for certain: 0 for one that came from the cluster, at most MaxStale else.
	Age time.Duration
}

// ValidateOption says how a token is validated.
type ValidateOption struct {
	stale  time.Duration
	ip     string
	device map[string]any
	bare   bool
}

// MaxStale allows an answer that was true within the last d instead of now, which costs no round trip when the token was
// validated before: a session that ends may so go on to count for at most d here. Usually it is far less, as the cluster
// tells this client of sessions that end; d is the promise for when it cannot. Half a second is a good choice, and below
// 50 ms little is gained. Only answers that the token counts are remembered.
//
// Time is what the monotonic clock of the machine counts: a machine that is suspended does not age.
func MaxStale(d time.Duration) ValidateOption { return ValidateOption{stale: d} }

// FromIP tells from where the token was presented. Sessions that are bound to an address need it.
func FromIP(ip string) ValidateOption { return ValidateOption{ip: ip} }

// OnDevice tells on which device the token was presented. Sessions that are bound to their device need it.
func OnDevice(device map[string]any) ValidateOption { return ValidateOption{device: device} }

// WithoutAttributes leaves the attributes out of the answer, if that is less work.
func WithoutAttributes() ValidateOption { return ValidateOption{bare: true} }

func (o *ValidateOption) add(p *ValidateOption) {
	o.stale = max(o.stale, p.stale)
	o.bare = o.bare || p.bare
	if p.ip != "" {
		o.ip = p.ip
	}
	if p.device != nil {
		o.device = p.device
	}
}

// Validate tells whether an access token counts, which also keeps its session from becoming idle. A token that does not
// count is no error. Without MaxStale, the answer is true at some moment of the call.
func (s *Sessions) Validate(ctx context.Context, token string, options ...ValidateOption) (Validation, error) {
	var o ValidateOption
	for i := range options {
		o.add(&options[i])
	}
	if o.stale <= 0 {
		t, reason := s.parse(token, sessiontoken.Access)
		if reason != "" {
			return Validation{Reason: reason}, nil
		}
		v, err := s.ask(ctx, s.c.routes.Load().shardAt(t.Session.Slot()), token, &o)
		return v.Validation, err
	}
	if len(token) > sessiontoken.MaxText {
		return Validation{Reason: ReasonMalformed}, nil
	}
	var text [sessiontoken.MaxText]byte // not on the heap
	key := cacheKey(sha256.Sum256(text[:copy(text[:], token)]))
	if v, ok := s.cache.find(&key, &o); ok {
		return v, nil
	}
	return s.learn(ctx, token, o, key)
}

// learn has the cluster validate and remembers the answer.
func (s *Sessions) learn(ctx context.Context, token string, o ValidateOption, key cacheKey) (Validation, error) {
	t, reason := s.parse(token, sessiontoken.Access)
	if reason != "" {
		return Validation{Reason: reason}, nil
	}
	shard := s.c.routes.Load().shardAt(t.Session.Slot())
	e := s.cache.begin(key, t.Session, shard, &o)
	v, err := s.ask(ctx, shard, token, &o)
	if err != nil || !v.Valid || v.Session == nil || !s.cache.fill(e, &v) {
		e.feed.remove(e)
	}
	if err == nil && !v.Valid {
		s.cache.forget(&key)
	}
	return v.Validation, err
}

// validated is an answer of the cluster.
type validated struct {
	Validation
	device []byte    // that was presented, encoded
	size   int       // of the answer in bytes
	at     time.Time // by the shard's clock
}

// ask has the cluster validate.
func (s *Sessions) ask(ctx context.Context, shard uint32, token string, o *ValidateOption) (v validated, err error) {
	if v.device, err = encodedObject("device", o.device); err != nil {
		return validated{}, err
	}
	q := &pb.PresentedToken{Token: token, Ip: o.ip, Device: v.device, WithoutAttributes: o.bare}
	a, err := s.c.exchange(ctx, shard, typeSessions, methodValidate, true, q)
	if err != nil {
		return validated{}, err
	}
	r := pb.HeldValidationFromVTPool()
	defer r.ReturnToVTPool()
	if err := a.decode(r); err != nil {
		return validated{}, err
	}
	v.Validation = Validation{Valid: r.Valid, Reason: Reason(strings.Clone(r.Reason))}
	if v.Session, err = session(r.Session); err != nil {
		return validated{}, err
	}
	v.size, v.at = len(a.response), time.UnixMilli(a.at)
	return v, nil
}
