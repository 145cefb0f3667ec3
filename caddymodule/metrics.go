package caddymodule

import (
	"errors"
	"fmt"
	"math"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/serviceusers/caddy-service-users/access"
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
	gauge := func(name, help string, value func(*store.Store) float64, otherwise float64) {
		opts := prometheus.GaugeOpts{Name: "caddy_service_users_" + name, Help: help}
		read := func() float64 { return ofStore(value, otherwise) }
		c.all = append(c.all, prometheus.NewGaugeFunc(opts, read))
	}
	gauge("store_up",
		"1 while the store can be read, 0 while requests are decided on what was read last, or not at all.",
		func(s *store.Store) float64 {
			if s.Fault() != "" || s.Stale() {
				return 0
			}
			return 1
		}, 0)
	gauge("directory_age_seconds",
		"How long ago the store was last found to hold nothing newer than what requests are decided on.",
		func(s *store.Store) float64 { return s.Age().Seconds() }, math.NaN())
	gauge("revision", "The revision of the store that requests are decided on.",
		func(s *store.Store) float64 { return float64(s.Directory().Revision()) }, math.NaN())
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
