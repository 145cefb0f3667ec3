package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"runtime"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.uber.org/zap"
	"golang.org/x/term"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/caddymodule"
	"github.com/serviceusers/caddy-service-users/store"
)

// prepare sets the outputs and checks the flags of all commands, before a command does any work.
func (c *cli) prepare(cmd *cobra.Command, _ []string) error {
	c.stdout, c.stderr = cmd.OutOrStdout(), cmd.ErrOrStderr()
	file, ok := c.stderr.(*os.File)
	c.terminal = ok && term.IsTerminal(int(file.Fd()))
	err := c.chooseOutput(cmd.Flags().Changed("output"))
	if err == nil {
		err = c.checkDoors(cmd)
	}
	return c.exit(cmd, err)
}

// checkDoors refuses flags that name two stores. It also refuses an empty value of a flag, which
// is probably a variable that a script has not set: the command would otherwise work on another
// store, or print a secret.
func (c *cli) checkDoors(cmd *cobra.Command) error {
	var empty error
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if _, checks := f.Value.(setFlag); !checks && f.Value.Type() == "string" && f.Value.String() == "" {
			empty = usagef("--%s is empty; give it a value or leave it out", f.Name)
		}
	})
	_, bad := admin.ParseWait(cmp.Or(c.wait, "0s"))
	local := c.address != "" || c.config != "" || c.adapter != "" || c.store != "" || c.pepperFile != ""
	switch {
	case empty != nil:
		return empty
	case bad != nil:
		return usagef("--%w", bad)
	case c.wait != "" && c.store != "" && !store.IsURL(c.store):
		return usagef("--wait asks a running Caddy, and --store works on a file; leave one of them out. " +
			"A running Caddy applies a change of the file within moments")
	case c.url != "" && local:
		return usagef("--url leads to a site; leave out --address, --config, --adapter, " +
			"--store and --pepper-file, or --url")
	case c.url == "" && c.credentialsFile != "":
		return usagef("--credentials-file goes with --url; " +
			"the admin endpoint and a store need no credentials")
	case c.url == "" && c.insecureHTTP:
		return usagef("--insecure-http goes with --url")
	case c.store != "" && c.address != "":
		return usagef("--store works without a running Caddy; leave out --address, or --store")
	case c.store == "" && c.create:
		return usagef("--create goes with --store, which names the file to make")
	case c.store == "" && c.pepperFile != "":
		return usagef("--pepper-file goes with --store; a running Caddy has its own")
	}
	c.store, empty = place("store", c.store)
	return empty
}

// The environment variables with the credentials for --url. Other users of the machine can read
// the arguments of a program, but not its environment.
const (
	idVariable    = "SERVICE_USER_ID"
	tokenVariable = "SERVICE_USER_TOKEN"
)

// remote returns a client of a site door.
func (c *cli) remote() (*admin.Client, error) {
	base, err := siteURL(c.url, c.insecureHTTP)
	if err != nil {
		shown := regexp.MustCompile(`.*@|[?#].*`).ReplaceAllString(c.url, "…") // without possible secrets
		return nil, usagef("--url %q: %w", shown, err)
	}
	authorization, err := c.credentials()
	if err != nil {
		return nil, err
	}
	transport := new(http.Transport)
	if strings.HasPrefix(base, "https:") {
		transport.Proxy = http.ProxyFromEnvironment // with https the proxy sees only the host name
	}
	return &admin.Client{
		Base: base, Header: http.Header{"Authorization": {authorization}},
		HTTP: &http.Client{Transport: transport, Timeout: requestTimeout},
	}, nil
}

// siteURL checks the URL of a site door, and returns it without a slash at its end. Its errors do
// not contain the URL, which may contain a password.
func siteURL(text string, insecure bool) (string, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" || u.Opaque != "":
		return "", errors.New("this is not a URL such as https://admin.example.com")
	case u.User != nil:
		return "", fmt.Errorf("leave the credentials out: everybody on this machine can read them there; "+
			"put them into %s and %s, or into --credentials-file", idVariable, tokenVariable)
	case u.RawQuery != "" || u.ForceQuery || strings.Contains(text, "#"):
		return "", errors.New("the URL ends with its path; leave out \"?\" or \"#\" and the rest")
	case u.Scheme == "http" && !insecure && !caddymodule.IsLoopback(u.Hostname()):
		return "", errors.New("http:// would send the credentials, and tokens, in the clear; use https://, " +
			"or add --insecure-http where the network is safe")
	}
	return u.Scheme + "://" + u.Host + strings.TrimRight(u.EscapedPath(), "/"), nil
}

// credentials returns the value of the header Authorization for --url.
func (c *cli) credentials() (string, error) {
	if c.credentialsFile != "" {
		text, err := readCredentials(c.credentialsFile)
		if err != nil {
			return "", fmt.Errorf("--credentials-file: %w", err)
		}
		id, token, both := strings.Cut(text, ":")
		if !both {
			id, token = "", text
		}
		if value, ok := c.authorization(id, token); ok && (id != "" || !both) {
			return value, nil
		}
		return "", fmt.Errorf("--credentials-file: %q holds neither \"id:token\" nor a token, "+
			"alone on one line", c.credentialsFile)
	}
	id, token := os.Getenv(idVariable), os.Getenv(tokenVariable)
	if token == "" {
		return "", usagef("--url needs the credentials of a service user "+
			"with the role admin or manager: set %s and %s, or name a --credentials-file",
			idVariable, tokenVariable)
	}
	value, ok := c.authorization(id, token)
	if !ok {
		return "", usagef("%s and %s do not hold an id and a token", idVariable, tokenVariable)
	}
	return value, nil
}

