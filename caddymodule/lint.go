package caddymodule

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// Lint provisions a configuration in JSON, without running it, and returns mistakes and doubts in
// its use of service users. After the call, the process logs nothing.
func Lint(text []byte) ([]Finding, error) {
	if err := SilenceLogs(); err != nil {
		return nil, err
	}
	config, cleanUp, err := sandboxed(text)
	if err != nil {
		return nil, err
	}
	defer cleanUp()
	ctx, err := caddy.ProvisionContext(config)
	if err != nil {
		return nil, err
	}
	app, err := ctx.AppIfConfigured("service_users")
	if errors.Is(err, caddy.ErrNotConfigured) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	around, err := lintUnprovisioned(text)
	list := slices.DeleteFunc(app.(*App).routes(), func(f Finding) bool { return f.load })
	return append(list, around...), err
}

// lintUnprovisioned reports doubts about the parts of a configuration that are not provisioned, or
// that a provisioned module does not show.
func lintUnprovisioned(text []byte) (list []Finding, err error) {
	var config struct {
		Admin caddy.AdminConfig `json:"admin"`
		Apps  struct {
			HTTP caddyhttp.App `json:"http"`
		} `json:"apps"`
	}
	if err := json.Unmarshal(text, &config); err != nil {
		return nil, err
	}
	for name, server := range config.Apps.HTTP.Servers {
		if (server.TrustedProxiesRaw != nil || server.TrustedProxiesUnix) && server.TrustedProxiesStrict == 0 {
			list = append(list, Finding{Server: name, Message: "trusted_proxies without " +
				"trusted_proxies_strict: Caddy takes the client's address from the left of " +
				"X-Forwarded-For, where a client behind an appending proxy can write any " +
				"address; service_users reads it from the right, the logs and other handlers " +
				"do not; add trusted_proxies_strict to the global option \"servers\""})
		}
	}
	slices.SortFunc(list, func(a, b Finding) int { return strings.Compare(a.Server, b.Server) })
	listen := caddy.NewReplacer().ReplaceAll(cmp.Or(config.Admin.Listen, caddy.DefaultAdminListen), "")
	if address, err := caddy.ParseNetworkAddress(listen); err == nil && !config.Admin.Disabled &&
		!address.IsUnixNetwork() && !address.IsFdNetwork() && !IsLoopback(address.Host) {
		list = append(list, Finding{Message: fmt.Sprintf("Caddy's admin endpoint listens on %s: "+
			"everybody who reaches it is an admin of the service users and may load any "+
			"configuration; let it listen on localhost or, better, on a unix socket", listen)})
	}
	return list, nil
}

// sandboxed reads a configuration and changes it so that its provisioning leaves nothing behind.
// Its logs are not opened. Its storage, for example for the root certificate of Caddy's own
// authority, is a directory that cleanUp removes.
func sandboxed(text []byte) (config *caddy.Config, cleanUp func(), err error) {
	var parts struct {
		Apps caddy.ModuleMap `json:"apps"`
	}
	if err := json.Unmarshal(text, &parts); err != nil {
		return nil, nil, err
	}
	dir, err := os.MkdirTemp("", "caddy-lint-")
	if err != nil {
		return nil, nil, err
	}
	storage, err := json.Marshal(map[string]string{"module": "file_system", "root": dir})
	if err != nil {
		return nil, nil, err
	}
	config = &caddy.Config{StorageRaw: storage, AppsRaw: parts.Apps, Logging: noLogs()}
	return config, func() { _ = os.RemoveAll(dir) }, nil
}

// SilenceLogs ends the logging of the process. Caddy gives the process the logging of any
// configuration that is provisioned alone, so this provisions one that logs nothing.
func SilenceLogs() error {
	_, err := caddy.ProvisionContext(&caddy.Config{Logging: noLogs()})
	return err
}

// noLogs returns a logging configuration that logs nothing. It keeps the default writer, since
// Caddy logs a change of the writer.
func noLogs() *caddy.Logging {
	log := new(caddy.CustomLog)
	log.Level = "FATAL"
	return &caddy.Logging{Logs: map[string]*caddy.CustomLog{"default": log}}
}

// IsLoopback reports whether the host of an address is this machine.
func IsLoopback(host string) bool {
	address, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && address.Unmap().IsLoopback()
}
