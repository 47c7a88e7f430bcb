package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/holdfastdb/holdfast/client/holdfasttest"
	"github.com/holdfastdb/holdfast/fsm"
)

// cluster is one real cluster for all tests of the package. Each uses policies and clients of its own.
var cluster *holdfasttest.Cluster

func TestMain(m *testing.M) {
	os.Exit(holdfasttest.Main(m, 1, func(c *holdfasttest.Cluster) { cluster = c }))
}

// holdfast runs a command line against the cluster, as a shell would.
func holdfast(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), append(args, "--addr", cluster.Addrs()[0]), &out, &errs)
	return out.String(), errs.String(), code
}

// must runs a command line that ends well.
func must(t *testing.T, args ...string) string {
	t.Helper()
	out, errs, code := holdfast(t, args...)
	if code != exitDone {
		t.Fatalf("holdfast %s: exit code %d\n%s%s", strings.Join(args, " "), code, out, errs)
	}
	return out
}

func TestTheFirstMinute(t *testing.T) {
	must(t, "policy", "create", "--name", "minute", "--algorithm", "fixed_window", "--rate", "2", "--calendar", "year")
	must(t, "policy", "assign", "minute", "ann")
	for left := 1; left >= 0; left-- {
		if out := must(t, "limit", "check", "ann"); !strings.Contains(strings.ToLower(out), "allowed") {
			t.Errorf("with %d left: %s", left, out)
		}
	}
	out, errs, code := holdfast(t, "limit", "check", "ann")
	if code != exitRefused || !strings.Contains(strings.ToLower(out), "denied") || errs != "" {
		t.Errorf("beyond the limit: exit code %d, %q, %q", code, out, errs)
	}
	if out := must(t, "limit", "status", "ann"); !strings.Contains(out, "minute") {
		t.Errorf("status: %s", out)
	}
	must(t, "limit", "reset", "ann")
	must(t, "limit", "check", "ann")
}

