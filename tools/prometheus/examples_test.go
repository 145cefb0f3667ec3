// Package prometheus tests the rules and the dashboard in examples/ with the packages of Prometheus.
package prometheus

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/template"
	"github.com/prometheus/prometheus/util/annotations"
	"go.yaml.in/yaml/v3"
)

const examples = "../../examples/"

var promQL = parser.NewParser(parser.Options{})

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// metric is a metric of the plugin: its type, and the values of its label.
type metric struct {
	kind, label string
	values      []string
}

// metrics reads the metrics that the tests of the plugin compare with its code.
func metrics() map[string]metric {
	all := make(map[string]metric)
	for line := range strings.Lines(string(must(os.ReadFile("../../caddymodule/testdata/names.txt")))) {
		words := strings.Fields(line)
		if words[0] != "metric" {
			continue
		}
		names := []string{words[2]}
		if words[1] == "histogram" {
			names = []string{words[2] + "_bucket", words[2] + "_sum", words[2] + "_count"}
		}
		for _, name := range names {
			m := all[name]
			m.kind = words[1]
			if len(words) > 3 {
				label, value, _ := strings.Cut(words[3], "=")
				m.label, m.values = label, append(m.values, must(strconv.Unquote(value)))
			}
			all[name] = m
		}
	}
	return all
}

// check parses an expression, and finds metrics, labels and values of labels that do not exist, and functions for
// counters whose argument is none. It returns the names of the metrics.
func check(t *testing.T, known map[string]metric, where, text string) (names []string) {
	t.Helper()
	expression, err := promQL.ParseExpr(text)
	if err != nil {
		t.Errorf("%s: %v\n%s", where, err, text)
		return nil
	}
	parser.Inspect(expression, func(node parser.Node, path []parser.Node) error {
		if group, ok := node.(*parser.AggregateExpr); ok {
			for _, label := range group.Grouping {
				if !strings.Contains(" job instance "+labelsIn(known, group), " "+label+" ") {
					t.Errorf("%s: the series in %s have no label %s", where, group, label)
				}
			}
		}
		selector, ok := node.(*parser.VectorSelector)
		if !ok {
			return nil
		}
		m, ok := known[selector.Name]
		if !ok {
			t.Errorf("%s: there is no metric %s", where, selector.Name)
			return nil
		}
		names = append(names, selector.Name)
		for _, matcher := range selector.LabelMatchers {
			switch matcher.Name {
			case "__name__", "job", "instance":
			case m.label:
				if !slices.ContainsFunc(m.values, matcher.Matches) {
					t.Errorf("%s: no value of %s is like %s", where, selector.Name, matcher)
				}
			default:
				t.Errorf("%s: %s has no label %s", where, selector.Name, matcher.Name)
			}
		}
		counts := false
		for _, above := range path {
			call, ok := above.(*parser.Call)
			counts = counts || ok && (call.Func.Name == "rate" || call.Func.Name == "increase")
		}
		if counts != (m.kind != "gauge") {
			t.Errorf("%s: %s is a %s, and rate and increase are for counters", where, selector.Name, m.kind)
		}
		return nil
	})
	return names
}

// labelsIn returns the labels of the metrics in an expression, each before a space.
func labelsIn(known map[string]metric, expression parser.Expr) (labels string) {
	parser.Inspect(expression, func(node parser.Node, _ []parser.Node) error {
		if selector, ok := node.(*parser.VectorSelector); ok {
			labels += known[selector.Name].label + " "
			if strings.HasSuffix(selector.Name, "_bucket") {
				labels += "le "
			}
		}
		return nil
	})
	return labels
}

// panel is a panel of a dashboard of Grafana.
type panel struct {
	ID          int
	Type, Title string
	Description string
	Datasource  struct{ UID string }
	GridPos     struct{ H, W, X, Y int }
	FieldConfig struct{ Defaults struct{ Unit string } }
	Targets     []struct {
		Expr       string
		Datasource struct{ UID string }
	}
}

