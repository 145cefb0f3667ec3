package caddymodule

import (
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/headers"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/admin"
)

func init() {
	httpcaddyfile.RegisterGlobalOption("service_users", parseGlobalOption)
	httpcaddyfile.RegisterDirective("service_users", parseHandler)
	httpcaddyfile.RegisterDirectiveOrder("service_users", httpcaddyfile.Before, "basic_auth")
	httpcaddyfile.RegisterDirective("service_users_admin", parseSiteDoor)
	httpcaddyfile.RegisterDirectiveOrder("service_users_admin", httpcaddyfile.Before, "reverse_proxy")
	httpcaddyfile.RegisterHandlerDirective("service_users_proxy", parseProxy)
	httpcaddyfile.RegisterDirectiveOrder("service_users_proxy", httpcaddyfile.Before, "reverse_proxy")
}

func parseGlobalOption(d *caddyfile.Dispenser, existing any) (any, error) {
	if existing != nil {
		d.Next() // the error then names the line of the second one
		return nil, d.Err("the global option service_users appears a second time; " +
			"put its settings into one block")
	}
	app := new(App)
	if err := app.UnmarshalCaddyfile(d); err != nil {
		return nil, err
	}
	return httpcaddyfile.App{Name: "service_users", Value: caddyconfig.JSON(app, nil)}, nil
}

// UnmarshalCaddyfile reads the global option:
//
//	service_users {
//		store         <path>|<url>
//		pepper_file   <path>
//		default_group <name>
//		token_ttl     <duration>
//		max_token_ttl <duration>
//		throttle      <attempts> <duration> | off
//		decisions     <number> | off
//		retention     <duration>
//		use_interval  <duration>
//		max_staleness <duration>
//		read_only
//		per_user_metrics <number>
//	}
func (a *App) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the option's name
	if d.NextArg() {
		return d.Errf("the global option service_users takes no argument (got %q); "+
			"put its settings into a block, such as \"store /var/lib/caddy/service_users.db\"", d.Val())
	}
	return block(d, a.check, map[string]func() error{
		"store /var/lib/caddy/service_users.db": func() error { return oneArg(d, &a.Store) },
		"pepper_file /etc/caddy/peppers":        func() error { return oneArg(d, &a.PepperFile) },
		"default_group everybody":               func() error { return oneArg(d, &a.DefaultGroup) },
		"token_ttl 90d":                         func() error { return duration(d, &a.TokenTTL) },
		"max_token_ttl 365d":                    func() error { return duration(d, &a.MaxTokenTTL) },
		"throttle 30 1m":                        func() error { return throttle(d, &a.Throttle) },
		"decisions 10000":                       func() error { return countOrOff(d, &a.Decisions) },
		"retention 30d":                         func() error { return duration(d, &a.Retention) },
		"use_interval 10s":                      func() error { return duration(d, &a.UseInterval) },
		"max_staleness 10m":                     func() error { return duration(d, &a.MaxStaleness) },
		"read_only":                             func() error { return flag(d, &a.ReadOnly) },
		"per_user_metrics 500":                  func() error { return positive(d, &a.PerUserMetrics) },
	})
}

func parseHandler(h httpcaddyfile.Helper) ([]httpcaddyfile.ConfigValue, error) {
	handler := new(Handler)
	if err := handler.UnmarshalCaddyfile(h.Dispenser); err != nil {
		return nil, err
	}
	return h.NewRoute(nil, handler), nil
}

