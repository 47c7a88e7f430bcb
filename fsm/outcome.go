package fsm

import (
	"encoding/binary"
	"fmt"

	"github.com/holdfastdb/holdfast/storage/wire"
)

// Outcome is what applying one log entry gave.
type Outcome struct {
	Index  uint64
	Time   Time
	Frames []FrameOutcome
	// Events are what the entry's commands emitted.
	Events []Event
}

// Event is something that a command tells those who watch its shard.
type Event struct {
	Type uint8
	Body []byte
}

// FrameOutcome answers one frame.
type FrameOutcome struct {
	// Code is OK when the frame was executed, now or before; otherwise it had no effect and Message says why.
	Code    Code
	Message string
	// Replayed tells that the results are those of an earlier execution.
	Replayed bool
	// Index and Time are those of the execution.
	Index   uint64
	Time    Time
	Results []Result
}

// Err returns the frame's refusal as an error, nil when it was executed.
func (o *FrameOutcome) Err() error {
	if o.Code == OK {
		return nil
	}
	return &Error{Code: o.Code, Message: o.Message}
}

// AppendFrameOutcome appends the encoding in which nodes forward outcomes to each other.
func AppendFrameOutcome(dst []byte, o *FrameOutcome) []byte {
	replayed := byte(0)
	if o.Replayed {
		replayed = 1
	}
	dst = append(dst, byte(o.Code), replayed)
	dst = binary.AppendUvarint(dst, o.Index)
	dst = binary.AppendVarint(dst, int64(o.Time))
	dst = binary.AppendUvarint(dst, uint64(len(o.Message)))
	dst = append(dst, o.Message...)
	return AppendResults(dst, o.Results)
}

// DecodeFrameOutcome parses what AppendFrameOutcome wrote and returns the rest of b, which the results alias.
func DecodeFrameOutcome(b []byte) (FrameOutcome, []byte, error) {
	d := wire.NewDecoder(b)
	o := FrameOutcome{Code: Code(d.Byte()), Replayed: d.Byte() == 1, Index: d.Uvarint(), Time: Time(d.Varint())}
	o.Message = string(d.Bytes(d.Count(1)))
	o.Results = decodeResults(&d)
	if d.Bad() {
		return FrameOutcome{}, nil, fmt.Errorf("%w: frame outcome", ErrCorrupt)
	}
	return o, d.Rest(), nil
}

// AppendResults appends the encoding of results: their number, then code, length and body of each.
func AppendResults(dst []byte, results []Result) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(results)))
	for _, r := range results {
		dst = append(dst, byte(r.Code))
		dst = binary.AppendUvarint(dst, uint64(len(r.Body)))
		dst = append(dst, r.Body...)
	}
	return dst
}

// DecodeResults parses what AppendResults wrote and nothing more. The bodies alias b.
func DecodeResults(b []byte) ([]Result, error) {
	d := wire.NewDecoder(b)
	results := decodeResults(&d)
	return results, d.End("results")
}

func decodeResults(d *wire.Decoder) []Result {
	n := d.Count(2)
	if n == 0 {
		return nil
	}
	results := make([]Result, n)
	for i := range results {
		results[i].Code = Code(d.Byte())
		results[i].Body = d.Bytes(d.Count(1))
	}
	return results
}