// The dashboard is one that Grafana can import: the expressions parse, and each metric of the plugin is on it.
func TestDashboard(t *testing.T) {
	var board struct {
		Title, UID    string
		SchemaVersion int
		Panels        []panel
		Templating    struct {
			List []struct{ Name, Type, Definition string }
		}
	}
	if err := json.Unmarshal(must(os.ReadFile(examples+"grafana/dashboard.json")), &board); err != nil {
		t.Fatal(err)
	}
	if board.Title == "" || board.UID == "" || board.SchemaVersion < 36 {
		t.Errorf("the head: got %q %q %d", board.Title, board.UID, board.SchemaVersion)
	}
	known, shown, ids := metrics(), make(map[string]bool), make(map[int]bool)
	for i, variable := range board.Templating.List {
		switch query, ok := strings.CutPrefix(variable.Definition, "label_values("); {
		case i == 0 && variable.Name == "datasource" && variable.Type == "datasource":
		case ok && variable.Type == "query":
			selector, _, _ := strings.Cut(query, ", ")
			check(t, known, variable.Name, selector)
		default:
			t.Errorf("the variable %+v is of no use", variable)
		}
	}
	values := strings.NewReplacer("$__rate_interval", "5m", "$job", "caddy", "$instance", "a")
	for i, p := range board.Panels {
		where := fmt.Sprintf("panel %d, %q", p.ID, p.Title)
		if ids[p.ID] || p.Title == "" {
			t.Errorf("%s: no id and title of its own", where)
		}
		ids[p.ID] = true
		for _, other := range board.Panels[:i] {
			a, b := p.GridPos, other.GridPos
			if a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H || a.X+a.W > 24 || a.W < 1 || a.H < 1 {
				t.Errorf("%s: its place is outside, or that of %q", where, other.Title)
			}
		}
		if p.Type == "row" {
			continue
		}
		if p.Description == "" || p.FieldConfig.Defaults.Unit == "" || p.Datasource.UID != "${datasource}" || len(p.Targets) == 0 {
			t.Errorf("%s: without a description, a unit, the data source of the variable, or a query", where)
		}
		for _, target := range p.Targets {
			if target.Datasource.UID != "${datasource}" || !strings.Contains(target.Expr, `{job=~"$job",instance=~"$instance"`) {
				t.Errorf("%s: the variables do not choose its series", where)
			}
			for _, name := range check(t, known, where, values.Replace(target.Expr)) {
				shown[strings.TrimSuffix(name, "_bucket")] = true
			}
		}
	}
	for name, m := range known {
		if m.kind != "histogram" && !shown[name] || strings.HasSuffix(name, "_bucket") && !shown[strings.TrimSuffix(name, "_bucket")] {
			t.Errorf("no panel has %s", name)
		}
	}
}

// rulesOf parses the rules as Prometheus does.
func rulesOf(t *testing.T, path string) []rulefmt.Rule {
	t.Helper()
	groups, errs := rulefmt.ParseFile(path, false, model.UTF8Validation, promQL, slog.New(slog.DiscardHandler))
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	var all []rulefmt.Rule
	for _, group := range groups.Groups {
		all = append(all, group.Rules...)
	}
	return all
}

// Each rule has the texts that its reader needs, and names metrics that exist and a section of the page.
func TestRules(t *testing.T) {
	known, page := metrics(), string(must(os.ReadFile("../../docs/monitoring.md")))
	for _, rule := range rulesOf(t, examples+"prometheus/rules.yml") {
		check(t, known, rule.Alert, rule.Expr)
		if rule.Labels["severity"] == "" || rule.Annotations["summary"] == "" || rule.Annotations["description"] == "" {
			t.Errorf("%s: without a severity, a summary or a description", rule.Alert)
		}
		path, section, _ := strings.Cut(rule.Annotations["runbook_url"], "/docs/monitoring.md#")
		heading := "\n### " + strings.ReplaceAll(section, "-", " ") + "\n"
		if path == "" || section == "" || !strings.Contains(strings.ToLower(page), heading) {
			t.Errorf("%s: docs/monitoring.md has no section of %s", rule.Alert, rule.Annotations["runbook_url"])
		}
	}
}

// testFile is the part of promtool's format that the cases of the rules use.
type testFile struct {
	RuleFiles          []string       `yaml:"rule_files"`
	EvaluationInterval model.Duration `yaml:"evaluation_interval"`
	Tests              []struct {
		Name        string
		Interval    model.Duration
		InputSeries []struct{ Series, Values string } `yaml:"input_series"`
		Alerts      []struct {
			EvalTime  model.Duration `yaml:"eval_time"`
			AlertName string         `yaml:"alertname"`
			Expected  []struct {
				Labels      map[string]string `yaml:"exp_labels"`
				Annotations map[string]string `yaml:"exp_annotations"`
			} `yaml:"exp_alerts"`
		} `yaml:"alert_rule_test"`
	}
}

