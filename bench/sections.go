//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
)

// stock is a store and its callers.
type stock struct {
	path   string
	logins []login
	calls  []string // their requests
}

// stock makes a store, once.
func (b *bench) stock(ctx context.Context, users int) (*stock, error) {
	key := strconv.Itoa(users)
	if s := b.made[key]; s != nil {
		return s, nil
	}
	s := &stock{path: filepath.Join(b.dir, "store-"+key+".db")}
	var err error
	if s.logins, err = makeStore(ctx, s.path, users); err != nil {
		return nil, fmt.Errorf("making a store of %d service users: %w", users, err)
	}
	for _, l := range s.logins {
		s.calls = append(s.calls, request(l.path, basic(l.id, l.secret)))
	}
	b.made[key] = s
	return s, nil
}

// The parts of a Caddyfile. Every site is one port, with HTTPS if its text begins with "tls";
// "{upstream}" and the ports are filled in by [bench.caddyfile].

const (
	proxy     = "reverse_proxy {upstream}\n"
	leanProxy = "service_users_proxy {upstream}\n"

	lean = "plugin with `service_users_proxy`"
)

// identity has the headers of a caller as an authority sends them.
var identity = []string{"X-Service-User-Id: service_3MQkTyLfBmwNcJuBTVeoYRG1ZkP", "X-Service-User-Name: user-1", "X-Service-User-Groups: group-1"}

func guarded(options string) string { return "service_users {\n" + options + "}\n" + proxy }

// caddyfile writes a Caddyfile with these sites and returns its name and their
// addresses.
func (b *bench) caddyfile(global string, sites ...string) (file string, addresses []string, err error) {
	var text strings.Builder
	fmt.Fprintf(&text, "{\nadmin off\nauto_https disable_redirects\nskip_install_trust\npersist_config off\n%s}\n", global)
	for _, site := range sites {
		address, err := b.freeAddress()
		if err != nil {
			return "", nil, err
		}
		_, port, _ := strings.Cut(address, ":")
		name := "http://"
		if strings.HasPrefix(site, "tls") {
			name = "https://api.example.com"
		}
		fmt.Fprintf(&text, "%s:%s {\nbind 127.0.0.1\n%s}\n", name, port, strings.ReplaceAll(site, "{upstream}", b.upstream))
		addresses = append(addresses, address)
	}
	b.started++
	file = filepath.Join(b.dir, fmt.Sprintf("%d.caddyfile", b.started))
	return file, addresses, os.WriteFile(file, []byte(text.String()), 0o600)
}

// caddyServer starts a Caddy with these sites.
func (b *bench) caddyServer(name string, env []string, global string, sites ...string) (*process, []string, error) {
	file, addresses, err := b.caddyfile(global, sites...)
	if err != nil {
		return nil, nil, err
	}
	p, err := b.start(name, b.cpus.proxy, env, b.caddy, "run", "--config", file, "--adapter", "caddyfile")
	return p, addresses, err
}

// storeOption is the global option, with the store and other lines.
func storeOption(s *stock, lines ...string) string {
	return "service_users {\nstore " + s.path + "\n" + strings.Join(append(lines, "}\n"), "\n")
}

// bare and plugin start a Caddy of their own, with its defaults.
func (b *bench) bare(env []string, users *stock) func(*subject) error {
	return b.site(env, "", proxy, users)
}

func (b *bench) plugin(env []string, users *stock) func(*subject) error {
	return b.site(env, storeOption(users), guarded(""), users)
}

// site starts a Caddy with one site.
func (b *bench) site(env []string, global, site string, users *stock) func(*subject) error {
	return func(t *subject) error {
		p, addresses, err := b.caddyServer(t.name, env, global, site)
		if err == nil {
			t.serve(p, addresses[0], users.calls)
		}
		return err
	}
}

