package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// progress draws a bar on a terminal for what takes more than a moment; elsewhere it writes nothing.
type progress struct {
	w     io.Writer
	what  string
	total int64
	begin time.Time

	mu    sync.Mutex
	n     int64
	drawn time.Time
	shown bool
}

const (
	progressAfter = 300 * time.Millisecond
	progressEvery = 100 * time.Millisecond
	barWidth      = 30
)

func (c *cli) progress(what string, total int64) *progress {
	p := &progress{what: what, total: total, begin: time.Now()}
	if f, ok := c.stderr.(*os.File); ok {
		if info, err := f.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
			p.w = f
		}
	}
	return p
}

func (p *progress) add(n int64) {
	if p.w == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.n += n
	now := time.Now()
	if now.Sub(p.begin) < progressAfter || now.Sub(p.drawn) < progressEvery {
		return
	}
	p.drawn, p.shown = now, true
	if p.total <= 0 {
		fmt.Fprintf(p.w, "\r%s %d", p.what, p.n)
		return
	}
	share := min(float64(p.n)/float64(p.total), 1)
	full := int(share * barWidth)
	fmt.Fprintf(p.w, "\r%s [%s%s] %3.0f %%", p.what, strings.Repeat("=", full), strings.Repeat(" ", barWidth-full), share*100)
}

// done removes the bar.
func (p *progress) done() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shown {
		fmt.Fprintf(p.w, "\r%s\r", strings.Repeat(" ", len(p.what)+barWidth+12))
	}
}
