package catalog

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage/kv"
)

// Assign puts clients under a policy or changes how they are.
type Assign struct {
	Policy   string // id or name
	Clients  []string
	Rate     uint32   `json:",omitempty"`
	Priority *int32   `json:",omitempty"`
	From     fsm.Time `json:",omitempty"`
	To       fsm.Time `json:",omitempty"`
	Actor    string
}

// MaxAssign bounds the clients of one command.
const MaxAssign = 1000

func assignmentKey(client string, policy uint32) []byte {
	key := append([]byte(prefixAssignment), client...)
	return binary.BigEndian.AppendUint32(append(key, 0), policy)
}

func clientKey(policy uint32, client string) []byte {
	return append(numbered(prefixClients, policy), client...)
}

func assign(tx *fsm.Tx, q *Body[Assign]) (Body[uint32], error) {
	e, err := begin(tx)
	if err != nil {
		return Body[uint32]{}, err
	}
	p, err := FindPolicy(tx, q.V.Policy)
	if err != nil {
		return Body[uint32]{}, err
	}
	clients := distinct(q.V.Clients)
	for _, client := range clients {
		set(tx, assignmentKey(client, p.Number), Assignment{
			Policy: p.Number, Client: client, Rate: q.V.Rate, Priority: q.V.Priority, From: q.V.From, To: q.V.To,
		})
		set(tx, clientKey(p.Number, client), Nothing{})
		e.changed(Change{Client: client})
	}
	return Body[uint32]{uint32(len(clients))}, e.end(p.Number, Audit{
		Actor: q.V.Actor, Action: "assign", Revision: p.Revision, Detail: summary(clients),
	})
}

func (e *edit) removeAssignment(policy uint32, client string) {
	e.tx.Delete(assignmentKey(client, policy))
	e.tx.Delete(clientKey(policy, client))
	e.changed(Change{Client: client})
}

func unassign(tx *fsm.Tx, q *Body[Assign]) (Body[uint32], error) {
	e, err := begin(tx)
	if err != nil {
		return Body[uint32]{}, err
	}
	p, err := FindPolicy(tx, q.V.Policy)
	if err != nil {
		return Body[uint32]{}, err
	}
	var gone []string
	for _, client := range distinct(q.V.Clients) {
		_, found, err := get[Nothing](tx, clientKey(p.Number, client))
		if err != nil {
			return Body[uint32]{}, err
		}
		if found {
			gone = append(gone, client)
		}
	}
	for _, client := range gone {
		e.removeAssignment(p.Number, client)
	}
	return Body[uint32]{uint32(len(gone))}, e.end(p.Number, Audit{
		Actor: q.V.Actor, Action: "unassign", Revision: p.Revision, Detail: summary(gone),
	})
}

// distinct leaves out clients that were named before.
func distinct(clients []string) []string {
	seen := make(map[string]bool, len(clients))
	list := make([]string, 0, len(clients))
	for _, client := range clients {
		if !seen[client] {
			seen[client] = true
			list = append(list, client)
		}
	}
	return list
}

// summary tells of many clients in one line.
func summary(clients []string) string {
	switch n := len(clients); n {
	case 0:
		return "no clients"
	case 1:
		return clients[0]
	default:
		return fmt.Sprintf("%s and %d more", clients[0], n-1)
	}
}

// AssignmentsOf reads all assignments of a client in a view of the type's keys.
func AssignmentsOf(r kv.Reader, client string) ([]Assignment, error) {
	prefix := append(append([]byte(prefixAssignment), client...), 0)
	var list []Assignment
	err := each(r, prefix, after(prefix), func(_ []byte, a Assignment) bool {
		if a.Client == client { // or one that goes on after a NUL
			list = append(list, a)
		}
		return true
	})
	return list, err
}

// AnyAssigned tells whether there is an assignment of a client of its own, as opposed to those of everyone.
func AnyAssigned(r kv.Reader) (bool, error) {
	everyone := []byte(prefixAssignment + Everyone + "\x00")
	any := false
	for _, span := range [...][2][]byte{
		{[]byte(prefixAssignment), everyone},
		{after(everyone), after([]byte(prefixAssignment))},
	} {
		err := each(r, span[0], span[1], func([]byte, Assignment) bool {
			any = true
			return false
		})
		if any || err != nil {
			return any, err
		}
	}
	return false, nil
}

// clientsOf lists clients of a policy that come after from, limit of them; more tells that there are others.
func clientsOf(r kv.Reader, policy uint32, from string, limit int) (clients []string, more bool, err error) {
	prefix := numbered(prefixClients, policy)
	lower := prefix
	if from != "" {
		lower = append(bytes.Clone(prefix), from+"\x00"...)
	}
	err = each(r, lower, numbered(prefixClients, policy+1), func(key []byte, _ Nothing) bool {
		if len(clients) == limit {
			more = true
			return false
		}
		clients = append(clients, string(key[len(prefix):]))
		return true
	})
	return clients, more, err
}
