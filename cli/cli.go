package cli

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/user"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/serviceusers/caddy-service-users/access"
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

// commandName begins the example of every command.
const commandName = "caddy service-user "

// group adds a command that only groups other commands.
func (c *cli) group(parent *cobra.Command, name, short, example string) *cobra.Command {
	cmd := &cobra.Command{
		Use: name + " COMMAND", Short: short, Long: short + ".", Example: "  " + commandName + example,
	}
	c.usageErrors(cmd)
	parent.AddCommand(cmd)
	return cmd
}

// action does the work of one command.
type action func(args []string) error

// command adds a command that connects to the API before it runs do. use is the name of the command
// and its arguments, such as "list USER". example is a call of it, without commandName.
func (c *cli) command(parent *cobra.Command, use, short, example string, do action) *cobra.Command {
	return c.localCommand(parent, use, short, example, c.connected(do))
}

// localCommand adds a command that does not need the API, or not at its start.
func (c *cli) localCommand(parent *cobra.Command, use, short, example string, do action) *cobra.Command {
	names, least, most := arguments(use)
	cmd := &cobra.Command{
		Use: use, Short: short, Long: short + ".", Example: "  " + commandName + example,
		Args: func(cmd *cobra.Command, args []string) error {
			switch empty, right := slices.Index(args, ""), inOrder(names, args); {
			case len(args) < least || len(args) > most:
				return c.exit(cmd, wrongCount(cmd, args))
			case empty >= 0:
				return c.exit(cmd, usagef("%s is empty; is a variable of the script unset? usage: %s",
					names[min(empty, len(names)-1)], cmd.UseLine()))
			case slices.ContainsFunc(args, store.IsURL) && slices.Contains(names, "FILE"):
				return c.exit(cmd, usagef("FILE is not a URL; --store names a store in PostgreSQL, "+
					"and \"copy\" copies one into a file, or a file into one"))
			case !slices.Equal(right, args):
				return c.exit(cmd, usagef("the arguments are in another order; write: %s",
					shellLine(cmd.CommandPath(), right)))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return c.exit(cmd, c.receipt(do(args))) },
	}
	c.usageErrors(cmd)
	parent.AddCommand(cmd)
	return cmd
}

// wrongCount returns the error for too few or too many arguments.
func wrongCount(cmd *cobra.Command, args []string) error {
	return usagef("arguments: got %d; usage: %s, such as:%s", len(args), cmd.UseLine(), cmd.Example[1:])
}

// arguments returns the names of the arguments of a command, and how many it takes at least and at
// most. In its usage "[FILE]" may be left out, and "…" allows more of the kind.
func arguments(use string) (names []string, least, most int) {
	use, _, _ = strings.Cut(use, " | ") // "explain" checks its second usage itself
	for _, word := range strings.Fields(use)[1:] {
		names, most = append(names, strings.Trim(word, "[].…|-")), most+1
		if !strings.HasPrefix(word, "[") {
			least++
		}
		if strings.Contains(word, "…") {
			most = math.MaxInt
		}
	}
	return names, least, most
}

// usageErrors makes cmd end with exitUsage for a wrong flag, and for the name of an unknown
// command below it.
func (c *cli) usageErrors(cmd *cobra.Command) {
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SuggestFor, cmd.SuggestionsMinimumDistance = strings.Fields(synonyms[cmd.Name()]), 2
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return c.exit(cmd, unknownFlag(cmd, err))
	})
	if cmd.RunE == nil {
		// Without ArbitraryArgs cobra would report an unknown command itself, with exit code 1.
		cmd.Args = cobra.ArbitraryArgs
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 && args[0] == "help" {
				cmd, args, _ = cmd.Find(args[1:]) // the error is for an unknown command
			}
			if len(args) > 0 && cmd.HasSubCommands() {
				return c.exit(cmd, unknownCommand(cmd, args))
			}
			cmd.InitDefaultHelpFlag()
			return cmd.Help()
		}
	}
}

