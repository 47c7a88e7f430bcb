package catalog

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/catalog/catalogtest"
)

var update = flag.Bool("update", false, "write the golden files again")

// format is one kind of text in the log, in the store or in an answer.
type format struct {
	text   []byte // of the sample
	sample any
	parse  func([]byte) (any, error)
	again  func(any) []byte
}

func formatOf[T any](v T) format {
	return format{
		text: Body[T]{v}.Append(nil), sample: v,
		parse: func(b []byte) (any, error) { return Decode[T](b) },
		again: func(v any) []byte { return Body[T]{v.(T)}.Append(nil) },
	}
}

func formats() map[string]format {
	const at = catalogtest.Start
	cluster := Cluster{ID: "c1", Shards: 16, Replicas: 3, Created: at, Epoch: 9, Revision: 1 << 40, Policies: 12}
	node := firstNode
	node.State, node.Joined = Active, at
	shard := Shard{ID: 2, First: 100, Last: 65535, Epoch: 3, Gens: 7, Replicas: []Replica{{"n1", 1, Voter}, {"n2", 7, Learner}}}
	policy := Policy{
		Number: 12, Name: "a/b", Algorithm: "leaky_bucket", Rate: 100, WindowMS: 60_000, Burst: 20, Active: true, Shadow: true,
		Rollout: 50, Priority: -3, Scope: "client+resource", Resource: "/v1/*", Calendar: "day", OnUnavailable: "deny",
		Description: "<as&it\"is> é", Created: at, Updated: at + 1, Revision: 4,
	}
	plain := samplePolicy("plain")
	assignment := Assignment{Policy: 12, Client: "a\x01b", Rate: 5, Priority: ptr(int32(0)), From: at, To: at + 1}
	audit := Audit{At: at, Actor: "me", Action: "update", Revision: 4, Policy: &policy, Detail: "x and 2 more"}
	sessions := SessionPolicy{
		Type: "web", Idle: 1_800_000, Absolute: 86_400_000, Refresh: 2_592_000_000, Sessions: 5, Devices: 3, OnLimit: "evict_oldest",
		IPBinding: "subnet", OnNetwork: "flag", OnTwoNetworks: "revoke", OnDevice: "step_up", OnBurst: "terminate", Burst: 100, Actor: "me", Updated: at, Revision: 7,
	}
	return map[string]format{
		"bootstrap":            formatOf(Bootstrap{ClusterID: "c1", Shards: 16, Replicas: 3, Node: firstNode}),
		"add_replica":          formatOf(AddReplica{Shard: 2, Epoch: 3, Node: "n2"}),
		"set_replica":          formatOf(SetReplica{Shard: 2, Epoch: 3, Node: "n2", Role: Voter}),
		"policy_edit":          formatOf(PolicyEdit{Policy: policy, Expected: 4, Actor: "me"}),
		"policy_edit_plain":    formatOf(PolicyEdit{Policy: plain}),
		"policy_ref":           formatOf(PolicyRef{Policy: "p12", Actor: "me"}),
		"assign":               formatOf(Assign{"p12", []string{"a", Everyone}, 5, ptr(int32(-1)), at, at + 1, "me"}),
		"assign_plain":         formatOf(Assign{Policy: "p12", Clients: []string{"a"}}),
		"page":                 formatOf(Page{Policy: "p12", After: "a", Size: 100}),
		"page_plain":           formatOf(Page{Size: 1}),
		"nothing":              formatOf(Nothing{}),
		"cluster":              formatOf(cluster),
		"node":                 formatOf(node),
		"node_plain":           formatOf(Node{ID: "n1", State: Removed}),
		"shard":                formatOf(shard),
		"policy":               formatOf(policy),
		"policy_plain":         formatOf(plain),
		"name":                 formatOf(uint32(12)),
		"assignment":           formatOf(assignment),
		"assignment_plain":     formatOf(Assignment{Policy: 1, Client: "a"}),
		"change_policy":        formatOf(Change{Revision: 1 << 40, Policy: 12}),
		"change_client":        formatOf(Change{Revision: 1, Client: "a"}),
		"change_domain":        formatOf(Change{Revision: 2, Domain: "d"}),
		"change_sessions":      formatOf(Change{Revision: 3, Sessions: "web"}),
		"audit":                formatOf(audit),
		"audit_plain":          formatOf(Audit{At: at, Action: "unassign", Revision: 1}),
		"domain":               formatOf(Domain{Name: "d", YAML: "domain: d\n"}),
		"session_policy":       formatOf(sessions),
		"session_policy_plain": formatOf(SessionPolicy{Type: "api", Absolute: 1, Refresh: 2, OnLimit: "reject"}),
		"topology":             formatOf(Topology{cluster, []Node{node}, []Shard{shard}}),
		"policies":             formatOf(Policies{[]Policy{policy}, true}),
		"clients":              formatOf(Clients{[]Assignment{assignment}, true}),
		"history":              formatOf([]Audit{audit}),
	}
}

