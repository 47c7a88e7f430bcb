package session

import (
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/fsmtest"
	"github.com/holdfastdb/holdfast/storage/wire"
)

type codec = fsmtest.Codec[encoder]

// message is what decodes itself: requests and answers.
func message[Q any, P interface {
	*Q
	encoder
	decoder
}](samples map[string]encoder) codec {
	return codec{Decode: func(b []byte) (encoder, error) {
		q := P(new(Q))
		err := q.Decode(b)
		return q, err
	}, Samples: samples}
}

func stored(decode func([]byte) (fsm.Row, error), samples map[string]encoder) codec {
	return codec{Decode: func(b []byte) (encoder, error) {
		r, err := decode(b)
		return r, err
	}, Samples: samples}
}

type endedCodec struct{ ended }

func (e *endedCodec) Append(dst []byte) []byte { return e.append(dst) }

type eventCodec struct{ Event }

func (e *eventCodec) Append(dst []byte) []byte { return e.append(dst) }

var (
	sampleKey  = Key{UserKey{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}, 1<<40 + 3}
	sampleHash = Hash{0xaa, 1, 31: 0xff}
	otherHash  = Hash{0xbb, 2, 31: 0xee}
	sampleInfo = Info{
		Session: sampleKey, Verdict: StepUp, Kind: Mobile, Flagged: true, StepUp: true, Created: epoch, Seen: epoch + 5,
		Until: epoch + 1000, RefreshUntil: epoch + 100_000, Idle: MaxLife, Group: 1 << 63, Profile: []byte("sealed"),
		Version: 300, Attributes: []byte("also sealed"),
	}
	emptyInfo = Info{Verdict: UnknownToken, Profile: []byte{}, Attributes: []byte{}}
)

func codecs() map[string]codec {
	codecs := map[string]codec{
		"event": {Decode: func(b []byte) (encoder, error) {
			e, err := DecodeEvent(b)
			return &eventCodec{e}, err
		}, Samples: map[string]encoder{
			"ended":  &eventCodec{Event{Kind: EventEnded, Session: sampleKey, Reason: Reused}},
			"marked": &eventCodec{Event{Kind: EventMarked, Session: sampleKey, Mark: Burst}},
		}},
		"row_session": stored(decodeRow, map[string]encoder{
			"plain": &row{kind: Web, created: epoch, seen: epoch, life: day, until: epoch + fsm.Time(day), issued: epoch, access: ring{now: []Hash{sampleHash}}},
			"whole": &row{
				kind: API, flagged: true, stepUp: true, created: epoch, seen: epoch + 300, idle: minute, life: hour, until: epoch + 5, issued: epoch + 200,
				access: ring{[]Hash{sampleHash, otherHash}, []Hash{otherHash}, epoch + 7}, device: 1 << 63, group: 5, profile: []byte("sealed"),
				refreshUntil: epoch + fsm.Time(day), family: otherHash, refresh: ring{[]Hash{otherHash}, []Hash{sampleHash, otherHash}, epoch + 9},
			},
		}),
		"row_user": stored(decodeUserRow, map[string]encoder{
			"live": &user{live: []entry{{1 << 40, 1 << 63}, {1<<40 + 1, 0}}, ended: []uint64{}},
			"both": &user{live: []entry{{300, 4}}, ended: []uint64{7, 5}},
		}),
		"row_counts": stored(decodeCounts, map[string]encoder{
			"some": &counts{active: [4]uint64{0, 1, 2, 300}, created: [4]uint64{0, 4, 5, 1 << 40}, ended: [9]uint64{0, 7, 8, 9, 10, 11, 12, 13, 14}},
		}),
		"row_ended": {Decode: func(b []byte) (encoder, error) {
			e, err := decodeEnded(b)
			return &endedCodec{e}, err
		}, Samples: map[string]encoder{
			"some": &endedCodec{ended{Mobile, Evicted, epoch, epoch + 300, epoch + 70_000, [8]byte{1, 7: 8}, []byte("sealed")}},
		}},
		"row_saved": stored(decodeSaved, map[string]encoder{
			"alive": &saved{until: epoch + 5, sealed: []byte("sealed")},
			"dead":  &saved{dead: true, until: epoch},
		}),
	}
	for kind, c := range requests() {
		codecs[kind] = c
	}
	for kind, c := range answers() {
		codecs[kind] = c
	}
	return codecs
}

