package caddymodule

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
)

// lintCommand adds "lint", which tells before a load what the load would refuse
// or warn about.
func (c *cli) lintCommand(root *cobra.Command) {
	var strict bool
	lint := c.localCommand(root, "lint [CADDYFILE]", "Looks for mistakes in how a configuration uses service users",
		"caddy service-user lint Caddyfile", 0, 1,
		func(args []string) error {
			file := c.config
			if len(args) == 1 {
				if file != "" {
					return usageError{errors.New("name the configuration once, as the argument or by --config")}
				}
				file = args[0]
			}
			list, err := lint(file, c.adapter)
			if err != nil {
				return err
			}
			return c.printFindings(list, strict)
		})
	lint.Long = `Looks for mistakes in how a configuration uses service users: upstreams that are
reached past them, rewrites behind them, secrets in logs. Errors fail a load,
warnings are doubts. Nothing runs, and no store is opened. Without an argument
it is the Caddyfile in this directory. "caddy validate" looks at each directive
alone, and at none of its neighbours.`
	lint.Flags().BoolVar(&strict, "strict", false, "fail on warnings as well")
}

// localCommand adds a command that works on files alone.
func (c *cli) localCommand(parent *cobra.Command, use, short, example string, least, most int, do func(args []string) error) *cobra.Command {
	cmd := c.command(parent, use, short, example, most, nil)
	exactly := cmd.Args
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) < least || len(args) > most || most == least {
			return exactly(cmd, args)
		}
		for _, arg := range args {
			if arg == "" { // a variable of a script that is not set
				return c.exit(cmd, exitUsage, fmt.Errorf("an argument is empty; usage: %s", cmd.UseLine()))
			}
		}
		return nil
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var err error
		if c.address != "" || c.store != "" || c.url != "" {
			err = usageError{fmt.Errorf("%s only reads files; leave out --address, --store and --url", cmd.Name())}
		} else {
			err = do(args)
		}
		return c.exit(cmd, exitCode(err), err)
	}
	return cmd
}

// lint provisions a configuration and walks its routes.
func lint(file, adapter string) ([]finding, error) {
	if file == "" && adapter != "" {
		file = "Caddyfile"
	}
	// Provisioned alone, the logging of a configuration becomes that of the process.
	if _, err := caddy.ProvisionContext(&caddy.Config{Logging: quiet()}); err != nil {
		return nil, err
	}
	text, file, _, err := caddycmd.LoadConfig(file, adapter)
	if err != nil {
		return nil, err
	}
	if len(text) == 0 {
		return nil, usageError{errors.New("there is no Caddyfile in this directory; name one")}
	}
	config, cleanUp, err := harmless(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	defer cleanUp()
	ctx, err := caddy.ProvisionContext(config)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	app, err := ctx.AppIfConfigured("service_users")
	if errors.Is(err, caddy.ErrNotConfigured) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	around, err := surroundings(text)
	list := slices.DeleteFunc(app.(*App).routes(), func(f finding) bool { return f.load })
	return append(list, around...), err
}

// surroundings looks for doubts in the parts of a configuration that are not
// provisioned, or that do not show afterwards.
func surroundings(text []byte) (list []finding, err error) {
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
			list = append(list, finding{server: name, message: "trusted_proxies without trusted_proxies_strict: Caddy takes the client's address from the left of X-Forwarded-For, where a client behind an appending proxy writes what it likes; service_users reads it from the right, the logs and other handlers do not; add trusted_proxies_strict to the global option \"servers\""})
		}
	}
	slices.SortFunc(list, func(a, b finding) int { return strings.Compare(a.server, b.server) })
	listen := caddy.NewReplacer().ReplaceAll(cmp.Or(config.Admin.Listen, caddy.DefaultAdminListen), "")
	if address, err := caddy.ParseNetworkAddress(listen); err == nil && !config.Admin.Disabled && !address.IsUnixNetwork() && !address.IsFdNetwork() && !isLoopback(address.Host) {
		list = append(list, finding{message: fmt.Sprintf("Caddy's admin endpoint listens on %s: everybody who reaches it is an admin of the service users and may load any configuration; let it listen on localhost or, better, on a unix socket", listen)})
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

// quiet lets Caddy log nothing. The writer stays as it is: Caddy logs a change of it.
func quiet() *caddy.Logging {
	log := new(caddy.CustomLog)
	log.Level = "FATAL"
	return &caddy.Logging{Logs: map[string]*caddy.CustomLog{"default": log}}
}

func (c *cli) printFindings(list []finding, strict bool) error {
	type row struct {
		Level   string `json:"level"`
		Server  string `json:"server"`
		Route   string `json:"route"`
		Message string `json:"message"`
	}
	rows := []row{}
	var fatal, doubts int
	for _, f := range list {
		level := "warning"
		if f.fatal {
			level = "error"
			fatal++
		} else {
			doubts++
		}
		rows = append(rows, row{level, f.server, f.route, f.message})
	}
	err := c.print(struct {
		Findings []row `json:"findings"`
	}{rows}, func(w io.Writer) {
		for i, row := range rows {
			fmt.Fprintln(w, cell(row.Level+": "+list[i].String()))
		}
		if len(rows) == 0 {
			fmt.Fprintln(w, "no findings")
		}
	})
	if err == nil && (fatal > 0 || strict && doubts > 0) {
		err = fmt.Errorf("%s, %s", plural(fatal, "error"), plural(doubts, "warning"))
	}
	return err
}

func plural(n int, word string) string {
	if n != 1 {
		word += "s"
	}
	return fmt.Sprintf("%d %s", n, word)
}
