package rpc

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"net/netip"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/session"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// A mass revocation is a walk over all sessions, shard by shard, that its caller drives: each call looks at so many and
// tells where to go on, so that it can stop and go on anywhere. Shards have no more to do for it than for a few reads.

// cursor is where a walk is: in a slot's shard, after a session.
type cursor struct {
	slot  uint32
	after session.Key
}

func (c cursor) String() string {
	b := binary.BigEndian.AppendUint32(nil, c.slot)
	return base64.RawURLEncoding.EncodeToString(c.after.Append(b))
}

func parseCursor(text string) (c cursor, err error) {
	if text == "" {
		return c, nil
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(b) != 4+session.KeyBytes || binary.BigEndian.Uint32(b) >= slotCount {
		return c, invalidf("next is not one that an answer gave")
	}
	return cursor{binary.BigEndian.Uint32(b), session.DecodeKey(b[4:])}, nil
}

const slotCount = 1 << 16

// filter is which sessions a mass revocation ends.
type filter struct {
	kind   session.Kind // 0 for any
	device string
	before fsm.Time // 0 for any
	from   netip.Prefix
}

func parseFilter(q *pb.RevokeMatchingRequest) (*filter, error) {
	f := &filter{device: strings.ToLower(q.Device)}
	if q.Type == "" && q.Device == "" && q.CreatedBefore == nil && q.IpRange == "" {
		return nil, invalidf("name at least one condition: type, device, created_before or ip_range")
	}
	if q.Type != "" {
		if f.kind = kindNamed(q.Type); f.kind == 0 {
			return nil, errKindName(q.Type)
		}
	}
	if q.CreatedBefore != nil {
		if err := q.CreatedBefore.CheckValid(); err != nil {
			return nil, invalidf("created_before: %v", err)
		}
		f.before = fsm.Time(max(q.CreatedBefore.AsTime().UnixMilli(), 1)) // no session is as old
	}
	if q.IpRange != "" {
		prefix, err := netip.ParsePrefix(q.IpRange)
		if err != nil {
			one, oneErr := parseIP(q.IpRange)
			if oneErr != nil {
				return nil, invalidf("ip_range %.64q is neither an address nor a prefix such as 192.0.2.0/24", q.IpRange)
			}
			prefix = netip.PrefixFrom(one, one.BitLen())
		}
		if at := prefix.Addr(); at.Is4In6() && prefix.Bits() >= 96 { // addresses are compared as IPv4
			prefix = netip.PrefixFrom(at.Unmap(), prefix.Bits()-96)
		}
		f.from = prefix.Masked()
	}
	return f, nil
}

func (f *filter) matches(i *session.Info, ip string, device *structpb.Struct) bool {
	if f.kind != 0 && i.Kind != f.kind || f.before != 0 && i.Created >= f.before {
		return false
	}
	if f.from.IsValid() {
		a, err := parseIP(ip)
		if err != nil || !f.from.Contains(a) {
			return false
		}
	}
	return f.device == "" || says(structpb.NewStructValue(device), f.device)
}

// says tells whether a text occurs in any value.
func says(v *structpb.Value, text string) bool {
	switch v := v.GetKind().(type) {
	case *structpb.Value_StringValue:
		return strings.Contains(strings.ToLower(v.StringValue), text)
	case *structpb.Value_StructValue:
		for _, one := range v.StructValue.GetFields() {
			if says(one, text) {
				return true
			}
		}
	case *structpb.Value_ListValue:
		for _, one := range v.ListValue.GetValues() {
			if says(one, text) {
				return true
			}
		}
	}
	return false
}

const (
	matchPage = 500
	// matchTime is how long a call of a mass revocation goes on.
	matchTime = 2 * time.Second
)

// RevokeMatching implements the service.
func (s *sessions) RevokeMatching(ctx context.Context, q *pb.RevokeMatchingRequest) (*pb.RevokeMatchingResponse, error) {
	f, err := parseFilter(q)
	if err != nil {
		return nil, statusOf(err)
	}
	at, err := parseCursor(q.Next)
	if err != nil {
		return nil, statusOf(err)
	}
	m := &pb.RevokeMatchingResponse{}
	most := matchTime
	if end, ok := ctx.Deadline(); ok {
		most = min(most, time.Until(end)/2) // or a caller in a hurry would never hear how far it came
	}
	for begin, first := time.Now(), true; first || time.Since(begin) < most; first = false {
		more, err := s.sweepPage(ctx, f, &at, q.DryRun, m)
		if err != nil {
			return nil, statusOf(err)
		}
		if !more {
			m.Percent = 100
			return m, nil
		}
	}
	m.Next, m.Percent = at.String(), 100*float64(at.slot)/slotCount
	if at.after != (session.Key{}) {
		m.Percent = 100 * float64(at.after.User.Slot()) / slotCount
	}
	return m, nil
}

// sweepPage looks at a page of the shard where at is, and moves at; false at the end of all.
func (s *sessions) sweepPage(ctx context.Context, f *filter, at *cursor, dry bool, m *pb.RevokeMatchingResponse) (bool, error) {
	t := s.node.Topology()
	if t == nil {
		return false, errNoTopology
	}
	group, err := s.group(uint16(at.slot))
	if err != nil {
		return false, err
	}
	c := session.ScanRequest{After: at.after, Limit: matchPage}
	results, _, err := s.node.Query(ctx, group, []fsm.Call{sessionCall(session.OpScan, &c)})
	if err == nil {
		err = results[0].Err()
	}
	if err != nil {
		return false, err
	}
	var page session.Infos
	if err := page.Decode(results[0].Body); err != nil {
		return false, err
	}
	q := session.RevokeRequest{Reason: session.Revoked}
	for i := range page.List {
		m.Scanned++
		profile, device := &pb.SessionProfile{}, &structpb.Struct{}
		if f.device != "" || f.from.IsValid() {
			err := s.openAs(page.List[i].Profile, page.List[i].Session.User, profilePart, profile)
			if err == nil {
				err = proto.Unmarshal(profile.Device, device)
			}
			if err != nil {
				m.Unreadable++
				continue
			}
		}
		if f.matches(&page.List[i], profile.Ip, device) {
			q.Sessions = append(q.Sessions, page.List[i].Session)
		}
	}
	if dry {
		m.Revoked += uint32(len(q.Sessions))
	} else if len(q.Sessions) > 0 {
		out, err := s.node.Do(ctx, group, []fsm.Call{sessionCall(session.OpRevoke, &q)})
		if err != nil {
			return false, err
		}
		body, err := only(out)
		if err != nil {
			return false, err
		}
		var n session.Count
		if err := n.Decode(body); err != nil {
			return false, err
		}
		m.Revoked += n.N
	}
	if page.More {
		at.after = page.Next
		return true, nil
	}
	for i := range t.Shards {
		if x := &t.Shards[i]; x.ID == group {
			*at = cursor{slot: uint32(x.Last) + 1}
		}
	}
	return at.slot < slotCount, nil
}
