package rpc

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/holdfastdb/holdfast/fsm/session"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
	"github.com/holdfastdb/holdfast/rpc/sessiontoken"
)

// deep is a value in so many values.
func deep(n int) *structpb.Value {
	v := structpb.NewBoolValue(true)
	for i := range n {
		if i%2 == 0 {
			v = structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{v}})
		} else {
			v = structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{"x": v}})
		}
	}
	return v
}

func one(v *structpb.Value) *structpb.Struct {
	return &structpb.Struct{Fields: map[string]*structpb.Value{"a": v}}
}

func many(n int) *structpb.Struct {
	s := &structpb.Struct{Fields: make(map[string]*structpb.Value)}
	for i := range n {
		s.Fields[fmt.Sprint("name", i)] = structpb.NewBoolValue(true)
	}
	return s
}

// badStructs are what no device and no attributes may be.
var badStructs = map[string]*structpb.Struct{
	"not a number": one(structpb.NewNumberValue(math.NaN())), "infinite": one(structpb.NewNumberValue(math.Inf(-1))),
	"no value": one(&structpb.Value{}), "nothing": one(nil), "no value in a list": one(structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{nil}})),
	"too deep": one(deep(maxDepth)), "too large": one(structpb.NewStringValue(strings.Repeat("x", maxAttributes))),
}

// What makes no sense is refused before it comes to a shard, and the error says what is wrong, in few words.
func TestALoginThatMakesNoSenseIsRefused(t *testing.T) {
	c := newSmall(t, nil)
	defer c.close()
	type login = pb.CreateSessionRequest
	tests := map[string]struct {
		edit func(*login)
		says string
	}{
		"no user":            {func(q *login) { q.UserId = "" }, "user_id"},
		"a long user":        {func(q *login) { q.UserId = strings.Repeat("x", maxUserBytes+1) }, "user_id"},
		"NUL in the user":    {func(q *login) { q.UserId = "a\x00b" }, "user_id"},
		"no UTF-8":           {func(q *login) { q.UserId = "\xff" }, "user_id"},
		"another type":       {func(q *login) { q.Type = "desktop" }, "type"},
		"a very long type":   {func(q *login) { q.Type = strings.Repeat("x", 1<<20) }, "type"},
		"no address":         {func(q *login) { q.Ip = "localhost" }, "ip"},
		"an address's zone":  {func(q *login) { q.Ip = "fe80::1%eth0" }, "ip"},
		"a very long ip":     {func(q *login) { q.Ip = strings.Repeat("é", 1<<20) }, "ip"},
		"another binding":    {func(q *login) { q.IpBinding = "loose" }, "ip_binding"},
		"a binding to none":  {func(q *login) { q.IpBinding = "exact" }, "ip"},
		"a device to none":   {func(q *login) { q.DeviceBinding = true }, "device"},
		"devices of none":    {func(q *login) { q.MaxDevices = proto.Uint32(1) }, "device"},
		"too many sessions":  {func(q *login) { q.MaxSessions = proto.Uint32(session.MaxSessions + 1) }, "max_sessions"},
		"another limit":      {func(q *login) { q.OnLimit = "drop" }, "on_limit"},
		"a long login":       {func(q *login) { q.Login = strings.Repeat("x", maxField+1) }, "login"},
		"NUL in the service": {func(q *login) { q.Service = "\x00" }, "service"},
		"no impersonator":    {func(q *login) { q.Impersonator = "\xff" }, "impersonator"},
		"refresh of nothing": {func(q *login) { q.RefreshTimeout = proto.Float64(60) }, "refresh_timeout"},
		"no life":            {func(q *login) { q.AbsoluteTimeout = proto.Float64(0) }, "absolute_timeout"},
		"many attributes":    {func(q *login) { q.Attributes = many(maxNames + 1) }, "attributes"},
		"a large device":     {func(q *login) { q.Device = one(structpb.NewStringValue(strings.Repeat("x", maxDeviceBytes))) }, "device"},
	}
	for name, bad := range map[string]float64{"NaN": math.NaN(), "-1": -1, "1 ms": 0.001, "infinite": math.Inf(1), "-infinite": math.Inf(-1), "huge": 1e300, "too long": float64(session.MaxLife)/1000 + 1} {
		tests["idle "+name] = struct {
			edit func(*login)
			says string
		}{func(q *login) { q.IdleTimeout = &bad }, "idle_timeout"}
		tests["absolute "+name] = struct {
			edit func(*login)
			says string
		}{func(q *login) { q.AbsoluteTimeout = &bad }, "absolute_timeout"}
		tests["refresh "+name] = struct {
			edit func(*login)
			says string
		}{func(q *login) { q.RefreshTimeout, q.RememberMe = &bad, true }, "refresh_timeout"}
	}
	for name, bad := range badStructs {
		tests["attributes: "+name] = struct {
			edit func(*login)
			says string
		}{func(q *login) { q.Attributes = bad }, "attributes"}
		tests["device: "+name] = struct {
			edit func(*login)
			says string
		}{func(q *login) { q.Device = bad }, "device"}
	}
	for name, tt := range tests {
		q := &login{UserId: "alice"}
		tt.edit(q)
		_, err := c.Create(t.Context(), q)
		if kindOf(err) != invalid || !strings.Contains(err.Error(), tt.says) || len(err.Error()) > 600 {
			t.Errorf("%s: %.600v", name, err)
		}
	}
	for id, s := range c.shards {
		if s.entries != 0 {
			t.Errorf("shard %d has %d entries", id, s.entries)
		}
	}
	c.login("alice", func(q *login) { q.Attributes, q.Device = one(deep(maxDepth-1)), one(deep(maxDepth-1)) })
}

