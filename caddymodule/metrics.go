package caddymodule

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/store"
)

// metrics outlive a configuration. Each configuration has its own registry, and [collectors.register]
// adds the same collectors to it. Labels are names of outcomes and never ids, so there are few of
// them, and none reveals a service user.
var metrics = newCollectors()

type collectors struct {
	reasons     []prometheus.Counter // requests, by access.Reason
	observed    prometheus.Counter
	public      prometheus.Counter
	passed      prometheus.Counter
	ambiguous   prometheus.Counter
	throttled   prometheus.Counter
	unavailable prometheus.Counter

	plaintext   prometheus.Counter
	openStreams prometheus.Gauge
	cutStreams  prometheus.Counter
	auditSeq    prometheus.Gauge
	auditHash   prometheus.Gauge

	all []prometheus.Collector // every collector, in the order of creation
}

func newCollectors() *collectors {
	c := new(collectors)
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "caddy_service_users_requests_total",
		Help: "Requests by outcome: granted, observed, public, passed, ambiguous, throttled, unavailable, " +
			"or why authentication or authorisation failed.",
	}, []string{"outcome"})
	c.all = append(c.all, requests)
	for _, reason := range access.Reasons() {
		c.reasons = append(c.reasons, requests.WithLabelValues(reason.String()))
	}
	c.observed = requests.WithLabelValues("observed")
	c.public = requests.WithLabelValues("public")
	c.passed = requests.WithLabelValues("passed")
	c.ambiguous = requests.WithLabelValues("ambiguous")
	c.throttled = requests.WithLabelValues("throttled")
	c.unavailable = requests.WithLabelValues("unavailable")

	c.plaintext = c.counter("plaintext_credentials_total",
		"Credentials that arrived unencrypted from another machine.")
	c.openStreams = c.gauge("open_streams",
		"WebSockets of service users that are open, and their other requests that are under way "+
			"for more than 5 seconds.")
	c.cutStreams = c.counter("cut_streams_total",
		"Streams and other long requests that were cut because their service user lost the right to them.")
	c.auditSeq = c.gauge("audit_seq", "The number of the last record of the audit trail.")
	c.auditHash = c.gauge("audit_hash",
		"The first 48 bits of the hash of the last record of the audit trail.")
	c.storeMetrics()
	return c
}

// storeMetrics adds the metrics that are read from the store of the configuration in force.
func (c *collectors) storeMetrics() {
	var labels prometheus.Labels // of the gauges that follow
	gauge := func(name, help string, value func(*store.Store) float64, otherwise float64) {
		opts := prometheus.GaugeOpts{Name: "caddy_service_users_" + name, Help: help, ConstLabels: labels}
		read := func() float64 { return ofStore(value, otherwise) }
		c.all = append(c.all, prometheus.NewGaugeFunc(opts, read))
	}
	gauge("store_up",
		"1 while the store can be read, 0 while requests are decided on what was read last, or not at all.",
		func(s *store.Store) float64 { return oneIf(s.Fault() == "" && !s.Stale()) }, 0)
	gauge("copy_kept",
		"1 while this node keeps a last good copy of its store in PostgreSQL, 0 while it cannot.",
		func(s *store.Store) float64 {
			if !s.KeepsCopy() {
				return math.NaN()
			}
			return oneIf(s.CopyFault() == "")
		}, math.NaN())
	gauge("directory_age_seconds",
		"How long ago the store was last found to hold nothing newer than what requests are decided on.",
		func(s *store.Store) float64 { return s.Age().Seconds() }, math.NaN())
	gauge("revision", "The revision of the store that requests are decided on.",
		func(s *store.Store) float64 { return float64(s.Directory().Revision()) }, math.NaN())
	gauge("clock_difference_seconds",
		"How far the clock of this node was ahead of that of the database in PostgreSQL, at the last report.",
		func(s *store.Store) float64 { return s.ClockDifference().Seconds() }, math.NaN())
	for _, source := range []string{store.FromDatabase, store.FromMemory, store.FromCopy} {
		labels = prometheus.Labels{"source": source}
		gauge("store_source",
			"1 for the source of what requests are decided on: database; memory, read before the store had a fault; "+
				"or copy, the last good copy of a node that started without its database.",
			func(s *store.Store) float64 {
				now, _ := s.Source()
				return oneIf(now == source)
			}, 0)
	}
	c.all = append(c.all, prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "caddy_service_users_panics_total",
		Help: "Mistakes of the program that its background work has survived since the store was opened.",
	}, func() float64 { return ofStore(func(s *store.Store) float64 { return float64(s.Panics()) }, 0) }))
}

