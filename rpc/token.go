package rpc

import (
	"encoding/base64"
	"encoding/binary"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/counter"
	"github.com/holdfastdb/holdfast/storage/wire"
)

// held is what a reservation, or the slots of concurrency limits, hold in one group.
type held struct {
	group uint32
	id    uint64
	keys  []counter.Key
}

// tokenKind is what a token is for, and the first byte of it: a reservation is settled, slots are released.
type tokenKind byte

// A token names holds for the caller: its kind, then group, id and keys of each, in URL-safe base64.
const (
	reservation   tokenKind = 1
	slots         tokenKind = 2
	maxTokenParts           = counter.MaxLimits
	minTokenPart            = 10
)

var (
	errReleased = fsm.Errorf(fsm.NotFound, "the slots of this release_token are free: they were released before, or their time was over")
	errToken    = invalidf("the token is not one that a check or a reservation gave")
	// errKind is by the kind that a token has and should not have.
	errKind = map[tokenKind]error{
		reservation: invalidf("this is the reservation_id of a reservation, not the release_token of a check: commit it, or refund it"),
		slots:       invalidf("this is the release_token of a check, not the reservation_id of a reservation: release it"),
	}
)

func encodeToken(kind tokenKind, holds []held) string {
	if len(holds) == 0 {
		return ""
	}
	b := binary.AppendUvarint([]byte{byte(kind)}, uint64(len(holds)))
	for _, h := range holds {
		b = binary.AppendUvarint(b, uint64(h.group))
		b = binary.LittleEndian.AppendUint64(b, h.id)
		b = binary.AppendUvarint(b, uint64(len(h.keys)))
		for _, k := range h.keys {
			b = append(b, k[:]...)
		}
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

func decodeToken(want tokenKind, token string) ([]held, error) {
	b, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || token == "" {
		return nil, errToken
	}
	d := wire.NewDecoder(b)
	kind := tokenKind(d.Byte())
	if errKind[kind] == nil {
		d.Fail()
	}
	n := d.Count(minTokenPart)
	if n == 0 || n > maxTokenParts {
		d.Fail()
		n = 0
	}
	holds := make([]held, n)
	for i := range holds {
		h := &holds[i]
		h.group, h.id = d.Uint32(), d.Uint64()
		keys := d.Count(counter.KeyBytes)
		if keys == 0 || keys > counter.MaxLimits || h.group == 0 {
			d.Fail()
			keys = 0
		}
		h.keys = make([]counter.Key, keys)
		for j := range h.keys {
			copy(h.keys[j][:], d.Bytes(counter.KeyBytes))
		}
	}
	if d.End("token") != nil {
		return nil, errToken
	}
	if kind != want {
		return nil, errKind[kind]
	}
	return holds, nil
}

func (h *held) settle(mode counter.SettleMode, actual uint32) fsm.Call {
	q := counter.SettleRequest{ID: h.id, Mode: mode, Actual: actual, Keys: h.keys}
	return fsm.Call{Type: counter.TypeID, Op: counter.OpSettle, Body: q.Append(nil)}
}