func requests() map[string]codec {
	return map[string]codec{
		"create_request": message[CreateRequest](map[string]encoder{
			"plain": &CreateRequest{User: sampleKey.User, Kind: Web, Life: 1, Access: sampleHash, Profile: []byte{}, Attributes: []byte{}},
			"whole": &CreateRequest{
				User: sampleKey.User, Kind: API, Idle: MaxLife, Life: MaxLife, Access: sampleHash, Device: 1 << 63, Group: 7,
				Profile: []byte("sealed"), Attributes: []byte("also sealed"), RefreshLife: MaxLife, Family: otherHash, Refresh: sampleHash,
				Sessions: 300, Devices: 1<<32 - 1, Evict: true,
			},
		}),
		"reissue_request": message[ReissueRequest](map[string]encoder{"both": &ReissueRequest{sampleKey, epoch, sampleHash, otherHash}}),
		"touch_request": message[TouchRequest](map[string]encoder{
			"two": &TouchRequest{[]Use{{sampleKey, epoch}, {Key{Number: 1}, -1}}},
		}),
		"refresh_request": message[RefreshRequest](map[string]encoder{
			"one": &RefreshRequest{sampleKey, sampleHash, otherHash, Hash{1}, Hash{2}},
		}),
		"rotate_request": message[RotateRequest](map[string]encoder{
			"plain": &RotateRequest{sampleKey, sampleHash, otherHash, false}, "proved": &RotateRequest{sampleKey, sampleHash, otherHash, true},
		}),
		"logout_request": message[LogoutRequest](map[string]encoder{
			"session": &LogoutRequest{sampleKey, sampleHash, ThisSession}, "all": &LogoutRequest{sampleKey, sampleHash, Everywhere},
		}),
		"revoke_request": message[RevokeRequest](map[string]encoder{"two": &RevokeRequest{Revoked, []Key{sampleKey, {}}}}),
		"revoke_user_request": message[RevokeUserRequest](map[string]encoder{
			"all": &RevokeUserRequest{User: sampleKey.User, Reason: LoggedOut}, "some": &RevokeUserRequest{sampleKey.User, Erased, 1 << 40, 1 << 63},
		}),
		"purge_user_request": message[PurgeUserRequest](map[string]encoder{"one": &PurgeUserRequest{sampleKey.User}}),
		"set_attributes_request": message[SetAttributesRequest](map[string]encoder{
			"some": &SetAttributesRequest{sampleKey, 300, []byte("sealed")},
		}),
		"mark_request": message[MarkRequest](map[string]encoder{
			"end":     &MarkRequest{sampleKey, Burst, EndSession, []byte{}},
			"profile": &MarkRequest{sampleKey, NetworkChanged, Flag, []byte("sealed")},
		}),
		"save_request":       message[SaveRequest](map[string]encoder{"one": &SaveRequest{sampleHash, epoch, []byte("sealed")}}),
		"drop_request":       message[DropRequest](map[string]encoder{"one": &DropRequest{sampleHash}}),
		"validate_request":   message[ValidateRequest](map[string]encoder{"one": &ValidateRequest{sampleKey, sampleHash, true}}),
		"get_request":        message[GetRequest](map[string]encoder{"one": &GetRequest{sampleKey}}),
		"list_request":       message[ListRequest](map[string]encoder{"one": &ListRequest{sampleKey.User}}),
		"scan_request":       message[ScanRequest](map[string]encoder{"one": &ScanRequest{sampleKey, MaxScan}}),
		"counts_request":     message[CountsRequest](map[string]encoder{"one": &CountsRequest{}}),
		"scan_saved_request": message[ScanSavedRequest](map[string]encoder{"one": &ScanSavedRequest{sampleHash, 1}}),
	}
}

