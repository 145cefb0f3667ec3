package cli

import (
	"errors"
	"fmt"
	"io"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/serviceusers/caddy-service-users/caddymodule"
)

// lintCommand adds "lint", which reports before a load the mistakes that the load would refuse or
// warn about.
func (c *cli) lintCommand(root *cobra.Command) {
	var strict bool
	lint := c.localCommand(root, "lint [CADDYFILE]", "Looks for mistakes in how a configuration uses service users",
		"caddy service-user lint Caddyfile", 0, 1,
		func(args []string) error {
			file := c.config
			if len(args) == 1 {
				if file != "" {
					return usageError{errors.New("name the configuration once, " +
						"as the argument or by --config")}
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
reached past them, rewrites behind them, secrets in logs. An error fails a load,
a warning is a doubt. The command starts no server and opens no store. Without an
argument it reads the Caddyfile in this directory. "caddy validate" checks each
directive alone, without its neighbours.`
	lint.Flags().BoolVar(&strict, "strict", false, "fail on warnings as well")
}

// localCommand adds a command that only reads files, with at least least and at most most
// arguments.
func (c *cli) localCommand(parent *cobra.Command, use, short, example string, least, most int,
	do func(args []string) error) *cobra.Command {
	cmd := c.command(parent, use, short, example, most, nil)
	exactly := cmd.Args
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) < least || len(args) > most || most == least {
			return exactly(cmd, args)
		}
		for _, arg := range args {
			if arg == "" { // probably a variable that a script has not set
				return c.exit(cmd, exitUsage, fmt.Errorf("an argument is empty; usage: %s",
					cmd.UseLine()))
			}
		}
		return nil
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var err error
		if c.address != "" || c.store != "" || c.url != "" {
			err = usageError{fmt.Errorf("%s only reads files; leave out --address, --store and --url",
				cmd.Name())}
		} else {
			err = do(args)
		}
		return c.exit(cmd, exitCode(err), err)
	}
	return cmd
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
		return nil, usageError{errors.New("there is no Caddyfile in this directory; name one")}
	}
	list, err := caddymodule.Lint(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return list, nil
}

func (c *cli) printFindings(list []caddymodule.Finding, strict bool) error {
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
		if f.Fatal {
			level = "error"
			fatal++
		} else {
			doubts++
		}
		rows = append(rows, row{level, f.Server, f.Route, f.Message})
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
