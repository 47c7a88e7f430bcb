package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// login is what session create says.
type login struct {
	ID      string `json:"session_id"`
	Token   string `json:"token"`
	Refresh string `json:"refresh_token"`
}

func logIn(t *testing.T, verb string, args ...string) (l login) {
	t.Helper()
	out := must(t, append(append([]string{"session", verb}, args...), "-o", "json")...)
	if err := json.Unmarshal([]byte(out), &l); err != nil || l.ID == "" || !strings.HasPrefix(l.Token, "hfs_") {
		t.Fatalf("session %s answers %s, %v", verb, out, err)
	}
	return l
}

// refused runs a command line that a node refuses, and looks whether it repeats a token.
func refused(t *testing.T, says string, args ...string) {
	t.Helper()
	out, errs, code := holdfast(t, args...)
	if code != exitRefused || !strings.Contains(out+errs, says) {
		t.Errorf("holdfast %s: exit code %d, want %d and %q\n%s%s", strings.Join(args, " "), code, exitRefused, says, out, errs)
	}
	if secrets.MatchString(out + errs) {
		t.Errorf("holdfast %s shows a token:\n%s%s", strings.Join(args, " "), out, errs)
	}
}

func TestASessionFromLoginToLogout(t *testing.T) {
	first := logIn(t, "create", "sue", "--remember-me", "--device", "os=iOS", "--ip", "192.0.2.7", "--attribute", "plan=pro", "--attribute", "seats=5")
	if out := must(t, "session", "validate", first.Token); !strings.Contains(out, "valid") || !strings.Contains(out, "sue") {
		t.Errorf("validate: %s", out)
	}
	if out := must(t, "session", "list", "sue"); !strings.Contains(out, first.ID) || !strings.Contains(out, "os=iOS") {
		t.Errorf("list: %s", out)
	}
	if out := must(t, "session", "attributes", first.ID, "--set", `tags=["a"]`, "--remove", "plan"); !strings.Contains(out, `["a"]`) || strings.Contains(out, "pro") {
		t.Errorf("attributes: %s", out)
	}
	refused(t, "version 2", "session", "attributes", first.ID, "--set", "x=1", "--version", "1")
	sheet := must(t, "session", "get", first.ID)
	for _, want := range []string{"sue", "192.0.2.7", "seats=5", "version 2", "30m", "active"} {
		if !strings.Contains(sheet, want) {
			t.Errorf("get has no %q:\n%s", want, sheet)
		}
	}
	second := logIn(t, "rotate", first.Token)
	refused(t, "refused", "session", "validate", first.Token)
	third := logIn(t, "refresh", first.Refresh)
	if third.Refresh == "" || third.Refresh == first.Refresh || third.Token == second.Token {
		t.Errorf("a refresh gives %+v", third)
	}
	other := logIn(t, "create", "sue")
	if out := must(t, "session", "logout", third.Token); !strings.Contains(out, "1") {
		t.Errorf("logout: %s", out)
	}
	refused(t, "logged_out", "session", "validate", third.Token)
	must(t, "session", "validate", other.Token)
	if out := must(t, "session", "history", "sue"); !strings.Contains(out, "logged_out") || strings.Contains(out, other.ID) {
		t.Errorf("history: %s", out)
	}
	must(t, "session", "revoke", other.ID)
	refused(t, "revoked", "session", "validate", other.Token)
	kept, left := logIn(t, "create", "sue"), logIn(t, "create", "sue")
	must(t, "session", "revoke-user", "sue", "--except", kept.ID)
	must(t, "session", "validate", kept.Token)
	refused(t, "revoked", "session", "validate", left.Token)
	must(t, "session", "erase-user", "sue")
	if out := must(t, "session", "history", "sue", "-o", "json"); strings.Contains(out, "sue") {
		t.Errorf("after the user was erased: %s", out)
	}
	refused(t, "no such session", "session", "get", kept.ID)
}