// authorization returns Basic credentials, or Bearer credentials if id is empty. It reports false
// if no server would accept them.
func (c *cli) authorization(id, token string) (string, bool) {
	if c.login = fmt.Sprintf("the id %q", id); id == "" {
		c.login = "a token without an id"
		value := "Bearer " + token
		_, ok := access.ParseBearer(value)
		return value, ok
	}
	value := "Basic " + base64.StdEncoding.EncodeToString([]byte(id+":"+token))
	_, ok := access.ParseBasic(value)
	return value, ok
}

// readCredentials reads a file with credentials. It refuses a file that other users can read.
func readCredentials(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", store.ExplainPath(path, err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return "", err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 && runtime.GOOS != "windows" {
		return "", fmt.Errorf("%q can be read by others (mode %04o); \"chmod 600\" it", path, mode)
	}
	// One byte above the limit makes a file that is too large fail as a credential.
	text, err := io.ReadAll(io.LimitReader(file, access.MaxCredentialBytes+1))
	return strings.TrimSpace(string(text)), err
}

// openStore opens the store itself. It creates a missing store only with --create. A running Caddy with
// the same store applies the changes within moments.
func (c *cli) openStore() (*store.Store, error) {
	ctx := context.Background()
	if store.IsURL(c.store) {
		return c.openURL(ctx)
	}
	if _, err := os.Stat(c.store); err != nil && !c.create {
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w; --create, or \"caddy run\", makes a new store", err)
		}
		return nil, fmt.Errorf("--store: %w", store.ExplainPath(c.store, err))
	}
	if store.Pristine(ctx, c.store) {
		file := store.ShellWord(c.store)
		return nil, fmt.Errorf("--store: %q is a backup, which this command would change; "+
			"to look into it, run \"%s--store NEW restore %s\" and name NEW here; "+
			"to use the file itself as a store, run \"%[2]saccept-older --store %[3]s\"", c.store, commandName, file)
	}
	opts, err := c.offlineOptions()
	if err != nil {
		return nil, err
	}
	if c.create {
		made, err := store.Create(ctx, c.store, time.Now())
		if err != nil {
			return nil, err
		}
		if made {
			fmt.Fprintf(c.stderr, "made the store %s\n", cell(c.store))
		}
	}
	opts.Existing = true
	return store.Open(ctx, c.store, opts)
}

// openURL is openStore for a store in PostgreSQL. Afterwards c.store has no password.
func (c *cli) openURL(ctx context.Context) (*store.Store, error) {
	opts, err := c.offlineOptions()
	if err != nil {
		return nil, err
	}
	opts.Existing, opts.Unlisted = true, true
	s, err := store.Open(ctx, c.store, opts)
	if missing := errors.Is(err, fs.ErrNotExist); missing && c.create {
		opts.Existing, opts.Log = false, nil
		if s, err = store.Open(ctx, c.store, opts); err == nil {
			fmt.Fprintf(c.stderr, "made the store %s\n", cell(s.Path()))
		}
	}
	if err == nil {
		c.store = s.Path()
	}
	return s, err
}

// offlineOptions returns the options for a store that is opened without a server. They are the
// settings of the configuration, if --config names one, so that a token gets the same lifetime as
// a token from the server.
func (c *cli) offlineOptions() (opts store.Options, err error) {
	if c.config != "" {
		app, err := c.configuredApp()
		if err != nil {
			return opts, err
		}
		app.Store = "" // --store may name another file, such as a backup
		if c.pepperFile != "" {
			app.PepperFile = ""
		}
		if _, opts, err = app.StoreOptions(); err != nil {
			return opts, fmt.Errorf("--config: %w", err)
		}
	}
	if c.pepperFile != "" {
		if opts.Peppers, err = caddymodule.ReadPeppers(c.pepperFile); err != nil {
			return opts, err
		}
	}
	// The log warns about tokens that need another pepper. At the level info it would repeat the
	// audit trail, which is in the store.
	opts.Log = caddy.Log().Named("service_users").WithOptions(zap.IncreaseLevel(zap.WarnLevel))
	return opts, nil
}

// configuration has the parts of a configuration that commands use.
type configuration struct {
	Admin caddy.AdminConfig `json:"admin"`
	Apps  struct {
		ServiceUsers json.RawMessage `json:"service_users"`
	} `json:"apps"`
}

// readConfig reads the configuration of --config, and returns its JSON, too.
func (c *cli) readConfig() (config configuration, text []byte, err error) {
	text, _, _, err = caddycmd.LoadConfig(c.config, c.adapter)
	if err != nil {
		return config, nil, err
	}
	if err := json.Unmarshal(text, &config); err != nil {
		return config, nil, fmt.Errorf("--config: %w", err)
	}
	return config, text, nil
}

// configuredApp returns the settings of service users in the configuration of --config.
func (c *cli) configuredApp() (app caddymodule.App, err error) {
	config, text, err := c.readConfig()
	if err != nil {
		return app, err
	}
	switch raw := config.Apps.ServiceUsers; {
	case raw != nil:
		if err := caddy.StrictUnmarshalJSON(raw, &app); err != nil {
			return app, fmt.Errorf("--config: service_users: %w", err)
		}
	case !bytes.Contains(text, []byte(`"service_users`)): // with a directive alone, each setting has its default
		return app, errors.New("--config: this configuration has neither the global option " +
			"nor a directive service_users")
	}
	return app, nil
}
