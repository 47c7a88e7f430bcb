package catalog

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/holdfastdb/holdfast/fsm"
)

func TestPolicyID(t *testing.T) {
	for _, n := range []uint32{1, 9, 10, math.MaxUint32} {
		if got, ok := ParsePolicyID(PolicyID(n)); !ok || got != n {
			t.Errorf("%s: %d %t", PolicyID(n), got, ok)
		}
	}
	// One policy has one id: no other spelling of a number is one.
	for _, id := range []string{"", "p", "p0", "p01", "p+1", "p-1", "p 1", "1", "P1", "p4294967296", "p1x", "pp1"} {
		if n, ok := ParsePolicyID(id); ok {
			t.Errorf("%q is the id of %d", id, n)
		}
	}
}

func TestPolicies(t *testing.T) {
	c := setUp(t, 1)
	made := c.create("a")
	want := samplePolicy("a")
	want.Number, want.Revision, want.Created, want.Updated = 1, 1, c.Now, c.Now
	equal(t, "created", made, want)
	refused(c, OpCreatePolicy, PolicyEdit{Policy: samplePolicy("a")}, fsm.Conflict)
	b := c.create("b")
	equal(t, "number of the second", b.Number, 2)

	c.Now += 5
	edit := made
	edit.Rate, edit.Created, edit.Updated, edit.Revision = 7, 1, 2, 99 // only the rate is the caller's to say
	want.Rate, want.Revision, want.Updated = 7, 2, c.Now
	equal(t, "updated", done[Policy](c, OpUpdatePolicy, PolicyEdit{Policy: edit}), want)
	for _, name := range []string{"a", "p1"} {
		equal(t, "by "+name, asked[Policy](c, OpGetPolicy, PolicyRef{Policy: name}), want)
	}
	refused(c, OpUpdatePolicy, PolicyEdit{Policy: edit, Expected: 1}, fsm.Conflict)
	refused(c, OpUpdatePolicy, PolicyEdit{Policy: edit, Expected: 3}, fsm.Conflict)
	equal(t, "revision", done[Policy](c, OpUpdatePolicy, PolicyEdit{Policy: edit, Expected: 2}).Revision, 3)
	refused(c, OpUpdatePolicy, PolicyEdit{Policy: Policy{Number: 3, Name: "c"}}, fsm.NotFound)
	refused(c, OpUpdatePolicy, PolicyEdit{Policy: Policy{Name: "c"}}, fsm.NotFound)

	edit.Name = "b"
	refused(c, OpUpdatePolicy, PolicyEdit{Policy: edit}, fsm.Conflict)
	edit.Name = "c"
	done[Policy](c, OpUpdatePolicy, PolicyEdit{Policy: edit})
	if r := c.Query(Call(OpGetPolicy, PolicyRef{Policy: "a"})); r.Code != fsm.NotFound {
		t.Errorf("by its old name: %v %s", r.Code, r.Body)
	}
	equal(t, "who takes the freed name", c.create("a").Number, 3)
	c.Check()
}

func TestDeletePolicy(t *testing.T) {
	c := setUp(t, 1)
	first, second := c.create("a"), c.create("b")
	c.assignMany("a", []string{"x", "y", Everyone})
	c.assignMany("b", []string{"x"})
	refused(c, OpDeletePolicy, PolicyRef{Policy: "p9"}, fsm.NotFound)
	refused(c, OpDeletePolicy, PolicyRef{Policy: "nobody"}, fsm.NotFound)
	_, before, _ := c.changes(0)
	done[Nothing](c, OpDeletePolicy, PolicyRef{Policy: "a", Actor: "me"})
	equal(t, "what is left of x", c.assignments("x"), []Assignment{{Policy: second.Number, Client: "x"}})
	equal(t, "what is left of y", c.assignments("y"), []Assignment(nil))
	list, _, err := c.changes(before)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "changes", list, []Change{
		{Revision: before + 1, Client: Everyone}, {Revision: before + 2, Client: "x"},
		{Revision: before + 3, Client: "y"}, {Revision: before + 4, Policy: 1},
	})
	refused(c, OpDeletePolicy, PolicyRef{Policy: "a"}, fsm.NotFound)
	refused(c, OpAssign, Assign{Policy: "p1", Clients: []string{"x"}}, fsm.NotFound)

	// The history outlives the policy, and the number is not given again.
	audit := asked[[]Audit](c, OpHistory, PolicyRef{Policy: first.ID()})
	equal(t, "newest line", audit[0].Action+" by "+audit[0].Actor, "delete by me")
	equal(t, "revision of the deletion", audit[0].Revision, 2)
	equal(t, "lines", len(audit), 3)
	done[Nothing](c, OpDeletePolicy, PolicyRef{Policy: "p2"})
	equal(t, "number of the next", c.create("a").Number, 3)
	if r := c.Query(Call(OpHistory, PolicyRef{Policy: "b"})); r.Code != fsm.NotFound {
		t.Errorf("history by a name that is gone: %v", r.Code)
	}
	c.Check()
}

