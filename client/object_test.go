package client

import (
	"errors"
	"reflect"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

// Values come back as the library decodes them.
func TestValuesComeBackAsTheyWere(t *testing.T) {
	for name, m := range map[string]map[string]any{
		"nothing": nil,
		"one":     {"name": "phone"},
		"all kinds": {
			"": "no name", "null": nil, "true": true, "false": false, "zero": 0.0, "number": -1.5e300, "text": "é",
			"list": []any{}, "struct": map[string]any{}, "deep": []any{map[string]any{"x": []any{1.0, nil, "y"}}},
		},
	} {
		b, err := encodedObject("device", m)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := decodeObject(b); err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// Whatever a node sends, nothing breaks; and what a node made of what it got, is decoded as the library does: also with
// fields in it that nobody knows yet.
func FuzzValues(f *testing.F) {
	for _, m := range []map[string]any{{"a": 1, "b": []any{true, nil}}, {"c": map[string]any{"d": "e"}}} {
		b, err := encodedObject("device", m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(protowire.AppendVarint(protowire.AppendTag(b, 9, protowire.VarintType), 1))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = decodeObject(b)
		var want structpb.Struct
		if proto.Unmarshal(b, &want) != nil {
			return
		}
		made, err := proto.Marshal(&want)
		if err != nil || len(made) == 0 {
			return
		}
		got, err := decodeObject(made)
		if errors.Is(err, errDepth) {
			return
		}
		if err != nil || !sameValues(got, want.AsMap()) {
			t.Errorf("%x: %v, the library has %v (%v)", made, got, want.AsMap(), err)
		}
	})
}

// sameValues also takes numbers that are none for equal.
func sameValues(a, b any) bool {
	switch a := a.(type) {
	case float64:
		b, ok := b.(float64)
		return ok && (a == b || a != a && b != b)
	case map[string]any:
		m, ok := b.(map[string]any)
		if !ok || len(a) != len(m) {
			return false
		}
		for name, v := range a {
			if w, there := m[name]; !there || !sameValues(v, w) {
				return false
			}
		}
		return true
	case []any:
		l, ok := b.([]any)
		if !ok || len(a) != len(l) {
			return false
		}
		for i := range a {
			if !sameValues(a[i], l[i]) {
				return false
			}
		}
		return true
	}
	return reflect.DeepEqual(a, b)
}
