package holdfast_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/holdfastdb/holdfast/"

// layer says what the packages of a folder may import of this module, and why no more. A folder ends with / when the
// rule is for everything below it; the longest rule that fits a package counts.
type layer struct {
	folder string
	may    []string
	why    string
}

var layers = []layer{
	{"cmd/", []string{"client/", "rpc/", "node/", "fsm/", "storage/aio", "storage/raftlog", "cmd/timers", "cmd/procs"}, "the program wires everything together"},
	{"cmd/procs", nil, "a leaf: how many processors a process uses"},
	{"cmd/timers", nil, "a leaf: what a process asks of the kernel"},
	{"client", []string{"rpc/holdfastpb", "rpc/codec", "rpc/lease", "rpc/sessiontoken"}, "users link the SDK: no server in it"},
	{"client/", []string{"client/"}, "adapters are written on the SDK as users see it"},
	{"client/load", nil, "load generation knows no system under test"},
	{"client/holdfasttest", []string{"client", "node/", "rpc/process", "rpc/holdfastpb"}, "a real cluster for users' tests"},
	{"rpc", []string{"rpc/", "fsm/", "storage/kv", "storage/wire", "storage/plant"}, "services know the node by an interface of their own"},
	{"rpc/seal", nil, "a leaf: encryption before the log"},
	{"rpc/seal/keyring", []string{"rpc/seal"}, "files of keys: what needs none must not link their library"},
	{"rpc/process", []string{"rpc", "rpc/seal", "node/"}, "the one place where services meet the node"},
	{"rpc/policy", []string{"fsm/", "storage/kv"}, "finding limits needs the catalog and nothing of the network"},
	{"rpc/envoyrls", []string{"fsm/", "rpc/policy"}, "a foreign protocol translates, it does not decide"},
	{"rpc/proto/", nil, "a build tool"},
	{"rpc/holdfastpb", nil, "generated code is a leaf"},
	{"rpc/codec", nil, "a leaf, shared by SDK and server"},
	{"rpc/lease", []string{"storage/plant"}, "a leaf, shared by SDK and server"},
	{"rpc/sessiontoken", nil, "a leaf, shared by SDK and server"},
	{"rpc/raftnet", []string{"storage/wire", "storage/plant"}, "the transport moves bytes and knows no state"},
	{"node", []string{"node/", "rpc/raftnet", "storage/", "fsm", "fsm/catalog"}, "the node runs any data type: it must not know one"},
	{"node/shard", []string{"fsm", "storage", "storage/kv", "storage/plant"}, "one group is tested without a node"},
	{"node/placement", []string{"fsm/catalog"}, "the planner is a pure function of the catalog"},
	{"node/gossip", nil, "gossip only tells who is there"},
	{"fsm", []string{"storage/kv", "storage/wire", "storage/plant"}, "state machines compute; the shell does"},
	{"fsm/", []string{"fsm", "storage/kv", "storage/wire", "storage/plant"}, "a data type knows no other"},
	{"storage", []string{"storage/kv", "storage/aio", "storage/compaction", "storage/fatal", "storage/manifest", "storage/pace"}, "storage knows keys and values"},
	{"storage/aio", nil, "a leaf: syncs that leave the processor to others"},
	{"storage/compaction", nil, "a leaf: Pebble's scheduler"},
	{"storage/pace", nil, "a leaf: a file system that takes its time"},
	{"storage/fatal", nil, "a leaf: how a database ends the process"},
	{"storage/manifest", nil, "a leaf: a seal for Pebble's manifests"},
	{"storage/kv", nil, "a leaf: interfaces"},
	{"storage/wire", nil, "a leaf: primitives of encodings"},
	{"storage/plant", nil, "a leaf: bugs for the checks to find, constants that say no in every build but that of those tests"},
	{"storage/raftlog", []string{"storage/aio", "storage/compaction", "storage/fatal", "storage/manifest", "storage/pace", "storage/plant"}, "the log knows entries, not what they mean"},
	{"storage/storagetest", []string{"storage/raftlog", "storage/pace"}, "what every log must do"},
	{"storage/raftlog/bolt", []string{"storage/raftlog"}, "the second implementation of one interface"},
	{"cluster-tests/", []string{"client/", "rpc/", "node/", "fsm/", "storage/", "cluster-tests/"}, "tests see everything"},
	{"cluster-tests/history", []string{"client"}, "a history has operations of any data type"},
	{"cluster-tests/models", []string{"client", "rpc/holdfastpb", "rpc/sessiontoken", "fsm/", "cluster-tests/history"}, "the one place where the tests know data types"},
	{"cluster-tests/check", []string{"rpc", "fsm", "fsm/catalog", "storage/kv", "cluster-tests/history", "cluster-tests/models"}, "the judge knows a data type by its model"},
	{"cluster-tests/sim", []string{"client", "rpc/process", "node/", "fsm", "cluster-tests/"}, "a layer takes data types as models has them"},
	{"cluster-tests/chaos", []string{"client", "rpc/holdfastpb", "fsm", "storage/plant", "cluster-tests/"}, "a layer takes data types as models has them"},
	{"bench", []string{"client", "client/load", "rpc/holdfastpb", "fsm/", "storage", "cmd/procs", "cmd/timers"}, "a user of the SDK, and of what it measures alone"},
}

