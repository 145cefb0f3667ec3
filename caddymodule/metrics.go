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

// Every configuration has a registry of its own, so the collectors live as long
// as the process and are registered again at each load. Labels name outcomes,
// never ids: there are few of them, and they tell nothing about anybody.
var metrics = newCollectors()

type collectors struct {
	requests    *prometheus.CounterVec
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
	store       []prometheus.Collector // of the store of the configuration in force
}

func newCollectors() *collectors {
	c := &collectors{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "caddy_service_users_requests_total",
			Help: "Requests by outcome: granted, observed, public, passed, ambiguous, throttled, unavailable, or why authentication or authorisation failed.",
		}, []string{"outcome"}),
		plaintext: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "caddy_service_users_plaintext_credentials_total",
			Help: "Credentials that arrived unencrypted from another machine.",
		}),
		openStreams: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "caddy_service_users_open_streams",
			Help: "WebSockets of service users that are open, and their other requests that are under way for more than 5 seconds.",
		}),
		cutStreams: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "caddy_service_users_cut_streams_total",
			Help: "Streams and other long requests that were cut because their service user lost the right to them.",
		}),
		auditSeq: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "caddy_service_users_audit_seq",
			Help: "The number of the last record of the audit trail.",
		}),
		auditHash: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "caddy_service_users_audit_hash",
			Help: "The first 48 bits of the hash of the last record of the audit trail.",
		}),
	}
	c.store = []prometheus.Collector{
		storeGauge("store_up", "1 while the store can be read, 0 while requests are decided on what was read last, or not at all.", func(s *store.Store) float64 {
			if s.Fault() != "" || s.Stale() {
				return 0
			}
			return 1
		}, 0),
		storeGauge("directory_age_seconds", "How long ago the store was last found to hold nothing newer than what requests are decided on.", func(s *store.Store) float64 { return s.Age().Seconds() }, math.NaN()),
		storeGauge("revision", "The revision of the store that requests are decided on.", func(s *store.Store) float64 { return float64(s.Directory().Revision()) }, math.NaN()),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "caddy_service_users_panics_total", Help: "Mistakes of the program that its background work has survived since the store was opened.",
		}, func() float64 { return ofStore(func(s *store.Store) float64 { return float64(s.Panics()) }, 0) }),
	}
	for _, reason := range access.Reasons() {
		c.reasons = append(c.reasons, c.requests.WithLabelValues(reason.String()))
	}
	for outcome, counter := range map[string]*prometheus.Counter{
		"observed": &c.observed, "public": &c.public, "passed": &c.passed, "ambiguous": &c.ambiguous, "throttled": &c.throttled, "unavailable": &c.unavailable,
	} {
		*counter = c.requests.WithLabelValues(outcome)
	}
	return c
}

// storeGauge shows something of the store of the configuration in force; without
// one, otherwise.
func storeGauge(name, help string, value func(*store.Store) float64, otherwise float64) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "caddy_service_users_" + name, Help: help}, func() float64 { return ofStore(value, otherwise) })
}

func ofStore(value func(*store.Store) float64, otherwise float64) float64 {
	if app, err := running(); err == nil && app.shared != nil {
		if live := app.shared.live.Load(); live != nil {
			return value(live.store)
		}
	}
	return otherwise
}

// showAudit shows the head of the audit trail.
func (c *collectors) showAudit(head store.AuditHead) {
	c.auditSeq.Set(float64(head.Seq))
	if bits, err := strconv.ParseUint(head.Hash[:min(12, len(head.Hash))], 16, 64); err == nil {
		c.auditHash.Set(float64(bits)) // exact: a float has 53
	}
}

// register makes the collectors part of a configuration's registry.
func (c *collectors) register(registry *prometheus.Registry) error {
	if registry == nil {
		return nil
	}
	for _, collector := range append([]prometheus.Collector{c.requests, c.plaintext, c.openStreams, c.cutStreams, c.auditSeq, c.auditHash}, c.store...) {
		var already prometheus.AlreadyRegisteredError
		if err := registry.Register(collector); errors.As(err, &already) && already.ExistingCollector == collector {
			continue
		} else if err != nil {
			return fmt.Errorf("registering metrics: %w", err)
		}
	}
	return nil
}
