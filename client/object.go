package client

import (
	"fmt"

	vtstruct "github.com/planetscale/vtprotobuf/types/known/structpb"
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

// decodeObject is the other way round.
func decodeObject(b []byte) (map[string]any, error) {
	if len(b) == 0 {
		return nil, nil
	}
	var o vtstruct.Struct
	if err := o.UnmarshalVT(b); err != nil {
		return nil, fmt.Errorf("holdfast: unreadable answer: %w", err)
	}
	return (*structpb.Struct)(&o).AsMap(), nil
}