// UnmarshalCaddyfile reads the directive:
//
//	service_users {
//		mode                  enforce|observe
//		realm                 <text>
//		headers               <id|name|display_name|groups|role|teams|token_id...>
//		header_prefix         <prefix>
//		public                <METHODS> [<host>]<path>
//		keep_authorization
//		otherwise             pass [unknown]
//		ready                 <path>
//		cors_preflight
//		self                  <path> {
//			rotate [<grace>]
//		}
//		bearer
//		require_tls
//		allow_encoded         <hash|question_mark|backslash|slash|percent|semicolon|space|latin1...>
//		allow_unicode         <lookalikes|spaces|format|non_nfc...>
//		allow_raw             brackets
//		merge_slashes
//		allow_trailing_dot
//		errors                problem|caddy
//		expiry_notice         <duration>|off
//		forward_authorization
//		strip                 <header...>
//		keep                  <header...>
//	}
//
// public, strip, keep, allow_encoded, allow_unicode and allow_raw may be repeated. The directive takes
// no matcher. Error routes that lead to an upstream need this line before the upstream:
//
//	service_users sanitize
func (h *Handler) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the directive's name
	if d.NextArg() {
		if d.Val() != "sanitize" {
			return d.Errf("service_users takes no matcher and no argument (got %q): "+
				"where it does not run, nothing strips forged identity headers; "+
				"name the requests that need no credential inside of it, as in \"public GET "+
				"/healthz\"", d.Val())
		}
		h.SanitizeOnly = true
		if d.NextArg() {
			return d.Errf("service_users sanitize takes no further argument (got %q)", d.Val())
		}
	}
	options := map[string]func() error{
		"header_prefix X-Client-": func() error { return oneArg(d, &h.HeaderPrefix) },
		"*strip X-Internal-*":     func() error { return args(d, &h.Strip) },
		"*keep X-Forwarded-Host":  func() error { return args(d, &h.Keep) },
	}
	if !h.SanitizeOnly {
		maps.Copy(options, map[string]func() error{
			"mode observe":          func() error { return oneArg(d, &h.Mode) },
			"realm \"Example API\"": func() error { return oneArg(d, &h.Realm) },
			"headers id name":       func() error { h.Headers = []string{}; return args(d, &h.Headers) },
			"*public GET /healthz":  func() error { return oneRule(d, &h.Public) },
			"keep_authorization":    func() error { return flag(d, &h.KeepAuthorization) },
			"otherwise pass":        func() error { return joined(d, &h.Otherwise) },
			"ready /readyz":         func() error { return oneArg(d, &h.Ready) },
			"cors_preflight":        func() error { return flag(d, &h.CORSPreflight) },
			"self /_service_user":   func() error { return h.unmarshalSelf(d) },
			"bearer":                func() error { return flag(d, &h.Bearer) },
			"require_tls":           func() error { return flag(d, &h.RequireTLS) },
			"errors caddy":          func() error { return oneArg(d, &h.Errors) },
			"expiry_notice 14d":     func() error { return durationOrOff(d, &h.ExpiryNotice) },
			"forward_authorization": func() error { return flag(d, &h.ForwardAuthorization) },
		})
		family := ""
		for _, o := range access.Options() {
			switch {
			case o.Family == "":
				options[o.Word] = func() error { return h.allow(d, "", o.Word) }
			case o.Family != family:
				family = o.Family
				options["*"+family+" "+o.Word] = func() error {
					return h.allow(d, o.Family, d.RemainingArgs()...)
				}
			}
			if o.Alias != "" {
				options["-"+o.Alias] = func() error { return h.allow(d, o.Family, o.Word) }
			}
		}
	}
	return block(d, h.check, options)
}

// allow adds options for targets. words are all that the directive names.
func (h *Handler) allow(d *caddyfile.Dispenser, family string, words ...string) error {
	if len(words) == 0 || d.NextArg() {
		return errArguments
	}
	list := h.optionLists()[family]
	for _, word := range words {
		if slices.Contains(*list, word) {
			return d.Errf("the option %s appears a second time", strings.TrimSpace(family+" "+word))
		}
		*list = append(*list, word)
	}
	return nil
}

// check checks the settings so far, so that a mistake gets its line.
func (h *Handler) check() error {
	probe := *h        // Provision prepares the loaded handler
	probe.Public = nil // oneRule has checked each
	return probe.prepare()
}

// unmarshalSelf reads the option self.
func (h *Handler) unmarshalSelf(d *caddyfile.Dispenser) error {
	h.Self = new(Self)
	if err := oneArg(d, &h.Self.Path); err != nil {
		return err
	}
	if err := h.check(); err != nil {
		return d.WrapErr(err)
	}
	return block(d, h.check, map[string]func() error{
		"rotate 1h": func() error {
			h.Self.Rotate = true
			if !d.NextArg() {
				return nil
			}
			d.Prev()
			return duration(d, &h.Self.Grace)
		},
	})
}

func parseSiteDoor(h httpcaddyfile.Helper) ([]httpcaddyfile.ConfigValue, error) {
	h.Next() // the directive's name
	matcher, err := h.ExtractMatcherSet()
	if err != nil {
		return nil, err
	}
	door := new(SiteDoor)
	if err := door.UnmarshalCaddyfile(h.Dispenser); err != nil {
		return nil, err
	}
	return h.NewRoute(matcher, door), nil
}

// UnmarshalCaddyfile reads the directive:
//
//	service_users_admin [<matcher>] {
//		admins       <id...>
//		managers     <id...> team=<team>... [group=<group>...]
//		actor_header <header>
//		console      off
//	}
//
// admins and managers may be repeated.
func (s *SiteDoor) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the directive's name
	if d.NextArg() {
		return d.Errf("service_users_admin takes no argument but a matcher (got %q); "+
			"name people in its block, as in \"admins %[1]s\"", d.Val())
	}
	return block(d, s.Validate, map[string]func() error{
		"*admins alice":                func() error { return args(d, &s.Admins) },
		"*managers carol team=finance": func() error { return s.managers(d) },
		"actor_header Remote-User":     func() error { return oneArg(d, &s.ActorHeader) },
		"console off":                  func() error { return off(d, &s.NoConsole) },
	})
}

