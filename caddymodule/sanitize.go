package caddymodule

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/serviceusers/caddy-service-users/access"
)

// sanitizer removes headers from requests: those that could make the upstream see another identity,
// another credential or another request than this handler judges.
//
// The sanitizer compares folded names: ASCII lower case, only letters and digits. CGI-like
// upstreams do not distinguish "-", "_", "." and other legal characters of a name. For example,
// X-Service_User.Id folds to xserviceuserid.
type sanitizer struct {
	rules [256][]stripRule // by bucketOf the name; the first rule that fits applies
}

// stripRule applies to headers whose folded name equals name, or begins with name if prefix is set.
type stripRule struct {
	name   string
	prefix bool
	kind   stripKind
}

func (r stripRule) fits(folded string) bool {
	return folded == r.name || r.prefix && strings.HasPrefix(folded, r.name)
}

// overlaps reports whether a header exists that both rules apply to.
func (r stripRule) overlaps(other stripRule) bool { return r.fits(other.name) || other.fits(r.name) }

type stripKind uint8

const (
	stripNever     stripKind = iota + 1 // kept by the operator
	stripAlways                         // removed from every request
	stripUntrusted                      // removed unless the peer is one of Caddy's trusted proxies
	stripAliases                        // removed unless canonical: Caddy or clean sets that spelling
	stripMethod                         // removed; a value that names another method than the request has is a 400
)

// stripGroup is a part of the table of headers that are removed by default.
type stripGroup struct {
	title, when string // for docs/security.md
	kind        stripKind
	names       []string // a name that ends in "*" is a prefix
}

// credentialHeaders are headers with a credential, and headers that control the connection instead
// of the request. They are removed whatever the operator says.
var credentialHeaders = stripGroup{
	title: "credentials and the connection",
	when:  "always; `keep` cannot exempt them. A WebSocket keeps its `Upgrade`, `TE: trailers` stays",
	kind:  stripAlways,
	names: []string{
		"Authorization", "Proxy-Authorization",
		"Connection", "Proxy-Connection", "Keep-Alive", "HTTP2-Settings", "Upgrade", "TE",
	},
}

// reserved is the table of the other headers that are removed by default. A test writes
// docs/security.md from it.
var reserved = []stripGroup{
	{"identity of other proxies", "always", stripAlways, []string{
		"Remote-*", "X-Remote-*", "X-User", "X-User-Id", "X-Authenticated-*", "X-WEBAUTH-*", "X-Auth-Request-*",
		"X-Token-User-*", "X-Token-Subject", "X-Consumer-*", "X-Credential-Identifier", "X-Authentik-*",
		"X-Pomerium-*", "X-Vouch-*", "Tailscale-User-*", "Cf-Access-*", "X-Goog-Authenticated-*",
		"X-Goog-Iap-*", "X-Amzn-Oidc-*", "X-Ms-Client-Principal*",
		"X-Forwarded-User", "X-Forwarded-Groups", "X-Forwarded-Email", "X-Forwarded-Roles",
		"X-Forwarded-Preferred-Username", "X-Forwarded-Access-Token",
	}},
	{"another request than the rule judged", "always", stripAlways, []string{
		"X-Original-*", "X-Rewrite-*", "X-Override-*", "X-HTTP-Path-Override", "X-Replaced-Path",
		"X-Waws-Unencoded-Url", "X-Envoy-Original-*",
		"X-Accel-*", "X-Sendfile*", "X-Script-Name",
		"Proxy", // CGI programs read it as HTTP_PROXY (CVE-2016-5386)
	}},
	{"another method than the rule judged", "always; one that names another method than the request has is a 400",
		stripMethod, []string{
			"X-HTTP-Method", "X-HTTP-Method-Override", "X-Method-Override",
		}},
	{"connection and forwarding", "unless the peer is in `trusted_proxies`", stripUntrusted, []string{
		"Forwarded", "X-Client-IP", "X-Cluster-Client-IP", "True-Client-IP", "CF-Connecting-IP",
		"Fastly-Client-Ip", "Front-End-Https",
		"X-SSL-*", "Ssl-Client-*", "X-Client-Cert*", "X-Forwarded-*",
	}},
	{"written here or by Caddy", "every spelling but this one", stripAliases,
		append(slices.Clone(forwardingHeaders), "Via", "X-Real-IP")},
}

// forwardingHeaders are the headers that Caddy writes itself for a peer that it does not trust.
var forwardingHeaders = []string{"X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host"}

// defaultPrefix begins the identity headers unless the operator sets header_prefix. It is removed
// even then: a service_users handler before or behind this one may use it.
const defaultPrefix = "X-Service-User-"