func TestExitCodes(t *testing.T) {
	for _, tt := range []struct {
		line string
		code int
		says string // on standard error
	}{
		{"cluster status", exitDone, ""},
		{"limit check ann --policy nope", exitRefused, "nope"},
		{"policy get nope", exitRefused, "nope"},
		{"limit check", exitUsage, "name a client"},
		{"limit replay", exitUsage, "Usage:"},
		{"limit chek ann", exitUsage, "chek"},
		{"limti", exitUsage, "--help"},
		{"limit check ann --weight many", exitUsage, "--weight"},
		{"limit check ann --wait", exitUsage, "See: holdfast limit check --help"},
		{"cluster status -o xml", exitUsage, "table, json or yaml"},
		{"limit replay /nothing --rate 1", exitUsage, "/nothing"},
		{"limit replay /dev/null", exitUsage, "--rate"},
		{"limit replay /dev/null --rate 5 --policy api", exitUsage, "--live"},
		{"limit replay /dev/null --rate 1 --key shoe", exitUsage, "--key"},
		{"limit replay /dev/null --rate 1 --algorithm magic", exitUsage, "token_bucket"},
		{"start --shards 0", exitUsage, "--shards"},
		{"dev --grpc 0.0.0.0:1", exitUsage, "--insecure"},
		{"start --gossip 0.0.0.0:1 --insecure", exitUsage, "--gossip-key-file"},
		{"start --peer 0.0.0.0:1 --insecure", exitUsage, "--advertise"},
		{"start --http :1 --insecure", exitUsage, "--advertise"},
		{"start --advertise 192.0.2.7:7400", exitUsage, "without a port"},
		{"limit status ann --policy a,b", exitUsage, "name one policy"},
		{"limit reset ann --policy a,b", exitUsage, "name one policy"},
		{"cluster transfer 99 n1", exitRefused, "no shard 99"},
		{"cluster transfer 1 nope", exitRefused, "no node"},
		{"cluster transfer one n1", exitUsage, "not a number"},
		{"start --name=", exitUsage, "--name"},
		{"start --data=", exitUsage, "--data"},
		{"start --heartbeat 0s", exitUsage, "--heartbeat"},
		{"completion foo", exitUsage, `"foo" for "holdfast completion"`},
		{"help foo", exitUsage, "foo"},
		{"bench limit-check --keys 0", exitUsage, "--keys"},
		{"bench limit-check --clients 0", exitUsage, "--clients"},
		{"bench limit-check --duration 0s", exitUsage, "--duration"},
		{"bench limit-check --warmup -1s", exitUsage, "--warmup"},
		{"bench limit-check --zipf 1", exitUsage, "--zipf"},
		{"bench limit-check --zipf NaN", exitUsage, "--zipf"},
		{"bench limit-check --rate -1", exitUsage, "--rate"},
		{"bench limit-check --rate NaN", exitUsage, "--rate"},
		{"limit replay /dev/null --rate 1 --window 0", exitUsage, "time_window"},
		{"limit replay /dev/null --rate 1 --window NaN", exitUsage, "time_window"},
		{"limit replay /dev/null --rate 1 --top -1", exitUsage, "--top"},
		{"limit replay /dev/null --rate 1 --callers 0", exitUsage, "--callers"},
		{"limit replay . --rate 1", exitUsage, "is a directory"},
		{"policy import .", exitUsage, "directory"},
		{"policy create --name b --rate 0 --window 1", exitUsage, "rate_limit"},
		{"policy create --name b --rate 1 --window -1", exitUsage, "time_window"},
		{"policy create --name b --rate 1 --window 1 --rollout 101", exitUsage, "rollout_percent"},
		{"policy update b --expected-revision 0", exitUsage, "--expected-revision"},
		{"policy clients b --size 0", exitUsage, "--size"},
		{"policy clients b --size 1001", exitUsage, "--size"},
		{"bench nothing", exitUsage, "limit-check"},
		{"policy create --name a --algorithm fixed_window --rate 1 --window 1 --burst 2", exitUsage, "burst_capacity"},
		{"limit replay /dev/null --algorithm sliding_log --rate 1 --burst 2", exitUsage, "--burst"},
		{"policy create --name a", exitUsage, "See: holdfast policy create --help"},
		{"limit replay cli_test.go --rate 1", exitRefused, "Combined Log Format"},
	} {
		out, errs, code := holdfast(t, strings.Fields(tt.line)...)
		if code != tt.code || !strings.Contains(errs, tt.says) || code != exitDone && !strings.HasPrefix(errs, "holdfast: ") {
			t.Errorf("holdfast %s: exit code %d, want %d, and something about %q\n%s%s", tt.line, code, tt.code, tt.says, out, errs)
		}
	}
	for _, addr := range []string{"", "nonsense", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:grpc"} {
		var out, errs bytes.Buffer
		if code := run(t.Context(), []string{"cluster", "status", "--addr", addr}, &out, &errs); code != exitUsage || !strings.Contains(errs.String(), "HOST:PORT") {
			t.Errorf("--addr %s: exit code %d\n%s", addr, code, errs.String())
		}
	}
	var out, errs bytes.Buffer
	if code := run(t.Context(), []string{"cluster", "status", "--addr", "127.0.0.1:1"}, &out, &errs); code != exitUnreachable || !strings.Contains(errs.String(), "holdfast dev") || strings.Contains(errs.String(), "holdfast: holdfast:") {
		t.Errorf("nobody there: exit code %d\n%s", code, errs.String())
	}
}

func TestAnswersForMachines(t *testing.T) {
	must(t, "policy", "create", "--name", "machines", "--rate", "5", "--window", "60")
	must(t, "policy", "assign", "machines", "bob", "eve")
	for _, line := range []string{
		"cluster status", "cluster nodes", "cluster shards", "policy list", "policy get machines", "policy clients machines",
		"policy history machines", "limit check bob", "limit check bob --peek", "limit status bob", "version",
	} {
		args := strings.Fields(line)
		var fromJSON, fromYAML any
		text := must(t, append(slices.Clone(args), "-o", "json")...)
		if err := json.Unmarshal([]byte(text), &fromJSON); err != nil {
			t.Errorf("%s -o json: %v\n%s", line, err, text)
		}
		text = must(t, append(slices.Clone(args), "-o", "yaml")...)
		if err := yaml.Unmarshal([]byte(text), &fromYAML); err != nil || reflect.TypeOf(fromJSON) != reflect.TypeOf(fromYAML) {
			t.Errorf("%s -o yaml: %v, a %T instead of a %T\n%s", line, err, fromYAML, fromJSON, text)
		}
		table := must(t, args...)
		if strings.HasPrefix(table, "{") || table == "" {
			t.Errorf("%s: not a table:\n%s", line, table)
		}
	}
}