func TestThePolicyOfATypeIsThatOfNewSessions(t *testing.T) {
	if out := must(t, "session", "policies"); !strings.Contains(out, "30m") || !strings.Contains(out, "step_up") || !strings.Contains(out, "mobile") {
		t.Errorf("policies:\n%s", out)
	}
	out := must(t, "session", "set-policy", "api", "--idle-timeout", "7m", "--max-sessions", "1")
	if !strings.Contains(out, "7m") {
		t.Errorf("set-policy:\n%s", out)
	}
	l := logIn(t, "create", "ruled", "--type", "api")
	refused(t, "as many as allowed", "session", "create", "ruled", "--type", "api")
	if out := must(t, "session", "get", l.ID); !strings.Contains(out, "7m") {
		t.Errorf("a session under the policy:\n%s", out)
	}
	logIn(t, "create", "ruled", "--type", "api", "--max-sessions", "0")
	refused(t, "revision", "session", "set-policy", "api", "--idle-timeout", "1h", "--expected-revision", "9")
	must(t, "session", "set-policy", "api", "--idle-timeout", "1h", "--max-sessions", "0")
	for _, act := range []string{"revoke", "flag"} {
		var p map[string]any
		out := must(t, "session", "set-policy", "api", "--on-two-networks", act, "-o", "json")
		if err := json.Unmarshal([]byte(out), &p); err != nil || p["on_two_networks"] != act || p["on_network_change"] != "flag" {
			t.Errorf("two networks come to %s: %v\n%s", act, err, out)
		}
	}
	if out := must(t, "session", "policies"); !strings.Contains(out, "TWO NETWORKS") {
		t.Errorf("policies:\n%s", out)
	}
}

func TestALimitOfSessions(t *testing.T) {
	first := logIn(t, "create", "max", "--max-sessions", "1")
	refused(t, "as many as allowed", "session", "create", "max", "--max-sessions", "1")
	must(t, "session", "create", "max", "--max-sessions", "1", "--on-limit", "evict_oldest")
	refused(t, "evicted", "session", "validate", first.Token)
}

// Tokens are secrets: no error repeats one, however wrong the command line.
func TestErrorsDoNotShowTokens(t *testing.T) {
	l := logIn(t, "create", "tom", "--remember-me")
	for _, tt := range []struct {
		args []string
		code int
	}{
		{[]string{"session", "validate", l.Refresh}, exitRefused},
		{[]string{"session", "validate", l.Token[:40]}, exitRefused},
		{[]string{"session", "refresh", l.Token}, exitRefused},
		{[]string{"session", "rotate", l.Token[:40]}, exitRefused},
		{[]string{"session", "logout", l.Refresh}, exitRefused},
		{[]string{"session", l.Token}, exitUsage},
		{[]string{"session", "get", l.Token}, exitUsage},
		{[]string{"session", "revoke", l.Refresh}, exitUsage},
		{[]string{"session", "stats", l.Token}, exitUsage},
		{[]string{"session", "validate", "--ip", l.Token, "x"}, exitUsage},
		{[]string{"session", "validate", "--" + l.Token}, exitUsage},
		{[]string{l.Token}, exitUsage},
	} {
		out, errs, code := holdfast(t, tt.args...)
		if code != tt.code || secrets.MatchString(out+errs) {
			t.Errorf("%s …: exit code %d, want %d\n%s%s", strings.Join(tt.args[:1], " "), code, tt.code, out, errs)
		}
	}
	must(t, "session", "validate", l.Token) // a token for another purpose did it no harm
}

