//go:build planted

// Package planted checks the checks: it plants one bug after the other into the nodes of simulated clusters, and fails
// unless the simulation reports a broken promise. The same seeds without a bug must report none.
package planted

import (
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfastdb/holdfast/cluster-tests/check"
	"github.com/holdfastdb/holdfast/cluster-tests/sim"
	"github.com/holdfastdb/holdfast/storage/plant"
)

// trouble is a mix of faults. A bug needs its own to show, and little else, so that runs can be short.
type trouble struct {
	name   string
	faults []string
	// trailing is how many entries the logs keep.
	trailing uint64
	seeds    []uint64
	checksum time.Duration
}

var (
	// retries: answers get lost and replicas restart.
	retries = trouble{"retries", []string{"connections reset on a slow network", "kill"}, 4096, []uint64{1, 2, 3, 4}, 0}
	// deposed: some do not know that they do not lead any more.
	deposed = trouble{"deposed", []string{"leader deposed unheard"}, 4096, []uint64{1, 2, 3, 4, 5, 6}, 0}
	// divided: leaders are cut off from the others.
	divided = trouble{"divided", []string{"partition", "leader deposed unheard"}, 4096, []uint64{1, 2, 3, 4}, 0}
	// moved: leaders become followers that are late.
	moved = trouble{"moved", []string{"leadership transfers on a slow network"}, 4096, []uint64{1, 2, 3}, 0}
	// behind: replicas cannot go on where they were. States are seldom compared, because for that they are written.
	behind = trouble{"behind", []string{"kill"}, 16, []uint64{2, 3, 4, 5, 6, 7, 8}, time.Minute}
	// outrun: replicas fall so far behind that they need the whole state. States are often written, and then the logs are cut.
	outrun = trouble{"outrun", []string{"kill"}, 16, []uint64{2, 3, 4}, 2 * time.Second}
	// cuts: the power fails right after a write.
	cuts = trouble{"cuts", []string{"power cut at an entry", "power cut at a vote"}, 4096, []uint64{1, 2}, 0}
	// anything: all faults, as in the simulation itself.
	anything = trouble{"anything", nil, 64, []uint64{1, 2, 3}, 0}
)

// bugs says for each bug by which trouble it shows, and which check must find it: one of these.
var bugs = []struct {
	bug    plant.Bug
	name   string
	by     trouble
	checks []string
}{
	{plant.SkipDedup, "skip dedup", retries, []string{check.KindSum, check.KindResult}},
	{plant.ApplyTwice, "apply twice after restart", retries, []string{check.KindAgreement}},
	{plant.LocalClock, "local clock in a state machine", retries, []string{check.KindAgreement, check.KindResult}},
	{plant.LoseExpiry, "lose the expiry row", retries, []string{check.KindRows}},
	{plant.FreeLease, "lease granted without deduction", retries, []string{check.KindResult}},
	{plant.RefundTwice, "refund counted twice", retries, []string{check.KindSum, check.KindResult}},
	{plant.ReadUnconfirmed, "read without confirming leadership", deposed, []string{check.KindOrder, check.KindResult}},
	{plant.FollowerReads, "a follower serves a query", moved, []string{check.KindOrder, check.KindResult}},
	{plant.AckBeforeQuorum, "ack before quorum", divided, []string{check.KindLost, check.KindAgreement}},
	{plant.TruncateEarly, "truncate the log before the state is flushed", behind, []string{check.KindNode}},
	{plant.SnapshotShort, "snapshot one entry short", outrun, []string{check.KindAgreement, check.KindSum, check.KindResult, check.KindNode}},
	{plant.VoteUnsynced, "vote not synced", cuts, []string{check.KindDurable}},
	{plant.VoteApart, "term and vote written apart", cuts, []string{check.KindDurable}},
	{plant.LogUnsynced, "log not synced", cuts, []string{check.KindDurable}},
	{plant.CountUnsynced, "the leader counts before its disk", cuts, []string{check.KindDurable}},
	{plant.OverSpend, "lease spent without counting", anything, []string{check.KindLease}},
	{plant.SpendLate, "lease spent after its end", anything, []string{check.KindLease}},
	{plant.AllowShort, "allowed with nothing left", anything, []string{check.KindPromise}},
	{plant.FailOpen, "answered without the limits that apply", anything, []string{check.KindResult}},
	{plant.WrongClock, "a leader's time is ahead", anything, []string{check.KindTime}},
	{plant.MissChange, "a node misses changes of policies", anything, []string{check.KindWatch}},
	{plant.ForgetPolicy, "a policy's change acknowledged and not made", anything, []string{check.KindPolicy}},
	{plant.RefuseDone, "refused after it was executed", anything, []string{check.KindEffect}},
	{plant.KeepRevoked, "a session that is ended stays", retries, []string{check.KindResult}},
	{plant.KeepRevoked, "a session that is ended stays, by what callers were told", retries, []string{check.KindSession}},
	{plant.ForgiveReuse, "a refresh token is used again unnoticed", retries, []string{check.KindResult}},
	{plant.ForgiveReuse, "a refresh token is used again unnoticed, by what callers were told", retries, []string{check.KindSession}},
	{plant.NoTombstone, "a session that is dropped is saved again", retries, []string{check.KindSession}},
	{plant.OneTooMany, "one session more than allowed", retries, []string{check.KindSession}},
	{plant.MissEnds, "the SDK is not told that a session ended", retries, []string{check.KindLease, check.KindSession}},
	{plant.KeepHistory, "a history stays of who is erased", retries, []string{check.KindSession}},
	{plant.LoginApart, "a logout of a whole login ends one session", retries, []string{check.KindSession}},
	{plant.DeviceMore, "one device more than allowed", retries, []string{check.KindSession}},
	{plant.SpareNone, "a session that is spared ends", retries, []string{check.KindSession}},
	{plant.WrongReason, "a session is said to have ended for another reason", retries, []string{check.KindSession}},
	{plant.MissBegins, "who watches misses sessions that begin", retries, []string{check.KindWatch}},
	// By nothing but what callers saw.
	{plant.SkipDedup, "skip dedup, seen by callers", retries, []string{check.KindSequence}},
	{plant.FollowerReads, "a follower serves a query, seen by callers", moved, []string{check.KindSequence}},
	{plant.KeepRevoked, "a session that is ended stays, seen by callers", retries, []string{check.KindSequence}},
}

