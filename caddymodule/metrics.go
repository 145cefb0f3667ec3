package caddymodule

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/store"
)

// metrics outlive a configuration. Each configuration has its own registry, and [collectors.register]
// adds the same collectors to it. Labels are names of outcomes and states and no ids, so there are few
// of them, and none reveals a service user, except for those of userRequests, which the operator chooses.
var metrics = newCollectors()

type collectors struct {
	reasons     []prometheus.Counter // requests, by access.Reason
	observed    prometheus.Counter
	public      prometheus.Counter
	passed      prometheus.Counter
	ambiguous   prometheus.Counter
	throttled   prometheus.Counter
	unavailable prometheus.Counter
	wouldDeny   prometheus.Counter
	decisions   prometheus.Histogram
	users       *userRequests

	rebuilds    prometheus.Histogram
	plaintext   prometheus.Counter
	openStreams prometheus.Gauge
	cutStreams  prometheus.Counter
	auditSeq    prometheus.Gauge
	auditHash   prometheus.Gauge

	droppedEvents prometheus.Counter
	droppedLines  prometheus.Counter

	all []prometheus.Collector // every collector, in the order of creation
}

func newCollectors() *collectors {
	c := new(collectors)
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: prefix + "requests_total",
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

	c.wouldDeny = c.counter("would_deny_total",
		"Requests that passed only because a site or a permission group is in mode observe.")
	c.decisions = c.histogram("decision_duration_seconds", fmt.Sprintf("The time from the arrival of a request "+
		"at the handler until the decision about its login and rules, of one request in %d, chosen at random.",
		decisionSample), 1e-6, 2, 21)
	c.users = newUserRequests()
	c.all = append(c.all, c.users)
	c.rebuilds = c.histogram("rebuild_duration_seconds",
		"The time in which a new directory was read and built, after a change or at the start.", 1e-4, 4, 10)

	c.plaintext = c.counter("plaintext_credentials_total",
		"Credentials that arrived unencrypted from another machine.")
	c.openStreams = c.gauge("open_streams",
		"WebSockets of service users that are open, and their other requests that are under way "+
			"for more than 5 seconds.").WithLabelValues()
	c.cutStreams = c.counter("cut_streams_total",
		"Streams and other long requests that were cut because their service user lost the right to them.")
	c.auditSeq = c.gauge("audit_seq", "The number of the last record of the audit trail.").WithLabelValues()
	c.auditHash = c.gauge("audit_hash",
		"The first 48 bits of the hash of the last record of the audit trail.").WithLabelValues()
	c.gauge("build_info", "1, with the version of the plugin.", "version").WithLabelValues(admin.Version()).Set(1)
	c.droppedEvents = c.counter("dropped_events_total",
		"Events that no handler of Caddy's app events got, since an earlier handler hung or was too slow.")
	c.droppedLines = c.counter("dropped_log_lines_total",
		"Lines that are missing in the log, since its writer did not take them in time.")
	c.storeMetrics()
	c.censusMetrics()
	return c
}

// storeMetrics adds the metrics that are read from the store of the configuration in force. They are 0 while
// no store is open.
func (c *collectors) storeMetrics() {
	gauge := func(name, help string, labels prometheus.Labels, value func(*store.Store) float64) {
		opts := prometheus.GaugeOpts{Name: prefix + name, Help: help, ConstLabels: labels}
		c.all = append(c.all, prometheus.NewGaugeFunc(opts, func() float64 { return ofStore(value) }))
	}
	gauge("store_up",
		"1 while the store can be read, 0 while requests are decided on what was read last, or not at all.",
		nil, func(s *store.Store) float64 { return oneIf(s.Fault() == "" && !s.Stale()) })
	gauge("copy_kept", "1 while this node keeps a last good copy of its store in PostgreSQL, otherwise 0.",
		nil, func(s *store.Store) float64 { return oneIf(s.KeepsCopy() && s.CopyFault() == "") })
	gauge("copy_fault", "1 while this node cannot keep a last good copy of its store in PostgreSQL, otherwise 0.",
		nil, func(s *store.Store) float64 { return oneIf(s.KeepsCopy() && s.CopyFault() != "") })
	gauge("directory_age_seconds",
		"How long ago the store was last found to hold nothing newer than what requests are decided on.",
		nil, func(s *store.Store) float64 { return s.Age().Seconds() })
	gauge("revision", "The revision of the store that requests are decided on.",
		nil, func(s *store.Store) float64 { return float64(s.Directory().Revision()) })
	gauge("clock_difference_seconds",
		"How far the clock of this node was ahead of that of the database in PostgreSQL, at the last report.",
		nil, func(s *store.Store) float64 { return s.ClockDifference().Seconds() })
	for _, source := range []string{store.FromDatabase, store.FromMemory, store.FromCopy} {
		gauge("store_source",
			"1 for the source of what requests are decided on: database; memory, read before the store had a fault; "+
				"or copy, the last good copy of a node that started without its database.",
			prometheus.Labels{"source": source}, func(s *store.Store) float64 {
				now, _ := s.Source()
				return oneIf(now == source)
			})
	}
	c.all = append(c.all, prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: prefix + "panics_total",
		Help: "Mistakes of the program that its background work has survived since the store was opened.",
	}, func() float64 { return ofStore(func(s *store.Store) float64 { return float64(s.Panics()) }) }))
}

// censusWait is how long a scrape waits for new counts. After that it shows the ones before.
const censusWait = time.Second