func TestExitCodesOfSessions(t *testing.T) {
	for line, says := range map[string]string{
		"session create":                                     "Usage:",
		"session create u --type tv":                         "web, mobile or api",
		"session create u --device os":                       "NAME=VALUE",
		"session create u --attribute =5":                    "NAME=VALUE",
		"session create u --idle-timeout soon":               "--idle-timeout",
		"session create u --absolute-timeout 0s":             "absolute_timeout",
		"session create u --refresh-timeout 1h":              "remember_me",
		"session create u --ip-binding exact":                "needs the ip",
		"session create u --on-limit explode":                "evict_oldest",
		"session validate x --ip nonsense":                   "is not an address",
		"session get nope":                                   "session_id",
		"session attributes nope --version 2":                "--version is for a change",
		"session sweep":                                      "at least one condition",
		"session sweep --created-before yesterday":           "--created-before",
		"session sweep --type web --next nonsense":           "next is not one",
		"session set-policy tv --burst 5":                    "web, mobile or api",
		"session set-policy web --on-two-networks explode":   "ignore, flag, step_up or revoke",
		"session set-policy web --on-burst explode":          "ignore, flag, step_up or revoke",
		"session set-policy web --expected-revision 0":       "--expected-revision",
		"session keys create /nowhere/keys":                  "/nowhere/keys",
		"session keys list cli_test.go":                      "chmod 600",
		"start --session-keys /nowhere":                      "--session-keys",
		"dev --session-keys cli_test.go":                     "chmod 600",
		"bench session-create --cached 1s":                   "--cached is for session-validate",
		"bench session-validate --cached -1s":                "--cached must be",
		"session revoke-user u --except ses_nope":            "session_id",
		"session revoke-user u --login a --except ses_Zm9v ": "session_id",
	} {
		_, errs, code := holdfast(t, strings.Fields(line)...)
		if code != exitUsage || !strings.Contains(errs, says) {
			t.Errorf("holdfast %s: exit code %d, want %d and %q\n%s", line, code, exitUsage, says, errs)
		}
	}
	var out, errs bytes.Buffer
	if code := run(t.Context(), []string{"session", "stats", "--addr", "127.0.0.1:1"}, &out, &errs); code != exitUnreachable {
		t.Errorf("nobody there: exit code %d\n%s", code, errs.String())
	}
}

func TestAnswersOfSessionsForMachines(t *testing.T) {
	l := logIn(t, "create", "bot", "--device", "os=iOS", "--attribute", "a=1")
	for _, line := range []string{
		"session list bot", "session get " + l.ID, "session history bot", "session stats", "session policies", "session attributes " + l.ID,
		"session validate " + l.Token, "session sweep --device nobody-has-this", "session create bot", "session revoke-user bot",
	} {
		args := strings.Fields(line)
		var fromJSON, fromYAML map[string]any
		if text := must(t, append(slices.Clone(args), "-o", "json")...); json.Unmarshal([]byte(text), &fromJSON) != nil {
			t.Errorf("%s -o json:\n%s", line, text)
		}
		if line == "session revoke-user bot" {
			break // nothing is left to ask about
		}
		if text := must(t, append(slices.Clone(args), "-o", "yaml")...); yaml.Unmarshal([]byte(text), &fromYAML) != nil || len(fromYAML) != len(fromJSON) {
			t.Errorf("%s -o yaml:\n%s", line, text)
		}
		if table := must(t, args...); strings.HasPrefix(table, "{") || table == "" {
			t.Errorf("%s: not a table:\n%s", line, table)
		}
	}
}

func TestASweepEndsWhatMeetsAllConditions(t *testing.T) {
	phone := logIn(t, "create", "sweep-a", "--device", "os=SweepOS 7", "--ip", "198.51.100.9", "--type", "mobile")
	laptop := logIn(t, "create", "sweep-b", "--device", "os=SweepOS 7", "--ip", "203.0.113.9")
	count := func(args ...string) (s sweep) {
		out := must(t, append([]string{"session", "sweep", "-o", "json", "--device", "sweepos"}, args...)...)
		if err := json.Unmarshal([]byte(out), &s); err != nil || s.Next != "" || s.Percent != 100 {
			t.Fatalf("sweep: %s, %v", out, err)
		}
		return s
	}
	if s := count("--dry-run"); s.Matched != 2 || s.Revoked != 0 || s.Scanned < 2 {
		t.Errorf("counted only: %+v", s)
	}
	if s := count("--created-before", "1h"); s.Matched != 0 {
		t.Errorf("of an hour ago: %+v", s)
	}
	if s := count("--ip-range", "198.51.100.0/24", "--created-before", "0s"); s.Matched != 1 || s.Revoked != 1 {
		t.Errorf("of one network: %+v", s)
	}
	refused(t, "revoked", "session", "validate", phone.Token)
	must(t, "session", "validate", laptop.Token)
}

