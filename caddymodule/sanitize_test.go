package caddymodule

import (
	"maps"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// reservedNames lists every header that clean removes from the request of an
// untrusted peer, written down a second time, by hand. "*" stands for anything.
var reservedNames = []string{
	"Authorization", "Proxy-Authorization", "Connection", "Proxy-Connection", "Keep-Alive", "HTTP2-Settings", "Upgrade", "TE",
	"X-HTTP-Method", "X-HTTP-Method-Override", "X-Method-Override",
	"X-Original-*", "X-Rewrite-*", "X-Override-*", "X-HTTP-Path-Override", "X-Replaced-Path", "X-Waws-Unencoded-Url", "X-Envoy-Original-*", "X-Accel-*",
	"X-Sendfile*", "X-Script-Name", "Proxy",
	"Remote-*", "X-Remote-*", "X-User", "X-User-Id", "X-Authenticated-*", "X-WEBAUTH-*", "X-Auth-Request-*", "X-Token-User-*", "X-Token-Subject",
	"X-Consumer-*", "X-Credential-Identifier", "X-Authentik-*", "X-Pomerium-*", "X-Vouch-*", "Tailscale-User-*", "Cf-Access-*", "X-Goog-Authenticated-*",
	"X-Goog-Iap-*", "X-Amzn-Oidc-*", "X-Ms-Client-Principal*", "X-Forwarded-User", "X-Forwarded-Groups", "X-Forwarded-Email", "X-Forwarded-Roles",
	"X-Forwarded-Preferred-Username", "X-Forwarded-Access-Token",
}

// proxyNames lists those that a trusted proxy may send.
var proxyNames = []string{
	"Forwarded", "X-Client-IP", "X-Cluster-Client-IP", "True-Client-IP", "CF-Connecting-IP", "Fastly-Client-Ip", "Front-End-Https", "X-SSL-*", "Ssl-Client-*",
	"X-Client-Cert*", "X-Forwarded-*",
}

// aliasNames lists those of which only the canonical spelling passes.
var aliasNames = []string{"X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "Via", "X-Real-Ip"}

// lettersAndDigits is the folded form of a name, said in another way.
func lettersAndDigits(name string) string {
	return strings.ToLower(strings.Map(func(r rune) rune {
		if strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", r) {
			return r
		}
		return -1
	}, name))
}

func listed(list []string, name string) bool {
	return slices.ContainsFunc(list, func(other string) bool {
		begin, rest := strings.CutSuffix(other, "*")
		name, begin := lettersAndDigits(name), lettersAndDigits(begin)
		return name == begin || rest && strings.HasPrefix(name, begin)
	})
}

// mayPass says, slowly, whether a header is left alone.
func mayPass(name string, trusted bool) bool {
	folded := lettersAndDigits(name)
	switch {
	case strings.HasPrefix(folded, "xserviceuser"), listed(reservedNames, name):
		return false
	case listed(aliasNames, name):
		return slices.Contains(aliasNames, name)
	case listed(proxyNames, name):
		return trusted
	}
	return true
}

// testAddress is where the client is.
var testAddress = netip.MustParseAddr("192.0.2.9")

// checkClean cleans a request and checks what is left of it.
func checkClean(t interface {
	Helper()
	Errorf(string, ...any)
}, s *sanitizer, proto int, header http.Header, trusted bool) {
	t.Helper()
	r := &http.Request{Method: "GET", ProtoMajor: proto, Header: header.Clone(), Trailer: http.Header{"X-Service-User-Id": {"evil"}}}
	authorization, _ := s.clean(r, trusted, testAddress)
	if !slices.Equal(authorization, header["Authorization"]) {
		t.Errorf("clean(%q): got the credentials %q, want %q", header, authorization, header["Authorization"])
	}
	if r.Trailer != nil {
		t.Errorf("clean(%q): trailers stay", header)
	}
	for name, values := range r.Header {
		switch folded := lettersAndDigits(name); {
		case strings.HasPrefix(folded, "xserviceuser"):
			t.Errorf("clean(%q): %q stays", header, name)
		case name == "Te" && slices.Equal(values, []string{"trailers"}):
		case name == "Connection" && slices.Equal(values, []string{"Upgrade"}) && slices.Equal(r.Header["Upgrade"], []string{"websocket"}) && proto == 1:
		case name == "Upgrade" && slices.Equal(values, []string{"websocket"}) && r.Header["Connection"] != nil && proto == 1:
		case !mayPass(name, trusted):
			t.Errorf("clean(%q): %q stays", header, name)
		case name == "X-Real-Ip":
			if !slices.Equal(values, []string{testAddress.String()}) {
				t.Errorf("clean(%q): %q became %q, want the client's address", header, name, values)
			}
		case !slices.Equal(values, header[name]):
			t.Errorf("clean(%q): %q became %q", header, name, values)
		}
	}
	for name := range header {
		if _, stays := r.Header[name]; !stays && mayPass(name, trusted) {
			t.Errorf("clean(%q): %q is gone", header, name)
		}
	}
	again := &http.Request{Method: "GET", ProtoMajor: proto, Header: r.Header.Clone()}
	s.clean(again, trusted, testAddress)
	if !maps.EqualFunc(r.Header, again.Header, slices.Equal) {
		t.Errorf("clean(%q): got %q, and %q the second time", header, r.Header, again.Header)
	}
}

func newTestSanitizer(t interface {
	Helper()
	Fatal(...any)
}, strip, keep []string) *sanitizer {
	t.Helper()
	s, err := newSanitizer("X-Service-User-", strip, keep)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestCleanAnyHeader cleans headers that look like reserved ones, spelled with
// every character that a name may hold.
func TestCleanAnyHeader(t *testing.T) {
	s := newTestSanitizer(t, nil, nil)
	words := slices.Concat(reservedNames, proxyNames, aliasNames, []string{
		"X-Service-User-Id", "X-Service-User", "X-Service-User-Assertion", "X-Service-Use", "Service-User-Id", "X-Auth-Request-User", "X-Auth-Reques",
		"X-Remote-Groups", "Remote-Email", "X-Authentik-Jwt", "Tailscale-User-Login", "Tailscale-Use", "Cf-Access-Jwt-Assertion", "X-Forwarded-Fo", "X-Forwarded-Tls-Client-Cert",
		"Accept", "Content-Type", "Cookie", "Host", "Range", "X-Request-Id", "Authorize", "Users", "",
	})
	separators := rapid.SampledFrom([]string{"-", "_", ".", "", "--", "!", "#", "$", "%", "&", "'", "*", "+", "^", "`", "|", "~", " ", "\x00", "é", "K", "ſ"})
	name := rapid.Custom(func(t *rapid.T) string {
		var b strings.Builder
		for _, c := range []byte(rapid.SampledFrom(words).Draw(t, "word")) {
			switch {
			case c == '-':
				b.WriteString(separators.Draw(t, "separator"))
			case rapid.IntRange(0, 9).Draw(t, "letter") == 0:
				b.WriteString(strings.ToUpper(string(c)))
			default:
				b.WriteByte(c)
			}
		}
		if rapid.Bool().Draw(t, "affixed") {
			return separators.Draw(t, "before") + b.String() + separators.Draw(t, "after")
		}
		return b.String()
	})
	value := rapid.SampledFrom([]string{"", "evil", "trailers", "Trailers", "trailers, x", "websocket", "WebSocket", "h2c", "Upgrade", "keep-alive, upgrade", "X-Service-User-Id"})
	headers := rapid.MapOfN(rapid.OneOf(name, name, rapid.String(), rapid.Map(name, http.CanonicalHeaderKey)), rapid.SliceOfN(value, 1, 3), 0, 12)
	rapid.Check(t, func(t *rapid.T) {
		checkClean(t, s, rapid.IntRange(1, 3).Draw(t, "version"), headers.Draw(t, "header"), rapid.Bool().Draw(t, "trusted"))
	})
}

// FuzzHeaderName cleans a request with one header of any name.
func FuzzHeaderName(f *testing.F) {
	for _, name := range slices.Concat(reservedNames, proxyNames, aliasNames) {
		f.Add(name, "evil", false)
		f.Add(http.CanonicalHeaderKey(strings.ReplaceAll(name, "-", "_")), "evil", true)
	}
	for _, name := range []string{"X-Service-User-Id", "x_service.user!id", "X--Service--User", "XSERVICEUSER", "", "-", "X-Servıce-User-Id", "X-Auth-Request-Email", "Te", "Upgrade"} {
		f.Add(name, "trailers", false)
	}
	s := newTestSanitizer(f, nil, nil)
	f.Fuzz(func(t *testing.T, name, value string, trusted bool) {
		checkClean(t, s, 1, http.Header{name: {value}, http.CanonicalHeaderKey(name): {value}, "Accept": {"*/*"}}, trusted)
	})
}

// TestStripAndKeep checks what operators add and exempt.
func TestStripAndKeep(t *testing.T) {
	s := newTestSanitizer(t, []string{"X-Internal", "X-Tenant-Id"}, []string{"X-User-Id", "X-Real-IP", "X-Auth-Request-Email", "Via"})
	header := make(http.Header)
	for _, name := range []string{
		"X-Internal", "x_internal", "X.Internal!", "X-Tenant-Id", "xtenantid", "X-User-Id", "x_user_id", "X-User", "X-Real-Ip", "X-Client-Ip", "X-Auth-Request-Email",
		"X-Auth-Request-User", "X-Service-User-Id", "Via", "v.i.a", "X-Forwarded-For", "X_forwarded_for", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Internals", "Accept",
	} {
		header[name] = []string{"a"}
	}
	r := &http.Request{Method: "GET", ProtoMajor: 1, Header: header}
	s.clean(r, false, testAddress)
	want := []string{"Accept", "Via", "X-Auth-Request-Email", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Internals", "X-Real-Ip", "X-User-Id", "v.i.a", "x_user_id"}
	if got := slices.Sorted(maps.Keys(r.Header)); !slices.Equal(got, want) {
		t.Errorf("got %q left, want %q", got, want)
	}
	if got := r.Header["X-Real-Ip"]; !slices.Equal(got, []string{"a"}) {
		t.Errorf("the X-Real-IP that is kept became %q", got)
	}
	r.Header = http.Header{"X-Real-Ip": {"a"}}
	if newTestSanitizer(t, []string{"x_real_ip"}, nil).clean(r, true, testAddress); len(r.Header) != 0 {
		t.Errorf("got %q left, want the X-Real-IP stripped", r.Header)
	}
	for _, tt := range []struct {
		prefix, strip, keep string
		ok                  bool
	}{
		{"X-Service-User-", "X-Internal", "X-User", true},
		{"X-Service-User-", "X Internal", "", false},
		{"X-Service-User-", "---", "", false},
		{"X-Service-User-", "Host", "", false},
		{"X-Service-User-", "c_o_o_k_i_e", "", false},
		{"X-Service-User-", "X-Both", "x_both", false},
		{"X-Service-User-", "", "Authorization", false},
		{"X-Service-User-", "", "authori.zation", false},
		{"X-Service-User-", "", "Connection", false},
		{"X-Service-User-", "", "Upgrade", false},
		{"X-Service-User-", "", "TE", false},
		{"X-Service-User-", "", "X-Service-User-Id", false},
		{"X-Service-User-", "", "x_service_user_anything", false},
		{"X-Service-User-", "X-Internal-*", "X-Auth-Request-*", true},
		{"X-Service-User-", "X-Internal-*", "X-Internal-Id", true},
		{"X-Service-User-", "X-Internal-*", "x_internal*", false},
		{"X-Service-User-", "Content-*", "", false},
		{"X-Service-User-", "X-Forwarded-*", "", true},
		{"X-Service-User-", "X-Forwarded-Host", "", false},
		{"X-Service-User-", "Via*", "", false},
		{"X-Service-User-", "X*", "", false},
		{"X-Service-User-", "*", "", false},
		{"X-Service-User-", "", "*", false},
		{"X-Service-User-", "", "X-*", false},
		{"X-Service-User-", "", "X-*-Id", false},
		{"X-Service-User-", "", "X-Service-*", false},
		{"X-Service-User-", "", "X-Service-User-*", false},
		{"X-Service-User-", "", "X-Service-User-Id*", false},
		{"X-Service-User-", "", "Proxy-*", false},
		{"X-Service-User-", "", "Auth*", false},
		{"X-Service-User-", "", "Keep*", false},
		{"X-Service-User-", "", "Http2-*", false},
		{"X-Caller-", "", "X-Call*", false},
		{"X-Caller-", "", "X-Call", true},
		{"X-Caller-", "", "X-Caller", false},
		{"X-Caller-", "", "X-Caller-Id", false},
		{"X", "", "", false},
		{"", "", "", false},
		{"X Service", "", "", false},
		{"Con-", "", "", false}, // Content-Length begins with it
	} {
		list := func(name string) []string {
			if name == "" {
				return nil
			}
			return []string{name}
		}
		if _, err := newSanitizer(tt.prefix, list(tt.strip), list(tt.keep)); (err == nil) != tt.ok {
			t.Errorf("prefix %q, strip %q, keep %q: got %v, want ok %t", tt.prefix, tt.strip, tt.keep, err, tt.ok)
		}
	}
}

// TestKeepFamilies exempts whole families from what is removed.
func TestKeepFamilies(t *testing.T) {
	s := newTestSanitizer(t, []string{"X-Internal-*", "X-Authentik-Jwt", "X-Voucher-Secret"}, []string{"X-Authentik-*", "X-Forwarded-*", "X-Internal-Id", "X-Voucher-*", "X-HTTP-Method*", "X-Real-*"})
	header := make(http.Header)
	for _, name := range []string{
		"X-Internal-Key", "x_internal_key", "X-Internal-Id", "X-Authentik-Username", "x.authentik.groups", "X-Authentik-Jwt", "X_authentik_jwt", "X-Vouch-User", "X-Voucher-Code", "X-Voucher-Secret",
		"X-Forwarded-User", "X-Forwarded-Prefix", "X-Forwarded-For", "X_forwarded_for", "X_forwarded_host", "X-Http-Method-Override", "X-Method-Override", "X-Real-Ip", "X-Remote-User",
	} {
		header[name] = []string{"a"}
	}
	r := &http.Request{Method: "A", ProtoMajor: 1, Header: header}
	_, overridden := s.clean(r, false, testAddress)
	want := []string{
		"X-Authentik-Username", "X-Forwarded-For", "X-Forwarded-Prefix", "X-Forwarded-User", "X-Http-Method-Override", "X-Internal-Id", "X-Real-Ip", "X-Voucher-Code", "x.authentik.groups",
	}
	if got := slices.Sorted(maps.Keys(r.Header)); !slices.Equal(got, want) || overridden || r.Header["X-Real-Ip"][0] != "a" {
		t.Errorf("got %q left, X-Real-IP %q, overridden %t, want %q, the one sent, and false", got, r.Header["X-Real-Ip"], overridden, want)
	}
}

// TestStripForwarded strips the forwarding headers of a trusted proxy that Caddy does not write itself.
func TestStripForwarded(t *testing.T) {
	s := newTestSanitizer(t, []string{"X-Forwarded-*", "X-SSL-*"}, nil)
	r := &http.Request{Method: "A", ProtoMajor: 1, Header: make(http.Header)}
	for _, name := range []string{"X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X_forwarded_host", "X-Forwarded-Port", "x_forwarded_prefix", "X-Ssl-Client-Verify", "Forwarded"} {
		r.Header[name] = []string{"a"}
	}
	s.clean(r, true, testAddress)
	want := []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"}
	if got := slices.Sorted(maps.Keys(r.Header)); !slices.Equal(got, want) {
		t.Errorf("got %q left, want %q", got, want)
	}
}

// TestMethodOverride finds headers that name another method than the request has.
func TestMethodOverride(t *testing.T) {
	s, keeps := newTestSanitizer(t, nil, nil), newTestSanitizer(t, nil, []string{"X-HTTP-Method-Override"})
	for _, tt := range []struct {
		name       string
		values     []string
		overridden bool
	}{
		{"X-Http-Method-Override", []string{"DELETE"}, true},
		{"X-Http-Method", []string{"DELETE"}, true},
		{"X-Method-Override", []string{"delete"}, true},
		{"X_http_method_override", []string{"DELETE"}, true},
		{"X.http.method", []string{"DELETE"}, true},
		{"X-Http-Method-Override", []string{"POST", "DELETE"}, true},
		{"X-Http-Method-Override", []string{"POST, DELETE"}, true},
		{"X-Http-Method-Override", []string{"POST"}, false},
		{"X-Http-Method-Override", []string{" post "}, false},
		{"X-Http-Method-Override", []string{""}, false},
		{"X-Http-Methods", []string{"DELETE"}, false},
	} {
		r := &http.Request{Method: "POST", ProtoMajor: 1, Header: http.Header{tt.name: tt.values}}
		if _, got := s.clean(r, true, testAddress); got != tt.overridden || tt.name != "X-Http-Methods" && len(r.Header) != 0 {
			t.Errorf("%s %q: got %t and %q left, want %t and nothing", tt.name, tt.values, got, r.Header, tt.overridden)
		}
		r.Header = http.Header{tt.name: tt.values}
		if _, got := keeps.clean(r, true, testAddress); strings.Contains(lettersAndDigits(tt.name), "httpmethodoverride") && (got || len(r.Header) != 1) {
			t.Errorf("%s %q, kept: got %t and %q left", tt.name, tt.values, got, r.Header)
		}
	}
}

// The table of what is removed, in docs/security.md, between these lines.
const (
	securityDocs    = "../docs/security.md"
	headerDocsBegin = "<!-- Written by: go test ./caddymodule -run HeaderDocs -update -->\n"
	headerDocsEnd   = "<!-- Up to here. -->\n"
)

// TestHeaderDocs: the security page lists what is removed, as the code does.
func TestHeaderDocs(t *testing.T) {
	text, err := os.ReadFile(securityDocs)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, begins := strings.Cut(string(text), headerDocsBegin)
	written, behind, ends := strings.Cut(rest, headerDocsEnd)
	if !begins || !ends {
		t.Fatalf("%s has no lines %s and %s", securityDocs, headerDocsBegin, headerDocsEnd)
	}
	want := "\n| what | headers | removed |\n|---|---|---|\n"
	for _, group := range append([]stripGroup{credentialHeaders}, reserved...) {
		want += "| " + group.title + " | `" + strings.Join(group.names, "`, `") + "` | " + group.when + " |\n"
	}
	want += "\n"
	if *update {
		if err := os.WriteFile(securityDocs, []byte(before+headerDocsBegin+want+headerDocsEnd+behind), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if written != want {
		t.Errorf("%s does not list what is removed; -update writes it. Want\n%s", securityDocs, want)
	}
}

// TestOwnPrefix checks another prefix: whatever folds to it or begins with it is
// removed.
func TestOwnPrefix(t *testing.T) {
	s, err := newSanitizer("X-Caller-", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	r := &http.Request{Method: "GET", ProtoMajor: 1, Header: http.Header{"X-Caller-Id": {"evil"}, "X_caller_id": {"evil"}, "X-Callers": {"evil"}, "Xcaller": {"evil"}, "X-Call": {"a"}}}
	s.clean(r, false, testAddress)
	if got := slices.Sorted(maps.Keys(r.Header)); !slices.Equal(got, []string{"X-Call"}) {
		t.Errorf("got %q left, want X-Call only", got)
	}
}
