package caddymodule

import (
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// reservedNames lists every header that clean removes from the request of an
// untrusted peer, written down a second time, by hand.
var reservedNames = []string{
	"Authorization", "Proxy-Authorization", "Connection", "Proxy-Connection", "Keep-Alive", "HTTP2-Settings", "Upgrade", "TE",
	"X-HTTP-Method", "X-HTTP-Method-Override", "X-Method-Override", "X-Original-URL", "X-Original-URI", "X-Original-Path", "X-Rewrite-URL",
	"X-Envoy-Original-Path", "Remote-User", "X-Remote-User", "X-User", "X-User-Id", "X-Authenticated-User", "X-WEBAUTH-USER", "X-Forwarded-User",
	"X-Forwarded-Groups", "X-Forwarded-Email", "X-Forwarded-Preferred-Username", "X-Forwarded-Access-Token", "X-Forwarded-Client-Cert", "Proxy",
}

// proxyNames lists those that a trusted proxy may send.
var proxyNames = []string{
	"Forwarded", "X-Client-IP", "X-Cluster-Client-IP", "True-Client-IP", "CF-Connecting-IP", "X-Forwarded-Method", "X-Forwarded-Uri",
	"X-Forwarded-Prefix", "X-Forwarded-Port", "X-Forwarded-Scheme", "X-Forwarded-Server",
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
	return slices.ContainsFunc(list, func(other string) bool { return lettersAndDigits(other) == lettersAndDigits(name) })
}

// mayPass says, slowly, whether a header is left alone.
func mayPass(name string, trusted bool) bool {
	folded := lettersAndDigits(name)
	switch {
	case strings.HasPrefix(folded, "xserviceuser"), strings.HasPrefix(folded, "xauthrequest"), listed(reservedNames, name):
		return false
	case listed(proxyNames, name):
		return trusted
	case listed(aliasNames, name):
		return slices.Contains(aliasNames, name)
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
	authorization := s.clean(r, trusted, testAddress)
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