// testKits may be imported by tests, by each other and by cluster-tests only.
var testKits = []string{"client/holdfasttest", "fsm/fsmtest", "fsm/catalog/catalogtest", "storage/storagetest"}

// file is what the rules look at.
type file struct {
	path string // from the module's root, with /
	test bool
	code *ast.File
	size int // lines
}

func (f *file) dir() string { return path.Dir(f.path) }

func (f *file) generated() bool { return ast.IsGenerated(f.code) }

// fits reports how well a pattern fits a package: best when it is its name, then by the pattern's length; -1 if not.
func fits(pattern, pkg string) int {
	switch {
	case pattern == pkg:
		return 1000
	case strings.HasSuffix(pattern, "/") && strings.HasPrefix(pkg+"/", pattern):
		return len(pattern)
	}
	return -1
}

func layerOf(pkg string) (found *layer) {
	best := -1
	for i := range layers {
		if n := fits(layers[i].folder, pkg); n > best {
			found, best = &layers[i], n
		}
	}
	return found
}

// checkImports reports imports that point the wrong way.
func checkImports(f *file) (problems []string) {
	l := layerOf(f.dir())
	if l == nil {
		return []string{f.path + ": no rule for this folder: add one to the table, with its reason"}
	}
	for _, spec := range f.code.Imports {
		name, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return []string{f.path + ": " + err.Error()}
		}
		target, ours := strings.CutPrefix(name, module)
		if !ours || f.test && f.dir() != "fsm" && !strings.HasPrefix(f.dir(), "fsm/") {
			continue // tests may look down from anywhere, only those of state machines not
		}
		kit := slices.Contains(testKits, target)
		if kit && (f.test || slices.Contains(testKits, f.dir()) || strings.HasPrefix(f.dir(), "cluster-tests/")) {
			continue
		}
		allowed := !kit && slices.ContainsFunc(l.may, func(p string) bool { return fits(p, target) >= 0 })
		if !allowed && !(f.test && target == f.dir()) {
			problems = append(problems, fmt.Sprintf("%s imports %s: %s", f.path, target, l.why))
		}
	}
	return problems
}

// impure are the packages through which something else than the log could get into a state machine.
var impure = []string{"time", "math/rand", "math/rand/v2", "crypto/rand", "net", "os", "log", "log/slog", "sync", "runtime", "context", "unsafe", "reflect"}

// checkPurity reports what a state machine must not do. The rules are about syntax: a range over a map is found where the
// map is made or declared in the same file.
func checkPurity(f *file) (problems []string) {
	if f.test || f.dir() != "fsm" && !strings.HasPrefix(f.dir(), "fsm/") || slices.Contains(testKits, f.dir()) {
		return nil
	}
	for _, spec := range f.code.Imports {
		if name, _ := strconv.Unquote(spec.Path.Value); slices.Contains(impure, name) {
			problems = append(problems, fmt.Sprintf("%s imports %s: the same log must give the same state everywhere", f.path, name))
		}
	}
	maps := mapNames(f.code)
	ast.Inspect(f.code, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt, *ast.SelectStmt, *ast.SendStmt:
			problems = append(problems, f.path+": a state machine has no goroutines")
		case *ast.RangeStmt:
			if name := lastName(n.X); maps[name] {
				problems = append(problems, fmt.Sprintf("%s: range over the map %s: its order differs from replica to replica", f.path, name))
			}
		}
		return true
	})
	return problems
}

// mapNames are the names of variables and fields that are maps.
func mapNames(code *ast.File) map[string]bool {
	names := make(map[string]bool)
	isMap := func(e ast.Expr) bool {
		if call, ok := e.(*ast.CallExpr); ok && len(call.Args) > 0 && lastName(call.Fun) == "make" {
			e = call.Args[0]
		}
		if lit, ok := e.(*ast.CompositeLit); ok {
			e = lit.Type
		}
		_, ok := e.(*ast.MapType)
		return ok
	}
	ast.Inspect(code, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.Field:
			for _, name := range n.Names {
				names[name.Name] = names[name.Name] || isMap(n.Type)
			}
		case *ast.ValueSpec:
			for i, name := range n.Names {
				names[name.Name] = names[name.Name] || n.Type != nil && isMap(n.Type) || i < len(n.Values) && isMap(n.Values[i])
			}
		case *ast.AssignStmt:
			for i, left := range n.Lhs {
				if i < len(n.Rhs) && isMap(n.Rhs[i]) {
					names[lastName(left)] = true
				}
			}
		}
		return true
	})
	return names
}

