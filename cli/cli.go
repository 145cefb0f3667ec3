package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/caddymodule"
	"github.com/serviceusers/caddy-service-users/store"
)

// helpTemplate is cobra's template with an example at the end.
const helpTemplate = `{{or .Long .Short}}

Usage:
  {{.UseLine}}{{if .HasAvailableSubCommands}}

Commands:{{range .Commands}}{{if .IsAvailableCommand}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}{{end}}

Flags:
{{.LocalFlags.FlagUsages | trimTrailingWhitespaces}}{{if .HasAvailableInheritedFlags}}

Global flags:
{{.InheritedFlags.FlagUsages | trimTrailingWhitespaces}}{{end}}

Example:
{{.Example}}
`

// group adds a command that only groups other commands.
func (c *cli) group(parent *cobra.Command, name, short, example string) *cobra.Command {
	cmd := &cobra.Command{Use: name + " COMMAND", Short: short, Long: short + ".", Example: "  " + example}
	c.usageErrors(cmd)
	parent.AddCommand(cmd)
	return cmd
}

// command adds a command that takes exactly nargs arguments and runs do. use is the name of the
// command and its arguments, such as "token list USER".
func (c *cli) command(parent *cobra.Command, use, short, example string, nargs int, do action) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Long: short + ".", Example: "  " + example,
		SilenceErrors: true, SilenceUsage: true,
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) != nargs:
				return c.exit(cmd, exitUsage, fmt.Errorf("arguments: got %d, need %d; usage: %s",
					len(args), nargs, cmd.UseLine()))
			case slices.Contains(args, ""): // probably a variable that a script has not set
				return c.exit(cmd, exitUsage, fmt.Errorf("an argument is empty; usage: %s",
					cmd.UseLine()))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.run(cmd, args, do)
		},
	}
	c.usageErrors(cmd)
	parent.AddCommand(cmd)
	return cmd
}

// usageErrors makes cmd end with exitUsage for a wrong flag, and for the name of an unknown
// command below it.
func (c *cli) usageErrors(cmd *cobra.Command) {
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return c.exit(cmd, exitUsage, fmt.Errorf("%w; see \"%s --help\"", err, cmd.CommandPath()))
	})
	if cmd.RunE == nil {
		// Without ArbitraryArgs cobra would report an unknown command itself, with exit code 1.
		cmd.Args = cobra.ArbitraryArgs
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return c.exit(cmd, exitUsage, fmt.Errorf("unknown command %q; see \"%s --help\"",
				args[0], cmd.CommandPath()))
		}
	}
}

// run connects to the API and calls do.
func (c *cli) run(cmd *cobra.Command, args []string, do action) error {
	// The context has no deadline, since a person may take long to answer a question.
	// requestTimeout bounds each request.
	ctx := context.Background()
	client, done, err := c.connect(ctx)
	if err == nil {
		err = do(ctx, client, args)
		err = errors.Join(err, done())
	}
	return c.exit(cmd, exitCode(err), err)
}

// exit prints err and returns an error that makes the process end with code. It returns nil if
// err is nil.
func (c *cli) exit(cmd *cobra.Command, code int, err error) error {
	if err == nil {
		return nil
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "caddy service-user: %s\n", cell(c.explain(err)))
	if code == exitFailed {
		return err
	}
	// Only an error from this wrapper carries another code than 1 to Caddy's main function.
	return caddycmd.WrapCommandFuncForCobra(func(caddycmd.Flags) (int, error) { return code, nil })(cmd, nil)
}

// explain adds advice to the text of an error that has none.
func (c *cli) explain(err error) string {
	var unreachable *admin.UnreachableError
	switch {
	case errors.As(err, &unreachable) && c.url != "":
		return fmt.Sprintf("no service-user API at %v; is --url right, "+
			"and does the site have service_users_admin? "+
			"Where people log in before it, leave out the id: a token alone goes as Bearer", err)
	case errors.As(err, &unreachable):
		return fmt.Sprintf("no service-user API at %v; is Caddy running, and is --address right? "+
			"Without a running Caddy use --store FILE", err)
	}
	return err.Error()
}

// usageError is a mistake in the arguments or flags of a command.
type usageError struct{ error }

// exitCode returns the exit code for an error of a command.
func exitCode(err error) int {
	var e *admin.Error
	var unreachable *admin.UnreachableError
	switch {
	case errors.As(err, new(usageError)):
		return exitUsage
	case errors.As(err, &unreachable):
		return exitUnreachable
	case errors.Is(err, store.ErrConflict): // restore works on the store itself
		return exitConflict
	case !errors.As(err, &e):
		return exitFailed
	case e.Code == caddymodule.ErrNotConfigured.Code:
		return exitUnreachable
	}
	switch e.Status {
	case http.StatusNotFound:
		return exitNotFound
	case http.StatusConflict, http.StatusPreconditionFailed:
		return exitConflict
	case http.StatusUnauthorized, http.StatusForbidden:
		return exitNotAllowed
	default:
		return exitFailed
	}
}

