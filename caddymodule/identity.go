package caddymodule

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/caddyserver/caddy/v2"

	"github.com/serviceusers/caddy-service-users/access"
)

// identityHeader is a header with a value of the service user, for the upstream.
type identityHeader struct {
	name  string // canonical
	value func(access.Principal) string
}

// inject sets the identity headers. The sanitizer has removed the client's headers of these names.
// The values belong to this request alone, since the handlers behind may edit them in place.
func inject(header http.Header, headers []identityHeader, p access.Principal) {
	values := make([]string, len(headers))
	for i := range headers {
		values[i] = headers[i].value(p)
		header[headers[i].name] = values[i : i+1 : i+1]
	}
}

// identityValues contains the words of the option headers, and the value of each.
var identityValues = map[string]func(access.Principal) string{
	"id":           access.Principal.ID,
	"name":         func(p access.Principal) string { return extValue(p.Name()) },
	"display_name": func(p access.Principal) string { return extValue(p.DisplayName()) },
	"groups":       access.Principal.GroupList,
	"role":         func(p access.Principal) string { return string(p.Role()) },
	"teams":        func(p access.Principal) string { return strings.Join(p.Teams(), ",") },
	"token_id":     access.Principal.TokenID,
}

// defaultHeaders is short on purpose: every byte that goes upstream costs more than the decision.
var defaultHeaders = []string{"id", "name", "groups"}

func identityHeaders(prefix string, words []string) ([]identityHeader, error) {
	switch {
	case words == nil:
		words = defaultHeaders
	case slices.Equal(words, []string{"none"}):
		words = nil
	}
	var list []identityHeader
	for i, word := range words {
		value, ok := identityValues[word]
		switch {
		case word == "none":
			return nil, errors.New("headers: none cannot be combined with others")
		case !ok:
			return nil, fmt.Errorf("headers: %q is none of "+
				"id, name, display_name, groups, role, teams, token_id", word)
		case slices.Contains(words[:i], word):
			return nil, fmt.Errorf("headers: %q is in the list twice", word)
		}
		name := http.CanonicalHeaderKey(prefix + strings.ReplaceAll(word, "_", "-"))
		list = append(list, identityHeader{name, value})
	}
	return list, nil
}

// extValue returns a name as a header value. Visible ASCII with inner spaces stays as it is. Any
// other name becomes an ext-value (RFC 8187), which begins with UTF-8 and two apostrophes; a plain
// value never does.
func extValue(s string) string {
	const mark = "UTF-8''"
	plain := !(len(s) >= len(mark) && strings.EqualFold(s[:len(mark)], mark)) && strings.TrimSpace(s) == s
	for i := 0; plain && i < len(s); i++ {
		plain = ' ' <= s[i] && s[i] <= '~'
	}
	if plain {
		return s
	}
	const attrChar = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$&+-.^_`|~"
	out := []byte(mark)
	for i := range len(s) {
		c := s[i]
		if strings.IndexByte(attrChar, c) >= 0 {
			out = append(out, c)
		} else {
			out = append(out, '%', "0123456789ABCDEF"[c>>4], "0123456789ABCDEF"[c&15])
		}
	}
	return string(out)
}

// identity is the principal of a request that has passed, and the decision that let it pass.
type identity struct {
	mu        sync.Mutex
	principal access.Principal
	decision  access.Decision
}

// who returns the principal.
func (id *identity) who() access.Principal {
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.principal
}

// alone drops the reference to the rows of other service users. It is for requests that last.
func (id *identity) alone() {
	id.mu.Lock()
	defer id.mu.Unlock()
	id.principal = id.principal.Alone()
}

// String returns the id of the service user.
func (id *identity) String() string { return id.who().ID() }

// identityVar is the name of the request variable with the identity. By it the site door
// distinguishes service users from people.
const identityVar = "service_users.identity"

// remember sets the identity of a request for the handlers behind this one, the access log and the
// placeholders.
func remember(r *http.Request, vars variables, id *identity) {
	repl := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	repl.DeleteByPrefix("http.auth.user.") // of an authenticator before this one
	vars[identityVar] = id
}

// knowPlaceholders has the replacer of a request know our placeholders. They are empty until a handler sets them: Caddy
// would send the name of an unknown placeholder upstream, in the place of its value. A value that another authenticator
// sets goes first.
func knowPlaceholders(r *http.Request, vars variables) {
	if _, known := vars[identityVar]; known { // by a handler before this one
		return
	}
	vars[identityVar] = nil
	repl := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	repl.Map(func(key string) (any, bool) {
		value, ours := placeholders[key]
		if id := vars.identity(); id != nil && value != nil {
			return value(id), true
		}
		return "", ours
	})
}

// placeholders are the names of our placeholders, and the value of each for an identity. Refusals set those without a value.
var placeholders = map[string]func(*identity) string{
	"http.auth.user.name":     ofPrincipal(access.Principal.Name), // the header has its ext-value
	"http.auth.user.id":       ofPrincipal(identityValues["id"]),
	"http.auth.user.role":     ofPrincipal(identityValues["role"]),
	"http.auth.user.teams":    ofPrincipal(identityValues["teams"]),
	"http.auth.user.groups":   ofPrincipal(identityValues["groups"]),
	"http.auth.user.token_id": ofPrincipal(identityValues["token_id"]),
	"http.service_users.rule": func(id *identity) string { return id.decision.RuleID() },
	"http.service_users.decision": func(id *identity) string {
		if !id.decision.Allowed() {
			return "observe"
		}
		return "allow"
	},
	"http.service_users.decision_id": nil,
	"http.auth.candidate.id":         nil,
}

// ofPrincipal returns the value of the principal of an identity.
func ofPrincipal(value func(access.Principal) string) func(*identity) string {
	return func(id *identity) string { return value(id.who()) }
}