func (s *SiteDoor) managers(d *caddyfile.Dispenser) error {
	var ids []string
	var m HumanManager
	for _, arg := range d.RemainingArgs() {
		team, isTeam := strings.CutPrefix(arg, "team=")
		group, isGroup := strings.CutPrefix(arg, "group=")
		switch {
		case strings.Contains(arg, `"`):
			return d.Errf("managers: %s: put the quotes around the whole word, "+
				"as in \"team=site reliability\"", arg)
		case (isTeam || isGroup) && (strings.HasSuffix(arg, "=") || strings.Contains(arg, ",")):
			return d.Errf("managers: %s: name one team or group at a time, "+
				"as in team=finance team=ops", arg)
		case isTeam:
			m.Teams = append(m.Teams, team)
		case isGroup:
			m.Groups = append(m.Groups, group)
		default:
			ids = append(ids, arg)
		}
	}
	if len(ids) == 0 || len(m.Teams) == 0 {
		return d.Err("managers: name at least one person and one team, as in \"managers carol team=finance\"")
	}
	for _, id := range ids {
		if slices.ContainsFunc(s.Managers, func(m HumanManager) bool { return m.ID == id }) {
			return d.Errf("managers: %q appears a second time; "+
				"put all teams and groups of a person on one line", id)
		}
		s.Managers = append(s.Managers, HumanManager{ID: id, Teams: m.Teams, Groups: m.Groups})
	}
	return nil
}

func parseProxy(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	proxy := new(Proxy)
	return proxy, proxy.UnmarshalCaddyfile(h.Dispenser)
}

// UnmarshalCaddyfile reads the directive:
//
//	service_users_proxy [<matcher>] <address> {
//		header_up [+|-|?]<field> [<value|regexp> [<replacement>]]
//		timeout   <duration>
//		max_conns <number>
//		flush
//	}
//
// header_up may be repeated.
func (p *Proxy) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the directive's name
	if err := oneArg(d, &p.Address); err != nil {
		return d.Errf("service_users_proxy has %w; it takes one upstream, as in "+
			"\"service_users_proxy localhost:9000\"; several upstreams are left to reverse_proxy", err)
	}
	if err := p.check(); err != nil {
		return d.WrapErr(err)
	}
	return block(d, p.check, map[string]func() error{
		"*header_up X-Tenant acme": func() error { return p.headerUp(d) },
		"timeout 30s":              func() error { return duration(d, &p.Timeout) },
		"max_conns 100":            func() error { return positive(d, &p.MaxConns) },
		"flush":                    func() error { return flag(d, &p.Flush) },
	})
}

// headerUp reads a line of the option header_up.
func (p *Proxy) headerUp(d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	if p.HeaderUp == nil {
		p.HeaderUp = new(headers.HeaderOps)
	}
	switch len(args) {
	case 1:
		return headers.CaddyfileHeaderOp(p.HeaderUp, args[0], "", nil)
	case 2:
		return headers.CaddyfileHeaderOp(p.HeaderUp, args[0], args[1], nil)
	case 3:
		return headers.CaddyfileHeaderOp(p.HeaderUp, args[0], args[1], &args[2])
	}
	return errArguments
}

// errArguments is the error of an option with too many or too few arguments.
var errArguments = errors.New("too many or too few arguments")

// block reads the options of a block, each by its own function, and calls check after each, while
// the line of a mistake is known. The keys of options are examples. An option may appear once, unless
// its example begins with "*". One that begins with "-" is an older name, which no error suggests.
func block(d *caddyfile.Dispenser, check func() error, options map[string]func() error) error {
	examples, seen := make(map[string]string), make(map[string]bool)
	for example := range options {
		name, _, _ := strings.Cut(strings.TrimLeft(example, "*-"), " ")
		examples[name] = example
	}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		name := d.Val()
		example, often := strings.CutPrefix(examples[name], "*")
		switch {
		case name == "{":
			return d.Err("an option here takes no block of its own")
		case examples[name] == "":
			older := func(name string) bool { return strings.HasPrefix(examples[name], "-") }
			names := slices.DeleteFunc(slices.Sorted(maps.Keys(examples)), older)
			if nearest := access.NearestWord(name, names); nearest != "" {
				return d.Errf("unknown option %q; did you mean %s?", name, nearest)
			}
			return d.Errf("unknown option %q; known are %s", name, strings.Join(names, ", "))
		case seen[name] && !often:
			return d.Errf("the option %s appears a second time", name)
		}
		seen[name] = true
		err := options[examples[name]]()
		if errors.Is(err, errArguments) {
			return d.Errf("%s has %w; write it as in: %s", name, err, strings.TrimPrefix(example, "-"))
		}
		if err != nil {
			return err
		}
		if err := check(); err != nil {
			return d.WrapErr(err)
		}
	}
	return nil
}