func TestDeleteManyClients(t *testing.T) {
	c := setUp(t, 1)
	c.OpenOnce = true
	c.create("a")
	clients := manyClients(deleteAtOnce + 1)
	c.assignMany("a", clients)
	refused(c, OpDeletePolicy, PolicyRef{Policy: "a"}, fsm.Conflict)
	done[uint32](c, OpUnassign, Assign{Policy: "a", Clients: clients[:1]})
	done[Nothing](c, OpDeletePolicy, PolicyRef{Policy: "a"})
	equal(t, "the last one's", c.assignments(clients[deleteAtOnce]), []Assignment(nil))
	c.Check()
}

func TestHistoryIsBounded(t *testing.T) {
	c := setUp(t, 1)
	c.OpenOnce = true
	p := c.create("a")
	other := c.create("b")
	for i := range HistoryKept + 50 {
		p.Rate = uint32(i + 1)
		done[Policy](c, OpUpdatePolicy, PolicyEdit{Policy: p, Actor: "tester"})
		if i == HistoryKept-2 { // and the creation
			equal(t, "the oldest when full", lines(c, "a")[HistoryKept-1].Action, "create")
		}
	}
	audit := lines(c, "a")
	equal(t, "lines", len(audit), HistoryKept)
	for i := range audit {
		if want := uint32(HistoryKept + 51 - i); audit[i].Revision != want || audit[i].Policy.Rate != want-1 {
			t.Fatalf("line %d: %+v", i, audit[i])
		}
	}
	equal(t, "lines of the other", len(lines(c, other.ID())), 1)
}

func lines(c *cat, policy string) []Audit {
	c.T.Helper()
	return asked[[]Audit](c, OpHistory, PolicyRef{Policy: policy})
}

