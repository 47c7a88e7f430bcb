package process_test

import (
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/holdfastdb/holdfast/client/holdfasttest"
)

// rawBytes is a codec that sends what it is given.
type rawBytes struct{}

func (rawBytes) Marshal(v any) ([]byte, error)   { return v.([]byte), nil }
func (rawBytes) Unmarshal(b []byte, v any) error { *v.(*[]byte) = b; return nil }
func (rawBytes) Name() string                    { return "proto" }

func TestARequestThatIsNoMessageIsInvalid(t *testing.T) {
	conn := dial(t, holdfasttest.Start(t, 1))
	for _, method := range []string{
		"/holdfast.v1.Limits/Check", "/holdfast.v1.Policies/GetPolicy", "/holdfast.v1.Cluster/Status", "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit",
		"/grpc.health.v1.Health/Check",
	} {
		var answer []byte
		err := conn.Invoke(t.Context(), method, []byte{0xff, 0xff, 0xff}, &answer, grpc.ForceCodec(rawBytes{}))
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", method, err)
		}
	}
}