// sameProcess compares routes of one Caddy: its heap, and so its garbage
// collection, is the same for all of them.
func (b *bench) sameProcess(ctx context.Context) error {
	users, err := b.stock(ctx, 10_000)
	if err != nil {
		return err
	}
	s := b.section("same", "Routes of one process, 10 000 service users, 1000 rules; all of them call, or one")
	if !b.quick {
		s.rounds *= 2
	}
	const bare = "bare reverse_proxy"
	const headerUp = "with 3 `header_up`"
	const id = "X-Service-User-Id: "
	routes := []struct{ name, site, sees string }{
		{bare, proxy, ""},
		{headerUp, "reverse_proxy {upstream} {\nheader_up " + strings.ReplaceAll(strings.Join(identity, "\nheader_up "), ":", "") + "\n}\n", identity[0]},
		{"`service_users sanitize`", "service_users sanitize\n" + proxy, ""},
		{"plugin, `headers none`", guarded("headers none\n"), "GET "},
		{"plugin, `headers id`", guarded("headers id\n"), id},
		{"plugin", guarded(""), id},
		{"bare `service_users_proxy`", leanProxy, ""},
		{lean, "service_users\n" + leanProxy, id},
		{"plugin, `headers` all seven", guarded("headers id name display_name groups role teams token_id\n"), "X-Service-User-Token-Id: "},
	}
	var sites []string
	for _, route := range routes {
		sites = append(sites, route.site)
	}
	s.note = "`use_interval 1h`: writing the use of tokens would slow down the subject under load at that moment; in the other sections it is written."
	var p *process
	var addresses []string
	for _, callers := range []struct {
		name  string
		calls []string
	}{{"", users.calls}, {", one caller", users.calls[:1]}} {
		for i, route := range routes {
			against := bare + callers.name
			if i == 0 {
				against = ""
			}
			t := s.add(route.name+callers.name, against, 200, func(t *subject) (err error) {
				if p == nil {
					if p, addresses, err = b.caddyServer("routes", nil, storeOption(users, "use_interval 1h"), sites...); err != nil {
						return err
					}
				}
				t.serve(p, addresses[i], callers.calls)
				return nil
			})
			t.sees, t.guards = route.sees, strings.HasPrefix(route.name, "plugin")
		}
	}
	if err := s.run(ctx); err != nil {
		return err
	}
	s.relate("plugin", headerUp)
	s.relate(lean, headerUp)
	return nil
}

