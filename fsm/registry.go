package fsm

import (
	"errors"
	"fmt"

	"github.com/holdfastdb/holdfast/storage/kv"
)

// Registry is the table of data types and their operations. It does not change after New.
type Registry struct {
	types []Type
	byID  map[uint8]*Type
	ops   [256][]Op // by type, then by number; a zero Number marks a hole
	// memory is about what a machine keeps at most.
	memory int
}

// Within is the registry for machines that keep no more than about so many bytes in memory, for all that run in a process
// share one. It changes no outcome.
func (r *Registry) Within(memory int) *Registry {
	within := *r
	within.memory = min(memory, MaxMemory)
	return &within
}

// New builds the dispatch table. It refuses types and operations without a number or with one that is taken.
func New(types ...Type) (*Registry, error) {
	r := &Registry{types: types, byID: make(map[uint8]*Type, len(types)), memory: MaxMemory}
	for i := range types {
		t := &types[i]
		if t.ID == 0 || t.Name == "" {
			return nil, fmt.Errorf("data type %q: the number %d or the name is missing", t.Name, t.ID)
		}
		if other := r.byID[t.ID]; other != nil {
			return nil, fmt.Errorf("data type %q: number %d belongs to %q", t.Name, t.ID, other.Name)
		}
		r.byID[t.ID] = t
		for _, op := range t.Ops {
			if op.Number == 0 || op.Name == "" || (op.apply == nil) == (op.query == nil) {
				return nil, fmt.Errorf("data type %q: operation %d %q is incomplete", t.Name, op.Number, op.Name)
			}
			for len(r.ops[t.ID]) <= int(op.Number) {
				r.ops[t.ID] = append(r.ops[t.ID], Op{})
			}
			if other := r.ops[t.ID][op.Number]; other.Number != 0 {
				return nil, fmt.Errorf("data type %q: number %d of %q belongs to %q", t.Name, op.Number, op.Name, other.Name)
			}
			r.ops[t.ID][op.Number] = op
		}
	}
	return r, nil
}

// Types returns the data types in the order given to New. The caller must not change them.
func (r *Registry) Types() []Type { return r.types }

// Lookup returns an operation's row.
func (r *Registry) Lookup(typeID, op uint8) (Op, bool) {
	ops := r.ops[typeID]
	if int(op) >= len(ops) || ops[op].Number == 0 {
		return Op{}, false
	}
	return ops[op], true
}

// Query runs read-only calls on one consistent view and tells the view's position.
func (r *Registry) Query(reader kv.Reader, calls []Call) ([]Result, Applied, error) {
	applied, err := ReadApplied(reader)
	if err != nil {
		return nil, Applied{}, err
	}
	results, err := r.query(&View{reader: reader, now: applied.Time}, calls)
	return results, applied, err
}

// Point tells whether all calls are queries that a machine answers from memory; see Machine.Query.
func (r *Registry) Point(calls []Call) bool {
	for _, call := range calls {
		if op, ok := r.Lookup(call.Type, call.Op); !ok || !op.Point {
			return false
		}
	}
	return true
}

// Query runs calls, for which Registry.Point holds, on what was applied, whether it is in the store yet or not. It must not
// run together with Apply, Flush or Reload.
func (m *Machine) Query(calls []Call) ([]Result, Applied, error) {
	if m.failed != nil {
		return nil, Applied{}, m.failed
	}
	results, err := m.reg.query(&View{reader: m.batch, rows: m.rows, now: m.applied.Time}, calls)
	return results, m.applied, err
}

// queryBytes is what a usual answer takes.
const queryBytes = 192

func (r *Registry) query(v *View, calls []Call) ([]Result, error) {
	results := make([]Result, len(calls))
	buf := make([]byte, 0, queryBytes*len(calls)) // more is no error
	for i, call := range calls {
		op, ok := r.Lookup(call.Type, call.Op)
		if !ok || !op.Query {
			results[i] = Result{Code: Invalid, Body: fmt.Appendf(nil, "no query %d of type %d", call.Op, call.Type)}
			continue
		}
		v.typeID = call.Type
		begin := len(buf)
		body, err := op.query(v, call.Body, buf)
		var refusal *Error
		switch {
		case err == nil:
			buf = body
			results[i].Body = body[begin:len(body):len(body)]
		case errors.As(err, &refusal):
			results[i] = Result{Code: refusal.Code, Body: []byte(refusal.Message)}
		default:
			return nil, fmt.Errorf("query %d of type %d: %w", call.Op, call.Type, err)
		}
	}
	return results, nil
}
