package cli

import (
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/serviceusers/caddy-service-users/access"
)

// TestParseLogLine finds the request in lines of all formats.
func TestParseLogLine(t *testing.T) {
	request := func(method, target string) loggedRequest { return loggedRequest{method: method, target: target} }
	for line, want := range map[string]loggedRequest{
		"GET /x":                            request("GET", "/x"),
		"GET /x HTTP/1.1":                   request("GET", "/x"),
		"GET /a b HTTP/1.1":                 request("GET", "/a b"),
		"VERSION-CONTROL *":                 request("VERSION-CONTROL", "*"),
		"GET http://example.com/":           request("GET", "http://example.com/"),
		`GET /x"y`:                          request("GET", `/x"y`),
		"get /x HTTP/1.1":                   request("get", "/x"),
		`::1 - - [t] "GET /x HTTP/3" 200 -`: request("GET", "/x"),
		`api:443 ::1 - "joe" [t] "GET /x HTTP/1.1" 200 -`:                                                               {},
		`::1 - - [t] "GET /\x22\"\\\x5c\t\xff HTTP/1.1" 200 -`:                                                          request("GET", "/\"\"\\\\\t\xff"),
		`::1 - - [t] "GET /\q\"x HTTP/1.1" 200 -`:                                                                       request("GET", `/\q\"x`),
		`api.example:443 ::1 - joe blogs [t] "GET /x HTTP/1.1" 200 - "-" "a \"b\""`:                                     request("GET", "/x"),
		`{"request":{"method":"GET","uri":"/x","headers":{"Authorization":"REDACTED"}}}`:                                request("GET", "/x"),
		`::1 - - [t] "GET /a b HTTP/1.1" 200 "https://example.com/" "curl/8"`:                                           request("GET", "/a b"),
		`{"request":{"method":"GET","uri":"/x"}}`:                                                                       request("GET", "/x"),
		`{"request":{"method":"GET","uri":"/x","host":"a:80"}}`:                                                         {method: "GET", target: "/x", host: "a:80"},
		`{"request":{"method":"GET","uri":"/x","headers":{"Authorization":["REDACTED"],"Accept":["*/*"]}}}`:             {method: "GET", target: "/x", authorizations: 1},
		`{"request":{"method":"GET","uri":"/x","headers":{"Authorization":["a","b"]}}}`:                                 {method: "GET", target: "/x", authorizations: 2},
		`{"request":{"method":"POST","uri":"/x","headers":{"X-Http-Method-Override":["delete"]}}}`:                      {method: "POST", target: "/x", overridden: true},
		`{"request":{"method":"POST","uri":"/x","headers":{"X-Http-Method":["post"],"X-Method-Overrides":["DELETE"]}}}`: {method: "POST", target: "/x"},
		`{"request":{"method":"GET","uri":"/x","headers":{"Authorization":7,"X-Http-Method":{}}}}`:                      request("GET", "/x"),

		"GET":                           {},
		"GET x":                         {},
		"GET /x 200":                    {},
		"see /etc/passwd":               {},
		"speaks HTTP/1.1":               {},
		"Authorization: Basic YTpi":     {},
		`::1 - - [t] "-" 408 -`:         {},
		`::1 - - [t] "\x16\x03" 400 -`:  {},
		`::1 - - [t] "\x16 /x" 400 -`:   {},
		`x: "GET /x HTTP/1.1"`:          {},
		"foo bar HTTP/1.1":              {},
		`{"request":"GET /x HTTP/2.0"}`: {},
		"2026/11/21 20:31:32\tINFO\ttls\tcleaned\t{\"request\": {\"method\": \"GET\", \"uri\": \"/x\"}}": {},
		`{"logger":"http.log.error","request":{"method":"GET","uri":"/x"}}`:                              {},
		`{"logger":"http.handlers.reverse_proxy","request":{"method":"GET","uri":"/x"}}`:                 {},
		`{"request":{"method":"GET"}}`: {},
		`{"request":{"uri":"/x"}}`:     {},
		`{"request":7}`:                {},
		`{"request":null}`:             {},
		`{"msg":"x"}`:                  {},
		`{`:                            {},
		`"`:                            {},
	} {
		got, ok := parseLogLine([]byte(line))
		if ok != (want != loggedRequest{}) || ok && got != want {
			t.Errorf("%s: got %+v, %t, want %+v", line, got, ok, want)
		}
	}
}