// A sweep that is stopped says where to go on, and goes on there.
func TestASweepGoesOnWhereItStopped(t *testing.T) {
	var out, errs bytes.Buffer
	c := &cli{stdout: &out, stderr: &errs, format: "json"}
	var asked []string
	steps := func(q *pb.RevokeMatchingRequest) (*pb.RevokeMatchingResponse, error) {
		asked = append(asked, q.Next)
		switch len(asked) {
		case 1:
			return &pb.RevokeMatchingResponse{Scanned: 10, Revoked: 3, Next: "here", Percent: 40}, nil
		case 2:
			return nil, errors.New("lost")
		}
		return &pb.RevokeMatchingResponse{Scanned: 5, Revoked: 1, Percent: 100}, nil
	}
	if err := c.sweepBy(&pb.RevokeMatchingRequest{Type: "web"}, steps); err == nil || out.Len() > 0 ||
		!strings.Contains(errs.String(), "--next here") || !strings.Contains(errs.String(), "3 of 10") {
		t.Errorf("stopped: %v\n%s%s", err, out.String(), errs.String())
	}
	if err := c.sweepBy(&pb.RevokeMatchingRequest{Type: "web", Next: "here"}, steps); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(asked, []string{"", "here", "here"}) {
		t.Errorf("it asked for %q", asked)
	}
	var s sweep
	if err := json.Unmarshal(out.Bytes(), &s); err != nil || s.Matched != 1 || s.Scanned != 5 {
		t.Errorf("%s, %v", out.String(), err)
	}
}

// started runs a command line until stop is called, and returns what it writes, line by line.
func started(t *testing.T, args ...string) (stdout, stderr *bufio.Scanner, stop func() int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	out, outW := io.Pipe()
	errs, errsW := io.Pipe()
	ended := make(chan int, 1)
	go func() {
		code := run(ctx, args, outW, errsW)
		_, _ = outW.Close(), errsW.Close()
		ended <- code
	}()
	return bufio.NewScanner(out), bufio.NewScanner(errs), func() int {
		cancel()
		go func() { _, _ = io.Copy(io.Discard, out) }()
		go func() { _, _ = io.Copy(io.Discard, errs) }()
		return <-ended
	}
}

func TestWatchTellsWhatHappens(t *testing.T) {
	stdout, stderr, stop := started(t, "session", "watch", "-o", "json", "--addr", cluster.Addrs()[0])
	if !stderr.Scan() || !strings.HasPrefix(stderr.Text(), "watching ") {
		t.Fatalf("it says %q", stderr.Text())
	}
	l := logIn(t, "create", "seen")
	must(t, "session", "logout", l.Token)
	for _, want := range [][2]string{{"created", ""}, {"ended", "logged_out"}} {
		var e struct {
			ID     string `json:"session_id"`
			Event  string `json:"event"`
			Reason string `json:"reason"`
			At     string `json:"at"`
			Shard  uint32 `json:"shard"`
			Index  uint64 `json:"index"`
		}
		for stdout.Scan() {
			if err := json.Unmarshal(stdout.Bytes(), &e); err != nil {
				t.Fatalf("%s: %v", stdout.Text(), err)
			}
			if e.ID == l.ID {
				break
			}
		}
		if e.Event != want[0] || e.Reason != want[1] || e.Shard == 0 || e.Index == 0 || e.At == "" {
			t.Errorf("%+v, want %v", e, want)
		}
	}
	if code := stop(); code != exitDone {
		t.Errorf("exit code %d", code)
	}
}