// connect returns a client of the running Caddy, of a site door, or of the store file, and a
// function that ends its use.
func (c *cli) connect(ctx context.Context) (*admin.Client, func() error, error) {
	switch {
	case c.store != "":
		return c.offline(ctx)
	case c.url != "":
		client, err := c.remote()
		return client, func() error { return nil }, err
	}
	address := c.address
	if address == "" && c.config != "" {
		var err error
		if address, err = configuredAddress(c.config, c.adapter); err != nil {
			return nil, nil, err
		}
	}
	if address == "" {
		address = caddy.DefaultAdminListen
	}
	client, err := dial(address)
	return client, func() error { return nil }, err
}

// configuredAddress returns the address of the admin endpoint in a configuration file.
func configuredAddress(file, adapter string) (string, error) {
	text, _, _, err := caddycmd.LoadConfig(file, adapter)
	if err != nil {
		return "", err
	}
	var config struct {
		Admin caddy.AdminConfig `json:"admin"`
	}
	if err := json.Unmarshal(text, &config); err != nil {
		return "", fmt.Errorf("--config: %w", err)
	}
	if config.Admin.Disabled {
		return "", errors.New("--config: this configuration has no admin endpoint (admin off); " +
			"use --store FILE")
	}
	return caddy.NewReplacer().ReplaceOrErr(config.Admin.Listen, true, true)
}

// requestTimeout bounds one request.
const requestTimeout = time.Minute

// dial returns a client of the admin endpoint at an address in Caddy's notation.
func dial(address string) (*admin.Client, error) {
	parsed, err := caddy.ParseNetworkAddress(address)
	tcp := strings.HasPrefix(parsed.Network, "tcp") && parsed.StartPort > 0 && parsed.PortRangeSize() == 1
	if err != nil || !tcp && !parsed.IsUnixNetwork() {
		return nil, usageError{fmt.Errorf("%q is not the address of an admin endpoint, such as localhost:2019 "+
			"or unix//run/caddy.sock", address)}
	}
	transport := new(http.Transport) // without a proxy, since the answer may contain a secret
	client := &admin.Client{
		Base: "http://" + parsed.JoinHostPort(0),
		HTTP: &http.Client{Transport: transport, Timeout: requestTimeout},
	}
	if parsed.IsUnixNetwork() {
		path, _, _ := strings.Cut(parsed.Host, "|") // the permissions of the socket follow
		client.Base = "http://127.0.0.1"            // the host that Caddy expects on a socket
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}
	}
	return client, nil
}

// offline returns a client that works on the store file itself. It creates a missing store only
// with --create. A running Caddy with the same store sees the changes within moments.
func (c *cli) offline(ctx context.Context) (*admin.Client, func() error, error) {
	if _, err := os.Stat(c.store); err != nil && !c.create {
		return nil, nil, fmt.Errorf("--store: %w; --create, or \"caddy run\", makes a new store", err)
	}
	opts, err := c.offlineOptions()
	if err != nil {
		return nil, nil, err
	}
	if c.create {
		made, err := store.Create(ctx, c.store, time.Now())
		if err != nil {
			return nil, nil, err
		}
		if made {
			fmt.Fprintf(c.stderr, "made the store %s\n", cell(c.store))
		}
	}
	opts.Existing = true
	s, err := store.Open(ctx, c.store, opts)
	if err != nil {
		return nil, nil, err
	}
	return admin.Offline(s, store.Local), s.Close, nil
}

// print writes a result to the standard output, in the form of --output. table writes the rows
// with a tab between two cells. Notes go to the standard error, but not with JSON, which contains
// the same facts.
func (c *cli) print(v any, table func(io.Writer), notes ...string) error {
	var err error
	switch c.output {
	case outputJSON:
		enc := json.NewEncoder(c.stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	case outputCSV:
		err = c.printCSV(table)
	default:
		w := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
		table(w)
		err = w.Flush()
	}
	if err != nil {
		return err
	}
	for _, note := range notes {
		if note != "" {
			fmt.Fprintln(c.stderr, note)
		}
	}
	return nil
}

// done confirms a command that has no result, such as "deleted people.view". It prints nothing
// with JSON or CSV.
func (c *cli) done(format string, args ...any) error {
	if c.output != outputTable {
		return nil
	}
	_, err := fmt.Fprintln(c.stdout, cell(fmt.Sprintf(format, args...)))
	return err
}

// cell makes text from the store or a server safe for a terminal. Characters that control the
// terminal, or change the direction of writing, become spaces.
func cell(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.Is(unicode.C, r) || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, s)
}

// dash returns "-" for an empty text.
func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func when(t *time.Time) string { return dash(whenSet(t)) }

func whenSet(t *time.Time) string {
	if t == nil || t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02 15:04:05Z")
}