// newSanitizer compiles the rules. identity is the prefix of the identity headers; strip and keep are
// the options of these names.
func newSanitizer(identity string, strip, keep []string) (*sanitizer, error) {
	own := stripRule{foldName(identity), true, stripAlways}
	// A prefix of one or two letters would remove common headers, such as all that begin with "X-".
	if !httpguts.ValidHeaderFieldName(identity) || len(own.name) < 3 {
		return nil, fmt.Errorf("header_prefix %q is not the beginning of a header name", identity)
	}
	for _, name := range essential {
		if own.fits(foldName(name)) {
			return nil, fmt.Errorf("header_prefix %q would remove %s from every request; choose another",
				identity, name)
		}
	}
	var chosen []stripRule
	for _, name := range strip {
		rule, err := parseStripRule(name, stripAlways)
		if err != nil {
			return nil, fmt.Errorf("strip: %w", err)
		}
		for _, e := range essential {
			if rule.fits(foldName(e)) && !(rule.prefix && slices.Contains(forwardingHeaders, e)) {
				return nil, fmt.Errorf("strip %s: it covers %s, "+
					"and without this header the request means something else", name, e)
			}
		}
		chosen = append(chosen, rule)
	}
	for _, name := range keep {
		rule, err := parseStripRule(name, stripNever)
		if err != nil {
			return nil, fmt.Errorf("keep: %w", err)
		}
		for _, other := range append(credentialHeaders.names, identity+"*") {
			if rule.overlaps(parsed(other, stripAlways)) {
				return nil, fmt.Errorf("keep %s: it covers %s, which cannot be kept; "+
					"it carries a credential or an identity, or controls the connection",
					name, other)
			}
		}
		for _, other := range chosen {
			if other == (stripRule{rule.name, rule.prefix, stripAlways}) {
				return nil, fmt.Errorf("%s is under strip and under keep; choose one", name)
			}
		}
		chosen = append(chosen, rule)
	}

	// The first rule that fits applies: credentials, then the operator's rules, then the
	// defaults. A prefix rule of the operator does not apply to the headers that Caddy writes
	// itself, such as X-Forwarded-For; a rule of keep with the whole name does.
	first := append(credentialHeaders.rules(), own)
	defaults := []stripRule{{foldName(defaultPrefix), true, stripAlways}}
	for _, group := range reserved {
		for _, rule := range group.rules() {
			isWritten := func(e string) bool { return foldName(e) == rule.name }
			isChosen := func(c stripRule) bool { return c.name == rule.name && !c.prefix }
			if slices.ContainsFunc(essential, isWritten) && !slices.ContainsFunc(chosen, isChosen) {
				first = append(first, rule)
			} else {
				defaults = append(defaults, rule)
			}
		}
	}
	s := new(sanitizer)
	s.add(first)
	s.add(chosen)
	s.add(defaults)
	return s, nil
}

// parseStripRule parses a header name, or a prefix that ends in "*".
func parseStripRule(name string, kind stripKind) (stripRule, error) {
	rule := parsed(name, kind)
	switch {
	case !httpguts.ValidHeaderFieldName(name) || rule.name == "" && !rule.prefix:
		return rule, fmt.Errorf("%q is not a header name", name)
	case strings.Contains(strings.TrimSuffix(name, "*"), "*"):
		return rule, fmt.Errorf("%q: a \"*\" can only be the last character, "+
			"for all headers that begin with the text before it", name)
	case rule.prefix && len(rule.name) < 3:
		return rule, fmt.Errorf("%q covers too many headers: "+
			"put at least three letters or digits before the \"*\"", name)
	}
	return rule, nil
}

// parsed is parseStripRule for a name that is valid.
func parsed(name string, kind stripKind) stripRule {
	written, prefix := strings.CutSuffix(name, "*")
	return stripRule{foldName(written), prefix, kind}
}

func (g stripGroup) rules() (rules []stripRule) {
	for _, name := range g.names {
		rules = append(rules, parsed(name, g.kind))
	}
	return rules
}

// add appends rules: whole names first, then prefixes, the longest first.
func (s *sanitizer) add(rules []stripRule) {
	slices.SortStableFunc(rules, func(a, b stripRule) int {
		if a.prefix != b.prefix {
			return map[bool]int{false: -1, true: 1}[a.prefix]
		}
		return len(b.name) - len(a.name)
	})
	for _, rule := range rules {
		bucket := &s.rules[bucketOf([]byte(rule.name))]
		*bucket = append(*bucket, rule)
	}
}

// bucketOf returns the index of the rules for a folded name: its first letter, or the second one
// with the high bit set if the first is "x". So most headers of a request are compared with few
// rules.
func bucketOf(folded []byte) byte {
	switch {
	case len(folded) == 0:
		return 0
	case folded[0] == 'x' && len(folded) > 1:
		return folded[1] | 0x80
	}
	return folded[0]
}

