package check

import "testing"

func TestReplicasAgree(t *testing.T) {
	a := []Entry{{Index: 1, Term: 1, Data: []byte("x")}, {Index: 2, Term: 1, Data: []byte("y")}, {Index: 3, Term: 2, Data: []byte("z")}}
	log, violations := Merge(1, map[string][]Entry{"n1": a[1:], "n2": a, "n3": a[:1]})
	if len(violations) > 0 || len(log) != 3 || log[0].Index != 1 || string(log[2].Data) != "z" {
		t.Errorf("%v %v", log, violations)
	}
	for name, other := range map[string]Entry{
		"other bytes": {Index: 2, Term: 1, Data: []byte("Y")}, "another term": {Index: 2, Term: 2, Data: []byte("y")},
		"another type": {Index: 2, Term: 1, Type: 1, Data: []byte("y")},
	} {
		t.Run(name, func(t *testing.T) {
			finds(t, Agreement(1, map[string][]Entry{"n1": a, "n2": {a[0], other}}), "agreement")
		})
	}
	finds(t, Agreement(1, map[string][]Entry{"n1": {a[0], a[2]}}), "log")
}

func TestWatches(t *testing.T) {
	c := func(revision uint64, value any) Change { return Change{Revision: revision, Value: value} }
	whole := func(revision uint64) Change { return Change{Revision: revision, Whole: true} }
	for _, test := range []struct {
		name      string
		followers map[string][]Change
		broken    bool
	}{
		{"all in order", map[string][]Change{"a": {c(1, "x"), c(2, "y")}, "b": {c(2, "y"), c(3, "z")}}, false},
		{"everything, then on", map[string][]Change{"a": {c(1, "x"), whole(7), c(8, "y")}}, false},
		{"everything again", map[string][]Change{"a": {whole(7), whole(7)}}, false},
		{"a gap", map[string][]Change{"a": {c(1, "x"), c(3, "z")}}, true},
		{"a gap after everything", map[string][]Change{"a": {whole(7), c(9, "z")}}, true},
		{"the same again", map[string][]Change{"a": {c(1, "x"), c(1, "x")}}, true},
		{"back", map[string][]Change{"a": {c(1, "x"), c(2, "y"), c(1, "x")}}, true},
		{"everything of before", map[string][]Change{"a": {c(4, "x"), whole(3)}}, true},
		{"two stories", map[string][]Change{"a": {c(1, "x")}, "b": {c(1, "y")}}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			if v := Watches(test.followers); (len(v) > 0) != test.broken {
				t.Errorf("%v", v)
			}
		})
	}
}

func TestSum(t *testing.T) {
	for counted, broken := range map[uint64]bool{9: true, 10: false, 12: false, 13: true} {
		if v := Sum("x", counted, 10, 2); (len(v) > 0) != broken {
			t.Errorf("%d counted: %v", counted, v)
		}
	}
}
