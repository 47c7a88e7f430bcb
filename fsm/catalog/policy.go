package catalog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage/kv"
)

// Policy is a rate-limit policy. What the fields mean is told in holdfast.v1.Policy; they are checked before a command
// is proposed, here only what the state decides: names, revisions, numbers.
type Policy struct {
	Number        uint32
	Name          string
	Algorithm     string
	Rate          uint32
	WindowMS      fsm.Millis
	Burst         uint32 `json:",omitempty"`
	Active        bool
	Shadow        bool   `json:",omitempty"`
	Rollout       uint32 // percent
	Priority      int32  `json:",omitempty"`
	Scope         string
	Resource      string `json:",omitempty"`
	Calendar      string `json:",omitempty"`
	OnUnavailable string
	Description   string `json:",omitempty"`
	Created       fsm.Time
	Updated       fsm.Time
	Revision      uint32
}

// ID is the policy's id for the outside.
func (p *Policy) ID() string { return PolicyID(p.Number) }

// PolicyID builds a policy's id from its number.
func PolicyID(number uint32) string { return "p" + strconv.FormatUint(uint64(number), 10) }

// ParsePolicyID is the inverse of PolicyID.
func ParsePolicyID(id string) (uint32, bool) {
	digits, ok := strings.CutPrefix(id, "p")
	if !ok || digits == "" || digits[0] == '0' || digits[0] == '+' {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 32)
	return uint32(n), err == nil
}

// Everyone is the client id that stands for every client.
const Everyone = "*"

// Assignment puts a client under a policy.
type Assignment struct {
	Policy   uint32
	Client   string
	Rate     uint32   `json:",omitempty"` // instead of the policy's, if not 0
	Priority *int32   `json:",omitempty"` // instead of the policy's
	From     fsm.Time `json:",omitempty"`
	To       fsm.Time `json:",omitempty"` // not any more from here on, if not 0
}

// Change says which record changed. Changes are numbered from 1 and kept in a ring, for those that follow them.
type Change struct {
	Revision uint64
	Policy   uint32 `json:",omitempty"` // this policy
	Client   string `json:",omitempty"` // this client's assignments
	Domain   string `json:",omitempty"` // this domain
	Sessions string `json:",omitempty"` // the policy of this type of sessions
}

// ChangesKept is the length of the ring: who is further behind reads everything again.
const ChangesKept = 16_384

// HistoryKept is how many changes of one policy are kept for audit.
const HistoryKept = 1000

// DomainHistory stands, where a history is asked for, for that of all domains together. No policy has such a name.
const DomainHistory = "@domains"

// domainNumber is what the history of domains is kept under: policies are numbered from 1.
const domainNumber = 0

// Audit is one line of a policy's history, or of that of the domains.
type Audit struct {
	At       fsm.Time
	Actor    string
	Action   string // create, update, delete, assign, unassign; import and delete of domains
	Revision uint32
	Policy   *Policy `json:",omitempty"` // after the change
	Detail   string  `json:",omitempty"`
}

// edit collects what a command does to policies, so that all of it carries one audit line.
type edit struct {
	tx *fsm.Tx
	c  Cluster
}

func begin(tx *fsm.Tx) (*edit, error) {
	c, err := cluster(tx)
	return &edit{tx: tx, c: c}, err
}

func (e *edit) changed(ch Change) {
	e.c.Revision++
	ch.Revision = e.c.Revision
	set(e.tx, numbered(prefixChange, uint32(e.c.Revision%ChangesKept)), ch)
}

// end stores the cluster record and the audit line of policy number n, or of domainNumber.
func (e *edit) end(n uint32, a Audit) error {
	set(e.tx, []byte(keyCluster), e.c)
	a.At = e.tx.Now()
	prefix := numbered(prefixHistory, n)
	var first, last uint32
	it, err := e.tx.Iter(prefix, numbered(prefixHistory, n+1))
	if err != nil {
		return fmt.Errorf("read history: %w", err)
	}
	defer it.Close()
	for it.Next() {
		last = binary.BigEndian.Uint32(it.Key()[len(prefix):])
		if first == 0 {
			first = last
		}
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("read history: %w", err)
	}
	set(e.tx, binary.BigEndian.AppendUint32(prefix, last+1), a)
	if first > 0 && last+1-first >= HistoryKept {
		e.tx.Delete(binary.BigEndian.AppendUint32(numbered(prefixHistory, n), first))
	}
	return nil
}