func TestNodesAndShardsAreOnlyThose(t *testing.T) {
	for _, field := range []string{"nodes", "shards"} {
		var answer map[string][]any
		text := must(t, "cluster", field, "-o", "json")
		if err := json.Unmarshal([]byte(text), &answer); err != nil || len(answer) != 1 || len(answer[field]) == 0 {
			t.Errorf("cluster %s: %v\n%s", field, err, text)
		}
	}
}

func TestASizeThatIsNotKnownIsNoSize(t *testing.T) {
	for size, want := range map[float64]string{0: "-", 1: "1 B", 1500: "1.5 kB"} {
		if got := bytesText(size); got != want {
			t.Errorf("%v is %q, want %q", size, got, want)
		}
	}
}

// Examples are typed off. Each must be a command that exists, with flags that it has.
func TestExamplesInTheHelpAreValid(t *testing.T) {
	root := newRoot(os.Stdout, os.Stderr)
	examples := 0
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		if cmd.Runnable() && !cmd.HasSubCommands() && cmd.Example == "" && !cmd.Hidden && cmd.Name() != "help" && cmd.Parent().Name() != "completion" {
			t.Errorf("%s has no example", cmd.CommandPath())
		}
		if cmd.Parent() == nil || cmd.Parent().Name() != "completion" {
			for line := range strings.Lines(cmd.Example) {
				line, _, _ = strings.Cut(strings.TrimSpace(line), "   ") // what follows is an explanation
				if !strings.HasPrefix(line, "holdfast ") {
					continue
				}
				examples++
				found, rest, err := root.Find(strings.Fields(line)[1:])
				if err != nil || found != cmd && found.Parent() != cmd {
					t.Errorf("%q in the help of %s is %v, %v", line, cmd.CommandPath(), found.CommandPath(), err)
					continue
				}
				if err := found.ParseFlags(rest); err != nil {
					t.Errorf("%q: %v", line, err)
				}
			}
		}
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(root)
	if examples < 15 {
		t.Errorf("only %d examples", examples)
	}
}

// accessLog writes a log of random requests and returns its path with the requests, in the order of their times.
func accessLog(t *testing.T, n int) (string, []request) {
	t.Helper()
	random := rand.New(rand.NewPCG(7, 7))
	begin := time.Date(2015, 5, 17, 10, 59, 50, 0, time.UTC)
	var lines strings.Builder
	var list []request
	at := begin
	for range n {
		at = at.Add(time.Duration(random.IntN(3)) * time.Second)
		seen := at.Add(-time.Duration(random.IntN(3)) * time.Second) // lines are not in order
		ip := fmt.Sprintf("192.0.2.%d", random.IntN(20)*random.IntN(3))
		fmt.Fprintf(&lines, "%s - - [%s] \"GET /%d HTTP/1.1\" 200 12 \"-\" \"agent\"\n", ip, seen.Format("02/Jan/2006:15:04:05 -0700"), random.IntN(9))
		list = append(list, request{client: ip, at: fsm.Time(seen.UnixMilli())})
	}
	lines.WriteString("not a line\n")
	path := filepath.Join(t.TempDir(), "access.log")
	if err := os.WriteFile(path, []byte(lines.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	slices.SortStableFunc(list, func(a, b request) int { return cmp.Compare(a.at, b.at) })
	return path, list
}

// The answer is that of a plain count of requests by client and minute.
func TestReplayAnswersLikeAPlainCount(t *testing.T) {
	path, list := accessLog(t, 3000)
	const rate, windowMS = 10, 60_000
	type window struct {
		client string
		number int64
	}
	used := make(map[window]int)
	want := verdict{Requests: len(list), Skipped: 1, clients: make(map[string]*denials)}
	for _, q := range list {
		w := window{q.client, int64(q.at) / windowMS}
		used[w]++
		want.Requests-- // count adds it again
		want.count(q, used[w] <= rate)
	}
	want.finish(5)
	var got verdict
	out := must(t, "limit", "replay", path, "--algorithm", "fixed_window", "--rate", "10", "--window", "60", "--key", "ip", "--top", "5", "-o", "json")
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatal(err)
	}
	want.clients = nil
	if !reflect.DeepEqual(got, want) || got.Denied == 0 || got.Allowed == 0 {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	table := must(t, "limit", "replay", path, "--algorithm", "fixed_window", "--rate", "10", "--window", "60")
	if !strings.Contains(table, got.TopDenied[0].Client) || !strings.Contains(table, fmt.Sprint(got.Denied)) {
		t.Errorf("the table lacks who was denied most:\n%s", table)
	}
}

// Through the SDK and Raft, a limit that gives nothing back while the test runs admits exactly its number.
func TestReplayLive(t *testing.T) {
	path, list := accessLog(t, 400)
	requests := make(map[string]int)
	for _, q := range list {
		requests[q.client]++
	}
	allowed := 0
	for _, n := range requests {
		allowed += min(n, 7)
	}
	var got verdict
	out := must(t, "limit", "replay", path, "--live", "--algorithm", "fixed_window", "--rate", "7", "--calendar", "year", "-o", "json")
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatal(err)
	}
	if got.Requests != len(list) || got.Clients != len(requests) || got.Allowed != allowed || got.Errors != 0 || got.PerSecond <= 0 {
		t.Errorf("got %+v, want %d of %d allowed", got, allowed, len(list))
	}
	if out := must(t, "policy", "list"); strings.Contains(out, "replay-") {
		t.Errorf("the policy is still there:\n%s", out)
	}
}

func TestReplayLiveUnderAPolicyThatCountsAddresses(t *testing.T) {
	path, list := accessLog(t, 60)
	addresses := make(map[string]int)
	for _, q := range list {
		addresses[q.client]++
	}
	allowed := 0
	for _, n := range addresses {
		allowed += min(n, 2)
	}
	must(t, "policy", "create", "--name", "by-address", "--scope", "ip", "--algorithm", "fixed_window", "--rate", "2", "--calendar", "year")
	var got verdict
	out := must(t, "limit", "replay", path, "--live", "--policy", "by-address", "-o", "json")
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatal(err)
	}
	if got.Requests != len(list) || got.Allowed != allowed || got.Errors != 0 {
		t.Errorf("got %+v, want %d of %d allowed", got, allowed, len(list))
	}
}