func answers() map[string]codec {
	return map[string]codec{
		"create_result": message[CreateResult](map[string]encoder{"one": &CreateResult{sampleKey, epoch, epoch + 5, 300}}),
		"done":          message[Done](map[string]encoder{"found": &Done{true}, "missing": &Done{}}),
		"count":         message[Count](map[string]encoder{"many": &Count{1<<32 - 1}}),
		"version":       message[Version](map[string]encoder{"one": &Version{1<<64 - 1}}),
		"logout_result": message[LogoutResult](map[string]encoder{
			"ended": &LogoutResult{Valid, Count{300}}, "unknown": &LogoutResult{Verdict: UnknownToken},
		}),
		"refresh_result": message[RefreshResult](map[string]encoder{
			"valid":  &RefreshResult{Verdict: Valid, Until: epoch, RefreshUntil: epoch + 5},
			"reused": &RefreshResult{Verdict: ReusedToken},
		}),
		"info": message[Info](map[string]encoder{"whole": &sampleInfo, "unknown": &emptyInfo}),
		"infos": message[Infos](map[string]encoder{
			"none": &Infos{List: []Info{}}, "more": &Infos{List: []Info{sampleInfo, emptyInfo}, More: true, Next: sampleKey},
		}),
		"saved": message[Saved](map[string]encoder{"one": &Saved{true, sampleHash, epoch, []byte("sealed")}}),
		"saved_list": message[SavedList](map[string]encoder{
			"none": &SavedList{List: []Saved{}},
			"more": &SavedList{[]Saved{{true, sampleHash, epoch, []byte("sealed")}, {true, otherHash, epoch, []byte{}}}, true, otherHash},
		}),
	}
}

func TestGolden(t *testing.T) { fsmtest.Golden(t, codecs()) }

// Every key that is stored, by its own golden file: the names of keys are a format, too.
func TestGoldenKeys(t *testing.T) {
	var got []string
	for _, key := range [][]byte{
		sampleKey.under(prefixSession), sampleKey.User.under(prefixUser), sampleKey.under(prefixAttributes),
		sampleKey.under(prefixEnded), sampleHash.under(prefixSaved), []byte(keyCounts),
	} {
		got = append(got, hex.EncodeToString(key))
	}
	fsmtest.GoldenFile(t, "keys.hex", strings.Join(got, "\n")+"\n")
	if k := DecodeKey(sampleKey.Append(nil)); k != sampleKey {
		t.Errorf("%+v is read as %+v", sampleKey, k)
	}
}

func TestAttributesAreWrittenAsEver(t *testing.T) {
	b := appendVersioned(nil, 300, []byte("sealed"))
	if got := hex.EncodeToString(b); got != "ac02067365616c6564" {
		t.Errorf("version 300 is written as %s", got)
	}
}

func TestTruncatedAndTrailing(t *testing.T) { fsmtest.Truncated(t, codecs()) }

