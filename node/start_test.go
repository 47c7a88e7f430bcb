package node

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/holdfastdb/holdfast/storage/raftlog"
)

// The one who asks reads why it is not taken in.
func TestANodeIsTakenInForItselfOnly(t *testing.T) {
	for request, says := range map[string]string{`{"ID":"b"}`: `for node "b"`, `{`: "malformed"} {
		_, err := (&Node{}).serveJoin(t.Context(), "a", []byte(request))
		if err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "%!") {
			t.Errorf("%s: %v", request, err)
		}
	}
}

// The first start may end at any moment: started again, the node makes its cluster.
func TestAFirstStartThatWasCutOffCanBeRepeated(t *testing.T) {
	disk := vfs.NewCrashableMem()
	var mu sync.Mutex
	var cuts []*vfs.MemFS
	cut := func() {
		mu.Lock()
		defer mu.Unlock()
		if len(cuts) < 16 {
			cuts = append(cuts, disk.CrashClone(vfs.CrashCloneCfg{}))
			cuts = append(cuts, disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 1))}))
		}
	}
	n := startTestNode(t, "n1", "data", "", func(cfg *Config) {
		cfg.FS = disk
		cfg.OnSync = func(time.Duration) { cut() }
		cfg.WrapLog = func(p raftlog.Provider) raftlog.Provider { cut(); return p }
	})
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if len(cuts) < 8 {
		t.Fatalf("the first start was cut in %d places only", len(cuts))
	}
	for i, left := range cuts {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			n := startTestNode(t, "n1", "data", "", func(cfg *Config) { cfg.FS = left })
			eventually(t, "ready", func() bool { return n.Ready() == nil })
			if err := n.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}
