package caddymodule

import (
	"bufio"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/serviceusers/caddy-service-users/access"
)

// FuzzRequest reads arbitrary bytes as net/http would and checks what is
// promised of a request that is not refused: what would be forwarded is the
// target as it was received, and decodes once to exactly the path that was
// judged, which has no way up in it.
func FuzzRequest(f *testing.F) {
	for _, row := range caseRows(f, "paths.tsv") {
		f.Add("GET "+row.value+" HTTP/1.1\r\nHost: app.example\r\n\r\n", uint8(0))
		f.Add(row.value+" HTTP/1.1\r\nHost: app.example:8080\r\nUpgrade: h2c\r\n\r\n", uint8(0xff))
	}
	f.Fuzz(func(t *testing.T, raw string, relax uint8) {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(raw)))
		if err != nil {
			return
		}
		received := r.RequestURI
		h := &Handler{relax: access.Relax(relax)}
		r = prepared(r)
		action, further, problem := h.judge(r, varsOf(r), netip.Addr{})
		if !problem.OK() {
			switch problem.Status {
			case 400, 405, 425, 501:
				return
			}
			t.Fatalf("%q: refused with %d", received, problem.Status)
		}
		forwarded := r.URL.RequestURI()
		if want := h.merged(received); forwarded != want {
			t.Errorf("%q: %q would be forwarded, want %q", received, forwarded, want)
		}
		rawPath, _, _ := strings.Cut(forwarded, "?")
		decoded, err := url.PathUnescape(rawPath)
		if err != nil || decoded != access.PlainPath(action.Path) {
			t.Errorf("%q: forwarded %q decodes to %q (%v), judged %q", received, rawPath, decoded, err, action.Path)
		}
		for _, f := range append(further, target{r.Method, decoded}) { // of unknown surroundings
			for _, segment := range strings.Split(access.PlainPath(f.path), "/") {
				name, _, _ := strings.Cut(segment, ";")
				if name == "." || name == ".." || f.path[0] != '/' {
					t.Errorf("%q: %q has a dot segment", received, f.path)
				}
			}
		}
		if !strings.HasPrefix(decoded, "/") || strings.ContainsAny(decoded, "\\\x00\r\n\x7f") || action.Host == "" {
			t.Errorf("%q: judged %q at %q", received, action.Path, action.Host)
		}
		if relax == 0 && strings.ContainsAny(decoded, ";%") {
			t.Errorf("%q: judged %q", received, action.Path)
		}
	})
}

// TestHoldsSecret looks for secrets in credentials that are left to others.
func TestHoldsSecret(t *testing.T) {
	const secret = "csu_0123456789012345678901234567890123456789012345678"
	for value, want := range map[string]bool{
		"Bearer " + secret:           true,
		secret:                       true,
		basic("id", secret):          true,
		basic(secret, ""):            true,
		basic("", secret):            true,
		basic("my user", " "+secret): true,
		strings.TrimRight(basic("i", secret), "="): true,
		basic("id", secret)[:40]:                   true,
		"Basic  " + basic("id", secret)[6:]:        true,
		basic("someone", "password"):               false,
		"Bearer ey.foreign":                        false,
		"Digest username=\"x\"":                    false,
		"":                                         false,
		"Basic":                                    false,
		"Basic " + strings.Repeat("A", 2000):       false,
	} {
		if got := holdsSecret(value); got != want {
			t.Errorf("%q: got %t, want %t", value, got, want)
		}
	}
	for n := range 200 { // every length
		holdsSecret("Basic " + strings.Repeat("A", n))
	}
}
