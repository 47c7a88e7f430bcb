// Package catalog is the state machine of group 0, which every node has a replica of: who belongs to the cluster, which
// node holds which shard, and the rate-limit policies with their assignments.
//
// Records are stored as JSON of the structs here: there are few of them, they change rarely, and a newer version adds
// fields without a new format. A field that a node does not know stops its replica rather than letting it diverge.
package catalog

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage/kv"
)

// TypeID is the number of the data type.
const TypeID = 2

// The numbers of the operations, as in the log.
const (
	OpBootstrap    = 1
	OpPutNode      = 2
	OpAddReplica   = 3
	OpSetReplica   = 4
	OpCreatePolicy = 5
	OpUpdatePolicy = 6
	OpDeletePolicy = 7
	OpAssign       = 8
	OpUnassign     = 9
	OpPutDomain    = 10

	OpPutSessionPolicy = 11

	OpGetPolicy    = 64
	OpListPolicies = 65
	OpListClients  = 66
	OpHistory      = 67
	OpTopology     = 68
)

// Type returns the table of the data type.
func Type() fsm.Type {
	return fsm.Type{
		ID:   TypeID,
		Name: "catalog",
		Ops: []fsm.Op{
			fsm.Command(OpBootstrap, "bootstrap", bootstrap),
			fsm.Command(OpPutNode, "put_node", putNode),
			fsm.Command(OpAddReplica, "add_replica", addReplica),
			fsm.Command(OpSetReplica, "set_replica", setReplica),
			fsm.Command(OpCreatePolicy, "create_policy", createPolicy),
			fsm.Command(OpUpdatePolicy, "update_policy", updatePolicy),
			fsm.Command(OpDeletePolicy, "delete_policy", deletePolicy),
			fsm.Command(OpAssign, "assign", assign),
			fsm.Command(OpUnassign, "unassign", unassign),
			fsm.Command(OpPutDomain, "put_domain", putDomain),
			fsm.Command(OpPutSessionPolicy, "put_session_policy", putSessionPolicy),
			fsm.QueryOp(OpGetPolicy, "get_policy", getPolicy),
			fsm.QueryOp(OpListPolicies, "list_policies", listPolicies),
			fsm.QueryOp(OpListClients, "list_clients", listClients),
			fsm.QueryOp(OpHistory, "history", history),
			fsm.QueryOp(OpTopology, "topology", topology),
		},
		Check: check,
	}
}

// Body is a request or an answer in its encoding.
type Body[T any] struct{ V T }

// Call builds a call of an operation.
func Call[T any](op uint8, v T) fsm.Call {
	return fsm.Call{Type: TypeID, Op: op, Body: Body[T]{v}.Append(nil)}
}

// Append appends the encoding.
func (b Body[T]) Append(dst []byte) []byte {
	text, err := json.Marshal(b.V)
	if err != nil {
		panic(fmt.Sprintf("catalog: %T has a field that JSON cannot hold: %v", b.V, err))
	}
	return append(dst, text...)
}

// Decode parses the encoding and refuses what it does not know.
func (b *Body[T]) Decode(text []byte) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&b.V); err != nil {
		return fmt.Errorf("%w: %T: %w", fsm.ErrCorrupt, b.V, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: %T: something after its end", fsm.ErrCorrupt, b.V)
	}
	return nil
}

// Decode parses an answer.
func Decode[T any](text []byte) (T, error) {
	var b Body[T]
	err := b.Decode(text)
	return b.V, err
}

// Keys are relative to the data type; the first byte tells what follows.
const (
	keyCluster       = "c"
	prefixNode       = "n" // node id
	prefixShard      = "s" // number
	prefixPolicy     = "p" // number
	prefixName       = "m" // name of a policy: its number
	prefixAssignment = "a" // client, 0, policy number
	prefixClients    = "b" // policy number, client: nothing
	prefixChange     = "f" // place in the ring of changes
	prefixHistory    = "h" // policy number, count
	prefixDomain     = "e" // domain of Envoy's rate limit service

	prefixSessionPolicy = "t" // type of sessions
)

func numbered(prefix string, n uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte(prefix), n)
}

// after is the first key that does not have the prefix.
func after(prefix []byte) []byte {
	end := bytes.Clone(prefix)
	end[len(end)-1]++ // no prefix here ends in 0xff: numbers are far from the end, names are text
	return end
}

// get reads one record; found is false if there is none.
func get[T any](r kv.Reader, key []byte) (v T, found bool, err error) {
	text, err := r.Get(key)
	if errors.Is(err, kv.ErrNotFound) {
		return v, false, nil
	}
	if err != nil {
		return v, false, fmt.Errorf("read catalog: %w", err)
	}
	v, err = Decode[T](text)
	return v, err == nil, err
}

func set[T any](tx *fsm.Tx, key []byte, v T) { tx.Set(key, Body[T]{v}.Append(nil)) }

// each calls f with the records whose keys are in [lower, upper) until f returns false.
func each[T any](r kv.Reader, lower, upper []byte, f func(key []byte, v T) bool) error {
	it, err := r.Iter(lower, upper)
	if err != nil {
		return fmt.Errorf("read catalog: %w", err)
	}
	defer it.Close()
	for it.Next() {
		v, err := Decode[T](it.Value())
		if err != nil {
			return err
		}
		if !f(it.Key(), v) {
			return nil
		}
	}
	return it.Err()
}

// Nothing is the body of a request or an answer without content.
type Nothing struct{}
