package caddymodule

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// sanitizer removes from a request everything that could make the upstream see
// another identity, another credential or another request than the one that is
// judged here.
//
// Names are compared folded: ASCII lower case, and everything that is neither a
// letter nor a digit removed, since upstreams of the CGI family take "-", "_",
// "." and the other legal characters of a name for one and the same.
type sanitizer struct {
	names    map[string]stripKind // by folded name
	prefixes []string             // folded
	keep     map[string]bool      // folded names that the operator exempts
}

type stripKind uint8

const (
	stripAlways    stripKind = iota + 1
	stripUntrusted           // unless the peer is one of Caddy's trusted proxies
	stripAliases             // every spelling but the canonical one, which Caddy, or clean, sets itself
)

// credentialHeaders lists what carries a credential, or rules the connection instead of
// the request. It is removed whatever the operator says.
var credentialHeaders = []string{"Authorization", "Proxy-Authorization", "Connection", "Proxy-Connection", "Keep-Alive", "HTTP2-Settings", "Upgrade", "TE"}

// reserved lists what else is removed by default.
var reserved = map[stripKind][]string{
	stripAlways: {
		// What makes an upstream judge another method or path than the rule did.
		"X-HTTP-Method", "X-HTTP-Method-Override", "X-Method-Override", "X-Original-URL", "X-Original-URI", "X-Original-Path",
		"X-Rewrite-URL", "X-Envoy-Original-Path",
		// Other proxies' identity headers.
		"Remote-User", "X-Remote-User", "X-User", "X-User-Id", "X-Authenticated-User", "X-WEBAUTH-USER", "X-Forwarded-User",
		"X-Forwarded-Groups", "X-Forwarded-Email", "X-Forwarded-Preferred-Username", "X-Forwarded-Access-Token", "X-Forwarded-Client-Cert",
		// CGI programs take it for HTTP_PROXY (CVE-2016-5386).
		"Proxy",
	},
	stripUntrusted: {
		"Forwarded", "X-Client-IP", "X-Cluster-Client-IP", "True-Client-IP", "CF-Connecting-IP", "X-Forwarded-Method",
		"X-Forwarded-Uri", "X-Forwarded-Prefix", "X-Forwarded-Port", "X-Forwarded-Scheme", "X-Forwarded-Server",
	},
	stripAliases: {"X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "Via", "X-Real-IP"},
}

// newSanitizer prepares the tables. identity is what our own headers begin with.
func newSanitizer(identity string, strip, keep []string) (*sanitizer, error) {
	own := foldName(identity)
	if !httpguts.ValidHeaderFieldName(identity) || len(own) < 3 {
		return nil, fmt.Errorf("header_prefix %q is not the beginning of a header name", identity)
	}
	s := &sanitizer{
		names:    make(map[string]stripKind),
		prefixes: []string{own, foldName("X-Service-User"), foldName("X-Auth-Request-")},
		keep:     make(map[string]bool),
	}
	for _, name := range essential {
		if strings.HasPrefix(foldName(name), own) {
			return nil, fmt.Errorf("header_prefix %q would remove %s from every request; choose another", identity, name)
		}
	}
	for _, name := range credentialHeaders {
		s.names[foldName(name)] = stripAlways
	}
	for kind, names := range reserved {
		for _, name := range names {
			s.names[foldName(name)] = kind
		}
	}
	for _, name := range strip {
		folded := foldName(name)
		if !httpguts.ValidHeaderFieldName(name) || folded == "" {
			return nil, fmt.Errorf("strip: %q is not a header name", name)
		}
		if slices.ContainsFunc(essential, func(e string) bool { return foldName(e) == folded }) {
			return nil, fmt.Errorf("strip %s: without this header the request means something else", name)
		}
		s.names[folded] = stripAlways
	}
	for _, name := range keep {
		folded := foldName(name)
		switch {
		case !httpguts.ValidHeaderFieldName(name) || folded == "":
			return nil, fmt.Errorf("keep: %q is not a header name", name)
		case strings.HasPrefix(folded, own) || slices.ContainsFunc(credentialHeaders, func(c string) bool { return foldName(c) == folded }):
			return nil, fmt.Errorf("keep %s: this header cannot be kept; it carries a credential or an identity, or rules the connection", name)
		case slices.ContainsFunc(strip, func(other string) bool { return foldName(other) == folded }):
			return nil, fmt.Errorf("%s stands under strip and under keep; choose one", name)
		}
		s.keep[folded] = true
	}
	return s, nil
}

// essential names headers that make a request what it is.
var essential = []string{
	"Host", "Content-Length", "Content-Type", "Content-Encoding", "Transfer-Encoding", "Trailer", "Expect", "Range", "Accept", "Cookie",
	"Sec-WebSocket-Key", "Sec-WebSocket-Version", "Sec-WebSocket-Protocol", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "Via",
}

// clean sanitises a request in place and returns the Authorization values that
// it came with. trusted says that the peer is one of Caddy's trusted proxies,
// address is the client's.
func (s *sanitizer) clean(r *http.Request, trusted bool, address netip.Addr) (authorization []string) {
	h := r.Header
	authorization = h["Authorization"]
	upgrade := isWebSocket(r)
	trailers := len(h["Te"]) == 1 && h["Te"][0] == "trailers"

	var buf [128]byte
	for name := range h {
		if s.strips(fold(buf[:0], name), name, trusted) {
			delete(h, name)
		}
	}
	if h["X-Real-Ip"] != nil && !s.keep["xrealip"] { // a request without one gets none: each costs
		delete(h, "X-Real-Ip")
		if address.IsValid() {
			h["X-Real-Ip"] = []string{address.String()}
		}
	}
	// Caddy copies trailers from this request when the body ends. Without the
	// map nothing is copied, declared or not.
	r.Trailer = nil
	if trailers {
		h["Te"] = []string{"trailers"} // gRPC needs it
	}
	if upgrade {
		h["Connection"], h["Upgrade"] = []string{"Upgrade"}, []string{"websocket"}
	}
	return authorization
}

func (s *sanitizer) strips(folded []byte, name string, trusted bool) bool {
	for _, prefix := range s.prefixes {
		if len(folded) >= len(prefix) && string(folded[:len(prefix)]) == prefix {
			return !s.keep[string(folded)]
		}
	}
	kind := s.names[string(folded)]
	if kind == 0 || s.keep[string(folded)] {
		return false
	}
	switch kind {
	case stripUntrusted:
		return !trusted
	case stripAliases:
		return !isCanonicalForwarded(name)
	default:
		return true
	}
}

func isCanonicalForwarded(name string) bool {
	switch name {
	case "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "Via", "X-Real-Ip":
		return true
	}
	return false
}

// isWebSocket reports whether r is a WebSocket handshake over HTTP/1.1 and
// nothing else (RFC 6455, section 4.1).
func isWebSocket(r *http.Request) bool {
	upgrade := r.Header["Upgrade"]
	if r.ProtoMajor != 1 || r.Method != http.MethodGet || len(upgrade) != 1 || !strings.EqualFold(upgrade[0], "websocket") {
		return false
	}
	for _, value := range r.Header["Connection"] {
		for token := range strings.SplitSeq(value, ",") {
			if strings.EqualFold(strings.Trim(token, " \t"), "upgrade") {
				return true
			}
		}
	}
	return false
}

// fold appends the folded form of a header name to buf.
func fold(buf []byte, name string) []byte {
	for i := range len(name) {
		switch c := name[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
			buf = append(buf, c)
		case 'A' <= c && c <= 'Z':
			buf = append(buf, c+'a'-'A')
		}
	}
	return buf
}

func foldName(name string) string { return string(fold(nil, name)) }
