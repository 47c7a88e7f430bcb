package client

import (
	"errors"
	"fmt"
	"math"
	"unsafe"

	vtstruct "github.com/planetscale/vtprotobuf/types/known/structpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/structpb"
)

// object makes a message of values as in JSON.
func object(what string, m map[string]any) (*structpb.Struct, error) {
	if m == nil {
		return nil, nil
	}
	o, err := structpb.NewStruct(m)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrInvalid, what, err)
	}
	return o, nil
}

// values is the other way round.
func values(o *structpb.Struct) map[string]any {
	if o == nil {
		return nil
	}
	return o.AsMap()
}

// encodedObject is the encoding of what object makes, nothing for nothing.
func encodedObject(what string, m map[string]any) ([]byte, error) {
	o, err := object(what, m)
	if o == nil || err != nil {
		return nil, err
	}
	return (*vtstruct.Struct)(o).MarshalVT()
}

// decodeObject is the other way round: nil for nothing. It makes no messages on the way, as every validation comes through
// here, and its texts are parts of b, which must not change any more.
func decodeObject(b []byte) (map[string]any, error) {
	if len(b) == 0 {
		return nil, nil
	}
	m, err := decodeFields(b, maxNested)
	if err != nil {
		return nil, fmt.Errorf("holdfast: unreadable answer: %w", err)
	}
	return m, nil
}

// maxNested bounds how deep values may be in values. Nodes allow less.
const maxNested = 64

var errDepth = errors.New("values in values in values")

// The fields of google.protobuf.Struct, its entries, google.protobuf.Value and ListValue; see struct.proto.
const (
	structEntry = 1
	entryName   = 1
	entryValue  = 2
	listElement = 1

	valueNull   = 1
	valueNumber = 2
	valueText   = 3
	valueBool   = 4
	valueStruct = 5
	valueList   = 6
)

// valueTypes are how a Value's fields are encoded.
var valueTypes = [...]protowire.Type{
	valueNull: protowire.VarintType, valueNumber: protowire.Fixed64Type, valueText: protowire.BytesType,
	valueBool: protowire.VarintType, valueStruct: protowire.BytesType, valueList: protowire.BytesType,
}

// field is one of a message: v if it is of bytes, else n.
type field struct {
	number protowire.Number
	typ    protowire.Type
	v      []byte
	n      uint64
}

// next takes the first field off a message. What this version does not know has no number, and is to be passed over.
func next(b []byte) (f field, rest []byte, err error) {
	number, typ, n := protowire.ConsumeTag(b)
	if n < 0 {
		return f, nil, protowire.ParseError(n)
	}
	f.number, f.typ, b = number, typ, b[n:]
	switch typ {
	case protowire.BytesType:
		f.v, n = protowire.ConsumeBytes(b)
	case protowire.VarintType:
		f.n, n = protowire.ConsumeVarint(b)
	case protowire.Fixed64Type:
		f.n, n = protowire.ConsumeFixed64(b)
	default:
		f.number, n = 0, protowire.ConsumeFieldValue(number, typ, b)
	}
	if n < 0 {
		return f, nil, protowire.ParseError(n)
	}
	return f, b[n:], nil
}

// nextBytes is next for messages that know fields of bytes only.
func nextBytes(b []byte) (f field, rest []byte, err error) {
	if f, rest, err = next(b); f.typ != protowire.BytesType {
		f.number = 0
	}
	return f, rest, err
}

// text is b as a text, without a copy.
func text(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

func decodeFields(b []byte, depth int) (map[string]any, error) {
	m := make(map[string]any)
	for len(b) > 0 {
		f, rest, err := nextBytes(b)
		if err != nil {
			return nil, err
		}
		if b = rest; f.number != structEntry {
			continue
		}
		name, value, err := decodeEntry(f.v, depth)
		if err != nil {
			return nil, err
		}
		m[name] = value
	}
	return m, nil
}

func decodeEntry(b []byte, depth int) (name string, value any, err error) {
	for len(b) > 0 {
		f, rest, err := nextBytes(b)
		if err != nil {
			return "", nil, err
		}
		switch b = rest; f.number {
		case entryName:
			name = text(f.v)
		case entryValue:
			if value, err = decodeValue(f.v, depth); err != nil {
				return "", nil, err
			}
		}
	}
	return name, value, nil
}

func decodeValue(b []byte, depth int) (value any, err error) {
	if depth == 0 {
		return nil, errDepth
	}
	for len(b) > 0 {
		f, rest, err := next(b)
		if err != nil {
			return nil, err
		}
		if b = rest; int(f.number) >= len(valueTypes) || f.typ != valueTypes[f.number] {
			continue
		}
		switch f.number {
		case valueNull:
			value = nil
		case valueNumber:
			value = math.Float64frombits(f.n)
		case valueText:
			value = text(f.v)
		case valueBool:
			value = protowire.DecodeBool(f.n)
		case valueStruct:
			value, err = decodeFields(f.v, depth-1)
		case valueList:
			value, err = decodeList(f.v, depth-1)
		}
		if err != nil {
			return nil, err
		}
	}
	return value, nil
}

func decodeList(b []byte, depth int) ([]any, error) {
	list := []any{}
	for len(b) > 0 {
		f, rest, err := nextBytes(b)
		if err != nil {
			return nil, err
		}
		if b = rest; f.number != listElement {
			continue
		}
		v, err := decodeValue(f.v, depth)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, nil
}