// protocols compares routes of one process in each protocol, with bodies and with an access log.
func (b *bench) protocols(ctx context.Context) error {
	users, err := b.stock(ctx, 10_000)
	if err != nil {
		return err
	}
	s := b.section("protocols", "TLS, HTTP/2, HTTP/3, bodies and the access log; routes of one process, 10 000 service users call")
	s.note = "This program is the client: 32 requests at a time, each on a connection of HTTP/1.1, or four on each of HTTP/2 and HTTP/3. " +
		"Its work is that of the proxy reversed: with 64 KiB and more the client bounds the requests a second, and CPU alone shows the cost. `use_interval 1h`."
	s.last = column{"p99 ratio", func(t *subject) string {
		if of := s.find(t.against); of != nil {
			return t.ratio("p99", of)
		}
		return "1"
	}}
	routes := []struct{ name, site string }{{"bare reverse_proxy", proxy}, {"plugin", guarded("")}, {lean, "service_users\n" + leanProxy}}
	var sites []string // of each route: with HTTPS, with an access log too, without HTTPS
	for i, route := range routes {
		logs := fmt.Sprintf("log {\noutput file %s/access-%d.log {\nroll_disabled\n}\n}\n", b.dir, i)
		sites = append(sites, "tls internal\n"+route.site, "tls internal\n"+logs+route.site, route.site)
	}
	var p *process
	var addresses []string
	for _, load := range []struct{ protocol, name string }{{https1, "HTTPS/1.1"}, {https2, "HTTP/2"}, {https3, "HTTP/3"}, {h2c, "h2c"}} {
		for _, kind := range []struct {
			name         string
			answer, body int
			site         int
		}{{"1 KiB", 1 << 10, 0, 0}, {"1 KiB, access log", 1 << 10, 0, 1}, {"64 KiB", 64 << 10, 0, 0}, {"1 MiB", 1 << 20, 0, 0}, {"upload of 1 MiB", 13, 1 << 20, 0}} {
			if load.protocol == h2c {
				kind.site = 2
			}
			if load.protocol == h2c && kind.name != "1 KiB" || b.quick && kind.name != "1 KiB" && kind.body == 0 {
				continue
			}
			var calls []string
			for _, call := range users.calls {
				call = strings.Replace(call, " HTTP/1.1", fmt.Sprintf("?bytes=%d HTTP/1.1", kind.answer), 1)
				if kind.body > 0 {
					call = strings.Replace(call, "GET ", "POST ", 1)
					call = strings.Replace(call, "\r\n\r\n", fmt.Sprintf("\r\nContent-Length: %d\r\n\r\n", kind.body), 1)
				}
				calls = append(calls, call)
			}
			against := ""
			for i, route := range routes {
				t := s.add(load.name+", "+kind.name+": "+route.name, against, 200, func(t *subject) (err error) {
					if p == nil {
						if p, addresses, err = b.caddyServer("protocols", nil, "servers {\nprotocols h1 h2 h2c h3\n}\n"+storeOption(users, "use_interval 1h"), sites...); err != nil {
							return err
						}
					}
					t.serve(p, addresses[3*i+kind.site], calls)
					return nil
				})
				t.protocol = load.protocol
				if i == 0 {
					against = t.name
				} else {
					t.checks("X-Service-User-Id: " + users.logins[0].id)
				}
			}
		}
	}
	return s.run(ctx)
}

// sizes compares stores of several sizes, with Go's default garbage collection,
// where a larger heap is collected less often, and with the same room for all.
func (b *bench) sizes(ctx context.Context) error {
	s := b.section("sizes", "Numbers of service users, two tokens each (1000 rules; up to 100 000 of them call)")
	s.last = column{"RSS MiB, start", func(t *subject) string {
		return fmt.Sprintf("%.0f, %.2f s", slices.Max(t.turns["rss"]), t.process.took.Seconds())
	}}
	s.note = "Equal room is `GOGC=off GOMEMLIMIT=512MiB`, and is compared with a bare Caddy that has it too."
	sizes := []int{1, 10_000, 1_000_000}
	if b.quick {
		sizes = sizes[:2]
	}
	for _, room := range []struct {
		name string
		env  []string
	}{{"", nil}, {", equal room", []string{"GOGC=off", "GOMEMLIMIT=512MiB"}}} {
		if b.quick && room.env != nil {
			break
		}
		bare := "bare reverse_proxy" + room.name
		s.add(bare, "", 200, func(t *subject) error {
			users, err := b.stock(ctx, 10_000)
			if err != nil {
				return err
			}
			return b.bare(room.env, users)(t)
		})
		for _, size := range sizes {
			s.add(fmt.Sprintf("plugin, %d%s", size, room.name), bare, 200, func(t *subject) error {
				users, err := b.stock(ctx, size)
				if err != nil {
					return err
				}
				return b.plugin(room.env, users)(t)
			})
		}
	}
	return s.run(ctx)
}