func lastName(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return e.Sel.Name
	}
	return ""
}

// maxLines is when a file stops fitting in a head.
const maxLines = 600

var vague = []string{"util", "utils", "common", "helper", "helpers", "misc", "base", "shared"}

func checkShape(f *file) (problems []string) {
	if f.size > maxLines && !f.generated() {
		problems = append(problems, fmt.Sprintf("%s has %d lines, at most %d: what hides in it?", f.path, f.size, maxLines))
	}
	if slices.Contains(vague, f.code.Name.Name) {
		problems = append(problems, fmt.Sprintf("%s: package %s says nothing", f.path, f.code.Name.Name))
	}
	return problems
}

var rules = map[string]func(*file) []string{
	"imports": checkImports, "purity": checkPurity, "shape": checkShape,
}

func TestArchitecture(t *testing.T) {
	var files []*file
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "testdata" || d.Name() == "bin" || name != "." && strings.HasPrefix(d.Name(), ".")):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(name, ".go") || !strings.ContainsRune(filepath.ToSlash(name), '/'):
			return nil
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		f, err := parse(filepath.ToSlash(name), string(text))
		files = append(files, f)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 100 {
		t.Fatalf("only %d files: run this in the module's root", len(files))
	}
	for name, rule := range rules {
		t.Run(name, func(t *testing.T) {
			for _, f := range files {
				for _, problem := range rule(f) {
					t.Error(problem)
				}
			}
		})
	}
}

func parse(name, text string) (*file, error) {
	code, err := parser.ParseFile(token.NewFileSet(), name, text, parser.ParseComments)
	return &file{path: name, test: strings.HasSuffix(name, "_test.go"), code: code, size: strings.Count(text, "\n")}, err
}

// The rules find what they are for.
func TestTheRulesCanFail(t *testing.T) {
	for _, test := range []struct {
		name, path, text string
		rule             func(*file) []string
		fails            bool
	}{
		{"downwards", "node/x.go", `package node; import _ "github.com/holdfastdb/holdfast/storage"`, checkImports, false},
		{"upwards", "storage/x.go", `package storage; import _ "github.com/holdfastdb/holdfast/node"`, checkImports, true},
		{"to a data type", "node/x.go", `package node; import _ "github.com/holdfastdb/holdfast/fsm/counter"`, checkImports, true},
		{"between data types", "fsm/counter/x.go", `package counter; import _ "github.com/holdfastdb/holdfast/fsm/catalog"`, checkImports, true},
		{"a server in the SDK", "client/x.go", `package client; import _ "github.com/holdfastdb/holdfast/rpc"`, checkImports, true},
		{"a test kit in a test", "fsm/x_test.go", `package fsm; import _ "github.com/holdfastdb/holdfast/fsm/fsmtest"`, checkImports, false},
		{"a test kit in the product", "fsm/x.go", `package fsm; import _ "github.com/holdfastdb/holdfast/fsm/fsmtest"`, checkImports, true},
		{"a folder without a rule", "extras/x.go", `package extras`, checkImports, true},
		{"a clock", "fsm/x.go", `package fsm; import _ "time"`, checkPurity, true},
		{"a clock elsewhere", "node/x.go", `package node; import _ "time"`, checkPurity, false},
		{"a goroutine", "fsm/url/x.go", `package url; func f() { go f() }`, checkPurity, true},
		{"a channel", "fsm/url/x.go", `package url; func f(c chan int) { c <- 1 }`, checkPurity, true},
		{"a map's order", "fsm/x.go", `package fsm; func f() { m := map[int]int{}; for range m {} }`, checkPurity, true},
		{"a field's order", "fsm/x.go", `package fsm; type t struct { m map[int]int }; func (x t) f() { for range x.m {} }`, checkPurity, true},
		{"a made map's order", "fsm/x.go", `package fsm; func f() { m := make(map[int]int); for range m {} }`, checkPurity, true},
		{"a slice's order", "fsm/x.go", `package fsm; func f(s []int) { for range s {} }`, checkPurity, false},
		{"a long file", "rpc/x.go", "package rpc\n" + strings.Repeat("// line\n", maxLines+1), checkShape, true},
		{"a long generated file", "rpc/x.go", "// Code generated by x. DO NOT EDIT.\n\npackage rpc\n" + strings.Repeat("// line\n", maxLines+1), checkShape, false},
		{"a vague name", "rpc/util/x.go", "package util", checkShape, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			f, err := parse(test.path, test.text)
			if err != nil {
				t.Fatal(err)
			}
			if problems := test.rule(f); (len(problems) > 0) != test.fails {
				t.Errorf("fails %v, want %v: %v", len(problems) > 0, test.fails, problems)
			}
		})
	}
}
