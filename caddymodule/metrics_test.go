package caddymodule

import (
	"fmt"
	"maps"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

const monitoringPage = "../docs/monitoring.md"

// gathered returns the metrics of the code.
func gathered(t testing.TB) []*dto.MetricFamily {
	t.Helper()
	registry := prometheus.NewRegistry()
	if err := metrics.register(registry); err != nil {
		t.Fatal(err)
	}
	return must(registry.Gather())
}

// tableOf returns the rows of the table of docs/monitoring.md below a heading, by the code in their first cell.
func tableOf(t testing.TB, heading string) map[string][]string {
	t.Helper()
	_, section, ok := strings.Cut(string(must(os.ReadFile(monitoringPage))), "\n## "+heading+"\n")
	if !ok {
		t.Fatalf("%s has no section %q", monitoringPage, heading)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	rows := make(map[string][]string)
	for line := range strings.Lines(section) {
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), " | ")
		name := strings.Trim(cells[0], " `")
		if rows[name] != nil {
			t.Errorf("%s: %s has two rows", monitoringPage, name)
		}
		rows[name] = cells
	}
	return rows
}

// TestMonitoringPage: the two tables of the page have the metrics of the code, with their types, labels and
// values of labels, and all outcomes.
func TestMonitoringPage(t *testing.T) {
	documented, outcomes := tableOf(t, "Metrics"), tableOf(t, "Outcomes")
	for _, family := range gathered(t) {
		name := family.GetName()
		row := documented[name]
		delete(documented, name)
		if len(row) != 4 {
			t.Errorf("%s: the page has no row of four cells", name)
			continue
		}
		if kind := strings.ToLower(family.GetType().String()); row[1] != kind {
			t.Errorf("%s: the page has the type %q, want %q", name, row[1], kind)
		}
		label := ""
		for _, metric := range family.GetMetric() {
			for _, pair := range metric.GetLabel() {
				label = pair.GetName()
				switch value := pair.GetValue(); label {
				case "version":
				case "outcome":
					if outcomes[value] == nil {
						t.Errorf("the page has no outcome %s", value)
					}
					delete(outcomes, value)
				default:
					if !strings.Contains(row[3], "`"+value+"`") {
						t.Errorf("%s: the meaning does not name the value `%s` of the label %s", name, value, label)
					}
				}
			}
		}
		if got := strings.Trim(row[2], "` "); got != label {
			t.Errorf("%s: the page has the label %q, want %q", name, got, label)
		}
	}
	for _, more := range []map[string][]string{documented, outcomes} {
		for name := range more {
			t.Errorf("the page has %s, and the code does not", name)
		}
	}
}

// TestMetricNames: each metric that a page or an example names exists.
func TestMetricNames(t *testing.T) {
	known := make(map[string]bool)
	for _, family := range gathered(t) {
		known[family.GetName()] = true
		if family.GetType() == dto.MetricType_HISTOGRAM {
			for _, part := range []string{"_bucket", "_sum", "_count"} {
				known[family.GetName()+part] = true
			}
		}
	}
	name, files := regexp.MustCompile(prefix+`[a-z_]+`), 0
	for _, pattern := range []string{"../*.md", "../docs/*.md", "../examples/*/*.json", "../examples/*/*.yml"} {
		for _, path := range must(filepath.Glob(pattern)) {
			found := name.FindAllString(string(must(os.ReadFile(path))), -1)
			if len(found) > 0 {
				files++
			}
			for _, name := range found {
				if !known[name] {
					t.Errorf("%s: there is no metric %s", path, name)
				}
			}
		}
	}
	if files < 5 {
		t.Errorf("metrics are named in %d files, want the page, the dashboard, the rules and their tests, and others", files)
	}
}

// scrape reads the metrics of a server, by name and labels.
func (s *server) scrape() map[string]float64 {
	s.t.Helper()
	got := s.do("GET", "CADDY_PORT", "/metrics", credentials{}, "")
	if got.StatusCode != http.StatusOK {
		s.t.Errorf("the scrape: got %d: %s", got.StatusCode, got.body)
	}
	values := make(map[string]float64)
	for line := range strings.Lines(got.body) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && strings.HasPrefix(key, prefix) {
			values[key] = must(strconv.ParseFloat(value, 64))
		}
	}
	return values
}