// serveBasicAuth starts a Caddy with basic_auth. Every caller has a password of
// its own.
func (b *bench) serveBasicAuth(ctx context.Context, subject *subject, accounts, cost int, cached bool) error {
	hash, err := b.hashPassword(ctx, bcryptPrefix, cost)
	if err != nil {
		return err
	}
	var site strings.Builder
	var calls []string
	site.WriteString("basic_auth {\n")
	for i := range accounts {
		id := fmt.Sprintf("user-%d", i)
		fmt.Fprintf(&site, "%s %s\n", id, hash)
		calls = append(calls, request("/v1/things/"+id, basic(id, fmt.Sprintf("%s-%d", bcryptPrefix, i))))
	}
	site.WriteString("}\n" + proxy)
	file, addresses, err := b.caddyfile("", site.String())
	if err != nil {
		return err
	}
	args := []string{b.caddy, "run", "--config", file, "--adapter", "caddyfile"}
	if !cached { // only JSON can say so
		text, err := exec.CommandContext(ctx, b.caddy, "adapt", "--config", file, "--adapter", "caddyfile").Output()
		if err != nil {
			return fmt.Errorf("caddy adapt: %w", err)
		}
		file += ".json"
		if err := os.WriteFile(file, []byte(strings.ReplaceAll(string(text), `"hash_cache":{}`, `"hash_cache":null`)), 0o600); err != nil {
			return err
		}
		args = []string{b.caddy, "run", "--config", file}
	}
	p, err := b.start(subject.name, b.cpus.proxy, nil, args...)
	if err != nil {
		return err
	}
	subject.serve(p, addresses[0], calls)
	subject.warm = cached && accounts <= 1000
	return nil
}

// slow compares methods that hash a password at every request.
func (b *bench) slow(ctx context.Context) error {
	if b.quick {
		return nil
	}
	users, err := b.stock(ctx, 10_000)
	if err != nil {
		return err
	}
	s := b.section("slow", "Hashing at every request, 8 connections")
	s.connections = 8
	s.slice = max(s.slice, 4*time.Second)
	s.rounds = min(s.rounds, 3)
	s.note = fmt.Sprintf("Slices of %s. All 10 000 accounts call, the cache holds a tenth of them.", s.slice)
	const bare = "bare reverse_proxy"
	s.add(bare, "", 200, b.bare(nil, users))
	s.add("plugin, 10 000 service users", bare, 200, b.plugin(nil, users))
	s.add("`basic_auth` with hash_cache, 10 000 accounts, bcrypt 10", bare, 200, func(t *subject) error { return b.serveBasicAuth(ctx, t, 10_000, 10, true) })
	s.add("`basic_auth` without hash_cache, 1 account, bcrypt 14", bare, 200, func(t *subject) error { return b.serveBasicAuth(ctx, t, 1, 14, false) })
	s.add("nginx auth_basic bcrypt 10, 1 account", bare, 200, func(t *subject) error {
		hash, err := b.hashPassword(ctx, bcryptPrefix, 10)
		if err != nil {
			return err
		}
		return b.serveNginx(t, []login{{id: "user-1", secret: bcryptPrefix, path: "/v1/things/1"}}, basicAuth, "user-1:"+hash+"\n")
	})
	return s.run(ctx)
}

