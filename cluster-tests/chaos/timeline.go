package chaos

import (
	_ "embed"
	"fmt"
	"html/template"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/holdfastdb/holdfast/cluster-tests/history"
)

//go:embed timeline.html
var timelinePage string

// timelineTemplate is parsed once; it does not change.
var timelineTemplate = template.Must(template.New("timeline").Parse(timelinePage))

// The drawing's measures, in pixels.
const (
	chartWidth  = 1200.0
	chartHeight = 160.0
)

// bucket is what happened in one slice of time: how long the operations took that ended in it.
type bucket struct{ took []time.Duration }

// timeline is what the page shows. Coordinates are ready to draw.
type timeline struct {
	*Result
	Width, Height float64
	Bucket        time.Duration
	Faults        []drawnFault
	Leaders       []drawnShard
	Bars          []bar
	P50, P99, Max string // points of polylines
	MostOps       int
	MostTook      time.Duration
	Seconds       []mark
	Decades       []mark // X is from the top
	Unknowns      []mark
	Failures      []mark
	Errors        []string
}

type drawnFault struct {
	Fault
	X, W, Tail float64
}

type drawnShard struct {
	Shard uint32
	Y     float64
	Spans []span
}

type span struct {
	X, W   float64
	Y      float64
	Node   string
	Term   uint64
	Colour string
}

type bar struct{ X, Y, W, H float64 }

type mark struct {
	X    float64
	Text string
}

// colours of nodes, readable on white.
var colours = []string{"#4e79a7", "#f28e2b", "#59a14f", "#b07aa1", "#9c755f"}

// LeadersHeight is the height of the drawing of leaders.
func (t timeline) LeadersHeight() float64 { return 22 * float64(len(t.Leaders)) }

// writeTimeline draws a history.
func writeTimeline(path string, res *Result, ops []history.Op, changes []leaderChange) error {
	t := timeline{Result: res, Width: chartWidth, Height: chartHeight, Bucket: max(100*time.Millisecond, (res.Length / 300).Round(50*time.Millisecond))}
	scale := chartWidth / float64(res.Length)
	x := func(d time.Duration) float64 { return float64(d) * scale }
	for _, f := range res.Faults {
		t.Faults = append(t.Faults, drawnFault{f, x(f.From), max(2, x(f.To-f.From)), max(0, x(f.Recovered-f.To))})
	}
	step := max(time.Second, (res.Length / 20).Round(time.Second))
	for d := time.Duration(0); d < res.Length; d += step {
		t.Seconds = append(t.Seconds, mark{x(d), fmt.Sprintf("%.0f s", d.Seconds())})
	}
	buckets := make([]bucket, res.Length/t.Bucket+1)
	for _, o := range ops {
		text := fmt.Sprintf("%s, asked at %v: %s", o.Input.Describe(), o.Call.Round(time.Millisecond), o.Error)
		switch o.Outcome {
		case history.Definite:
			b := &buckets[min(int(o.Return/t.Bucket), len(buckets)-1)]
			b.took = append(b.took, o.Return-o.Call)
		case history.Unknown: // its return is the history's end
			t.Unknowns = append(t.Unknowns, mark{x(o.Call), text})
		case history.Failed:
			t.Failures = append(t.Failures, mark{x(o.Return), text})
		}
	}
	for i := range buckets {
		slices.Sort(buckets[i].took)
		t.MostOps = max(t.MostOps, len(buckets[i].took))
		t.MostTook = max(t.MostTook, quantile(buckets[i].took, 1))
	}
	for d := time.Millisecond; share(d) < 1; d *= 10 {
		t.Decades = append(t.Decades, mark{chartHeight - chartHeight*share(d), d.String()})
	}
	t.chart(buckets, x)
	t.Leaders = drawLeaders(changes, res, x)
	for text, n := range res.Errors {
		t.Errors = append(t.Errors, fmt.Sprintf("%d × %s", n, text))
	}
	slices.Sort(t.Errors)
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := timelineTemplate.Execute(f, t); err != nil {
		return fmt.Errorf("draw the timeline: %w", err)
	}
	return f.Close()
}

// chart draws operations as bars and their times as lines, the latter on a logarithmic scale from 0.1 ms.
func (t *timeline) chart(buckets []bucket, x func(time.Duration) float64) {
	var lines [3]strings.Builder
	for i := range buckets {
		b := &buckets[i]
		left, width := x(time.Duration(i)*t.Bucket), x(t.Bucket)
		if len(b.took) == 0 {
			continue
		}
		h := chartHeight * float64(len(b.took)) / float64(t.MostOps)
		t.Bars = append(t.Bars, bar{left, chartHeight - h, width, h})
		for n, q := range []float64{0.5, 0.99, 1} {
			fmt.Fprintf(&lines[n], "%.1f,%.1f ", left+width/2, chartHeight-chartHeight*share(quantile(b.took, q)))
		}
	}
	t.P50, t.P99, t.Max = lines[0].String(), lines[1].String(), lines[2].String()
}

// decades are the powers of ten that the scale of times shows.
const decades = 5.3

func share(d time.Duration) float64 {
	return min(1, max(0, math.Log10(float64(d)/float64(100*time.Microsecond))/decades))
}

// drawLeaders draws a row for each shard, coloured by who says that it leads.
func drawLeaders(changes []leaderChange, res *Result, x func(time.Duration) float64) (rows []drawnShard) {
	byShard := make(map[uint32][]leaderChange)
	for _, c := range changes {
		byShard[c.shard] = append(byShard[c.shard], c)
	}
	for shard, list := range byShard {
		row := drawnShard{Shard: shard}
		for i, c := range list {
			to := res.Length
			if i+1 < len(list) {
				to = list[i+1].at
			}
			var node int
			_, _ = fmt.Sscanf(c.node, "n%d", &node)
			row.Spans = append(row.Spans, span{X: x(c.at), W: max(1, x(to-c.at)), Node: c.node, Term: c.term, Colour: colours[max(0, node-1)%len(colours)]})
		}
		rows = append(rows, row)
	}
	slices.SortFunc(rows, func(a, b drawnShard) int { return int(a.Shard) - int(b.Shard) })
	for i := range rows {
		rows[i].Y = 22 * float64(i)
		for j := range rows[i].Spans {
			rows[i].Spans[j].Y = rows[i].Y
		}
	}
	return rows
}