// scrapeAll scrapes again and again until the function that it returns is called.
func (s *server) scrapeAll() (end func()) {
	stop := make(chan struct{})
	var scrapes sync.WaitGroup
	scrapes.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				s.scrape()
			}
		}
	})
	return func() {
		close(stop)
		scrapes.Wait()
	}
}

// TestMetricsReload: scrapes of the example under load, while it is reloaded, have exactly the documented
// metrics, and requests go on.
func TestMetricsReload(t *testing.T) {
	t.Parallel()
	// The upstream of the example is in the same Caddy: a reload closes its connections, too.
	example := strings.Replace(exampleCaddyfile(t), "reverse_proxy 127.0.0.1:{$UPSTREAM_PORT:8082}", "respond ok", 1)
	s := startServer(t, example)
	s.mustCLI("group", "create", "readers", "--rule", "allow GET /v1/{rest...}")
	user := s.create("billing-sync", "--group", "readers")
	load, end := startLoad(s, user), s.scrapeAll()
	for i := range 2 {
		if out, ok := s.reload(strings.Replace(example, "Example API", fmt.Sprint("API ", i), 1)); !ok {
			t.Errorf("reload %d was refused: %s", i, out)
		}
	}
	end()
	const timed = prefix + "decision_duration_seconds_count" // of one request in some
	got := s.scrape()
	for deadline := time.Now().Add(time.Minute); got[timed] == 0 && time.Now().Before(deadline); {
		got = s.scrape()
	}
	answered, wrong, dropped := load()
	if wrong != 0 || dropped != 0 || answered == 0 {
		t.Errorf("of %d requests %d were answered wrongly and %d dropped", answered, wrong, dropped)
	}
	got = s.scrape()
	documented, names := tableOf(t, "Metrics"), make(map[string]bool)
	for key, value := range got {
		name, _, _ := strings.Cut(key, "{")
		for _, part := range []string{"_bucket", "_sum", "_count"} {
			if whole := strings.TrimSuffix(name, part); documented[whole] != nil {
				name = whole
			}
		}
		names[name] = true
		if documented[name] == nil {
			t.Errorf("%s is not documented", name)
		}
		if math.IsNaN(value) {
			t.Errorf("%s is not a number", key)
		}
	}
	for name := range documented {
		if !names[name] {
			t.Errorf("the scrape does not have %s", name)
		}
	}
	for key, want := range map[string]float64{
		`requests_total{outcome="granted"}`: float64(answered), "store_up": 1, `users{status="active"}`: 1, `tokens{state="active"}`: 1,
		"copy_kept": 0, "copy_fault": 0, `node_lag_revisions{node="slowest"}`: 0, `node_lag_seconds{node="this"}`: 0,
		`user_requests_total{service_user="other"}`: 0,
	} {
		if value, ok := got[prefix+key]; !ok || value != want {
			t.Errorf("%s: got %v %v, want %v", key, value, ok, want)
		}
	}
	if n := got[timed]; n == 0 || n > float64(answered) {
		t.Errorf("%v of %d requests were timed", n, answered)
	}
	if got[prefix+"rebuild_duration_seconds_count"] == 0 {
		t.Error("no new directory was timed")
	}
}