// The rules fire in their test cases when they should, with the labels and texts that they should have, and at no
// other time of a case that names them. Each rule has a case in which it fires and one in which it does not.
func TestRuleCases(t *testing.T) {
	var file testFile
	decoder := yaml.NewDecoder(bytes.NewReader(must(os.ReadFile(examples + "prometheus/rules.test.yml"))))
	decoder.KnownFields(true)
	if err := decoder.Decode(&file); err != nil {
		t.Fatal(err)
	}
	rules := make(map[string]rulefmt.Rule)
	for _, path := range file.RuleFiles {
		for _, rule := range rulesOf(t, examples+"prometheus/"+path) {
			rules[rule.Alert] = rule
		}
	}
	engine := promql.NewEngine(promql.EngineOpts{MaxSamples: 1e6, Timeout: time.Minute, Parser: promQL})
	t.Cleanup(func() { engine.Close() })
	quiet, fired := make(map[string]bool), make(map[string]bool)
	for _, test := range file.Tests {
		var series list
		for _, input := range test.InputSeries {
			name, values, err := promQL.ParseSeriesDesc(input.Series + " " + input.Values)
			if err != nil {
				t.Fatalf("%s: %v", test.Name, err)
			}
			s := promql.Series{Metric: name}
			for i, v := range values {
				if !v.Omitted {
					s.Floats = append(s.Floats, promql.FPoint{T: int64(i) * time.Duration(test.Interval).Milliseconds(), F: v.Value})
				}
			}
			series = append(series, s)
		}
		for _, at := range test.Alerts {
			rule, ok := rules[at.AlertName]
			if !ok {
				t.Errorf("%s: there is no alert %s", test.Name, at.AlertName)
				continue
			}
			var want []string
			for _, alert := range at.Expected {
				want = append(want, text(alert.Labels, alert.Annotations))
			}
			slices.Sort(want)
			got := firing(t, engine, series, rule, time.Duration(file.EvaluationInterval), time.Duration(at.EvalTime))
			if !slices.Equal(got, want) {
				t.Errorf("%s: %s at %s: got\n%s\nwant\n%s", test.Name, at.AlertName, at.EvalTime, strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			quiet[at.AlertName] = quiet[at.AlertName] || len(want) == 0
			fired[at.AlertName] = fired[at.AlertName] || len(want) > 0
		}
	}
	for name := range rules {
		if !quiet[name] || !fired[name] {
			t.Errorf("%s: no case in which it fires, or none in which it does not", name)
		}
	}
}

func text(maps ...map[string]string) string { return strings.ReplaceAll(fmt.Sprint(maps), "map", "") }

// firing evaluates a rule at every interval until an instant, and returns the alerts that fire at it.
func firing(t *testing.T, engine *promql.Engine, series list, rule rulefmt.Rule, every, until time.Duration) (alerts []string) {
	t.Helper()
	since := make(map[string]time.Duration) // an alert is active since then
	for now := time.Duration(0); now <= until; now += every {
		at := time.UnixMilli(now.Milliseconds())
		query := must(engine.NewInstantQuery(t.Context(), series, nil, rule.Expr, at))
		vector, err := query.Exec(t.Context()).Vector()
		if err != nil {
			t.Fatalf("%s: %v", rule.Alert, err)
		}
		alerts = nil
		active := make(map[string]time.Duration)
		for _, sample := range vector {
			begun, known := since[sample.Metric.String()]
			if !known {
				begun = now
			}
			active[sample.Metric.String()] = begun
			if now-begun < time.Duration(rule.For) {
				continue
			}
			names := sample.Metric.Map()
			delete(names, labels.MetricName)
			maps.Copy(names, rule.Labels)
			texts := make(map[string]string)
			for name, text := range rule.Annotations {
				data := template.AlertTemplateData(sample.Metric.Map(), nil, "", sample)
				head := "{{$labels := .Labels}}{{$value := .Value}}"
				texts[name] = must(template.NewTemplateExpander(t.Context(), head+text, rule.Alert, data, model.Time(at.UnixMilli()), nil, new(url.URL), nil).Expand())
			}
			alerts = append(alerts, text(names, texts))
		}
		since = active
		query.Close()
	}
	slices.Sort(alerts)
	return alerts
}

// list is a storage of a few series.
type list []promql.Series

func (l list) Querier(int64, int64) (storage.Querier, error) {
	return &storage.MockQuerier{SelectMockFunction: func(_ bool, _ *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
		found := &seriesSet{at: -1}
		for _, s := range l {
			if !slices.ContainsFunc(matchers, func(m *labels.Matcher) bool { return !m.Matches(s.Metric.Get(m.Name)) }) {
				found.all = append(found.all, s)
			}
		}
		return found
	}}, nil
}

type seriesSet struct {
	all list
	at  int
}

func (s *seriesSet) Next() bool                        { s.at++; return s.at < len(s.all) }
func (s *seriesSet) At() storage.Series                { return promql.NewStorageSeries(s.all[s.at]) }
func (s *seriesSet) Err() error                        { return nil }
func (s *seriesSet) Warnings() annotations.Annotations { return nil }
