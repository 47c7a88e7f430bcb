package catalog

import (
	"math"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage/kv"
)

// SessionPolicy is what the sessions of a type are like unless their login says otherwise. What the fields mean is told in
// holdfast.v1.SessionPolicy.
type SessionPolicy struct {
	Type      string
	Idle      fsm.Millis `json:",omitempty"`
	Absolute  fsm.Millis
	Refresh   fsm.Millis
	Sessions  uint32 `json:",omitempty"`
	Devices   uint32 `json:",omitempty"`
	OnLimit   string
	IPBinding string
	OnNetwork string
	// OnTwoNetworks is younger than the others.
	OnTwoNetworks string `json:",omitempty"`
	OnDevice      string
	OnBurst       string
	Burst         uint32
	Actor         string `json:",omitempty"`
	Updated       fsm.Time
	Revision      uint32
}

// SessionPolicyHistory stands, where a history is asked for, for that of all session policies together.
const SessionPolicyHistory = "@session-policies"

// sessionPolicyNumber is what that history is kept under: no policy gets as far.
const sessionPolicyNumber = math.MaxUint32 - 1

// putSessionPolicy replaces the policy of a type, if it has the revision that the request names; 0 is for any.
func putSessionPolicy(tx *fsm.Tx, q *Body[SessionPolicy]) (Body[SessionPolicy], error) {
	key := []byte(prefixSessionPolicy + q.V.Type)
	old, _, err := get[SessionPolicy](tx, key)
	if err != nil {
		return Body[SessionPolicy]{}, err
	}
	if q.V.Revision != 0 && q.V.Revision != old.Revision {
		return Body[SessionPolicy]{}, fsm.Errorf(fsm.Conflict, "the policy of %s sessions has revision %d, not %d", q.V.Type, old.Revision, q.V.Revision)
	}
	e, err := begin(tx)
	if err != nil {
		return Body[SessionPolicy]{}, err
	}
	q.V.Updated, q.V.Revision = tx.Now(), old.Revision+1
	set(tx, key, q.V)
	e.changed(Change{Sessions: q.V.Type})
	return Body[SessionPolicy]{q.V}, e.end(sessionPolicyNumber, Audit{Actor: q.V.Actor, Action: "update", Detail: q.V.Type})
}

// SessionPolicies reads the policies that were put, by type, from a view of the type's keys.
func SessionPolicies(r kv.Reader) ([]SessionPolicy, error) {
	var list []SessionPolicy
	err := each(r, []byte(prefixSessionPolicy), after([]byte(prefixSessionPolicy)), func(_ []byte, p SessionPolicy) bool {
		list = append(list, p)
		return true
	})
	return list, err
}