// tried are the seeds of a run: those of the trouble, or the one that PLANTED_SEED names.
func (by trouble) tried(t *testing.T) []uint64 {
	text := os.Getenv("PLANTED_SEED")
	if text == "" {
		return by.seeds
	}
	seed, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return []uint64{seed}
}

// run simulates a seed and returns what was found, by check.
func run(t *testing.T, by trouble, seed uint64) (*sim.Report, map[string]int, error) {
	var report *sim.Report
	var err error
	opts := sim.Options{
		Seed: seed, Nodes: 3, Shards: 1, Duration: 2 * time.Minute, Think: 150 * time.Millisecond, TrailingEntries: by.trailing,
		Faults: by.faults, Pause: 5 * time.Second, Checksum: by.checksum, Logger: slog.New(slog.DiscardHandler),
	}
	if name := os.Getenv("SIM_LOG"); name != "" {
		f, err := os.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		opts.Logger = slog.New(slog.NewTextHandler(f, nil))
	}
	synctest.Test(t, func(*testing.T) { report, err = sim.Run(opts) })
	report.Sample("", false)
	found := make(map[string]int)
	for _, v := range report.Violations {
		found[v.Kind]++
	}
	return report, found, err
}

func TestEveryPlantedBugIsFound(t *testing.T) {
	for _, test := range bugs {
		t.Run(test.name, func(t *testing.T) {
			plant.Set(test.bug)
			defer plant.Set(plant.None)
			for _, seed := range test.by.tried(t) {
				report, found, _ := run(t, test.by, seed)
				for _, check := range test.checks {
					if found[check] > 0 {
						t.Logf("found with seed %d by the checks %s; the first: %.300s", seed, counts(found), first(report, check))
						return
					}
				}
				t.Logf("seed %d: found by %s\n%s", seed, counts(found), report)
			}
			t.Errorf("no seed of %v let one of the checks %v find it", test.by.seeds, test.checks)
		})
	}
}

func first(r *sim.Report, kind string) string {
	for _, v := range r.Violations {
		if v.Kind == kind {
			return v.String()
		}
	}
	return ""
}

func counts(found map[string]int) string {
	var list []string
	for _, kind := range slices.Sorted(maps.Keys(found)) {
		list = append(list, fmt.Sprintf("%s (%d)", kind, found[kind]))
	}
	return strings.Join(list, ", ")
}

// Without a bug the same seeds find nothing.
func TestNothingIsFoundWhereNothingIsPlanted(t *testing.T) {
	for _, by := range []trouble{retries, deposed, divided, moved, behind, outrun, cuts, anything} {
		for _, seed := range by.tried(t) {
			t.Run(fmt.Sprintf("%s/seed %d", by.name, seed), func(t *testing.T) {
				report, _, err := run(t, by, seed)
				t.Log(report)
				if err != nil {
					t.Error(err)
				}
			})
		}
	}
}