// kindOf returns the kind of the rule that applies to a header, or 0.
func (s *sanitizer) kindOf(folded []byte) stripKind {
	rules := s.rules[bucketOf(folded)]
	for i := range rules {
		if r := &rules[i]; len(folded) >= len(r.name) && (r.prefix || len(folded) == len(r.name)) &&
			string(folded[:len(r.name)]) == r.name {
			return r.kind
		}
	}
	return 0
}

// essential lists headers without which a request would have another meaning. No prefix may remove
// them.
var essential = append([]string{
	"Host", "Content-Length", "Content-Type", "Content-Encoding", "Transfer-Encoding", "Trailer", "Expect", "Range",
	"Accept", "Cookie", "Sec-WebSocket-Key", "Sec-WebSocket-Version", "Sec-WebSocket-Protocol", "Via",
}, forwardingHeaders...)

// MethodOverride is the problem of a request whose headers name another method.
var MethodOverride = access.Problem{
	Status: http.StatusBadRequest,
	Detail: "a header such as X-HTTP-Method-Override names another method than the request has: " +
		"send the request with that method",
}

// clean sanitises a request in place. It returns the original Authorization values. overridden
// reports whether a header, which clean has removed, named another method. trusted means that the
// peer is one of Caddy's trusted proxies. address is the client's.
func (s *sanitizer) clean(r *http.Request, trusted bool, address netip.Addr) (authorization []string, overridden bool) {
	h := r.Header
	authorization = h["Authorization"]
	upgrade := isWebSocket(r)
	trailers := len(h["Te"]) == 1 && h["Te"][0] == "trailers"
	var buf [128]byte // fold needs no allocation for names of up to this length
	keepAddress := false
	for name, values := range h {
		switch s.kindOf(fold(buf[:0], name)) {
		case stripUntrusted:
			if trusted {
				continue
			}
		case stripAliases:
			if isCanonicalForwarded(name) {
				continue
			}
		case stripMethod:
			overridden = overridden ||
				slices.ContainsFunc(values, func(v string) bool { return namesOther(v, r.Method) })
		case stripNever:
			keepAddress = keepAddress || name == "X-Real-Ip"
			continue
		case 0:
			continue
		}
		delete(h, name)
	}
	// Only a request that has an X-Real-IP gets one: each header costs time.
	if h["X-Real-Ip"] != nil && !keepAddress {
		delete(h, "X-Real-Ip")
		if address.IsValid() {
			h["X-Real-Ip"] = []string{address.String()}
		}
	}
	// Caddy copies trailers from this request when the body ends, into this map. Without the
	// map Caddy copies none, whether the client has declared them or not.
	r.Trailer = nil
	if trailers {
		h["Te"] = []string{"trailers"} // gRPC needs it
	}
	// Caddy's proxy reads these two to forward a WebSocket. No other upgrade passes.
	if upgrade {
		h["Connection"], h["Upgrade"] = []string{"Upgrade"}, []string{"websocket"}
	}
	return authorization, overridden
}

// OverridesMethod reports whether a header field makes some upstreams see another method than the
// request has.
func OverridesMethod(name, value, method string) bool {
	return isMethodHeader(name) && namesOther(value, method)
}

// namesOther reports whether the value of a method override differs from the method.
func namesOther(value, method string) bool {
	value = strings.TrimSpace(value)
	return value != "" && !strings.EqualFold(value, method)
}

// isMethodHeader reports whether a header is a method override.
func isMethodHeader(name string) bool {
	folded := foldName(name)
	return slices.ContainsFunc(reserved, func(g stripGroup) bool {
		fits := func(r stripRule) bool { return r.fits(folded) }
		return g.kind == stripMethod && slices.ContainsFunc(g.rules(), fits)
	})
}

func isCanonicalForwarded(name string) bool {
	return name == "Via" || name == "X-Real-Ip" || slices.Contains(forwardingHeaders, name)
}

// isWebSocket reports whether r is a WebSocket handshake over HTTP/1.1 (RFC 6455, section 4.1)
// without a body. The upstream could read a body as frames, and the stream would outlive its token
// as an upload does.
func isWebSocket(r *http.Request) bool {
	upgrade := r.Header["Upgrade"]
	if r.ProtoMajor != 1 || r.Method != http.MethodGet || r.ContentLength != 0 || len(upgrade) != 1 ||
		!strings.EqualFold(upgrade[0], "websocket") {
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

// fold appends the folded form of a header name to buf: lower-case ASCII letters and digits.
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