func (e *edit) putPolicy(p Policy) {
	set(e.tx, numbered(prefixPolicy, p.Number), p)
	e.changed(Change{Policy: p.Number})
}

// PolicyEdit creates or changes a policy. Number, Created, Updated and Revision are given by the state.
type PolicyEdit struct {
	Policy Policy
	// Expected is the revision to change, 0 for any.
	Expected uint32 `json:",omitempty"`
	Actor    string
}

// FindPolicy finds a policy by id or name in a view of the type's keys.
func FindPolicy(r kv.Reader, idOrName string) (Policy, error) {
	if n, ok := ParsePolicyID(idOrName); ok {
		p, found, err := get[Policy](r, numbered(prefixPolicy, n))
		if err != nil || found {
			return p, err
		}
	}
	n, found, err := get[uint32](r, []byte(prefixName+idOrName))
	if err != nil {
		return Policy{}, err
	}
	if found {
		if p, found, err := get[Policy](r, numbered(prefixPolicy, n)); err != nil || found {
			return p, err
		}
	}
	return Policy{}, fsm.Errorf(fsm.NotFound, "no policy %q", idOrName)
}

func (e *edit) checkName(name string, number uint32) error {
	owner, taken, err := get[uint32](e.tx, []byte(prefixName+name))
	if err != nil {
		return err
	}
	if taken && owner != number {
		return fsm.Errorf(fsm.Conflict, "the name %q belongs to policy %s", name, PolicyID(owner))
	}
	return nil
}

func createPolicy(tx *fsm.Tx, q *Body[PolicyEdit]) (Body[Policy], error) {
	e, err := begin(tx)
	if err != nil {
		return Body[Policy]{}, err
	}
	p := q.V.Policy
	if err := e.checkName(p.Name, 0); err != nil {
		return Body[Policy]{}, err
	}
	e.c.Policies++
	p.Number, p.Revision, p.Created, p.Updated = e.c.Policies, 1, tx.Now(), tx.Now()
	set(tx, []byte(prefixName+p.Name), p.Number)
	e.putPolicy(p)
	return Body[Policy]{p}, e.end(p.Number, Audit{Actor: q.V.Actor, Action: "create", Revision: 1, Policy: &p})
}

func updatePolicy(tx *fsm.Tx, q *Body[PolicyEdit]) (Body[Policy], error) {
	e, err := begin(tx)
	if err != nil {
		return Body[Policy]{}, err
	}
	p := q.V.Policy
	old, found, err := get[Policy](tx, numbered(prefixPolicy, p.Number))
	if err != nil {
		return Body[Policy]{}, err
	}
	if !found {
		return Body[Policy]{}, fsm.Errorf(fsm.NotFound, "no policy %s", p.ID())
	}
	if q.V.Expected != 0 && q.V.Expected != old.Revision {
		return Body[Policy]{}, fsm.Errorf(fsm.Conflict, "policy %s is at revision %d, not %d: read it again", p.ID(), old.Revision, q.V.Expected)
	}
	if err := e.checkName(p.Name, p.Number); err != nil {
		return Body[Policy]{}, err
	}
	p.Revision, p.Created, p.Updated = old.Revision+1, old.Created, tx.Now()
	if p.Name != old.Name {
		tx.Delete([]byte(prefixName + old.Name))
		set(tx, []byte(prefixName+p.Name), p.Number)
	}
	e.putPolicy(p)
	return Body[Policy]{p}, e.end(p.Number, Audit{Actor: q.V.Actor, Action: "update", Revision: p.Revision, Policy: &p})
}

// PolicyRef names a policy by id or name.
type PolicyRef struct {
	Policy string
	Actor  string
}

// deleteAtOnce bounds the assignments that one delete removes; a policy with more is deleted when they are gone.
const deleteAtOnce = 10_000

