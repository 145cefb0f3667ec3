package caddymodule

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// TestTroublesOfLoading loads a configuration for each row of the table of loads. It does not run
// beside other tests, since [Lint] ends the logging of the process.
func TestTroublesOfLoading(t *testing.T) {
	const heading = "Caddy does not load the configuration"
	site := func(directives ...string) string {
		return "api.example.com {\n\t" + strings.Join(directives, "\n\t") + "\n}\n"
	}
	routes := func(handlers ...string) string {
		return `{"apps":{"http":{"servers":{"srv0":{"routes":[{"handle":[` + strings.Join(handlers, ",") + `]}]}}}}}`
	}
	const proxy, guard, cache = "reverse_proxy localhost:9000", `{"handler":"service_users"}`, `{"handler":"fake_cache"}`
	const upstream = `{"handler":"reverse_proxy","upstreams":[{"dial":"localhost:9000"}]}`
	tried := map[string]string{
		// A Caddy without the plugin, as it answers to any word that it does not know.
		"unrecognized directive: service_users":          strings.ReplaceAll(site("service_users", proxy), "service_users", "service_users_of_a_caddy_without_it"),
		"service_users takes no matcher and no argument": site("service_users /v1/*", proxy),
		"unknown option":           site("service_users {", "\trelm x", "}", proxy),
		"service_users never runs": site("route {", "\t"+proxy, "\tservice_users", "}"),
		"before service_users can give the answer to one service user to everybody": routes(cache, guard, upstream),
		"the key of … behind service_users lacks the identity":                      routes(guard, cache, upstream),
		"this error route leads to":                                                 site("service_users", proxy, "handle_errors {", "\treverse_proxy localhost:9001", "}"),
		"names the identity of service users and runs before service_users":         site("header X-User {http.auth.user.id}", "service_users", proxy),
		"is believed only directly behind a forward_auth":                           site("service_users_admin {", "\tadmins carol", "\tactor_header Remote-User", "}"),
		"log_credentials writes the secrets of service users to the access log":     "{\n\tservers {\n\t\tlog_credentials\n\t}\n}\n" + site("service_users", proxy),
	}
	page := readTroubles(t)
	untried(t, page.rows(heading), tried)
	for text, config := range tried {
		got := loadError(t, config)
		if strings.HasPrefix(text, "unrecognized") {
			got = strings.ReplaceAll(got, "service_users_of_a_caddy_without_it", "service_users")
		}
		if !quotes(got, text) {
			t.Errorf("%s: got %s", text, got)
		}
	}
}

// loadError returns the errors with which a configuration does not load.
func loadError(t *testing.T, config string) string {
	t.Helper()
	text := []byte(config)
	if !json.Valid(text) {
		var err error
		if text, err = adapt(text); err != nil {
			return err.Error()
		}
	}
	list, err := Lint(text)
	if err != nil {
		return err.Error()
	}
	var all bytes.Buffer
	for _, f := range list {
		if f.Fatal {
			fmt.Fprintln(&all, f)
		}
	}
	return all.String()
}