// censusMetrics adds the metrics that have counts of the store, which each scrape asks for.
func (c *collectors) censusMetrics() {
	before := len(c.all)
	users := c.gauge("users", "Service users by status.", "status")
	tokens := c.gauge("tokens", "Tokens by state, without revoked ones.", "state")
	ending := c.gauge("tokens_ending", "Usable tokens that end within a time, by their expiry or a refresh.", "within")
	unused := c.gauge("users_unused", "Service users that are older than 90 days and were not used in that time.")
	lag := c.gauge("node_lag_revisions", "Changes in the database that are not in force yet.", "node")
	reported := c.gauge("node_lag_seconds", "The time since the last report of a look for changes.", "node")
	parts := c.all[before:]
	c.all = append(c.all[:before:before], &scraped{parts, func() {
		var now store.Census
		if live := storeInForce(); live != nil {
			now = live.store.Census(censusWait)
		}
		for _, status := range store.UserStatuses {
			users.WithLabelValues(status).Set(float64(now.Users[status]))
		}
		for _, state := range store.TokenStates {
			if state != store.TokenRevoked {
				tokens.WithLabelValues(string(state)).Set(float64(now.Tokens[state]))
			}
		}
		for _, within := range store.CensusEnds {
			days := strconv.Itoa(int(within/(24*time.Hour))) + "d"
			ending.WithLabelValues(days).Set(float64(now.Ending[within]))
		}
		unused.WithLabelValues().Set(float64(now.Unused))
		for name, n := range map[string]store.NodeLag{"this": now.This, "slowest": now.Slowest} {
			lag.WithLabelValues(name).Set(float64(n.Revisions))
			reported.WithLabelValues(name).Set(n.Reported.Seconds())
		}
	}})
}

// scraped are collectors that have to be set before each scrape.
type scraped struct {
	parts []prometheus.Collector
	set   func()
}

// Describe describes the collectors.
func (s *scraped) Describe(to chan<- *prometheus.Desc) {
	for _, part := range s.parts {
		part.Describe(to)
	}
}

// Collect sets the collectors, and collects them.
func (s *scraped) Collect(to chan<- prometheus.Metric) {
	s.set()
	for _, part := range s.parts {
		part.Collect(to)
	}
}

// decisionSample is of how many requests one is timed. Reading the clock twice costs more than the rest of a
// metric. A choice at random favours no request, however regularly clients send them.
const decisionSample = 16

// begin returns the time for decided, or the zero time for a request that is not timed.
func (c *collectors) begin() (begun time.Time) {
	if rand.Uint32()%decisionSample == 0 {
		begun = time.Now()
	}
	return begun
}

// decided observes the time of a decision, if begin has chosen the request.
func (c *collectors) decided(begun time.Time) {
	if !begun.IsZero() {
		c.decisions.Observe(time.Since(begun).Seconds())
	}
}

// userRequests counts the requests of each service user, if a configuration has per_user_metrics.
type userRequests struct {
	desc  *prometheus.Desc
	mu    sync.Mutex // held for some nanoseconds by each request
	byID  map[string]*int64
	other int64 // requests of service users that are not in byID
}

func newUserRequests() *userRequests {
	return &userRequests{byID: make(map[string]*int64), desc: prometheus.NewDesc(prefix+"user_requests_total",
		"Requests with a valid login by service user, up to the number of per_user_metrics; other has the rest.",
		[]string{"service_user"}, nil)}
}

// count counts a request. most is the number of service users that have a counter of their own; with 0, count
// does nothing.
func (u *userRequests) count(id string, most int) {
	if most == 0 {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	n := u.byID[id]
	switch {
	case n == nil && len(u.byID) < most:
		n = new(int64)
		u.byID[strings.Clone(id)] = n // a copy: id may be a part of a longer text
	case n == nil:
		n = &u.other
	}
	*n++
}

// Describe sends the only description.
func (u *userRequests) Describe(to chan<- *prometheus.Desc) { to <- u.desc }

// Collect collects the counters that the configuration in force allows.
func (u *userRequests) Collect(to chan<- prometheus.Metric) {
	most := 0
	if app, err := running(); err == nil {
		most = app.PerUserMetrics
	}
	u.collect(to, most)
}

// collect forgets all counters if they are more than most, so that no id is shown after an operator has removed
// the option.
func (u *userRequests) collect(to chan<- prometheus.Metric, most int) {
	u.mu.Lock()
	if most == 0 || len(u.byID) > most {
		clear(u.byID)
		u.other = 0
	}
	now := map[string]int64{"other": u.other} // a copy, since no request waits for the reader of the metrics
	for id, n := range u.byID {
		now[id] = *n
	}
	u.mu.Unlock()
	for id, n := range now {
		to <- prometheus.MustNewConstMetric(u.desc, prometheus.CounterValue, float64(n), id)
	}
}

// prefix begins the names of all metrics.
const prefix = "caddy_service_users_"

func (c *collectors) counter(name, help string) prometheus.Counter {
	m := prometheus.NewCounter(prometheus.CounterOpts{Name: prefix + name, Help: help})
	c.all = append(c.all, m)
	return m
}

func (c *collectors) gauge(name, help string, labels ...string) *prometheus.GaugeVec {
	m := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: prefix + name, Help: help}, labels)
	c.all = append(c.all, m)
	return m
}

// histogram adds a histogram with this number of buckets. least is the first bound, and each next one is a
// multiple of the one before.
func (c *collectors) histogram(name, help string, least, multiple float64, buckets int) prometheus.Histogram {
	m := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: prefix + name, Help: help, Buckets: prometheus.ExponentialBuckets(least, multiple, buckets),
	})
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

// ofStore returns a value of the store of the configuration in force, or 0 if no store is open.
func ofStore(value func(*store.Store) float64) float64 {
	if live := storeInForce(); live != nil {
		return value(live.store)
	}
	return 0
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