// Whoever starts a node without keys is told once; who tries Holdfast out is not.
func TestANodeWithoutKeysSaysSo(t *testing.T) {
	keys := filepath.Join(t.TempDir(), "keys.json")
	must(t, "session", "keys", "create", keys)
	must(t, "session", "keys", "rotate", keys)
	addresses := strings.Fields("--grpc 127.0.0.1:0 --http 127.0.0.1:0")
	others := strings.Fields("--peer 127.0.0.1:0 --gossip 127.0.0.1:0 --bootstrap")
	for name, tt := range map[string]struct {
		args  []string
		warns int
	}{
		"start":           {slices.Concat([]string{"start"}, addresses, others), 1},
		"start with keys": {slices.Concat([]string{"start", "--session-keys", keys}, addresses, others), 0},
		"dev":             {slices.Concat([]string{"dev"}, addresses), 0},
	} {
		stdout, stderr, stop := started(t, append(tt.args, "--data", t.TempDir())...)
		warned := make(chan int, 1)
		go func() {
			n := 0
			for stderr.Scan() {
				n += strings.Count(stderr.Text(), "plain text")
			}
			warned <- n
		}()
		if !stdout.Scan() || !strings.Contains(stdout.Text(), "ready") {
			t.Fatalf("%s: %q", name, stdout.Text())
		}
		if code := stop(); code != exitDone {
			t.Errorf("%s: exit code %d", name, code)
		}
		if n := <-warned; n != tt.warns {
			t.Errorf("%s warns %d times of plain text, want %d", name, n, tt.warns)
		}
	}
}

func TestKeysComeFromOneSource(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	must(t, "session", "keys", "create", path)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		env  map[string]string
		file string
		keys bool
		says string
	}{
		"none":            {},
		"file":            {env: map[string]string{"HOLDFAST_SESSION_KEYS": path}, keys: true},
		"YAML":            {file: "session_keys: " + path + "\n", keys: true},
		"keyset":          {env: map[string]string{"HOLDFAST_SESSION_KEYSET": string(text)}, keys: true},
		"both":            {env: map[string]string{"HOLDFAST_SESSION_KEYS": path, "HOLDFAST_SESSION_KEYSET": string(text)}, says: "use one of them"},
		"a broken keyset": {env: map[string]string{"HOLDFAST_SESSION_KEYSET": string(text[:50])}, says: "HOLDFAST_SESSION_KEYSET"},
	} {
		c, err := loadConfig(t, nil, tt.env, tt.file)
		if err != nil {
			t.Fatal(err)
		}
		err = c.check()
		keys, keysErr := c.keys()
		if err == nil {
			err = keysErr
		}
		if tt.says == "" && (err != nil || (keys != nil) != tt.keys) || tt.says != "" && (exitCode(err) != exitUsage || !strings.Contains(err.Error(), tt.says)) {
			t.Errorf("%s: %v, %v", name, keys, err)
		}
	}
}

func TestBenchOfSessionsLeavesNothingBehind(t *testing.T) {
	active := func() (n float64) {
		var s struct{ Active map[string]float64 }
		if err := json.Unmarshal([]byte(must(t, "session", "stats", "-o", "json")), &s); err != nil {
			t.Fatal(err)
		}
		return s.Active["web"]
	}
	before := active()
	for _, line := range []string{"session-validate", "session-validate --cached 500ms", "session-create"} {
		args := append([]string{"bench"}, strings.Fields(line)...)
		out := must(t, append(args, strings.Fields("--keys 20 --clients 4 --warmup 0s --duration 200ms -o json")...)...)
		var r benchResult
		if err := json.Unmarshal([]byte(out), &r); err != nil || r.Ops == 0 || r.Errors+r.Unknown > 0 || r.Workload != args[1] || r.P50 <= 0 {
			t.Errorf("bench %s: %s", line, out)
		}
	}
	if after := active(); after != before {
		t.Errorf("%v sessions before, %v after", before, after)
	}
}
