package main

import (
	"context"
	"os"
	godebug "runtime/debug"
	"runtime/metrics"
	"sync"
	"time"
)

const (
	// gcFloor is up to which size, in bytes, a heap is not collected.
	gcFloor = 192 << 20
	// gcMost bounds how much larger than what lives a heap becomes, in percent, for what lives can have grown by the next look.
	gcMost = 400
	gcLook = time.Second
)

// pacedGC lets a small heap grow to gcFloor before it is collected, until the function that it returns is called. Go collects
// when the heap has doubled: with 30 MB that live, a node under load so spends a sixth of its CPU on several collections a
// second. Who sets GOGC gets that.
func pacedGC(ctx context.Context) (end func()) {
	if os.Getenv("GOGC") != "" {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	work.Go(func() { paceGC(ctx) })
	return func() {
		cancel()
		work.Wait()
	}
}

func paceGC(ctx context.Context) {
	look := time.NewTicker(gcLook)
	defer look.Stop()
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	for set := 100; ; {
		metrics.Read(live)
		if p := gcPercent(live[0].Value.Uint64()); p < set-set/8 || p > set+set/8 { // each change stops the world
			set = p
			godebug.SetGCPercent(p)
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return
		}
	}
}

// gcPercent is how much a heap may grow, of which so many bytes live.
func gcPercent(live uint64) int {
	if live >= gcFloor/2 {
		return 100
	}
	return int(min((gcFloor-live)*100/max(live, 1), gcMost))
}
