package node

import (
	"bytes"
	"context"
	"flag"
	"net"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/counter"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// golden compares with a file in testdata: what other versions wrote must stay readable, and they must read ours.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := "testdata/" + name
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s is\n%s\nwant\n%s", name, got, want)
	}
}

func TestIdentityFileIsPinned(t *testing.T) {
	fs := vfs.NewMem()
	want := identity{NodeID: strings.Repeat("ab", 16), ClusterID: strings.Repeat("cd", 16), RaftLog: logPebble}
	if err := want.save(fs, ""); err != nil {
		t.Fatal(err)
	}
	f, err := fs.Open(identityFile)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1000)
	n, _ := f.Read(b)
	golden(t, "node.json.golden", string(b[:n]))
	got, found, err := loadIdentity(fs, "")
	if err != nil || !found || got != want {
		t.Errorf("read %+v, %v, %v", got, found, err)
	}
}

func TestADamagedIdentityIsRefused(t *testing.T) {
	good, err := os.ReadFile("testdata/node.json.golden")
	if err != nil {
		t.Fatal(err)
	}
	want, err := parseIdentity(good)
	if err != nil {
		t.Fatal(err)
	}
	before := regexp.MustCompile(`,\s*"checksum": "[0-9a-f]+"`).ReplaceAll(good, nil) // as the first versions wrote it
	if got, err := parseIdentity(before); err != nil || got != want || len(before) == len(good) {
		t.Errorf("without a checksum: %+v, %v", got, err)
	}
	later := bytes.Replace(before, []byte("{"), []byte(`{"new_field": 7, `), 1)
	if sum, err := checksumOf(later); err != nil || sum == "" {
		t.Fatal(err)
	} else if got, err := parseIdentity(bytes.Replace(later, []byte("{"), []byte(`{"checksum": "`+sum+`", `), 1)); err != nil || got != want {
		t.Errorf("of a later version: %+v, %v", got, err)
	}
	for name, text := range map[string]string{
		"empty": "", "cut off": string(good[:len(good)/2]), "another node": strings.Replace(string(good), "abab", "abac", 1),
		"another cluster": strings.Replace(string(good), "cdcd", "cdce", 1), "another log": strings.Replace(string(good), "pebble", "boltdb", 1),
		"a short id": `{"node_id": "ab"}`,
	} {
		fs := vfs.NewMem()
		if err := writeSynced(fs, identityFile, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if id, _, err := loadIdentity(fs, ""); err == nil || !strings.Contains(err.Error(), "is damaged") || strings.Contains(err.Error(), "%!") {
			t.Errorf("%s: %+v, %v", name, id, err)
		}
	}
}

// With another kind of log the node would forget its log, its term and its votes, and could vote twice.
func TestAnotherKindOfLogIsRefused(t *testing.T) {
	dir := t.TempDir()
	n := startTestNode(t, "n1", dir, "")
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	n, err = Open(context.Background(), Config{
		Name: "n1", Dir: dir, Peer: lis, Gossip: "127.0.0.1:0", Bootstrap: true, Shards: 4, Replicas: 3, BoltLog: true,
		Types: []fsm.Type{counter.Type()},
	})
	if err == nil {
		_ = n.Close()
		t.Fatal("started with another kind of log")
	}
	if !strings.Contains(err.Error(), "--raft-log=pebble") {
		t.Errorf("the error does not say what to do: %v", err)
	}
	if err := startTestNode(t, "n1", dir, "").Close(); err != nil {
		t.Error(err)
	}
}

// A power cut takes nothing away that was synced: not the data directory either, however deep it was made.
func TestTheDataDirectorySurvivesAPowerCut(t *testing.T) {
	for _, dir := range []string{"data", "srv/holdfast/data"} {
		disk := vfs.NewCrashableMem()
		if err := makeDir(disk, dir); err != nil {
			t.Fatal(err)
		}
		id := identity{NodeID: newID(), ClusterID: newID()}
		if err := id.save(disk, dir); err != nil {
			t.Fatal(err)
		}
		found, ok, err := loadIdentity(disk.CrashClone(vfs.CrashCloneCfg{}), dir)
		if err != nil || !ok || found != id {
			t.Errorf("in %s: %+v, %v, %v", dir, found, ok, err)
		}
	}
}
