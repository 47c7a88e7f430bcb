package fsm

import "github.com/holdfastdb/holdfast/storage/kv"

// Time is shard time: milliseconds since the Unix epoch. It only ever comes out of the log (the leader stamps each
// entry) and never goes back; see Machine.Apply.
type Time int64

// Millis is a span of shard time in milliseconds.
type Millis = int64

// Type describes one data type: a folder under fsm. The number and the names are stored in the log and in every key:
// they never change and are never used again.
type Type struct {
	// ID is the data type's number, 1 to 255. 0 belongs to the machine itself.
	ID uint8
	// Name is the lower-case name, used for metrics, traces and file names.
	Name string
	// Ops is the table of operations: the only list from which dispatch, metrics and gating derive.
	Ops []Op
	// Sweep is called from apply for a row whose expiry is due (see Tx.ExpireAt), with the row's key. It looks at
	// the row again: it deletes what has expired at tx.Now(), or calls Tx.ExpireAt with the later time.
	// Nil for a type without expiry.
	Sweep func(tx *Tx, key []byte) error
	// Check verifies the type's invariants over a shard's whole state and describes the first one broken. It is
	// costly and runs in tests.
	Check func(r kv.Reader, now Time) error
}

// Call names an operation and carries its encoded request. The body is not retained after the call it is passed to.
type Call struct {
	Type uint8
	Op   uint8
	Body []byte
}

// Result is the outcome of one Call. Exactly one of the two is meaningful: Body when Code is OK, otherwise Body holds
// a human message in UTF-8.
type Result struct {
	Code Code
	Body []byte
}

// Op is one row of a data type's table: build it with Command or Query.
type Op struct {
	Number uint8  // explicit, never reused; by custom commands count from 1 and queries from 64
	Name   string // snake_case
	Query  bool   // read-only: runs on a view and never enters the log
	Point  bool   // a query that reads single keys, so that the machine answers it from memory

	apply func(tx *Tx, body, dst []byte) ([]byte, error)
	query func(q *View, body, dst []byte) ([]byte, error)
}

// request is what an operation decodes its body into. Decode must copy nothing it need not: the body outlives the call.
type request[T any] interface {
	*T
	// Decode parses b completely; trailing bytes are an error. It returns an error, never panics, on any input.
	Decode(b []byte) error
}

// reusable is a request of which neither apply nor the state keeps anything, nor does an answer after it was encoded: then its
// memory serves the next of its kind. Empty makes it one that was never used.
type reusable interface{ Empty() }

// response is what an operation answers.
type response interface {
	// Append appends the encoding to dst.
	Append(dst []byte) []byte
}

// Command declares an operation that changes state. apply must be a function of its arguments and of what tx reads,
// and nothing else. If it returns an error, it must not have written anything: check first, then write. An error that
// is not an *Error stops the replica, as does a decode failure: bad input is refused before it is proposed.
func Command[Q any, P request[Q], R response](number uint8, name string, apply func(tx *Tx, q P) (R, error)) Op {
	_, again := any(new(Q)).(reusable)
	return Op{Number: number, Name: name, apply: func(tx *Tx, body, dst []byte) ([]byte, error) {
		q, ok := tx.m.request.(*Q)
		if ok {
			any(q).(reusable).Empty()
		} else if q = new(Q); again {
			tx.m.request = q
		}
		if err := P(q).Decode(body); err != nil {
			return dst, err
		}
		r, err := apply(tx, q)
		if err != nil {
			return dst, err
		}
		return r.Append(dst), nil
	}}
}

// QueryOp declares a read-only operation, run on a consistent view at the view's shard time.
func QueryOp[Q any, P request[Q], R response](number uint8, name string, run func(v *View, q P) (R, error)) Op {
	return Op{Number: number, Name: name, Query: true, query: func(v *View, body, dst []byte) ([]byte, error) {
		var q Q
		if err := P(&q).Decode(body); err != nil {
			return dst, err
		}
		r, err := run(v, &q)
		if err != nil {
			return dst, err
		}
		return r.Append(dst), nil
	}}
}

// PointOp declares a query that uses Get and Row of its view and never Iter: the machine answers it from memory.
func PointOp[Q any, P request[Q], R response](number uint8, name string, run func(v *View, q P) (R, error)) Op {
	op := QueryOp(number, name, run)
	op.Point = true
	return op
}

// View is what a query sees: keys of one type at one moment of one shard.
type View struct {
	reader kv.Reader
	rows   *rowCache // of the machine whose memory is seen, or nil
	now    Time
	typeID uint8
	key    []byte
}

// ViewOf shows the keys of one type in any consistent view of a shard, at shard time now.
func ViewOf(r kv.Reader, typeID uint8, now Time) *View {
	return &View{reader: r, typeID: typeID, now: now}
}

// Now is the shard time of the view.
func (v *View) Now() Time { return v.now }