// refusals compares the costs of a refusal and of an allowed request.
func (b *bench) refusals(ctx context.Context) error {
	users, err := b.stock(ctx, 10_000)
	if err != nil {
		return err
	}
	guess := access.NewSecret()
	right := func(path string) func(login) string {
		return func(l login) string { return request(path, basic(l.id, l.secret)) }
	}
	own := func(l login) string { return request(l.path, basic(l.id, l.secret)) }
	guessed := func(l login) string { return request(l.path, basic(l.id, guess)) }
	longest := func(length int) func(login) string {
		return right("/v1/long" + strings.Repeat("/segment", length/len("/segment")))
	}

	s := b.section("refusals", "Refusals and odd requests, against an allowed one")
	s.last = column{"log lines per 100k", func(t *subject) string { return t.median("lines") }}
	s.note = "The log of refusals is sampled: of a kind, 100 lines in a second, then one in 1000."
	const allowed = "allowed"
	servers := []struct {
		global string
		sites  []string
	}{
		{storeOption(users), []string{guarded("")}},
		{storeOption(users, "throttle off"), []string{guarded("")}},
		{"", []string{proxy, "header WWW-Authenticate `Basic realm=\"service users\"`\nrespond `{\"title\":\"Unauthorized\"}` 401\n"}},
	}
	type place struct{ server, site int }
	plugin, open, bare, respond := place{0, 0}, place{1, 0}, place{2, 0}, place{2, 1}
	running, ports := make([]*process, len(servers)), make([][]string, len(servers))
	for i, kind := range []struct {
		name   string
		status int
		place  place
		call   func(login) string
	}{
		{allowed, 200, plugin, own},
		{"bare reverse_proxy", 200, bare, own},
		{"bare `respond 401`", 401, respond, own},
		{"no rule", 403, plugin, right("/v1/nothing/7")},
		{"denied by a rule", 403, plugin, right("/v1/denied/7")},
		{"no credential", 401, plugin, func(l login) string { return request(l.path) }},
		{"wrong secret, `throttle off`", 401, open, guessed},
		{"unknown id, `throttle off`", 401, open, func(l login) string { return request(l.path, basic(newID("service"), l.secret)) }},
		{"no secret of ours, `throttle off`", 401, open, func(l login) string { return request(l.path, basic(l.id, "password")) }},
		{"malformed Basic, `throttle off`", 401, open, func(l login) string { return request(l.path, "Authorization: Basic ="+strings.Repeat("x", 60)) }},
		{"two Authorization fields", 400, plugin, func(l login) string { return request(l.path, basic(l.id, l.secret), basic(l.id, l.secret)) }},
		{"ambiguous path", 400, plugin, right("/v1/things/%2e%2e/admin")},
		{"path of 16 KiB, Caddy's limit", 200, plugin, longest(16 << 10)},
		{"bare, path of 16 KiB", 200, bare, longest(16 << 10)},
		{"wrong secret, throttled", 429, plugin, guessed}, // starts last: until here the throttle has nothing to count
	} {
		if b.quick && i%2 == 1 {
			continue
		}
		against := allowed
		if i == 0 {
			against = ""
		}
		s.add(kind.name, against, kind.status, func(t *subject) (err error) {
			at := kind.place
			if running[at.server] == nil {
				if running[at.server], ports[at.server], err = b.caddyServer("refusing", nil, servers[at.server].global, servers[at.server].sites...); err != nil {
					return err
				}
			}
			var calls []string
			for _, l := range users.logins {
				calls = append(calls, kind.call(l))
				if len(calls)*len(calls[0]) > 16<<20 {
					break // wrk keeps all of them in memory
				}
			}
			t.serve(running[at.server], ports[at.server][at.site], calls)
			return nil
		})
	}
	return s.run(ctx)
}

// tuning compares settings of the process and of its log.
func (b *bench) tuning(ctx context.Context) error {
	users, err := b.stock(ctx, 10_000)
	if err != nil {
		return err
	}
	s := b.section("tuning", "Settings of the process and of the log, 10 000 service users")
	s.note = "All are compared with a bare Caddy without any setting."
	const bare = "bare reverse_proxy"
	for i, setting := range []struct {
		name, global string
		env          []string
		option       string // of the plugin; such a setting has no bare subject
	}{
		{},
		{name: ", GOGC=400", env: []string{"GOGC=400"}},
		{name: ", GOGC=off GOMEMLIMIT=256MiB", env: []string{"GOGC=off", "GOMEMLIMIT=256MiB"}},
		{name: ", GOMEMLIMIT=64MiB", env: []string{"GOMEMLIMIT=64MiB"}},
		{name: ", `log { output discard }`", global: "log {\noutput discard\n}\n"},
		{name: ", `use_interval 1h`", option: "use_interval 1h"},
	} {
		if b.quick && i > 0 {
			break
		}
		against := bare
		if i == 0 {
			against = ""
		}
		if setting.option == "" {
			s.add(bare+setting.name, against, 200, b.site(setting.env, setting.global, proxy, users))
		}
		s.add("plugin"+setting.name, bare, 200, b.site(setting.env, setting.global+storeOption(users, setting.option), guarded(""), users))
	}
	return s.run(ctx)
}