func (c *collectors) counter(name, help string) prometheus.Counter {
	m := prometheus.NewCounter(prometheus.CounterOpts{Name: "caddy_service_users_" + name, Help: help})
	c.all = append(c.all, m)
	return m
}

func (c *collectors) gauge(name, help string) prometheus.Gauge {
	m := prometheus.NewGauge(prometheus.GaugeOpts{Name: "caddy_service_users_" + name, Help: help})
	c.all = append(c.all, m)
	return m
}

// oneIf is the value of a metric that is 1 or 0.
func oneIf(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

// ofStore returns a value of the store of the configuration in force, or otherwise if no store is
// open.
func ofStore(value func(*store.Store) float64, otherwise float64) float64 {
	if live := storeInForce(); live != nil {
		return value(live.store)
	}
	return otherwise
}

// showAudit sets the gauges of the audit trail.
func (c *collectors) showAudit(head store.AuditHead) {
	c.auditSeq.Set(float64(head.Seq))
	if bits, err := strconv.ParseUint(head.Hash[:min(12, len(head.Hash))], 16, 64); err == nil {
		c.auditHash.Set(float64(bits)) // exact: a float64 represents integers of up to 53 bits
	}
}

// traffic returns the numbers of requests so far, since the process started.
func (c *collectors) traffic() (m admin.Minute) {
	for _, reason := range access.Reasons() {
		n := count(c.reasons[reason])
		switch {
		case reason == access.Granted:
			m.Allowed += n
		case reason >= access.NoRule:
			m.Denied += n
		default:
			m.NoLogin += n
		}
	}
	m.Allowed += count(c.observed) + count(c.public) + count(c.passed)
	m.NoLogin += count(c.throttled)
	m.Refused, m.NotReady = count(c.ambiguous), count(c.unavailable)
	return m
}

func count(c prometheus.Counter) int64 {
	var m dto.Metric
	if c.Write(&m) != nil {
		return 0
	}
	return int64(m.GetCounter().GetValue())
}

// traffic outlives a configuration, as metrics do. The first store that opens starts to watch it.
var (
	traffic  admin.Traffic
	watching sync.Once
)

// watchTraffic adds a minute to t at the end of every minute of the clock, for as long as the process
// runs. read returns the numbers of requests so far, and before has those of the last minute. No
// request waits for it, and it keeps no goroutine.
func watchTraffic(t *admin.Traffic, read func() admin.Minute, before admin.Minute) {
	// A timer can end a little before its time by the clock, which a time server may slow down.
	minute := func() time.Time { return time.Now().Add(time.Second).Truncate(time.Minute) }
	time.AfterFunc(time.Until(minute().Add(time.Minute)), func() {
		n := read()
		t.Add(admin.Minute{
			At: minute().UTC(), Allowed: n.Allowed - before.Allowed, Denied: n.Denied - before.Denied,
			NoLogin: n.NoLogin - before.NoLogin, Refused: n.Refused - before.Refused,
			NotReady: n.NotReady - before.NotReady,
		})
		watchTraffic(t, read, n)
	})
}

// register adds the collectors to the registry of a configuration.
func (c *collectors) register(registry *prometheus.Registry) error {
	if registry == nil {
		return nil
	}
	for _, collector := range c.all {
		var already prometheus.AlreadyRegisteredError
		err := registry.Register(collector)
		if err != nil && !(errors.As(err, &already) && already.ExistingCollector == collector) {
			return fmt.Errorf("registering metrics: %w", err)
		}
	}
	return nil
}
