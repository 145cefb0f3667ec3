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
)

// Lint provisions a configuration in JSON, without running it, and returns the mistakes
// and doubts in how it uses service users. From then on, the process logs nothing.
func Lint(text []byte) ([]Finding, error) {
	if err := SilenceLogs(); err != nil {
		return nil, err
	}
	config, cleanUp, err := harmless(text)
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
	around, err := surroundings(text)
	list := slices.DeleteFunc(app.(*App).routes(), func(f Finding) bool { return f.load })
	return append(list, around...), err
}

// surroundings looks for doubts in the parts of a configuration that are not
// provisioned, or that do not show afterwards.
func surroundings(text []byte) (list []Finding, err error) {
	var config struct {
		Admin struct {
			Disabled bool   `json:"disabled"`
			Listen   string `json:"listen"`
		} `json:"admin"`
		Apps struct {
			HTTP struct {
				Servers map[string]struct {
					TrustedProxies json.RawMessage `json:"trusted_proxies"`
					Unix           bool            `json:"trusted_proxies_unix"`
					Strict         int             `json:"trusted_proxies_strict"`
				} `json:"servers"`
			} `json:"http"`
		} `json:"apps"`
	}
	if err := json.Unmarshal(text, &config); err != nil {
		return nil, err
	}
	for name, server := range config.Apps.HTTP.Servers {
		if (server.TrustedProxies != nil || server.Unix) && server.Strict == 0 {
			list = append(list, Finding{Server: name, Message: "trusted_proxies without trusted_proxies_strict: Caddy takes the client's address from the left of X-Forwarded-For, where a client behind an appending proxy writes what it likes; service_users reads it from the right, the logs and other handlers do not; add trusted_proxies_strict to the global option \"servers\""})
		}
	}
	slices.SortFunc(list, func(a, b Finding) int { return strings.Compare(a.Server, b.Server) })
	listen := caddy.NewReplacer().ReplaceAll(cmp.Or(config.Admin.Listen, caddy.DefaultAdminListen), "")
	if address, err := caddy.ParseNetworkAddress(listen); err == nil && !config.Admin.Disabled && !address.IsUnixNetwork() && !address.IsFdNetwork() && !IsLoopback(address.Host) {
		list = append(list, Finding{Message: fmt.Sprintf("Caddy's admin endpoint listens on %s: everybody who reaches it is an admin of the service users and may load any configuration; let it listen on localhost or, better, on a unix socket", listen)})
	}
	return list, nil
}

// harmless reads a configuration so that to provision it leaves nothing behind:
// logs are not opened, and what Caddy would store, such as the root of a
// certificate authority of its own, goes to a directory that cleanUp removes.
func harmless(text []byte) (config *caddy.Config, cleanUp func(), err error) {
	parts := make(map[string]json.RawMessage)
	if err := json.Unmarshal(text, &parts); err != nil {
		return nil, nil, err
	}
	var apps map[string]json.RawMessage
	if err := json.Unmarshal(parts["apps"], &apps); parts["apps"] != nil && err != nil {
		return nil, nil, fmt.Errorf("apps: %w", err)
	}
	dir, err := os.MkdirTemp("", "caddy-lint-")
	if err != nil {
		return nil, nil, err
	}
	storage, err := json.Marshal(map[string]string{"module": "file_system", "root": dir})
	if err != nil {
		return nil, nil, err
	}
	config = &caddy.Config{StorageRaw: storage, AppsRaw: apps, Logging: quiet()}
	return config, func() { _ = os.RemoveAll(dir) }, nil
}

// SilenceLogs ends the logging of the process: the logging of a configuration that is
// provisioned alone becomes that of the process.
func SilenceLogs() error {
	_, err := caddy.ProvisionContext(&caddy.Config{Logging: quiet()})
	return err
}

// quiet lets Caddy log nothing. The writer stays as it is: Caddy logs a change of it.
func quiet() *caddy.Logging {
	log := new(caddy.CustomLog)
	log.Level = "FATAL"
	return &caddy.Logging{Logs: map[string]*caddy.CustomLog{"default": log}}
}

// IsLoopback reports whether the host of an address is this machine.
func IsLoopback(host string) bool {
	address, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && address.Unmap().IsLoopback()
}
