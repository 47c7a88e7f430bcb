package rpc

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/holdfastdb/holdfast/fsm/counter"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// Operations are counted and timed by the data type that they are of, which a caller cannot make up.
func TestFramesAreCountedByDataType(t *testing.T) {
	m := NewMetrics()
	x := newStream(t.Context(), &data{metrics: m})
	ops := make([]op, 4)
	for i, in := range packed(
		&pb.Op{Type: uint32(counter.TypeID), Method: methodReset}, &pb.Op{Type: uint32(counter.TypeID), Method: methodReset},
		&pb.Op{Type: uint32(counter.TypeID), Method: 9}, &pb.Op{Type: 77, Method: methodReset},
	) {
		x.prepare(&ops[i], in, &pb.PackedFrame{})
	}
	m.frame(ops, time.Now())
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for _, line := range []string{
		`holdfast_ops_total{op="reset",type="counter"} 2`, `holdfast_ops_total{op="unknown",type="counter"} 1`,
		`holdfast_ops_total{op="unknown",type="unknown"} 1`,
		`holdfast_frame_seconds_count{kind="command",type="counter"} 1`, `holdfast_frame_seconds_count{kind="command",type="unknown"} 1`,
	} {
		if !strings.Contains(w.Body.String(), line+"\n") {
			t.Errorf("no %s", line)
		}
	}
}