// oddClients are ids that are prefixes of each other, and ids made of bytes that mean something in keys.
var oddClients = []string{
	"a", "a\x01", "ab", "a\x01b", "\x01", "\x7f", "é", "\U0010ffff", "*a", "**", " ", "a ", "<&>\u2028", `"\`, "a\x00\x01",
}

func TestAssign(t *testing.T) {
	c := setUp(t, 1)
	c.create("a")
	c.create("b")
	for i, client := range oddClients {
		q := Assign{
			Policy: "a", Clients: []string{client}, Rate: uint32(i + 1), Priority: ptr(int32(-i)), From: fsm.Time(i), To: fsm.Time(i + 100),
		}
		equal(t, "assigned", done[uint32](c, OpAssign, q), 1)
	}
	done[uint32](c, OpAssign, Assign{Policy: "p2", Clients: []string{"a"}})
	for i, client := range oddClients[:len(oddClients)-1] {
		list := c.assignments(client)
		if client == "a" {
			equal(t, "the second of a", list[1], Assignment{Policy: 2, Client: "a"})
			list = list[:1]
		}
		if len(list) != 1 || list[0].Client != client || list[0].Rate != uint32(i+1) || *list[0].Priority != int32(-i) ||
			list[0].From != fsm.Time(i) || list[0].To != fsm.Time(i+100) {
			t.Errorf("assignments of %q: %+v", client, list)
		}
	}
	c.Check()
	got := clientIDs(asked[Clients](c, OpListClients, Page{Policy: "a", Size: 100}).List)
	equal(t, "clients of a", got, slices.Sorted(slices.Values(oddClients)))

	// Assigning again replaces, and clients that are not assigned are no error.
	done[uint32](c, OpAssign, Assign{Policy: "a", Clients: []string{"a"}, Rate: 3})
	equal(t, "assigned again", c.assignments("a")[0], Assignment{Policy: 1, Client: "a", Rate: 3})
	equal(t, "unassigned", done[uint32](c, OpUnassign, Assign{Policy: "a", Clients: []string{"a", "nobody", "ab"}}), 2)
	equal(t, "what is left of a", c.assignments("a"), []Assignment{{Policy: 2, Client: "a"}})
	equal(t, "neighbour of a", len(c.assignments("a\x01")), 1)
	equal(t, "the line", lines(c, "a")[0].Detail, "a and 1 more")
	c.Check()
}

// A client named twice in one command is one client.
func TestAssignTwiceInOne(t *testing.T) {
	c := setUp(t, 1)
	c.create("a")
	_, before, _ := c.changes(0)
	twice := Assign{Policy: "a", Clients: []string{"x", "y", "x"}}
	equal(t, "assigned", done[uint32](c, OpAssign, twice), 2)
	equal(t, "unassigned", done[uint32](c, OpUnassign, twice), 2)
	equal(t, "unassigned again", done[uint32](c, OpUnassign, twice), 0)
	_, after, _ := c.changes(0)
	equal(t, "changes", after-before, 4)
	var details []string
	for _, a := range lines(c, "a") {
		details = append(details, a.Action+" "+a.Detail)
	}
	equal(t, "history", details, []string{"unassign no clients", "unassign x and 1 more", "assign x and 1 more", "create "})
}

func clientIDs(list []Assignment) (ids []string) {
	for _, a := range list {
		ids = append(ids, a.Client)
	}
	return ids
}

func TestEffectivePriority(t *testing.T) {
	p := Policy{Priority: 5}
	equal(t, "own", (&Assignment{Priority: ptr(int32(0))}).EffectivePriority(&p), 0)
	equal(t, "the policy's", (&Assignment{}).EffectivePriority(&p), 5)
}

func TestDomains(t *testing.T) {
	c := setUp(t, 1)
	equal(t, "lines of nothing", len(asked[[]Audit](c, OpHistory, PolicyRef{Policy: DomainHistory})), 0)
	done[Nothing](c, OpPutDomain, Domain{Name: "b", YAML: "1"})
	done[Nothing](c, OpPutDomain, Domain{Name: "a", YAML: "2"})
	done[Nothing](c, OpPutDomain, Domain{Name: "b", YAML: "3", Actor: "alice", Updated: 7})
	a := Domain{Name: "a", YAML: "2", Updated: c.Now}
	equal(t, "domains", read(c, AllDomains), []Domain{a, {Name: "b", YAML: "3", Actor: "alice", Updated: c.Now}})
	done[Nothing](c, OpPutDomain, Domain{Name: "b", Actor: "bob"})
	done[Nothing](c, OpPutDomain, Domain{Name: "never"})
	equal(t, "domains", read(c, AllDomains), []Domain{a})
	var lines []string
	for _, a := range asked[[]Audit](c, OpHistory, PolicyRef{Policy: DomainHistory}) {
		lines = append(lines, fmt.Sprintf("%s %s by %q", a.Action, a.Detail, a.Actor))
	}
	equal(t, "history", lines, []string{`delete never by ""`, `delete b by "bob"`, `import b by "alice"`, `import a by ""`, `import b by ""`})
	list, revision, _ := c.changes(3)
	equal(t, "changes", list, []Change{{Revision: 4, Domain: "b"}, {Revision: 5, Domain: "never"}})
	equal(t, "revision", revision, 5)
}

// Pages of every size give each record once, in order.
func TestPages(t *testing.T) {
	c := setUp(t, 1)
	var names []string
	for i := range 300 { // numbers beyond one byte
		names = append(names, c.create(fmt.Sprintf("policy-%d", i)).Name)
	}
	clients := append(manyClients(20), oddClients...)
	c.assignMany("p7", clients)
	c.assignMany("p6", []string{"other"})
	c.assignMany("p8", []string{"other"})
	slices.Sort(clients)
	for _, size := range []int{-1, 0, 1, 2, 7, 34, 35, 36, 299, 300, 301, MaxPage + 1} {
		var gotNames, gotClients []string
		for after, more := "", true; more; {
			page := asked[Policies](c, OpListPolicies, Page{After: after, Size: size})
			for _, p := range page.List {
				gotNames, after = append(gotNames, p.Name), p.ID()
			}
			more = page.More
			if len(page.List) > max(size, 1) || more && len(page.List) != max(size, 1) {
				t.Fatalf("a page of %d has %d", size, len(page.List))
			}
		}
		equal(t, fmt.Sprintf("policies in pages of %d", size), gotNames, names)
		for after, more := "", true; more; {
			page := asked[Clients](c, OpListClients, Page{Policy: "p7", After: after, Size: size})
			for _, a := range page.List {
				gotClients, after = append(gotClients, a.Client), a.Client
			}
			more = page.More
		}
		equal(t, fmt.Sprintf("clients in pages of %d", size), gotClients, clients)
	}
	if r := c.Query(Call(OpListClients, Page{Policy: "p301", Size: 1})); r.Code != fsm.NotFound {
		t.Errorf("clients of nothing: %v", r.Code)
	}
	after := asked[Policies](c, OpListPolicies, Page{After: PolicyID(math.MaxUint32), Size: 10})
	equal(t, "policies after the last possible", len(after.List), 0)
}

func TestMaxPage(t *testing.T) {
	c := setUp(t, 1)
	c.OpenOnce = true
	c.create("a")
	c.assignMany("a", manyClients(MaxPage+1))
	page := asked[Clients](c, OpListClients, Page{Policy: "a", Size: MaxPage + 1})
	if len(page.List) != MaxPage || !page.More {
		t.Errorf("%d clients, more %t", len(page.List), page.More)
	}
}

func TestHistoryOfNothing(t *testing.T) {
	c := setUp(t, 1)
	c.create("a")
	for _, id := range []string{"p2", "b", "", PolicyID(math.MaxUint32), PolicyID(sessionPolicyNumber)} {
		if r := c.Query(Call(OpHistory, PolicyRef{Policy: id})); r.Code != fsm.NotFound {
			t.Errorf("history of %q: %v", id, r.Code)
		}
	}
}