func TestRequestsOutOfBounds(t *testing.T) {
	tests := map[string]struct {
		q    encoder
		into decoder
	}{
		"too many uses":       {&TouchRequest{make([]Use, MaxTouch+1)}, &TouchRequest{}},
		"too many sessions":   {&RevokeRequest{LoggedOut, make([]Key, MaxRevoke+1)}, &RevokeRequest{}},
		"no reason":           {&RevokeRequest{0, nil}, &RevokeRequest{}},
		"unknown reason":      {&RevokeRequest{reasons + 1, nil}, &RevokeRequest{}},
		"no reason for all":   {&RevokeUserRequest{}, &RevokeUserRequest{}},
		"many attributes":     {&SetAttributesRequest{Sealed: make([]byte, MaxAttributes+1)}, &SetAttributesRequest{}},
		"no sign":             {&MarkRequest{Act: Flag}, &MarkRequest{}},
		"unknown sign":        {&MarkRequest{Sign: TwoNetworks + 1, Act: Flag}, &MarkRequest{}},
		"unknown scope":       {&LogoutRequest{Scope: Everywhere + 1}, &LogoutRequest{}},
		"no act":              {&MarkRequest{Sign: Burst}, &MarkRequest{}},
		"unknown act":         {&MarkRequest{Sign: Burst, Act: EndSession + 1}, &MarkRequest{}},
		"much profile":        {&MarkRequest{Sign: Burst, Act: Flag, Profile: make([]byte, MaxProfile+1)}, &MarkRequest{}},
		"much content, saved": {&SaveRequest{Sealed: make([]byte, MaxSaved+1)}, &SaveRequest{}},
	}
	for name, test := range tests {
		if err := test.into.Decode(test.q.Append(nil)); !errors.Is(err, wire.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func fuzz(f *testing.F, kind string) {
	fsmtest.Fuzz(f, codecs()[kind], func(e encoder) {
		switch r := e.(type) {
		case *row:
			exercise(r)
		case *user:
			r.excess(1, 2, 3)
		}
	})
}

// exercise asks and changes a stored session: whatever is stored, nothing may panic.
func exercise(r *row) {
	r.over(epoch)
	r.judge(&sampleHash, epoch)
	i := r.info(sampleKey)
	i.Append(nil)
	r.refresh.rotate(sampleHash, epoch)
	r.access.add(sampleHash)
	r.refresh.forget(epoch)
	r.access.forget(epoch + fsm.Time(Grace))
	r.Append(nil)
}

func FuzzCreateRequest(f *testing.F)        { fuzz(f, "create_request") }
func FuzzReissueRequest(f *testing.F)       { fuzz(f, "reissue_request") }
func FuzzTouchRequest(f *testing.F)         { fuzz(f, "touch_request") }
func FuzzRefreshRequest(f *testing.F)       { fuzz(f, "refresh_request") }
func FuzzRotateRequest(f *testing.F)        { fuzz(f, "rotate_request") }
func FuzzLogoutRequest(f *testing.F)        { fuzz(f, "logout_request") }
func FuzzRevokeRequest(f *testing.F)        { fuzz(f, "revoke_request") }
func FuzzRevokeUserRequest(f *testing.F)    { fuzz(f, "revoke_user_request") }
func FuzzPurgeUserRequest(f *testing.F)     { fuzz(f, "purge_user_request") }
func FuzzSetAttributesRequest(f *testing.F) { fuzz(f, "set_attributes_request") }
func FuzzMarkRequest(f *testing.F)          { fuzz(f, "mark_request") }
func FuzzSaveRequest(f *testing.F)          { fuzz(f, "save_request") }
func FuzzDropRequest(f *testing.F)          { fuzz(f, "drop_request") }
func FuzzValidateRequest(f *testing.F)      { fuzz(f, "validate_request") }
func FuzzGetRequest(f *testing.F)           { fuzz(f, "get_request") }
func FuzzListRequest(f *testing.F)          { fuzz(f, "list_request") }
func FuzzScanRequest(f *testing.F)          { fuzz(f, "scan_request") }
func FuzzCountsRequest(f *testing.F)        { fuzz(f, "counts_request") }
func FuzzScanSavedRequest(f *testing.F)     { fuzz(f, "scan_saved_request") }
func FuzzCreateResult(f *testing.F)         { fuzz(f, "create_result") }
func FuzzDone(f *testing.F)                 { fuzz(f, "done") }
func FuzzCount(f *testing.F)                { fuzz(f, "count") }
func FuzzVersion(f *testing.F)              { fuzz(f, "version") }
func FuzzLogoutResult(f *testing.F)         { fuzz(f, "logout_result") }
func FuzzRefreshResult(f *testing.F)        { fuzz(f, "refresh_result") }
func FuzzInfo(f *testing.F)                 { fuzz(f, "info") }
func FuzzInfos(f *testing.F)                { fuzz(f, "infos") }
func FuzzSaved(f *testing.F)                { fuzz(f, "saved") }
func FuzzSavedList(f *testing.F)            { fuzz(f, "saved_list") }
func FuzzEvent(f *testing.F)                { fuzz(f, "event") }
func FuzzRowSession(f *testing.F)           { fuzz(f, "row_session") }
func FuzzRowUser(f *testing.F)              { fuzz(f, "row_user") }
func FuzzRowCounts(f *testing.F)            { fuzz(f, "row_counts") }
func FuzzRowEnded(f *testing.F)             { fuzz(f, "row_ended") }
func FuzzRowSaved(f *testing.F)             { fuzz(f, "row_saved") }