func TestPolicyImport(t *testing.T) {
	path := filepath.Join(t.TempDir(), "edge.yaml")
	const good = "domain: edge\ndescriptors: [{key: path, rate_limit: {unit: minute, requests_per_unit: 5}}]\n"
	for _, tt := range []struct {
		text, flag string
		code       int
		says       string
	}{
		{good, "--dry-run", exitDone, "false"},
		{good, "--dry-run=false", exitDone, "true"},
		{strings.Replace(good, "minute", "fortnight", 1), "--dry-run", exitUsage, `holdfast: yaml: edge.path: unit "fortnight"`},
	} {
		if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
			t.Fatal(err)
		}
		out, errs, code := holdfast(t, "policy", "import", path, tt.flag)
		if code != tt.code || !strings.Contains(out+errs, tt.says) {
			t.Errorf("%s: exit code %d, want %d and %q\n%s%s", tt.flag, code, tt.code, tt.says, out, errs)
		}
	}
	if out := must(t, "policy", "domains"); !strings.Contains(out, "edge") {
		t.Errorf("domains: %s", out)
	}
	must(t, "policy", "delete-domain", "edge")
	if out := must(t, "policy", "domains"); strings.Contains(out, "edge") {
		t.Errorf("after it was deleted: %s", out)
	}
	if out := must(t, "policy", "history", "@domains"); strings.Index(out, "delete") > strings.Index(out, "import") || !strings.Contains(out, "edge") {
		t.Errorf("what happened to domains:\n%s", out)
	}
	if _, errs, code := holdfast(t, "policy", "delete-domain", "edge"); code != exitRefused || !strings.Contains(errs, "no domain") {
		t.Errorf("deleted twice: exit code %d, %s", code, errs)
	}
}

func TestTheCommandIsFoundBehindFlags(t *testing.T) {
	for line, want := range map[string]string{
		"start --name n1 --bootstrap":         "holdfast start",
		"dev":                                 "holdfast dev",
		"-o json bench limit-check":           "holdfast bench",
		"--addr 127.0.0.1:1 bench --rate 5 x": "holdfast bench",
		"policy list":                         "holdfast policy list",
		"no-such-command":                     "",
	} {
		if got := commandOf(strings.Fields(line)); got != want {
			t.Errorf("%s is %q, want %q", line, got, want)
		}
	}
}
