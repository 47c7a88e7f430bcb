package node

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

// A write hangs from the tenth second on. Short hangs are nobody's business, longer ones cost the leadership, and one that
// does not end ends the process.
func TestADiskThatHangs(t *testing.T) {
	for name, tt := range map[string]struct {
		lasts    time.Duration
		handOver int
		fatal    bool
	}{
		"a second":   {time.Second, 0, false},
		"5 seconds":  {5 * time.Second, 1, false},
		"15 seconds": {15 * time.Second, 1, false},
		"for ever":   {time.Hour, 1, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begin := time.Now()
				handedOver := 0
				var first time.Duration
				var fatal error
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
				defer cancel()
				diskWatch{
					pending: func() time.Duration {
						if d := time.Since(begin) - 10*time.Second; d > 0 && d < tt.lasts {
							return d
						}
						return 0
					},
					handOver: func() {
						if handedOver++; handedOver == 1 {
							first = time.Since(begin) - 10*time.Second
						}
					},
					fatal: func(err error) { fatal = err },
					log:   slog.New(slog.DiscardHandler),
				}.run(ctx)
				if handedOver != tt.handOver || first > 4*time.Second || (fatal != nil) != tt.fatal {
					t.Errorf("handed over %d times, first after %v; end: %v", handedOver, first, fatal)
				}
			})
		})
	}
}
