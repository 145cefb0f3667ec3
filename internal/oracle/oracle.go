// Package oracle decides about requests as docs/permissions.md describes it, with no tree, no sets and
// no CEL: each rule of each group of the service user against the request. Random tests compare the product
// with it. It has no type and no code of the product. [World.Decide] is the function to call.
package oracle

import (
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// World is a store: all permission groups, and the name of the default group.
type World struct {
	Groups       []Group
	DefaultGroup string
}

// Group is a permission group.
type Group struct {
	ID, Name  string
	Observe   bool
	Condition string // the Text of one of Memberships
	Rules     []Rule
}

// Rule is a rule of a group.
type Rule struct {
	Deny       bool
	Methods    []string
	Host, Path string
	When       string // the Text of one of Whens, or ""
}

// User is a service user that has logged in.
type User struct {
	Manager bool
	Teams   []string
	Labels  map[string]string
	Groups  []string // ids of the groups that name it
}

// Action is a request.
type Action struct {
	Method, Host, Path string
	Address            netip.Addr
	Header             map[string][]string
	Now                int64
}

// Verdict is the kind of a decision.
type Verdict int

// The verdicts.
const (
	NoRule Verdict = iota
	Granted
	Denied
)

// Answer is a decision. Would says which rules of observing groups would change it.
type Answer struct {
	Verdict
	WouldAllow, WouldDeny bool
}

// truth is the value of a condition.
type truth int

const (
	no truth = iota
	yes
	broken // it cannot be evaluated
)

func is(b bool) truth {
	if b {
		return yes
	}
	return no
}

// asked has the variables of a condition.
type asked struct {
	User
	Action
	params map[string]string
}

func (q asked) label(key, want string) truth {
	value, ok := q.Labels[key]
	if !ok {
		return broken
	}
	return is(value == want)
}

// Meaning is a condition in CEL, and the same in Go.
type Meaning struct {
	Text  string
	means func(asked) truth
}

// Memberships are conditions of groups; "" is none.
var Memberships = []Meaning{
	{"", func(q asked) truth { return no }},
	{`true`, func(q asked) truth { return yes }},
	{`user.labels.env == "prod"`, func(q asked) truth { return q.label("env", "prod") }},
	{`!(user.labels.env == "prod")`, func(q asked) truth { return []truth{yes, no, broken}[q.label("env", "prod")] }},
	{`has(user.labels.env) && user.labels.env == "prod"`, func(q asked) truth { return is(q.Labels["env"] == "prod") }},
	{`user.labels[?"env"].orValue("test") == "test"`, func(q asked) truth { return is(q.label("env", "test") != no) }},
	{`"ops" in user.teams`, func(q asked) truth { return is(slices.Contains(q.Teams, "ops")) }},
	{`user.role == "manager"`, func(q asked) truth { return is(q.Manager) }},
	{`user.labels.env == "prod" || "ops" in user.teams`, func(q asked) truth {
		if slices.Contains(q.Teams, "ops") {
			return yes
		}
		return q.label("env", "prod")
	}},
	{`int(user.labels.level) > 1`, func(q asked) truth { return number(q.Labels["level"], func(n int) bool { return n > 1 }) }},
}

// Here is the address that a condition names.
var Here = netip.MustParseAddr("192.0.2.1")

// Whens are conditions of rules. Those with params.p0 and params.rest need a path with these parameters.
var Whens = append([]Meaning{
	{`false`, func(q asked) truth { return no }},
	{`request.method in ["GET", "DELETE"]`, func(q asked) truth { return is(q.Method == "GET" || q.Method == "DELETE") }},
	{`request.host == "x.h.example"`, func(q asked) truth { return is(q.Host == "x.h.example") }},
	{`request.path == "/a"`, func(q asked) truth { return is(q.Path == "/a") }},
	{`request.path.endsWith("/")`, func(q asked) truth { return is(strings.HasSuffix(q.Path, "/")) }},
	{`request.header("x-env") == "prod"`, func(q asked) truth { return is(strings.Join(q.Header["X-Env"], ", ") == "prod") }},
	{`cidr("192.0.2.0/24").containsIP(request.remote_ip)`, func(q asked) truth {
		if !q.Address.IsValid() {
			return broken
		}
		return is(q.Address == Here)
	}},
	{`now < timestamp("2030-01-01T00:00:00Z")`, func(q asked) truth { return is(q.Now < 1893456000) }},
	{`params.p0 == "a"`, func(q asked) truth { return is(q.params["p0"] == "a") }},
	{`params.p0 == user.labels.home`, func(q asked) truth { return q.label("home", q.params["p0"]) }},
	{`int(params.p0) < 5`, func(q asked) truth { return number(q.params["p0"], func(n int) bool { return n < 5 }) }},
	{`params.rest == ""`, func(q asked) truth { return is(q.params["rest"] == "") }},
	{`params.rest.endsWith("/")`, func(q asked) truth { return is(strings.HasSuffix(q.params["rest"], "/")) }},
	{`params.rest.startsWith("a")`, func(q asked) truth { return is(strings.HasPrefix(q.params["rest"], "a")) }},
}, Memberships...)

func number(text string, f func(int) bool) truth {
	n, err := strconv.Atoi(text)
	if err != nil {
		return broken
	}
	return is(f(n))
}

func meansOf(text string, q asked) truth {
	return Whens[slices.IndexFunc(Whens, func(m Meaning) bool { return m.Text == text })].means(q)
}

// Decide decides for a service user whose token is narrowed to some groups, or not.
func (w World) Decide(u User, narrowed []string, a Action) Answer {
	var enforced, observed struct{ allow, deny bool }
	for _, g := range w.Groups {
		source := w.Source(u, g)
		if source == "" {
			continue
		}
		speaks := &enforced
		if g.Observe {
			speaks = &observed
		}
		for _, r := range g.Rules {
			switch {
			case !covers(r, u, a):
			case r.Deny:
				speaks.deny = true
			case source != "doubt" && (len(narrowed) == 0 || slices.Contains(narrowed, g.ID)):
				speaks.allow = true
			}
		}
	}
	switch {
	case enforced.deny: // wins over any allow, whatever the order
		return Answer{Verdict: Denied}
	case enforced.allow:
		return Answer{Verdict: Granted, WouldDeny: observed.deny}
	}
	return Answer{Verdict: NoRule, WouldAllow: observed.allow && !observed.deny}
}

// Source says how a service user is in a group: "name", "condition", "default", or "doubt" if the condition
// cannot be evaluated; "" is not at all.
func (w World) Source(u User, g Group) string {
	switch meets := meansOf(g.Condition, asked{User: u}); {
	case slices.Contains(u.Groups, g.ID):
		return "name"
	case meets == yes:
		return "condition"
	case g.Name == w.DefaultGroup:
		return "default"
	case meets == broken:
		return "doubt"
	}
	return ""
}

// covers compares an allow with the request as it is, a deny also with the request without its trailing
// slash.
func covers(r Rule, u User, a Action) bool {
	star := "GET HEAD POST PUT PATCH DELETE OPTIONS"
	if !slices.ContainsFunc(r.Methods, func(m string) bool {
		return m == a.Method || m == "GET" && a.Method == "HEAD" ||
			m == "*" && (r.Deny || slices.Contains(strings.Fields(star), a.Method))
	}) {
		return false
	}
	forms := []string{a.Path}
	if r.Deny && a.Path != "/" {
		forms = append(forms, strings.TrimSuffix(a.Path, "/"))
	}
	pattern := patternOf(r)
	return slices.ContainsFunc(forms, func(form string) bool {
		found := pattern.FindStringSubmatch(a.Host + form)
		if found == nil || r.When == "" {
			return found != nil
		}
		q := asked{u, a, make(map[string]string)}
		q.Path = form
		for i, name := range pattern.SubexpNames() {
			q.params[name] = found[i]
		}
		holds := meansOf(r.When, q)
		return holds == yes || holds == broken && r.Deny
	})
}

// patterns has a *regexp.Regexp for each host and path of a rule.
var patterns sync.Map

// patternOf is a rule's host and path as a regular expression.
func patternOf(r Rule) *regexp.Regexp {
	key := strconv.FormatBool(r.Deny) + r.Host + r.Path
	if known, ok := patterns.Load(key); ok {
		return known.(*regexp.Regexp)
	}
	host := "[^/]*"
	if suffix, ok := strings.CutPrefix(r.Host, "*"); ok {
		host = "[^/.]+" + regexp.QuoteMeta(suffix)
		if r.Deny {
			host = "[^/]+" + regexp.QuoteMeta(suffix)
		}
	} else if r.Host != "" {
		host = regexp.QuoteMeta(r.Host)
	}
	path := ""
	for _, segment := range strings.Split(r.Path, "/")[1:] {
		name := strings.Trim(segment, "{.}")
		switch {
		case strings.HasSuffix(segment, "...}") && r.Deny:
			path += "(/(?P<" + name + ">.*))?"
		case strings.HasSuffix(segment, "...}"):
			path += "/(?P<" + name + ">.*)"
		case strings.HasSuffix(segment, "}"):
			path += "/(?P<" + name + ">[^/]+)"
		default:
			path += "/" + regexp.QuoteMeta(segment)
		}
	}
	flags := "^"
	if r.Deny {
		flags, path = "(?i)^", strings.TrimSuffix(path, "/")+"/?"
	}
	made := regexp.MustCompile(flags + host + path + "$")
	patterns.Store(key, made)
	return made
}
