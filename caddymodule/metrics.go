package caddymodule

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/serviceusers/caddy-service-users/access"
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
			Help: "WebSockets, event streams and gRPC calls of service users that are open.",
		}),
		cutStreams: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "caddy_service_users_cut_streams_total",
			Help: "Open streams that were cut because their service user lost the right to them.",
		}),
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

// register makes the collectors part of a configuration's registry.
func (c *collectors) register(registry *prometheus.Registry) error {
	if registry == nil {
		return nil
	}
	for _, collector := range []prometheus.Collector{c.requests, c.plaintext, c.openStreams, c.cutStreams} {
		var already prometheus.AlreadyRegisteredError
		if err := registry.Register(collector); errors.As(err, &already) && already.ExistingCollector == collector {
			continue
		} else if err != nil {
			return fmt.Errorf("registering metrics: %w", err)
		}
	}
	return nil
}
