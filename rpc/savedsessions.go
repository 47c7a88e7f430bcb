package rpc

import (
	"encoding/binary"

	"google.golang.org/protobuf/proto"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/session"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// Saved sessions are those of frameworks that make their tokens themselves. They are where the first two bytes of the hash
// of their token say.

func savedHash(b []byte) (h session.Hash, slot uint16, err error) {
	if len(b) != len(h) {
		return h, 0, invalidf("token_hash has %d bytes, %d are needed", len(b), len(h))
	}
	copy(h[:], b)
	return h, binary.BigEndian.Uint16(b), nil
}

func savedPlace(h *session.Hash) []byte { return append(h[:len(h):len(h)], savedPart...) }

func (s *sessions) planSave(q *pb.SavedSession) (*sessionStep, error) {
	h, slot, err := savedHash(q.TokenHash)
	if err != nil {
		return nil, err
	}
	if len(q.Data) > session.MaxSaved-256 {
		return nil, invalidf("the session has %d bytes, at most %d are allowed", len(q.Data), session.MaxSaved-256)
	}
	if q.ExpiresAtMs <= 0 {
		return nil, invalidf("expires_at_ms is missing")
	}
	c := session.SaveRequest{Token: h, Until: fsm.Time(q.ExpiresAtMs)}
	if c.Sealed, err = s.sealer.Seal(q.Data, savedPlace(&h)); err != nil {
		return nil, err
	}
	return &sessionStep{slot: slot, call: sessionCall(session.OpSave, &c), finish: savedDone}, nil
}

func planDrop(q *pb.SavedSession) (*sessionStep, error) {
	h, slot, err := savedHash(q.TokenHash)
	if err != nil {
		return nil, err
	}
	return &sessionStep{slot: slot, call: sessionCall(session.OpDrop, &session.DropRequest{Token: h}), finish: savedDone}, nil
}

func savedDone(r fsm.Result, _ fsm.Time) (proto.Message, error) {
	if err := r.Err(); err != nil {
		return nil, err
	}
	var d session.Done
	if err := d.Decode(r.Body); err != nil {
		return nil, err
	}
	return &pb.SavedSession{Found: d.Found}, nil
}

func (s *sessions) planFindSaved(q *pb.SavedSession) (*sessionStep, error) {
	h, slot, err := savedHash(q.TokenHash)
	if err != nil {
		return nil, err
	}
	return &sessionStep{
		slot: slot, call: sessionCall(session.OpFindSaved, &session.DropRequest{Token: h}),
		finish: func(r fsm.Result, _ fsm.Time) (proto.Message, error) {
			if err := r.Err(); err != nil {
				return nil, err
			}
			var found session.Saved
			if err := found.Decode(r.Body); err != nil {
				return nil, err
			}
			if !found.Found {
				return &pb.SavedSession{}, nil
			}
			return s.savedMessage(&found)
		},
	}, nil
}

func (s *sessions) savedMessage(v *session.Saved) (*pb.SavedSession, error) {
	data, err := s.sealer.Open(v.Sealed, savedPlace(&v.Token))
	if err != nil {
		return nil, err
	}
	return &pb.SavedSession{TokenHash: v.Token[:], ExpiresAtMs: int64(v.Until), Data: data, Found: true}, nil
}

// scanPage is how many saved sessions an answer has.
const scanPage = 500

func (s *sessions) planScanSaved(q *pb.ScanSavedRequest) (*sessionStep, error) {
	c := session.ScanSavedRequest{Limit: scanPage}
	if len(q.After) > 0 {
		var err error
		if c.After, _, err = savedHash(q.After); err != nil {
			return nil, err
		}
	}
	return &sessionStep{
		call: sessionCall(session.OpScanSaved, &c),
		finish: func(r fsm.Result, _ fsm.Time) (proto.Message, error) {
			if err := r.Err(); err != nil {
				return nil, err
			}
			var list session.SavedList
			if err := list.Decode(r.Body); err != nil {
				return nil, err
			}
			m := &pb.ScanSavedResponse{}
			for i := range list.List {
				one, err := s.savedMessage(&list.List[i])
				if err != nil {
					return nil, err
				}
				m.Sessions = append(m.Sessions, one)
			}
			if list.More {
				m.Next = list.Next[:]
			}
			return m, nil
		},
	}, nil
}