func deletePolicy(tx *fsm.Tx, q *Body[PolicyRef]) (Body[Nothing], error) {
	e, err := begin(tx)
	if err != nil {
		return Body[Nothing]{}, err
	}
	p, err := FindPolicy(tx, q.V.Policy)
	if err != nil {
		return Body[Nothing]{}, err
	}
	clients, more, err := clientsOf(tx, p.Number, "", deleteAtOnce)
	if err != nil {
		return Body[Nothing]{}, err
	}
	if more {
		return Body[Nothing]{}, fsm.Errorf(fsm.Conflict, "policy %s has more than %d clients: unassign them first, or set active to false", p.ID(), deleteAtOnce)
	}
	for _, client := range clients {
		e.removeAssignment(p.Number, client)
	}
	tx.Delete(numbered(prefixPolicy, p.Number))
	tx.Delete([]byte(prefixName + p.Name))
	e.changed(Change{Policy: p.Number})
	return Body[Nothing]{}, e.end(p.Number, Audit{Actor: q.V.Actor, Action: "delete", Revision: p.Revision + 1, Policy: &p})
}

// Domain is the configuration of one domain of Envoy's rate limit service, in its YAML dialect. An empty one is deleted.
type Domain struct {
	Name    string
	YAML    string
	Actor   string   `json:",omitempty"` // who imported it
	Updated fsm.Time `json:",omitempty"` // given by the state
}

func putDomain(tx *fsm.Tx, q *Body[Domain]) (Body[Nothing], error) {
	e, err := begin(tx)
	if err != nil {
		return Body[Nothing]{}, err
	}
	action := "import"
	if q.V.YAML == "" {
		action = "delete"
		tx.Delete([]byte(prefixDomain + q.V.Name))
	} else {
		q.V.Updated = tx.Now()
		set(tx, []byte(prefixDomain+q.V.Name), q.V)
	}
	e.changed(Change{Domain: q.V.Name})
	return Body[Nothing]{}, e.end(domainNumber, Audit{Actor: q.V.Actor, Action: action, Detail: q.V.Name})
}

// check verifies that both directions of assignments and names agree; see fsm.Type.
func check(r kv.Reader, now fsm.Time) error {
	v := fsm.ViewOf(r, TypeID, now)
	var broken error
	pairs := 0 // what the second direction must have as many of
	err := each(v, []byte(prefixAssignment), after([]byte(prefixAssignment)), func(key []byte, a Assignment) bool {
		pairs++
		_, back, err := get[Nothing](v, clientKey(a.Policy, a.Client))
		_, policy, err2 := get[Policy](v, numbered(prefixPolicy, a.Policy))
		if broken = errors.Join(err, err2); broken == nil && (!back || !policy || !bytes.Equal(key, assignmentKey(a.Client, a.Policy))) {
			broken = fmt.Errorf("catalog: assignment %q to %s: key %q, listed %t, policy exists %t", a.Client, PolicyID(a.Policy), key, back, policy)
		}
		return broken == nil
	})
	if err = errors.Join(err, broken); err != nil {
		return err
	}
	if err := each(v, []byte(prefixPolicy), after([]byte(prefixPolicy)), func(_ []byte, p Policy) bool {
		pairs++
		owner, found, err := get[uint32](v, []byte(prefixName+p.Name))
		if broken = err; err == nil && (!found || owner != p.Number) {
			broken = fmt.Errorf("catalog: the name %q of policy %s leads to %s", p.Name, p.ID(), PolicyID(owner))
		}
		return broken == nil
	}); err != nil || broken != nil {
		return errors.Join(err, broken)
	}
	for _, prefix := range []string{prefixClients, prefixName} {
		it, err := v.Iter([]byte(prefix), after([]byte(prefix)))
		if err != nil {
			return err
		}
		for it.Next() {
			pairs--
		}
		if err := errors.Join(it.Err(), it.Close()); err != nil {
			return err
		}
	}
	if pairs != 0 {
		return fmt.Errorf("catalog: %d more assignments and policies than clients and names that lead to them", pairs)
	}
	return nil
}

// EffectivePriority is the priority of an assignment of p.
func (a *Assignment) EffectivePriority(p *Policy) int32 {
	if a.Priority != nil {
		return *a.Priority
	}
	return p.Priority
}
