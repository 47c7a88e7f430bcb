package catalog

import (
	"fmt"
	"testing"

	"github.com/holdfastdb/holdfast/fsm"
)

func sampleSessions(name string) SessionPolicy {
	return SessionPolicy{
		Type: name, Idle: 1000, Absolute: 5000, Refresh: 9000, Sessions: 5, OnLimit: "evict_oldest", IPBinding: "none", OnNetwork: "flag",
		OnDevice: "step_up", OnBurst: "flag", Burst: 100,
	}
}

func TestSessionPolicies(t *testing.T) {
	steps := []struct {
		name     string
		policy   string
		expected uint32 // revision
		code     fsm.Code
		revision uint32 // of what was put
	}{
		{"a change of nothing", "web", 1, fsm.Conflict, 0},
		{"the first", "web", 0, fsm.OK, 1},
		{"by who saw it", "web", 1, fsm.OK, 2},
		{"by who saw the one before", "web", 1, fsm.Conflict, 0},
		{"by who guesses", "web", 3, fsm.Conflict, 0},
		{"by who does not care", "web", 0, fsm.OK, 3},
		{"of another type", "api", 0, fsm.OK, 1},
		{"of another type, at this one's revision", "api", 3, fsm.Conflict, 0},
		{"of a type that begins alike", "webhook", 0, fsm.OK, 1},
	}
	c := setUp(t, 1)
	equal(t, "policies before the first", len(read(c, SessionPolicies)), 0)
	stored := make(map[string]SessionPolicy)
	var feed []Change
	var history []Audit // newest first
	for i, step := range steps {
		c.Now += 5
		q := sampleSessions(step.policy)
		q.Sessions, q.Actor, q.Revision = uint32(i+1), fmt.Sprint("actor ", i), step.expected
		q.Updated = 7 // that is not the caller's to say
		if step.code != fsm.OK {
			refused(c, OpPutSessionPolicy, q, step.code)
		} else {
			got := done[SessionPolicy](c, OpPutSessionPolicy, q)
			q.Updated, q.Revision = c.Now, step.revision
			equal(t, step.name, got, q)
			stored[step.policy] = q
			feed = append(feed, Change{Revision: uint64(len(feed) + 1), Sessions: step.policy})
			history = append([]Audit{{At: c.Now, Actor: q.Actor, Action: "update", Detail: step.policy}}, history...)
		}
		list, revision, err := c.changes(0)
		if err != nil {
			t.Fatal(err)
		}
		equal(t, step.name+": changes", list, feed)
		equal(t, step.name+": revision", revision, len(feed))
		equal(t, step.name+": history", lines(c, SessionPolicyHistory), history)
	}
	equal(t, "all of them, by type", read(c, SessionPolicies), []SessionPolicy{stored["api"], stored["web"], stored["webhook"]})
	c.Check()
}

// Session policies have a history of their own, which is empty before the first and is nobody else's.
func TestHistoryOfSessionPolicies(t *testing.T) {
	c := setUp(t, 1)
	equal(t, "lines of nothing", len(lines(c, SessionPolicyHistory)), 0)
	p := c.create("web") // a rate-limit policy of the same name
	done[Nothing](c, OpPutDomain, Domain{Name: "web", YAML: "1"})
	equal(t, "lines of others", len(lines(c, SessionPolicyHistory)), 0)
	done[SessionPolicy](c, OpPutSessionPolicy, sampleSessions("web"))
	for of, want := range map[string]int{SessionPolicyHistory: 1, DomainHistory: 1, p.ID(): 1} {
		equal(t, "lines of "+of, len(lines(c, of)), want)
	}
	if r := c.Query(Call(OpHistory, PolicyRef{Policy: PolicyID(sessionPolicyNumber)})); r.Code != fsm.NotFound {
		t.Errorf("by the number it is kept under: %v", r.Code)
	}
}

func TestSessionPoliciesNeedACluster(t *testing.T) {
	refused(newCat(t), OpPutSessionPolicy, sampleSessions("web"), fsm.NotFound)
}
