package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

func loadConfig(t *testing.T, args []string, env map[string]string, file string) (*serverConfig, error) {
	t.Helper()
	var c serverConfig
	cmd := &cobra.Command{}
	c.flags(cmd.Flags())
	if file != "" {
		path := filepath.Join(t.TempDir(), "holdfast.yaml")
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--config", path)
	}
	if err := cmd.ParseFlags(args); err != nil {
		t.Fatal(err)
	}
	return &c, c.load(cmd, func(k string) (string, bool) { v, ok := env[k]; return v, ok })
}

func TestTheFlagWinsOverTheEnvironmentAndThatOverTheFile(t *testing.T) {
	c, err := loadConfig(t,
		[]string{"--name", "flag"},
		map[string]string{"HOLDFAST_NAME": "env", "HOLDFAST_RAFT_LOG": "boltdb", "HOLDFAST_JOIN": "a:1,b:2"},
		"name: file\nraft_log: pebble\nzone: z1\nshards: 16\nbootstrap: true\n")
	if err != nil {
		t.Fatal(err)
	}
	if c.name != "flag" || c.raftLog != "boltdb" || c.zone != "z1" || c.shards != 16 || !c.bootstrap || len(c.join) != 2 {
		t.Errorf("got %+v", c)
	}
}

func TestConfigErrorsNameTheSetting(t *testing.T) {
	for name, tt := range map[string]struct {
		env  map[string]string
		file string
		want string
	}{
		"unknown key":    {file: "nmae: x\n", want: `unknown key "nmae"`},
		"bad value":      {file: "shards: many\n", want: `key "shards"`},
		"bad variable":   {env: map[string]string{"HOLDFAST_REPLICAS": "x"}, want: "--replicas"},
		"nested config":  {file: "config: other.yaml\n", want: `unknown key "config"`},
		"not a mapping":  {file: "- a\n- b\n", want: "cannot"},
		"a bad duration": {file: "heartbeat: fast\n", want: `key "heartbeat"`},
		"list for a key": {file: "join: [a:1, 'b:2']\nshards: [1, 2]\n", want: `key "shards"`},
	} {
		_, err := loadConfig(t, nil, tt.env, tt.file)
		if err == nil || !strings.Contains(err.Error(), tt.want) || exitCode(err) != exitUsage {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAKeyWithoutAValueSaysNothing(t *testing.T) {
	c, err := loadConfig(t, nil, nil, "zone:\nshards: ~\nname: n2\n")
	if err != nil || c.zone != "" || c.shards != 8 || c.name != "n2" {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestLogAndTimingSettings(t *testing.T) {
	c, err := loadConfig(t, []string{"--heartbeat", "300ms"}, map[string]string{"HOLDFAST_TRAILING_ENTRIES": "64"}, "heartbeat: 2s\n")
	if err != nil || c.check() != nil {
		t.Fatal(err, c.check())
	}
	if p := c.process(slog.New(slog.DiscardHandler)); p.Node.Timing.Heartbeat != 300*time.Millisecond || p.Node.TrailingEntries != 64 {
		t.Errorf("the node is told %v and %d", p.Node.Timing, p.Node.TrailingEntries)
	}
	for flag, want := range map[string]time.Duration{"5m": 5 * time.Minute, "2s": 2 * time.Second, "0": -1} {
		c, err := loadConfig(t, []string{"--checksum-interval", flag}, nil, "")
		if err != nil || c.check() != nil || c.timing().Checksum != want {
			t.Errorf("--checksum-interval %s: %v, %v, %v", flag, c.timing().Checksum, err, c.check())
		}
	}
	for _, flag := range []string{"--heartbeat=1ms", "--heartbeat=2m", "--trailing-entries=0", "--checksum-interval=1ms"} {
		if c, err := loadConfig(t, []string{flag}, nil, ""); err != nil || exitCode(c.check()) != exitUsage {
			t.Errorf("%s: %v, %v", flag, err, c.check())
		}
	}
}

// Whatever is in the file, the answer is a configuration or what is wrong with the file.
func FuzzConfigFile(f *testing.F) {
	f.Add("name: n2\ndata: /var/lib/holdfast\njoin: [10.0.0.1:7402]\nzone: b\nraft_log: pebble\n")
	f.Add("shards: 3\n")
	f.Add("- a\n")
	f.Fuzz(func(t *testing.T, file string) {
		if _, err := loadConfig(t, nil, nil, file); err != nil && exitCode(err) != exitUsage {
			t.Errorf("%q: exit code %d: %v", file, exitCode(err), err)
		}
	})
}
