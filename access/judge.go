package access

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Problem says why a request is refused before any rule is read. Most such requests are ambiguous:
// two programs could read them differently. The zero value means that the request is fine.
type Problem struct {
	Status int    // 400, 405 or 501
	Detail string // the mistake and its position, safe to show to the caller
	Part   string // the part of the request that Judge refuses: "method", "host" or "path"
	Need   Relax  // the options that together would let Judge accept the request; 0 if none would
}

// OK reports whether p is the zero Problem.
func (p Problem) OK() bool { return p.Status == 0 }

// Error makes a Problem usable as an error.
func (p Problem) Error() string { return p.Detail }

func ambiguous(format string, args ...any) Problem {
	return Problem{Status: 400, Detail: fmt.Sprintf(format, args...)}
}

// Advice returns the detail, and the options with which the request would pass. It is for operators:
// a caller gets the detail alone.
func (p Problem) Advice() string {
	switch lines := p.Need.Lines(); len(lines) {
	case 0:
		return p.Detail
	case 1:
		return p.Detail + "; the option " + lines[0] + " would let it pass"
	default:
		return p.Detail + "; the options " + strings.Join(lines, ", ") + " together would let it pass"
	}
}

// Judge makes every check of a request that comes before the rules: method, Host field and target,
// with the refusals lifted that the options name. It returns the action that rules are matched
// against, without Address, Header and Now. With a problem the action is zero.
//
// With [MergedSlashes], the path of the action has single slashes. A caller that forwards the request
// forwards the form of [Relax.Forwarded].
//
// The data path (by Screen), check-log, self-service and explain all judge by this function. A caller that does
// not know the host of a request passes any valid one, such as "localhost": "" is a problem.
func Judge(method, host, target string, allow Relax) (Action, Problem) {
	action, p := Screen(method, host, target, allow)
	if p.Need != 0 { // the readings that the options open may be a problem too
		if _, other := (allow | p.Need).CheckTarget(target); !other.OK() {
			p.Need = 0
		}
	}
	return action, p
}

// Screen is Judge for callers that only refuse: the request may have another problem, which the options of
// Need do not lift. A stranger decides about the time that the search for it takes.
func Screen(method, host, target string, allow Relax) (Action, Problem) {
	if p := CheckMethod(method); !p.OK() {
		p.Part = "method"
		return Action{}, p
	}
	name, p := CheckHost(host)
	if !p.OK() {
		p.Part = "host"
		return Action{}, p
	}
	path, p := allow.CheckTarget(target)
	if !p.OK() {
		p.Part = "path"
		return Action{}, p
	}
	return Action{Method: method, Host: name, Path: path}, Problem{}
}

// CheckMethod returns the problem of a method that never passes: CONNECT, extended or not (501: its
// body would reach a pooled upstream connection unframed), TRACE and TRACK (405), PRI, and every
// text that does not match [A-Z][A-Z-]{0,31}.
func CheckMethod(method string) Problem {
	switch method {
	case "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS":
		return Problem{}
	case "CONNECT":
		return Problem{Status: 501, Detail: "the method CONNECT is not supported"}
	case "TRACE", "TRACK":
		return Problem{Status: 405, Detail: "the method " + method + " is not allowed"}
	case "PRI":
		return ambiguous("the method PRI belongs to the HTTP/2 preface")
	}
	if !validMethod(method) {
		return ambiguous("the method is not a word of A-Z and \"-\" of at most 32 characters")
	}
	return Problem{}
}

func validMethod(m string) bool {
	return m != "" && len(m) <= 32 && m[0] != '-' && strings.Trim(m, "ABCDEFGHIJKLMNOPQRSTUVWXYZ-") == ""
}

// CheckHost checks a Host field (or :authority) and returns the name that rules are matched
// against: in lower case, without the port and without one trailing dot. It accepts a name of
// letters, digits, "-", "_" and dots, or an IP address.
func CheckHost(host string) (name string, p Problem) {
	const advice = "the Host must be a name of letters, digits, \"-\", \"_\" and dots," +
		" or an IP address, with an optional port"
	name = host
	if strings.HasPrefix(host, "[") {
		literal, port, ok := strings.Cut(host[1:], "]")
		addr, err := netip.ParseAddr(literal)
		if !ok || err != nil || !addr.Is6() || addr.Zone() != "" || !validPortSuffix(port) {
			return "", ambiguous(advice)
		}
		return "[" + addr.String() + "]", Problem{} // one address has many spellings, String has one
	}
	if i := strings.IndexByte(host, ':'); i >= 0 {
		if !validPortSuffix(host[i:]) {
			return "", ambiguous(advice)
		}
		name = host[:i]
	}
	name = strings.TrimSuffix(name, ".")
	if !validHostName(name) {
		return "", ambiguous(advice)
	}
	return strings.ToLower(name), Problem{}
}

// validPortSuffix reports whether s is "", or a colon and a port. The port may be empty (RFC 3986,
// section 3.2.3).
func validPortSuffix(s string) bool {
	if s == "" || s == ":" {
		return true
	}
	_, err := strconv.ParseUint(s[1:], 10, 16)
	return s[0] == ':' && len(s) <= len(":65535") && err == nil
}

func validHostName(name string) bool {
	if name == "" || len(name) > 253 || name[0] == '.' || strings.Contains(name, "..") || name[len(name)-1] == '.' {
		return false
	}
	for i := range len(name) {
		if c := name[i]; digitValue(c) < 0 && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return true
}
