package counter

import (
	"errors"
	"reflect"
	"testing"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/fsmtest"
	"github.com/holdfastdb/holdfast/storage/wire"
)

type codec = fsmtest.Codec[encoder]

// requestCodec is for requests, which decode themselves.
func requestCodec[Q any, P interface {
	*Q
	encoder
	Decode([]byte) error
}](samples map[string]encoder) codec {
	return codec{Decode: func(b []byte) (encoder, error) {
		q := P(new(Q))
		err := q.Decode(b)
		return q, err
	}, Samples: samples}
}

func resultCodec[R any, P interface {
	*R
	encoder
}](decode func([]byte) (R, error), samples map[string]encoder) codec {
	return codec{Decode: func(b []byte) (encoder, error) {
		r, err := decode(b)
		return P(&r), err
	}, Samples: samples}
}

var sampleLimits = []Limit{
	{Key{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, 7, false, Params{TokenBucket, 100, 60_000, 250, None}},
	{Key{0xff}, 1<<32 - 1, true, Params{FixedWindow, MaxRate, 1, 0, Month}},
	{Key{0xaa}, 0, false, Params{Concurrency, MaxListed, MaxWindow, 0, None}},
}

var sampleState = TakeResult{Hold: 1<<40 + 3, Limits: []LimitResult{
	{Policy: 7, Remaining: 12, Used: 88, ResetIn: 5000},
	{Policy: 8, Denied: true, Shadow: true, Used: 1<<32 - 1, ResetIn: MaxWindow, RetryIn: 1},
	{Policy: 9, Denied: true, RetryIn: -1},
}}

func codecs() map[string]codec {
	take := TakeRequest{300, sampleLimits}
	return map[string]codec{
		"take_request": requestCodec[TakeRequest](map[string]encoder{
			"one": &TakeRequest{1, sampleLimits[:1]}, "several": &take,
		}),
		"reserve_request": requestCodec[ReserveRequest](map[string]encoder{
			"made":  &ReserveRequest{TTL: 1, TakeRequest: take},
			"named": &ReserveRequest{ID: 1<<64 - 1, TTL: MaxReserve, TakeRequest: take},
		}),
		"settle_request": requestCodec[SettleRequest](map[string]encoder{
			"confirm": &SettleRequest{ID: 300, Mode: Confirm, Keys: []Key{{1}}},
			"charge":  &SettleRequest{ID: 1 << 63, Mode: Charge, Actual: 1<<32 - 1, Keys: []Key{{1}, {2}}},
		}),
		"lease_request": requestCodec[LeaseRequest](map[string]encoder{
			"grant":   &LeaseRequest{50, MaxLease, []LeaseReturn{}, sampleLimits},
			"returns": &LeaseRequest{0, 1, []LeaseReturn{{300, 4}, {1 << 63, 1<<32 - 1}}, sampleLimits[:1]},
		}),
		"reset_request": requestCodec[ResetRequest](map[string]encoder{
			"two": &ResetRequest{[]Key{{1}, sampleLimits[0].Key}},
		}),
		"take_result": resultCodec(DecodeTakeResult, map[string]encoder{
			"allowed": &TakeResult{Allowed: true, Limits: sampleState.Limits[:1]}, "denied": &sampleState,
		}),
		"settle_result": resultCodec(DecodeSettleResult, map[string]encoder{
			"nothing": &SettleResult{}, "both": &SettleResult{Refunded: 300, Charged: 1<<32 - 1},
		}),
		"lease_result": resultCodec(DecodeLeaseResult, map[string]encoder{
			"refused": &LeaseResult{State: sampleState},
			"granted": &LeaseResult{Leasable: true, ID: 1 << 50, Granted: 128, TTL: MaxLease, State: sampleState},
		}),
		"reset_result": resultCodec(DecodeResetResult, map[string]encoder{"two": &ResetResult{2}}),
		"row":          {Decode: decodeAnyRow, Samples: sampleRows()},
	}
}

func decodeAnyRow(b []byte) (encoder, error) {
	r, err := decodeRow(b)
	return r, err
}

func sampleRows() map[string]encoder {
	states := map[Algorithm]state{
		TokenBucket:   &tokenBucket{window: 60_000, rate: 100, level: -42, at: epoch},
		SlidingWindow: &slidingWindow{window: 60_000, start: epoch - epoch%60_000, prev: 300, cur: 4},
		SlidingLog:    &slidingLog{window: 1000, entries: []logged{{epoch - 900, 3}, {epoch, 300}}, sum: 303},
		FixedWindow:   &fixedWindow{start: epoch - 123, count: 5},
		LeakyBucket:   &leakyBucket{window: 60_000, rate: 100, ahead: 1 << 40, at: epoch},
		Concurrency:   &concurrency{inUse: 3},
	}
	holds := []hold{
		{reserved, 7, 1, epoch, epoch + 1000}, {leased, 1 << 63, 300, epoch + 2000, epoch + 2000},
	}
	rows := map[string]encoder{
		"reset":      &row{expires: epoch, stored: true},
		"with_lease": &row{expires: epoch + 2000, stored: true, holds: holds[1:]},
	}
	for a, st := range states {
		rows[a.String()] = &row{alg: a, st: st, expires: epoch + 60_000, stored: true}
	}
	rows["token_bucket_with_holds"] = &row{alg: TokenBucket, st: states[TokenBucket], expires: epoch + 60_000, stored: true, holds: holds}
	rows["concurrency_with_slot"] = &row{alg: Concurrency, st: states[Concurrency], expires: epoch + 60_000, stored: true, holds: []hold{{slot, 9, 3, epoch, epoch + 60_000}}}
	return rows
}

func TestGolden(t *testing.T) { fsmtest.Golden(t, codecs()) }

func TestTruncatedAndTrailing(t *testing.T) { fsmtest.Truncated(t, codecs()) }

func TestRequestsOutOfBounds(t *testing.T) {
	many := make([]Limit, MaxLimits+1)
	for i := range many {
		many[i] = limit(byte(i), params(TokenBucket, 1, 1))
	}
	invalid := limit(1, Params{Algorithm: TokenBucket, Rate: 1, Window: 1})
	tests := map[string]struct{ q, into encoder }{
		"no limits":        {&TakeRequest{Weight: 1}, &TakeRequest{}},
		"too many limits":  {&TakeRequest{1, many}, &TakeRequest{}},
		"invalid rules":    {&TakeRequest{1, []Limit{invalid}}, &TakeRequest{}},
		"no TTL":           {&ReserveRequest{TakeRequest: TakeRequest{1, many[:1]}}, &ReserveRequest{}},
		"long TTL":         {&ReserveRequest{TTL: MaxReserve + 1, TakeRequest: TakeRequest{1, many[:1]}}, &ReserveRequest{}},
		"no lease TTL":     {&LeaseRequest{Limits: many[:1]}, &LeaseRequest{}},
		"long lease TTL":   {&LeaseRequest{TTL: MaxLease + 1, Limits: many[:1]}, &LeaseRequest{}},
		"too many returns": {&LeaseRequest{TTL: 1, Returns: make([]LeaseReturn, MaxReturns+1), Limits: many[:1]}, &LeaseRequest{}},
		"no mode":          {&SettleRequest{Keys: []Key{{}}}, &SettleRequest{}},
		"unknown mode":     {&SettleRequest{Mode: 3, Keys: []Key{{}}}, &SettleRequest{}},
		"no keys":          {&SettleRequest{Mode: Confirm}, &SettleRequest{}},
		"too many keys":    {&ResetRequest{make([]Key, MaxLimits+1)}, &ResetRequest{}},
	}
	for name, test := range tests {
		err := test.into.(interface{ Decode([]byte) error }).Decode(test.q.Append(nil))
		if !errors.Is(err, wire.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestValidate(t *testing.T) {
	good := []Params{
		bucket(1, 1, 1), bucket(MaxRate, MaxRate, 1000), bucket(1, 1, MaxWindow), params(LeakyBucket, 5, 5),
		params(FixedWindow, MaxRate, 1000), params(SlidingLog, MaxListed, MaxWindow), params(Concurrency, MaxListed, 1),
		{FixedWindow, 1, 1, 0, Year}, {FixedWindow, MaxRate, MaxWindow, 0, Year}, params(SlidingWindow, MaxRate, MaxWindow),
	}
	for _, p := range good {
		if err := p.Validate(); err != nil {
			t.Errorf("%+v: %v", p, err)
		}
	}
	bad := []Params{
		{}, {Algorithm: 7, Rate: 1, Window: 1}, params(FixedWindow, 0, 1), params(FixedWindow, MaxRate+1, 1),
		params(FixedWindow, 1, 0), params(FixedWindow, 1, -1), params(FixedWindow, 1, MaxWindow+1),
		params(SlidingLog, MaxListed+1, 1), params(Concurrency, MaxListed+1, 1), bucket(1, 0, 1), bucket(1, MaxRate+1, 1),
		{TokenBucket, 1, 1, 1, Day}, {FixedWindow, 1, 1, 0, 7}, bucket(1, MaxRate, MaxWindow), bucket(MaxRate, 1, MaxWindow),
		{LeakyBucket, MaxRate, MaxWindow, 1, None},
	}
	for _, p := range bad {
		if p.Validate() == nil {
			t.Errorf("%+v passes", p)
		}
	}
}

func TestAlgorithmNames(t *testing.T) {
	names := Algorithms()
	if len(names) != len(everyAlgorithm) {
		t.Fatalf("%q", names)
	}
	for _, a := range everyAlgorithm {
		if got, ok := ParseAlgorithm(a.String()); !ok || got != a {
			t.Errorf("%s is parsed as %v, %v", a, got, ok)
		}
	}
	for _, name := range []string{"", "fixed", "algorithm(9)"} {
		if a, ok := ParseAlgorithm(name); ok {
			t.Errorf("%q is parsed as %v", name, a)
		}
	}
	if got := Algorithm(9).String(); got != "algorithm(9)" {
		t.Errorf("unknown algorithm: %q", got)
	}
}

func fuzz(f *testing.F, kind string) {
	fsmtest.Fuzz(f, codecs()[kind], func(e encoder) {
		if r, ok := e.(*row); ok {
			exercise(r)
		}
	})
}

// exercise runs a stored row through a request of each algorithm: whatever is stored, nothing may panic.
func exercise(r *row) {
	for _, a := range everyAlgorithm {
		again, err := decodeRow(r.Append(nil))
		if err != nil {
			return
		}
		d := deal{now: epoch, limits: []Limit{limit(1, params(a, 3, 1000))}}
		d.rows[0] = again.(*row)
		d.take(&TakeResult{}, 1, 1, nil)
	}
}

func FuzzTakeRequest(f *testing.F)    { fuzz(f, "take_request") }
func FuzzReserveRequest(f *testing.F) { fuzz(f, "reserve_request") }
func FuzzSettleRequest(f *testing.F)  { fuzz(f, "settle_request") }
func FuzzLeaseRequest(f *testing.F)   { fuzz(f, "lease_request") }
func FuzzResetRequest(f *testing.F)   { fuzz(f, "reset_request") }
func FuzzTakeResult(f *testing.F)     { fuzz(f, "take_result") }
func FuzzSettleResult(f *testing.F)   { fuzz(f, "settle_result") }
func FuzzLeaseResult(f *testing.F)    { fuzz(f, "lease_result") }
func FuzzResetResult(f *testing.F)    { fuzz(f, "reset_result") }
func FuzzRow(f *testing.F)            { fuzz(f, "row") }

var _ fsm.Row = (*row)(nil)

// Room is memory that was used before: nothing of what stood there may show.
func TestDecodeTakeResultIntoForgetsWhatWasThere(t *testing.T) {
	want := TakeResult{Allowed: true, Limits: []LimitResult{{Policy: 1, Remaining: 4, Used: 1, ResetIn: 9}}}
	dirty := LimitResult{Policy: 7, Denied: true, Shadow: true, Remaining: 7, Used: 7, ResetIn: 7, RetryIn: 7}
	for name, room := range map[string][]LimitResult{"no room": nil, "enough": {dirty}, "more": {dirty, dirty}} {
		got, err := DecodeTakeResultInto(want.Append(nil), room)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, want)
		}
		if len(room) > 0 && &got.Limits[0] != &room[0] {
			t.Errorf("%s: it is not used", name)
		}
	}
}
