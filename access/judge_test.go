package access

import "testing"

// TestJudge checks a request as the data path sees it. The part of a problem says where it is.
func TestJudge(t *testing.T) {
	for _, tt := range []struct {
		method, host, target string
		allow                Relax
		want                 string // "host path" of the action
		part                 string // of the problem
		status               int
	}{
		{"GET", "API.example.com.:8443", "/v1/%78?y", 0, "api.example.com /v1/x", "", 0},
		{"CONNECT", "", "db:5432", 0, "", "method", 501},
		{"get", "a", "/", 0, "", "method", 400},
		{"GET", "", "/x", 0, "", "host", 400}, // of HTTP/1.0
		{"GET", "*", "/x", 0, "", "host", 400},
		{"GET", "a b", "//", 0, "", "host", 400},
		{"GET", "a", "//x", 0, "", "path", 400},
		{"GET", "a", "//x///y//?z=//", MergedSlashes, "a /x/y/", "", 0},
		{"GET", "a", "//%2e%2e/x", MergedSlashes, "", "path", 400},
		{"GET", "a", "http://a//x", MergedSlashes, "", "path", 400},
		{"GET", "a", "/a%2Fb", EncodedSlash, "a /a\x00b", "", 0},
		{"GET", "a", "/a%2F%2Fb", EncodedSlash | MergedSlashes, "a /a\x00\x00b", "", 0}, // they are not merged upstream
	} {
		a, p := Judge(tt.method, tt.host, tt.target, tt.allow)
		if p.Status != tt.status || p.Part != tt.part {
			t.Errorf("%s %s %s: got the problem %+v, want %d for the %s", tt.method, tt.host, tt.target, p, tt.status, tt.part)
		}
		got := ""
		if p.OK() {
			got = a.Host + " " + a.Path
		} else if a.Method != "" || a.Host != "" || a.Path != "" {
			t.Errorf("%s %s %s: got the action %+v beside a problem", tt.method, tt.host, tt.target, a)
		}
		if got != tt.want {
			t.Errorf("%s %s %s: got %q, want %q", tt.method, tt.host, tt.target, got, tt.want)
		}
	}
}