func oneArg(d *caddyfile.Dispenser, into *string) error {
	if !d.AllArgs(into) {
		return errArguments
	}
	return nil
}

// joined reads all arguments as one text, with spaces between them.
func joined(d *caddyfile.Dispenser, into *string) error {
	var list []string
	err := args(d, &list)
	*into = strings.Join(list, " ")
	return err
}

func args(d *caddyfile.Dispenser, into *[]string) error {
	values := d.RemainingArgs()
	if len(values) == 0 {
		return errArguments
	}
	*into = append(*into, values...)
	return nil
}

// oneRule joins the arguments of a line to the text of a rule, and appends it.
func oneRule(d *caddyfile.Dispenser, into *[]string) error {
	var words []string
	quoted := false
	for d.NextArg() {
		words, quoted = append(words, d.Val()), quoted || d.Token().Quoted()
	}
	text := strings.Join(words, " ")
	switch {
	case len(words) < 2:
		return d.Err("public: name methods and a path, as in \"public GET,HEAD /healthz\"")
	case words[0] == string(access.Allow) || words[0] == string(access.Deny):
		return d.Errf("public %s: leave %q out; a public rule always allows, as in \"public GET /healthz\"",
			text, words[0])
	case strings.Contains(text, "{http."):
		// The Caddyfile adapter expands short names such as {path} before it calls this.
		return d.Errf("public %s: Caddy took a parameter for its placeholder of the same name; "+
			"give it another one, as in \"/v1/people/{id}\"", text)
	}
	if _, err := publicRules([]string{text}); err != nil {
		if quoted && strings.Contains(text, " when ") {
			return d.Errf("%w; Caddy has taken quotes away: write them as ' in a condition", err)
		}
		return d.Err(err.Error())
	}
	*into = append(*into, text)
	return nil
}

func flag(d *caddyfile.Dispenser, into *bool) error {
	*into = true
	if d.NextArg() {
		return errArguments
	}
	return nil
}

// off reads the word "off".
func off(d *caddyfile.Dispenser, into *bool) error {
	var word string
	if err := oneArg(d, &word); err != nil {
		return err
	}
	if *into = word == "off"; !*into {
		return d.Errf("the only value is off (got %q); without the line it is on", word)
	}
	return nil
}

func duration(d *caddyfile.Dispenser, into *caddy.Duration) error {
	var text string
	if err := oneArg(d, &text); err != nil {
		return err
	}
	value, err := admin.ParseDuration(text)
	if err != nil || value == 0 {
		return d.Errf("%q is not a duration such as 90d or 36h", text)
	}
	*into = caddy.Duration(value)
	return nil
}

func durationOrOff(d *caddyfile.Dispenser, into *caddy.Duration) error {
	if d.NextArg() && d.Val() == "off" {
		*into = -1
		if d.NextArg() {
			return errArguments
		}
		return nil
	}
	d.Prev()
	return duration(d, into)
}

// throttle reads "throttle 30 1m" or "throttle off".
func throttle(d *caddyfile.Dispenser, into **Throttle) error {
	words := d.RemainingArgs()
	switch {
	case slices.Equal(words, []string{"off"}):
		*into = new(Throttle)
		return nil
	case len(words) == 2:
		attempts, err := strconv.Atoi(words[0])
		within, err2 := admin.ParseDuration(words[1])
		if err == nil && err2 == nil && attempts > 0 && within > 0 {
			*into = &Throttle{attempts, caddy.Duration(within)}
			return nil
		}
	}
	return d.Err("throttle: write the number of failed attempts and the time, " +
		"as in \"throttle 30 1m\", or \"throttle off\"")
}

// positive reads a number from 1 on.
func positive(d *caddyfile.Dispenser, into *int) (err error) {
	var text string
	if err := oneArg(d, &text); err != nil {
		return err
	}
	if *into, err = strconv.Atoi(text); err != nil || *into < 1 {
		return d.Errf("%q is not a number from 1 on", text)
	}
	return nil
}

// countOrOff reads a number from 1 to maxDecisions, or "off", which becomes -1.
func countOrOff(d *caddyfile.Dispenser, into *int) error {
	var text string
	if err := oneArg(d, &text); err != nil {
		return err
	}
	if text == "off" {
		*into = -1
		return nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > maxDecisions {
		return d.Errf("%q is neither a number from 1 to %d nor \"off\"", text, maxDecisions)
	}
	*into = n
	return nil
}

// Interface guards
var (
	_ caddyfile.Unmarshaler = (*App)(nil)
	_ caddyfile.Unmarshaler = (*Handler)(nil)
	_ caddyfile.Unmarshaler = (*SiteDoor)(nil)
	_ caddyfile.Unmarshaler = (*Proxy)(nil)
)