// TestLogExample: an example is harmless in a terminal, and has neither a query nor a secret.
func TestLogExample(t *testing.T) {
	const secret = "csu_yhjskwdA6OZ1AL1YmHWZWm8LLG7HjnuCA2j5rOw8Xp12TtPM6"
	for target, want := range map[string]string{
		"/a//b":                                      "GET /a//b",
		"/a?token=x":                                 "GET /a?…",
		"/" + secret + "//":                          "GET /csu_…//",
		"/x/" + secret[:30] + ";/y":                  "GET /x/csu_…",
		"/x/%63%73%75%5f" + secret[4:]:               "GET /x/…",
		"http://joe:secret@a/":                       "GET …",
		"joe:secret@a:443":                           "GET …",
		"/a\x1b[31m\tb\u202e":                        "GET /a [31m b ",
		"/" + strings.Repeat("a/", 90):               "GET /" + strings.Repeat("a/", 47) + "a…",
		"/" + strings.Repeat("é/", 90):               "GET /" + strings.Repeat("é/", 31) + "é…",
		"/" + strings.Repeat("a", 60) + "/" + secret: "GET /" + strings.Repeat("a", 60) + "/csu_…",
	} {
		if got := (loggedRequest{method: "GET", target: target}).example(access.Problem{}); got != want {
			t.Errorf("%q: got %q, want %q", target, got, want)
		}
	}
	for r, want := range map[loggedRequest]string{
		{method: secret, target: "/"}:                               "csu_… /",
		{method: "GET", target: "/", host: "a b"}:                   "GET / Host: a b",
		{method: "GET", target: "/", host: "a b?" + secret}:         "GET / Host: a b?csu_…",
		{method: "GET", target: "/a?" + secret, host: secret + " "}: "GET /a?… Host: csu_… ",
	} {
		p := access.Problem{Part: "method"}
		if r.host != "" {
			p.Part = "host"
		}
		if got := r.example(p); got != want {
			t.Errorf("%+v: got %q, want %q", r, got, want)
		}
	}
}

// endlessLog repeats lines without keeping them.
type endlessLog struct {
	line  func(n int) string
	lines int

	n    int
	rest string
}

func (l *endlessLog) Read(p []byte) (int, error) {
	if l.rest == "" {
		if l.n == l.lines {
			return 0, io.EOF
		}
		l.rest = l.line(l.n)
		l.n++
	}
	n := copy(p, l.rest)
	l.rest = l.rest[n:]
	return n, nil
}

// TestCheckLogStreams reads a log with requests that are all different, and
// lines without an end, in memory that does not grow with it.
func TestCheckLogStreams(t *testing.T) {
	long := strings.Repeat("x", longestLine)
	log := &endlessLog{lines: 200_000, line: func(n int) string {
		switch n {
		case 7, 8, 9:
			return long
		case 10:
			return long + "\n"
		case 199_999:
			return "GET /last;" // without a line end
		}
		return fmt.Sprintf("GET /%d/%x%%2F%c\n", n, n, 0x4e00+n%20_000)
	}}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	result, err := checkLog(log, 0)
	runtime.GC()
	runtime.ReadMemStats(&after)
	if err != nil || result.Checked != 199_996 || result.Other != 1 || result.Refused != 199_996 || len(result.Reasons) > 10 {
		t.Errorf("got %+v, %v", result, err)
	}
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 8<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
}

// TestCheckLogReasons: the number of reasons does not depend on the requests.
func TestCheckLogReasons(t *testing.T) {
	var lines strings.Builder
	for r := rune(0x80); r < 0x30000; r += 7 {
		if r < 0xd800 || r > 0xdfff {
			fmt.Fprintf(&lines, "GET /%s", strings.Repeat("a", int(r%50)))
			for _, b := range []byte(string(r)) {
				fmt.Fprintf(&lines, "%%%02x", b)
			}
			lines.WriteByte('\n')
		}
	}
	result, err := checkLog(strings.NewReader(lines.String()), access.NonNFC)
	if err != nil || result.Refused == 0 || len(result.Reasons) > 5 {
		t.Errorf("got %d reasons for %d refusals, %v: %+v", len(result.Reasons), result.Refused, err, result.Reasons)
	}
}