// What a validation says of a device may become the session's: it is as good as a login's.
func TestAValidationThatMakesNoSenseIsRefused(t *testing.T) {
	c := newSmall(t, nil)
	defer c.close()
	m := c.login("alice", func(q *pb.CreateSessionRequest) { q.Type, q.Device = "api", fields("id", "a") })
	for name, bad := range badStructs {
		if _, err := c.Validate(t.Context(), &pb.ValidateSessionRequest{Token: m.Token, Device: bad}); kindOf(err) != invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, ip := range []string{"x", "192.0.2.1:80", "fe80::1%eth0"} {
		if _, err := c.Validate(t.Context(), &pb.ValidateSessionRequest{Token: m.Token, Ip: ip}); kindOf(err) != invalid {
			t.Errorf("%s: %v", ip, err)
		}
	}
}

// badTokens are what is no access token of the cluster, with the reason that validations give.
func badTokens(t *testing.T, c *small) map[string]string {
	m := c.login("mallory", func(q *pb.CreateSessionRequest) { q.RememberMe = true })
	token, err := sessiontoken.Parse(m.Token, sessiontoken.Access, c.cluster())
	if err != nil {
		t.Fatal(err)
	}
	foreign, forged, unknown := token, token, token
	foreign.Cluster = sessiontoken.ClusterOf("elsewhere")
	forged.Secret[0]++
	unknown.Session[20]++
	return map[string]string{
		"": "malformed", "hfs_": "malformed", m.Token[:len(m.Token)-1]: "malformed", m.Token + "A": "malformed", strings.ToUpper(m.Token): "malformed",
		*m.RefreshToken: "malformed", m.SessionId: "malformed", strings.Repeat("hfs_", 1<<18): "malformed",
		foreign.String(): "foreign", forged.String(): "unknown", unknown.String(): "unknown",
	}
}

// A token that does not count tells why, and nothing of a session.
func TestBadTokens(t *testing.T) {
	c := newSmall(t, nil)
	defer c.close()
	for token, reason := range badTokens(t, c) {
		m, err := c.Validate(t.Context(), &pb.ValidateSessionRequest{Token: token})
		if err != nil || m.Valid || m.Reason != reason || m.Session != nil {
			t.Errorf("%.50s: %v, %v; want %s", token, m, err, reason)
		}
		for what, call := range map[string]func() error{
			"rotate": func() error { _, err := c.Rotate(t.Context(), &pb.RotateSessionRequest{Token: token}); return err },
			"logout": func() error { _, err := c.Logout(t.Context(), &pb.LogoutRequest{Token: token}); return err },
			"refresh": func() error {
				_, err := c.Refresh(t.Context(), &pb.RefreshSessionRequest{RefreshToken: "x" + token})
				return err
			},
		} {
			if err := call(); kindOf(err) != tokenInvalid || what != "refresh" && !strings.Contains(err.Error(), reason) {
				t.Errorf("%s %.50s: %v", what, token, err)
			}
		}
	}
}

// Who tries tokens must not learn from the time it takes what is wrong with them: also those that the node could refuse by
// itself have a shard asked once, and it has to lead, and be up to date, as for any other.
func TestEveryTokenIsAskedAbout(t *testing.T) {
	c := newSmall(t, nil)
	defer c.close()
	for token, reason := range badTokens(t, c) {
		before := c.asked.Load()
		if m, err := c.Validate(t.Context(), &pb.ValidateSessionRequest{Token: token}); err != nil || m.Reason != reason {
			t.Errorf("%.50s: %v, %v; want %s", token, m, err, reason)
		}
		if n := c.asked.Load() - before; n != 1 {
			t.Errorf("%.50s (%s): %d questions to shards, want 1", token, reason, n)
		}
	}
}

func TestIDsOfNonsense(t *testing.T) {
	c := newSmall(t, nil)
	defer c.close()
	m := c.login("alice")
	for _, id := range []string{"", "ses_", "alice", m.Token, m.SessionId + "A", m.SessionId[:len(m.SessionId)-1]} {
		_, getErr := c.Get(t.Context(), &pb.GetSessionRequest{SessionId: id})
		_, revokeErr := c.Revoke(t.Context(), &pb.RevokeSessionRequest{SessionId: id})
		_, setErr := c.SetAttributes(t.Context(), &pb.SetAttributesRequest{SessionId: id, Remove: []string{"x"}})
		if kindOf(getErr) != invalid || kindOf(revokeErr) != invalid || kindOf(setErr) != invalid {
			t.Errorf("%q: %v, %v, %v", id, getErr, revokeErr, setErr)
		}
		if id == "" {
			continue // is no exception
		}
		if _, err := c.RevokeUser(t.Context(), &pb.RevokeUserRequest{UserId: "alice", Except: id}); kindOf(err) != invalid {
			t.Errorf("except %q: %v", id, err)
		}
	}
	if _, err := c.RevokeUser(t.Context(), &pb.RevokeUserRequest{UserId: "bob", Except: m.SessionId}); kindOf(err) != invalid {
		t.Errorf("except of another user: %v", err)
	}
	if _, err := c.Get(t.Context(), &pb.GetSessionRequest{SessionId: (sessiontoken.ID{1}).String()}); kindOf(err) != notFound {
		t.Errorf("of no session: %v", err)
	}
	if _, err := c.SetAttributes(t.Context(), &pb.SetAttributesRequest{SessionId: m.SessionId}); kindOf(err) != invalid {
		t.Errorf("no change: %v", err)
	}
	for name, bad := range badStructs {
		if _, err := c.SetAttributes(t.Context(), &pb.SetAttributesRequest{SessionId: m.SessionId, Set: bad}); kindOf(err) != invalid {
			t.Errorf("attributes, %s: %v", name, err)
		}
	}
	for name, q := range map[string]*pb.RevokeMatchingRequest{
		"no condition": {}, "a dry run without one": {DryRun: true}, "type": {Type: "x"}, "range": {IpRange: "192.0.2.0/33"}, "next": {Type: "web", Next: "x"},
		"a very long range": {IpRange: strings.Repeat("1", 1<<20)}, "date": {CreatedBefore: &timestamppb.Timestamp{Nanos: -1}},
	} {
		if _, err := c.RevokeMatching(t.Context(), q); kindOf(err) != invalid || len(err.Error()) > 600 {
			t.Errorf("%s: %.600v", name, err)
		}
	}
}

// padding is an AEAD that adds as much as real ones do, and encrypts nothing.
type padding struct{}

const padded = 40

func (padding) Encrypt(text, _ []byte) ([]byte, error) {
	return slices.Concat(text, make([]byte, padded)), nil
}

func (padding) Decrypt(text, _ []byte) ([]byte, error) {
	if len(text) < padded {
		return nil, errors.New("too short")
	}
	return text[:len(text)-padded], nil
}

// A command that a shard cannot decode would stop it for good: the largest of everything that is allowed goes through, and
// one byte more in any field is refused before.
func TestTheLargestSessionDoesNotStopItsShard(t *testing.T) {
	for name, c := range map[string]*small{"plain": newSmall(t, nil), "encrypted": newSmall(t, padding{})} {
		defer c.close()
		text := strings.Repeat("x", maxField)
		ip := "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
		large := func(size int) *structpb.Struct {
			s := one(structpb.NewStringValue(""))
			s.Fields["a"] = structpb.NewStringValue(strings.Repeat("x", size-proto.Size(s)-5))
			for proto.Size(s) < size {
				s.Fields["a"] = structpb.NewStringValue(s.Fields["a"].GetStringValue() + "x")
			}
			return s
		}
		q := &pb.CreateSessionRequest{
			UserId: text, Type: "api", Login: text, Service: text, Impersonator: text, Ip: ip, IpBinding: "subnet", DeviceBinding: true,
			Device: large(maxDeviceBytes), Attributes: large(maxAttributes), RememberMe: true, MaxSessions: proto.Uint32(session.MaxSessions),
			MaxDevices: proto.Uint32(math.MaxUint32), IdleTimeout: proto.Float64(float64(session.MaxLife) / 1000),
			AbsoluteTimeout: proto.Float64(float64(session.MaxLife) / 1000), RefreshTimeout: proto.Float64(float64(session.MaxLife) / 1000),
		}
		m, err := c.Create(t.Context(), q)
		if kindOf(err) == invalid && strings.Contains(err.Error(), "bytes") { // all of it together is too much: less of one
			for n := maxField; kindOf(err) == invalid && n > 0; n-- {
				q.Service = text[:n]
				m, err = c.Create(t.Context(), q)
			}
			t.Logf("%s: the service may have %d bytes", name, len(q.Service))
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		answer, err := c.Validate(t.Context(), &pb.ValidateSessionRequest{Token: m.Token, Ip: ip, Device: q.Device})
		if err != nil || !answer.Valid || !proto.Equal(answer.Session.Attributes, q.Attributes) || !proto.Equal(answer.Session.Device, q.Device) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := c.SetAttributes(t.Context(), &pb.SetAttributesRequest{SessionId: m.SessionId, Set: one(structpb.NewStringValue(""))}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for what, more := range map[string]*pb.SetAttributesRequest{
			"names": {Set: many(maxNames)}, "bytes": {Set: large(maxAttributes + 1)},
		} {
			more.SessionId = m.SessionId
			if _, err := c.SetAttributes(t.Context(), more); kindOf(err) != invalid {
				t.Errorf("%s: too many %s: %v", name, what, err)
			}
		}
		hash := make([]byte, 32)
		for i, size := range []int{session.MaxSaved - 256, session.MaxSaved - 255, session.MaxSaved + 1} {
			r := c.frame(1, uint64(i+1), methodSave, &pb.SavedSession{TokenHash: hash, ExpiresAtMs: math.MaxInt64, Data: make([]byte, size)}, &pb.SavedSession{})
			if (r.Code == 0) != (i == 0) {
				t.Errorf("%s: saved with %d bytes: %v", name, size, r)
			}
		}
	}
}