// exit prints err and returns an error that makes the process end with its exit code. It returns
// nil if err is nil.
func (c *cli) exit(cmd *cobra.Command, err error) error {
	if err == nil {
		return nil
	}
	if err != errNotYet { // receipt has said it
		text := urlPassword.ReplaceAllString(access.MaskSecrets(c.explain(err)), "$1$3…$2")
		fmt.Fprintf(cmd.ErrOrStderr(), "caddy service-user: %s\n", cell(text))
	}
	code := exitCode(err)
	if code == exitFailed {
		return err
	}
	// Only an error from this wrapper carries another code than 1 to Caddy's main function.
	return caddycmd.WrapCommandFuncForCobra(func(caddycmd.Flags) (int, error) { return code, nil })(cmd, nil)
}

// urlPassword matches the password in a URL, for example of a database.
var urlPassword = regexp.MustCompile(`(:/+[^\s:/?#@]*:)\S*(@)|(password=)[^\s&"]*`)

// explain adds advice to the text of an error that has none.
func (c *cli) explain(err error) string {
	var e *admin.Error
	switch {
	case errors.As(err, &e) && e.Status == http.StatusUnauthorized && c.url != "":
		return fmt.Sprintf("the login with %s was refused: %v; is the token right, and not ended? "+
			"Where people log in before it, leave out the id: a token alone goes as Bearer", c.login, err)
	case errors.As(err, &e) && e.Status == http.StatusForbidden && e.Code == "" && c.url == "":
		return err.Error() + "; Caddy serves the hosts that \"admin\" and its \"origins\" name " +
			"in the configuration: give one of them as --address, or add this one"
	case errors.As(err, &e) && e.Code == "ERR_NOT_READY" && e.Details["store"] != "ok":
		return err.Error() + ": " + e.Details["store"]
	case !errors.As(err, new(*admin.UnreachableError)):
		return err.Error()
	case errors.As(err, new(*tls.CertificateVerificationError)):
		return fmt.Sprintf("%v; name the certificate of its authority in SSL_CERT_FILE, "+
			"or use the name in the certificate", err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Sprintf("no service-user API at %v; only the user of Caddy may open the socket: "+
			"run this as that user, or as root", err)
	case c.url != "":
		return fmt.Sprintf("no service-user API at %v; is --url right, "+
			"and does the site have service_users_admin? "+
			"Where people log in before it, leave out the id: a token alone goes as Bearer", err)
	default:
		return fmt.Sprintf("no service-user API at %v; is Caddy running, and is its address right "+
			"(--address, CADDY_ADMIN or --config)? Without a running Caddy use --store FILE", err)
	}
}

// usageError is a mistake in the arguments or flags of a command.
type usageError struct{ error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// exitCode returns the exit code for an error of a command.
func exitCode(err error) int {
	var e *admin.Error
	switch {
	case err == errNotYet:
		return exitNotYet
	case errors.As(err, new(usageError)):
		return exitUsage
	case errors.As(err, new(*admin.UnreachableError)):
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

// connected returns an action that first connects to the API.
func (c *cli) connected(do action) action {
	return func(args []string) error {
		disconnect, err := c.connect()
		if err != nil {
			return err
		}
		return errors.Join(do(args), disconnect())
	}
}

// connect sets the client: of the running Caddy, of a site door, or of the store file. Without an
// error the caller must call disconnect.
func (c *cli) connect() (disconnect func() error, err error) {
	disconnect = func() error { return nil }
	switch {
	case c.store != "":
		s, err := c.openStore()
		if err != nil {
			return nil, err
		}
		c.client, disconnect = admin.Offline(s, store.LocalUser(userName())), s.Close
	case c.url != "":
		c.client, err = c.remote()
	default:
		c.client, err = c.local()
	}
	if err == nil {
		c.client.Wait = c.wait
	}
	return disconnect, err
}

// do sends one request and decodes the answer into out, unless out is nil. The context has no
// deadline, since requestTimeout bounds each request.
func (c *cli) do(method, uri string, in, out any) error {
	return c.client.Do(context.Background(), method, uri, in, out)
}

// change sends a request that has no answer, and confirms it.
func (c *cli) change(method, uri, format string, args ...any) error {
	if err := c.do(method, uri, nil, nil); err != nil {
		return err
	}
	return c.done(format, args...)
}

// all returns a list with the entries of all of its pages. parts returns the parts of a list.
func all[List, Entry any](c *cli, uri string, parts func(*List) (*[]Entry, *admin.Page)) (whole List, err error) {
	entries, page := parts(&whole)
	*entries = []Entry{}
	err = admin.All(context.Background(), c.client, uri, func(l List) admin.Page {
		more, p := parts(&l)
		*entries = append(*entries, *more...)
		page.URI = p.URI
		return *p
	})
	return whole, err
}

// withQuery returns a path with a query, if that has a parameter.
func withQuery(path string, query url.Values) string {
	if len(query) == 0 {
		return path
	}
	return path + "?" + query.Encode()
}

// user returns the service user with this id or name.
func (c *cli) user(idOrName string) (admin.ServiceUser, error) {
	return c.client.FindServiceUser(context.Background(), idOrName)
}

// permissionGroup returns the permission group with this id or name.
func (c *cli) permissionGroup(idOrName string) (admin.Group, error) {
	return c.client.FindGroup(context.Background(), idOrName)
}

// on returns an action that first finds the resource that its first argument names.
func on[T any](find func(string) (T, error), do func(T, []string) error) action {
	return func(args []string) error {
		found, err := first(find, args)
		if err != nil {
			return err
		}
		return do(found, args)
	}
}

// first finds the resource that the first argument names. If the last argument names one instead, the
// error says so.
func first[T any](find func(string) (T, error), args []string) (T, error) {
	found, err := find(args[0])
	if last := len(args) - 1; last > 0 && admin.IsNotFound(err) {
		if _, missing := find(args[last]); missing == nil {
			err = usagef("%w, but %q is one; write: … %s", err, args[last],
				shellLine(store.ShellWord(args[last]), args[:last]))
		}
	}
	return found, err
}

// checkID rejects a text that is not an id, before it becomes part of a path.
func checkID(kind, id string) error {
	if !store.ValidID(kind, id) {
		return admin.NewError(http.StatusNotFound, "ERR_NOT_FOUND",
			fmt.Sprintf("there is no %s %q; it is named by its id, %[1]s_…", kind, id))
	}
	return nil
}

// local returns a client of the running Caddy.
func (c *cli) local() (*admin.Client, error) {
	address := c.address
	if address == "" && c.config != "" {
		config, _, err := c.readConfig()
		if err != nil {
			return nil, err
		}
		if config.Admin.Disabled {
			return nil, errors.New("--config: this configuration has no admin endpoint (admin off); " +
				"use --store FILE")
		}
		address, err = caddy.NewReplacer().ReplaceOrErr(config.Admin.Listen, true, true)
		if err != nil {
			return nil, err
		}
	}
	client, err := dial(cmp.Or(address, caddy.DefaultAdminListen))
	if err != nil {
		return nil, err
	}
	// A name that the server would refuse is left out.
	if _, err := store.SaidLocal(admin.CallerHeader, userName()); err == nil {
		client.Header = http.Header{admin.CallerHeader: {userName()}}
	}
	return client, nil
}

// userName returns the name of the user that runs this process, by its user id, and the id itself if
// it has no name. The variables USER and SUDO_USER do not count: the caller chooses them.
func userName() string {
	id := strconv.Itoa(os.Getuid())
	if id == "-1" { // Windows
		if u, err := user.Current(); err == nil {
			return u.Username
		}
	} else if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return id
}

// requestTimeout bounds one request.
const requestTimeout = time.Minute + admin.MaxWait

// dial returns a client of the admin endpoint at an address in Caddy's notation.
func dial(address string) (*admin.Client, error) {
	parsed, err := caddy.ParseNetworkAddress(address)
	tcp := strings.HasPrefix(parsed.Network, "tcp") && parsed.StartPort > 0 && parsed.PortRangeSize() == 1
	if err != nil || !tcp && !parsed.IsUnixNetwork() {
		return nil, usagef("%q is not the address of an admin endpoint, such as localhost:2019 "+
			"or unix//run/caddy.sock", address)
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
