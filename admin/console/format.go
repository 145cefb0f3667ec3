package console

import (
	"fmt"
	"html/template"
	"regexp"
	"strings"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/store"
)

// functions are those that templates call.
var functions = template.FuncMap{
	"asset":  func(name string) string { return assets + name },
	"when":   when,
	"dict":   dict,
	"byName": byName,
	"count":  count,
	"graces": func() []string { return graces },
	"date":   date,
	"soon":   soon,
	"recent": func(at, now time.Time) bool { return now.Sub(at) < 24*time.Hour },
	"denies": func(rule string) bool { return strings.HasPrefix(rule, string(access.Deny)) },
	"list":   func(items ...string) []string { return items },
	"rest":   func(all, shown int) int { return max(all-shown, 0) },
	// withoutIDs leaves out the ids of rules before their lines in a warning.
	"withoutIDs": func(text string) string { return ruleID.ReplaceAllString(text, `"`) },
}

var ruleID = regexp.MustCompile(`\brule_[0-9A-Za-z]{27} "`)

// moment is an instant as pages show it: relative, with the time in UTC beside it. The script adds
// the time in the zone of the viewer.
type moment struct {
	ISO, UTC, Text string
}

// when returns an instant as a moment, such as "3 minutes ago" or "in 6 days". at is a time.Time or
// a *time.Time; nil gives the zero moment.
func when(at any, now time.Time) moment {
	t, ok := instant(at)
	if !ok {
		return moment{}
	}
	if left := t.Sub(now); left > 0 {
		return of(t, span(left.Round(time.Minute), "now", "in %s"))
	}
	return of(t, span(now.Sub(t), "just now", "%s ago"))
}

func of(t time.Time, text string) moment {
	t = t.UTC()
	return moment{t.Format(time.RFC3339), t.Format("2006-01-02 15:04:05 UTC"), text}
}

func instant(at any) (time.Time, bool) {
	switch t := at.(type) {
	case time.Time:
		return t, !t.IsZero()
	case *time.Time:
		if t != nil {
			return *t, !t.IsZero()
		}
	}
	return time.Time{}, false
}

// span writes a duration in its largest unit.
func span(d time.Duration, short, form string) string {
	for _, unit := range [...]struct {
		size time.Duration
		name string
	}{
		{365 * 24 * time.Hour, "year"}, {30 * 24 * time.Hour, "month"}, {24 * time.Hour, "day"},
		{time.Hour, "hour"}, {time.Minute, "minute"},
	} {
		if d >= unit.size {
			return fmt.Sprintf(form, count(int(d/unit.size), unit.name))
		}
	}
	return short
}

// count writes a number of things: "1 token", "2 tokens".
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// dict makes the data of a part that needs several values.
func dict(pairs ...any) map[string]any {
	data := make(map[string]any)
	for i := 0; i+1 < len(pairs); i += 2 {
		data[pairs[i].(string)] = pairs[i+1]
	}
	return data
}

// byName returns the ids of permission groups by their names, which a template goes through in
// order.
func byName(names map[string]string) map[string]string {
	ids := make(map[string]string)
	for id, name := range names {
		ids[name] = id
	}
	return ids
}

// date returns the time after one of the presets, such as "2026-12-06 15:04 UTC".
func date(preset string, now time.Time) string {
	d, _ := admin.ParseDuration(preset)
	return now.Add(d).UTC().Format("2006-01-02 15:04 UTC")
}

// soon returns the class of the badge of an end: one that the order "usable" puts first needs attention.
func soon(at any, now time.Time) string {
	t, _ := instant(at)
	switch left := t.Sub(now); {
	case left <= 0:
		return "bad"
	case left < store.SoonEnding:
		return "warn"
	}
	return "off"
}
