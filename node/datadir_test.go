package node

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/counter"
)

// refused starts a node that must not start, and returns why it did not.
func refused(t *testing.T, dir string, change func(*Config)) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	fatal := make(chan error, 100)
	cfg := Config{
		Name: "n1", Dir: dir, Peer: lis, Gossip: "127.0.0.1:0", Bootstrap: true, Shards: 4, Replicas: 3,
		Types: []fsm.Type{counter.Type()}, OnFatal: func(err error) { fatal <- err },
	}
	change(&cfg)
	n, err := Open(context.Background(), cfg)
	if err == nil { // a shard's log is looked at when the catalog is known
		err = <-fatal
		_ = n.Close()
	}
	return err.Error()
}

// What is missing must not come back empty: a node that has forgotten its vote can vote again.
func TestADataDirectoryOfWhichAPartIsMissingIsRefused(t *testing.T) {
	for _, tt := range []struct {
		missing string
		bolt    bool
		says    string
	}{
		{"raft", false, "raft is missing"}, {"raft", true, "raft is missing"}, {"state", false, "state is missing"},
		{"catalog", false, "catalog is missing"}, {"catalog/group-0.db", false, "catalog is missing"},
		{"raft/marker.manifest.*", false, "raft is missing"}, {"raft/group-2.db", true, "log of group 2 is empty"},
		{identityFile, false, "no identity"},
	} {
		t.Run(strings.ReplaceAll(tt.missing, "/", "-"), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			kind := func(cfg *Config) { cfg.BoltLog = tt.bolt }
			n := startTestNode(t, "n1", dir, "", kind)
			eventually(t, "ready", func() bool { return n.Ready() == nil })
			if err := n.Close(); err != nil {
				t.Fatal(err)
			}
			gone, err := filepath.Glob(filepath.Join(dir, tt.missing))
			if err != nil || len(gone) != 1 {
				t.Fatalf("%s is %v, %v", tt.missing, gone, err)
			}
			aside := filepath.Join(t.TempDir(), "aside")
			if err := os.Rename(gone[0], aside); err != nil {
				t.Fatal(err)
			}
			if why := refused(t, dir, kind); !strings.Contains(why, tt.says) || !strings.Contains(why, "--join") {
				t.Errorf("refused, for %q, but not because %q, or without advice", why, tt.says)
			}
			again := func(cfg *Config) { cfg.BoltLog, cfg.Bootstrap = tt.bolt, false } // as a restart is
			if why := refused(t, dir, again); !strings.Contains(why, tt.says) || !strings.Contains(why, "--join") {
				t.Errorf("without --bootstrap refused for %q, but not because %q, or without advice", why, tt.says)
			}
			if tt.says == "log of group 2 is empty" {
				return // it was made again, as when a shard is new
			}
			if err := os.Rename(aside, gone[0]); err != nil {
				t.Fatal(err)
			}
			if err := startTestNode(t, "n1", dir, "", kind).Close(); err != nil {
				t.Errorf("when it was put back: %v", err)
			}
		})
	}
}

// Whoever runs a node with a damaged disk reads what is damaged and what to do, on one line.
func TestADamagedDataDirectoryIsRefusedWithAdvice(t *testing.T) {
	noise := func(b []byte) []byte {
		random := rand.New(rand.NewPCG(1, 1))
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		return b
	}
	half := func(b []byte) []byte { return b[:len(b)/2] }
	for file, damage := range map[string]func([]byte) []byte{
		"catalog/group-0.db": half, "raft/MANIFEST-*": noise, "state/MANIFEST-*": noise, "state/*.sst": half,
	} {
		t.Run(strings.ReplaceAll(file, "/", "-"), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			n := startTestNode(t, "n1", dir, "")
			eventually(t, "ready", func() bool { return n.Ready() == nil })
			if err := n.state.Shard(catalogGroup).Compact(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := n.Close(); err != nil {
				t.Fatal(err)
			}
			files, err := filepath.Glob(filepath.Join(dir, file))
			if err != nil || len(files) == 0 {
				t.Fatalf("no files %s: %v", file, err)
			}
			for _, path := range files {
				b, err := os.ReadFile(path)
				if err == nil {
					err = os.WriteFile(path, damage(b), 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			why := refused(t, dir, func(*Config) {})
			if !strings.Contains(why, dir+" is damaged") || !strings.Contains(why, "--join") || strings.Contains(why, "\n") {
				t.Errorf("refused with %q", why)
			}
		})
	}
}

func TestDamageThatIsFoundLaterIsToldWithAdvice(t *testing.T) {
	n := &Node{cfg: Config{Dir: "d"}}
	found := errors.New(pebble.DataCorruptionInfo{Path: "1.sst", Details: errors.New("checksum mismatch")}.String())
	if why := n.explained(found).Error(); !strings.Contains(why, "checksum mismatch") || !strings.Contains(why, "directory d is damaged") {
		t.Errorf("damage: %s", why)
	}
	full := errors.New("no space left on device")
	if why := n.explained(full); why != full { //nolint:errorlint // the very same
		t.Errorf("a full disk: %v", why)
	}
}
