package rpc

import (
	"context"
	"net/http"
	"path"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// Metrics are a node's figures for Prometheus. docs/operations.md explains them.
type Metrics struct {
	registry *prometheus.Registry
	ops      *prometheus.CounterVec
	latency  *prometheus.HistogramVec
	refusals *prometheus.CounterVec
	calls    *prometheus.HistogramVec
	http     *prometheus.HistogramVec
	sync     prometheus.Histogram
}

type metrics = Metrics

// latencyBuckets reach from 50 µs to 3 s.
var latencyBuckets = prometheus.ExponentialBuckets(50e-6, 2, 17)

// NewMetrics makes the figures of one node.
func NewMetrics() *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		ops: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "holdfast_ops_total", Help: "Operations that came in data frames, by data type and operation.",
		}, []string{"type", "op"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "holdfast_frame_seconds", Help: "From a frame's arrival to its answer, by the data types in it and the kind of frame.", Buckets: latencyBuckets,
		}, []string{"type", "kind"}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "holdfast_frames_refused_total", Help: "Data frames refused as a whole, by reason.",
		}, []string{"reason"}),
		calls: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "holdfast_grpc_seconds", Help: "Unary gRPC calls, by method and status code.", Buckets: latencyBuckets,
		}, []string{"method", "code"}),
		http: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "holdfast_http_seconds", Help: "HTTP requests, by method and status code.", Buckets: latencyBuckets,
		}, []string{"method", "code"}),
		sync: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "holdfast_raft_log_sync_seconds", Help: "Time of each sync of the Raft log.", Buckets: latencyBuckets,
		}),
	}
	m.registry.MustRegister(m.ops, m.latency, m.refusals, m.calls, m.http, m.sync,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// ObserveSync counts a synced write of the Raft log.
func (m *Metrics) ObserveSync(d time.Duration) { m.sync.Observe(d.Seconds()) }

// Handler serves the figures.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// frame counts an answered frame, for each data type in it.
func (m *Metrics) frame(ops []op, begin time.Time) {
	took := time.Since(begin).Seconds()
	kind := "command"
	if len(ops) > 0 && ops[0].method >= methodPeek {
		kind = "query"
	}
	var last *dataType
	for i := 0; i < len(ops); { // runs of one method are the rule
		o, n := &ops[i], i+1
		for n < len(ops) && ops[n].of == o.of && ops[n].method == o.method {
			n++
		}
		typ, name := o.names()
		if i == 0 || o.of != last {
			m.latency.WithLabelValues(typ, kind).Observe(took)
			last = o.of
		}
		m.ops.WithLabelValues(typ, name).Add(float64(n - i))
		i = n
	}
}

// names are those of an operation and of its type. A caller must not make up label values.
func (o *op) names() (typ, method string) {
	typ, method = "unknown", "unknown"
	if o.of != nil {
		typ = o.of.Name
		if name, ok := o.of.methods[o.method]; ok {
			method = name
		}
	}
	return typ, method
}

func (m *Metrics) refused(reason pb.FrameError_Reason) {
	m.refusals.WithLabelValues(reason.String()).Inc()
}

// unary measures gRPC calls.
func (m *Metrics) unary(ctx context.Context, q any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	begin := time.Now()
	r, err := handle(ctx, q)
	m.calls.WithLabelValues(path.Base(info.FullMethod), status.Code(err).String()).Observe(time.Since(begin).Seconds())
	return r, err
}

// counted measures HTTP requests.
func (m *Metrics) counted(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begin := time.Now()
		cw := &codeWriter{ResponseWriter: w, code: http.StatusOK}
		h.ServeHTTP(cw, r)
		method := r.Method
		switch method {
		case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete:
		default:
			method = "other" // a caller must not make up label values
		}
		m.http.WithLabelValues(method, strconv.Itoa(cw.code)).Observe(time.Since(begin).Seconds())
	})
}

type codeWriter struct {
	http.ResponseWriter
	code int
}

func (w *codeWriter) WriteHeader(code int) {
	w.code = code
	w.ResponseWriter.WriteHeader(code)
}

// Unwrap lets http.ResponseController reach the real writer.
func (w *codeWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// shardCollector reads the replicas' state when asked.
type shardCollector struct {
	node                                                       Node
	leader, term, applied, commit, queued, entries, cmds, size *prometheus.Desc
	checksum, diverged                                         *prometheus.Desc
}

func newShardCollector(n Node) *shardCollector {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("holdfast_shard_"+name, help, []string{"shard"}, nil)
	}
	return &shardCollector{
		node:    n,
		leader:  desc("leader", "1 if this node leads the shard."),
		term:    desc("term", "The replica's Raft term."),
		applied: desc("applied_index", "The last log entry that the state includes."),
		commit:  desc("commit_index", "The last log entry known to be committed."),
		queued:  desc("queue_ops", "Operations that wait to be proposed."),
		entries: desc("entries_total", "Log entries proposed here; commands divided by entries is the batch size."),
		cmds:    desc("commands_total", "Commands proposed here."),
		size:    desc("size_bytes", "The replica's state on disk, estimated."),

		checksum: desc("checksum_index", "The log entry at which the replica's state was last hashed."),
		diverged: desc("diverged_total", "How often a replica was found to differ from the others, counted by every replica that hears of it. Anything but 0 is an emergency."),
	}
}

// Describe implements prometheus.Collector.
func (c *shardCollector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

// Collect implements prometheus.Collector.
func (c *shardCollector) Collect(ch chan<- prometheus.Metric) {
	for _, s := range c.node.LocalReplicas() {
		shard := strconv.Itoa(int(s.Group))
		leads := 0.0
		if s.State == "leader" {
			leads = 1
		}
		for _, v := range []struct {
			desc  *prometheus.Desc
			kind  prometheus.ValueType
			value float64
		}{
			{c.leader, prometheus.GaugeValue, leads},
			{c.term, prometheus.GaugeValue, float64(s.Term)},
			{c.applied, prometheus.GaugeValue, float64(s.Applied)},
			{c.commit, prometheus.GaugeValue, float64(s.Commit)},
			{c.queued, prometheus.GaugeValue, float64(s.Queued)},
			{c.entries, prometheus.CounterValue, float64(s.Entries)},
			{c.cmds, prometheus.CounterValue, float64(s.Commands)},
			{c.size, prometheus.GaugeValue, float64(s.SizeBytes)},
			{c.checksum, prometheus.GaugeValue, float64(s.Checksum)},
			{c.diverged, prometheus.CounterValue, float64(s.Diverged)},
		} {
			ch <- prometheus.MustNewConstMetric(v.desc, v.kind, v.value, shard)
		}
	}
}
