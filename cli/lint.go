package cli

import (
	"fmt"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/serviceusers/caddy-service-users/caddymodule"
)

// lintCommand adds "lint", which reports before a load the mistakes that the load would refuse or
// warn about.
func (c *cli) lintCommand(root *cobra.Command) {
	var strict bool
	lint := c.localCommand(root, "lint [CADDYFILE]", "Looks for mistakes in how a configuration uses service users",
		"lint Caddyfile",
		c.onlyReads("lint", func(args []string) error {
			file := c.config
			if len(args) == 1 {
				if file != "" {
					return usagef("name the configuration once, " +
						"as the argument or by --config")
				}
				file = args[0]
			}
			list, err := lint(file, c.adapter)
			if err != nil {
				return err
			}
			return c.printFindings(list, strict)
		}))
	lint.Long = `Looks for mistakes in how a configuration uses service users: upstreams that
requests can reach without a check, rewrites after the check, secrets in logs. With
an error, Caddy does not load the configuration; a warning may be a mistake. The
command starts no server and opens no store. Without an argument it reads the
Caddyfile in this directory. "caddy validate" checks each directive alone, without
its neighbours.`
	lint.Flags().BoolVar(&strict, "strict", false, "fail on warnings as well")
}

// onlyReads returns an action of a command that needs no server and no store. It refuses flags that name one.
func (c *cli) onlyReads(name string, do action) action {
	return func(args []string) error {
		if c.address != "" || c.store != "" || c.url != "" {
			return usagef("%s needs no server and no store; leave out --address, --store and --url", name)
		}
		return do(args)
	}
}

// lint returns the findings of [caddymodule.Lint] about a configuration file. An empty file is the
// Caddyfile in the working directory.
func lint(file, adapter string) ([]caddymodule.Finding, error) {
	if file == "" && adapter != "" {
		file = "Caddyfile"
	}
	if err := caddymodule.SilenceLogs(); err != nil { // Caddy also logs while it reads the file
		return nil, err
	}
	text, file, _, err := caddycmd.LoadConfig(file, adapter)
	if err != nil {
		return nil, err
	}
	if len(text) == 0 {
		return nil, usagef("there is no Caddyfile in this directory; name one")
	}
	list, err := caddymodule.Lint(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return list, nil
}

func (c *cli) printFindings(list []caddymodule.Finding, strict bool) error {
	type row struct {
		Level string `json:"level"`
		caddymodule.Finding
	}
	rows := []row{}
	var lines table
	var fatal, doubts int
	for _, f := range list {
		level := "warning"
		if f.Fatal {
			level = "error"
			fatal++
		} else {
			doubts++
		}
		rows = append(rows, row{level, f})
		lines.add(level + ": " + f.String())
	}
	if len(rows) == 0 {
		lines.add("no findings")
	}
	err := c.print(map[string][]row{"findings": rows}, lines)
	if err == nil && (fatal > 0 || strict && doubts > 0) {
		err = fmt.Errorf("%s, %s", plural(fatal, "error"), plural(doubts, "warning"))
	}
	return err
}