// The files hold what this version writes. A log or a store has to be readable for ever: when a golden file changes,
// the format has.
func TestGolden(t *testing.T) {
	known := make(map[string]bool)
	for name, f := range formats() {
		path := filepath.Join("testdata", name+".json")
		known[path] = true
		if *update {
			if err := os.MkdirAll("testdata", 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, append(f.text, '\n'), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(f.text); got != strings.TrimSuffix(string(want), "\n") {
			t.Errorf("%s is written as\n%s\nthe file has\n%s", name, got, want)
		}
		back, err := f.parse(want)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if !reflect.DeepEqual(back, f.sample) {
			t.Errorf("%s is read as %+v, want %+v", name, back, f.sample)
		}
	}
	files, err := filepath.Glob("testdata/*.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range files {
		if !known[path] {
			t.Errorf("%s: a format that nothing reads any more", path)
		}
	}
}

// Every beginning of a text, anything after its end, and fields of a later version are refused.
func TestDecodeRefuses(t *testing.T) {
	for name, f := range formats() {
		bad := map[string]string{
			"something after": string(f.text) + " 1", "twice": string(f.text) + " " + string(f.text), "bracket after": string(f.text) + "}",
			"not JSON": "x", "another type": `"x"`, "empty": "",
		}
		if f.text[0] == '{' {
			bad["a later field"] = `{"Later":1,` + string(f.text[1:])
			if len(f.text) == 2 {
				bad["a later field"] = `{"Later":1}`
			}
			bad["cut"] = string(f.text[:len(f.text)-1])
		}
		for what, text := range bad {
			if v, err := f.parse([]byte(text)); !errors.Is(err, fsm.ErrCorrupt) {
				t.Errorf("%s, %s: %+v %v", name, what, v, err)
			}
		}
	}
}

// The numbers and names of operations are in the log and on dashboards.
func TestOperations(t *testing.T) {
	typ := Type()
	if typ.ID != 2 || typ.Name != "catalog" {
		t.Errorf("type %d %s", typ.ID, typ.Name)
	}
	want := map[uint8]string{
		1: "bootstrap", 2: "put_node", 3: "add_replica", 4: "set_replica", 5: "create_policy", 6: "update_policy",
		7: "delete_policy", 8: "assign", 9: "unassign", 10: "put_domain", 11: "put_session_policy",
		64: "get_policy", 65: "list_policies", 66: "list_clients", 67: "history", 68: "topology",
	}
	for _, op := range typ.Ops {
		if want[op.Number] != op.Name || op.Query != (op.Number >= 64) {
			t.Errorf("operation %d: %+v", op.Number, op)
		}
		delete(want, op.Number)
	}
	if len(want) > 0 {
		t.Errorf("missing: %v", want)
	}
}

// A body that JSON cannot hold is a mistake in the program.
func TestAppendPanics(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	Body[func()]{func() {}}.Append(nil)
}

// FuzzDecode: whatever is in the log, decoding gives an error or a value that is written and read as itself.
func FuzzDecode(f *testing.F) {
	all := formats()
	for _, sample := range all {
		f.Add(sample.text)
	}
	f.Add([]byte(`{"Policy":{"Number":1},"Policy":{"Rate":2}}`))
	f.Add([]byte("{\"Policy\":\"\xff\",\"Actor\":\"\\ud800\"}"))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, text []byte) {
		for name, format := range all {
			v, err := format.parse(text)
			if err != nil {
				if !errors.Is(err, fsm.ErrCorrupt) {
					t.Errorf("%s: %v", name, err)
				}
				continue
			}
			first := format.again(v)
			back, err := format.parse(first)
			if err != nil {
				t.Fatalf("%s: %s cannot be read again: %v", name, first, err)
			}
			if second := format.again(back); string(second) != string(first) {
				t.Errorf("%s: %s becomes %s", name, first, second)
			}
		}
	})
}