// TestUserMetricsReload: with per_user_metrics the first service users have counters of their own, which a
// reload keeps, and which go with the option.
func TestUserMetricsReload(t *testing.T) {
	t.Parallel()
	with := func(option string) string { return guarded(option, "realm files", "\trespond ok") }
	s := withCaddyfile(newServer(t), with("per_user_metrics 2"))
	s.mustCLI("group", "create", "readers", "--rule", "allow GET /v1/{rest...}")
	users := []credentials{s.create("a", "--group", "readers"), s.create("b"), s.create("c"), s.create("d")}
	key := func(id string) string { return fmt.Sprintf("%suser_requests_total{service_user=%q}", prefix, id) }
	compare := func(when string, want map[string]float64) {
		t.Helper()
		got := s.scrape()
		maps.DeleteFunc(got, func(key string, _ float64) bool { return !strings.HasPrefix(key, prefix+"user_requests_total") })
		if !maps.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", when, got, want)
		}
	}
	for _, user := range users {
		s.get("/v1/x", user)
		s.get("/v1/x", credentials{user.id, user.secret + "x"}) // not a valid login
	}
	s.get("/v1/x", users[0])
	want := map[string]float64{key(users[0].id): 2, key(users[1].id): 1, key("other"): 2}
	compare("at first", want)
	reload := func(option string) {
		t.Helper()
		if out, ok := s.reload(with(option)); !ok {
			t.Fatalf("the reload was refused: %s", out)
		}
	}
	reload("per_user_metrics 3")
	compare("after a reload", want)
	s.get("/v1/x", users[3])
	want[key(users[3].id)] = 1
	compare("with room for another", want)
	reload("per_user_metrics 1")
	compare("with less room", map[string]float64{key("other"): 0})
	s.get("/v1/x", users[1])
	s.get("/v1/x", users[2])
	compare("after that", map[string]float64{key(users[1].id): 1, key("other"): 1})
	reload("")
	compare("without the option", map[string]float64{key("other"): 0})
	s.get("/v1/x", users[1])
	compare("and a request", map[string]float64{key("other"): 0})
}

// TestUserRequestsAtOnce: the cap is hard, and no request is lost.
func TestUserRequestsAtOnce(t *testing.T) {
	const most, callers, users, each = 10, 8, 30, 50
	u := newUserRequests()
	var running sync.WaitGroup
	for range callers {
		running.Go(func() {
			for i := range users * each {
				u.count(fmt.Sprint("service_", i%users), most)
			}
		})
	}
	running.Wait()
	to := make(chan prometheus.Metric, users+1)
	u.collect(to, most)
	close(to)
	var ids []string
	sum := 0.0
	for metric := range to {
		var m dto.Metric
		if err := metric.Write(&m); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, m.GetLabel()[0].GetValue())
		sum += m.GetCounter().GetValue()
	}
	if len(ids) != most+1 || !slices.Contains(ids, "other") || sum != callers*users*each {
		t.Errorf("got %v and %v requests, want %d ids, other, and %d", ids, sum, most, callers*users*each)
	}
}

// TestUserRequestsOfMany: the first request of a service user does not wait for a copy of all other counters, of which
// a start has thousands at once.
func TestUserRequestsOfMany(t *testing.T) {
	u := newUserRequests()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for i := range maxPerUser {
		u.count(fmt.Sprint("service_", i), maxPerUser)
	}
	runtime.ReadMemStats(&after)
	if got := (after.TotalAlloc - before.TotalAlloc) / maxPerUser; got > 10_000 {
		t.Errorf("each of the first requests allocated %d bytes", got)
	}
}

// TestWouldDenyMetric: a request counts if only observing let it pass.
func TestWouldDenyMetric(t *testing.T) {
	for mode, want := range map[string]int64{"enforce": 0, "observe": 1} {
		g := newGuard(t, Handler{Mode: mode})
		before := count(metrics.wouldDeny)
		for _, path := range []string{"/x", "/v1/x", "/denied"} {
			r := httptest.NewRequest(http.MethodGet, path, nil)
			r.SetBasicAuth(g.reader.id, g.reader.secret)
			g.serve(r)
		}
		if got := count(metrics.wouldDeny) - before; got != want {
			t.Errorf("%s: got %v, want %v", mode, got, want)
		}
	}
}

// BenchmarkDecisionTime is the cost of timing decisions, for each request.
func BenchmarkDecisionTime(b *testing.B) {
	for b.Loop() {
		metrics.decided(metrics.begin())
	}
}

// BenchmarkDecisionTimed is the cost for a request that is timed.
func BenchmarkDecisionTimed(b *testing.B) {
	for b.Loop() {
		metrics.decided(time.Now())
	}
}

// BenchmarkUserRequests is the cost of the counter of one service user.
func BenchmarkUserRequests(b *testing.B) {
	u := newUserRequests()
	for b.Loop() {
		u.count("service_3MQkTyLfBmwNcJuBTVeoYRG1ZkP", 500)
	}
}
