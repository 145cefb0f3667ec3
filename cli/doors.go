package cli

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"strings"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/caddymodule"
	"github.com/serviceusers/caddy-service-users/store"
)

// prepare checks the flags that every command has, before anything is done.
func (c *cli) prepare(cmd *cobra.Command, _ []string) error {
	err := c.chooseOutput(cmd.Flags().Changed("output"))
	if err == nil {
		err = c.checkDoors(cmd)
	}
	return c.exit(cmd, exitUsage, err)
}

// checkDoors refuses flags that lead to two stores at once. A flag that is given
// and empty is a variable of a script that is not set: without it the command
// would work on another store, or print a secret.
func (c *cli) checkDoors(cmd *cobra.Command) error {
	for _, name := range []string{"address", "config", "adapter", "store", "pepper-file", "url", "credentials-file", "secret-file"} {
		if f := cmd.Flags().Lookup(name); f != nil && f.Changed && f.Value.String() == "" {
			return usageError{fmt.Errorf("--%s is empty; give it a value or leave it out", name)}
		}
	}
	local := c.address != "" || c.config != "" || c.adapter != "" || c.store != "" || c.pepperFile != ""
	switch {
	case c.url != "" && local:
		return usageError{errors.New("--url leads to a site; leave out --address, --config, --adapter, --store and --pepper-file, or --url")}
	case c.url == "" && c.credentialsFile != "":
		return usageError{errors.New("--credentials-file goes with --url; the admin endpoint and a store need no credentials")}
	case c.url == "" && c.insecureHTTP:
		return usageError{errors.New("--insecure-http goes with --url")}
	case c.store != "" && c.address != "":
		return usageError{errors.New("--store works without a running Caddy; leave out --address, or --store")}
	case c.store == "" && c.create:
		return usageError{errors.New("--create goes with --store, which names the file to make")}
	case c.store == "" && c.pepperFile != "":
		return usageError{errors.New("--pepper-file goes with --store; a running Caddy has its own")}
	}
	return nil
}

// The variables of the environment that hold the credentials for --url. A program's
// environment is its own; its arguments can be read by everybody on the machine.
const (
	idVariable    = "SERVICE_USER_ID"
	tokenVariable = "SERVICE_USER_TOKEN"
)

// remote returns a client of a site door.
func (c *cli) remote() (*admin.Client, error) {
	base, err := siteURL(c.url, c.insecureHTTP)
	if err != nil {
		return nil, usageError{fmt.Errorf("--url: %w", err)}
	}
	authorization, err := c.credentials()
	if err != nil {
		return nil, err
	}
	transport := new(http.Transport)
	if strings.HasPrefix(base, "https:") {
		transport.Proxy = http.ProxyFromEnvironment // which sees nothing but the name of the host
	}
	return &admin.Client{
		Base: base, Header: http.Header{"Authorization": {authorization}},
		HTTP: &http.Client{Transport: transport, Timeout: requestTimeout},
	}, nil
}

// siteURL checks the URL of a site door. What is wrong is told without the URL,
// which may hold a password.
func siteURL(text string, insecure bool) (string, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" || u.Opaque != "":
		return "", errors.New("this is no URL such as https://admin.example.com")
	case u.User != nil:
		return "", fmt.Errorf("leave the credentials out: everybody on this machine can read them there; put them into %s and %s, or into --credentials-file", idVariable, tokenVariable)
	case u.RawQuery != "" || u.ForceQuery || strings.Contains(text, "#"):
		return "", errors.New("the URL ends with the path, if it has one; leave out what begins with \"?\" or \"#\"")
	case u.Scheme == "http" && !insecure && !caddymodule.IsLoopback(u.Hostname()):
		return "", errors.New("http:// would send the credentials, and tokens, in the clear; use https://, or add --insecure-http where the way is safe in itself")
	}
	return u.Scheme + "://" + u.Host + strings.TrimRight(u.EscapedPath(), "/"), nil
}

// credentials returns the value of the Authorization field for --url.
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
		if value, ok := authorization(id, token); ok && (id != "" || !both) {
			return value, nil
		}
		return "", fmt.Errorf("--credentials-file: %q holds neither \"id:token\" nor a token, alone on one line", c.credentialsFile)
	}
	id, token := os.Getenv(idVariable), os.Getenv(tokenVariable)
	if token == "" {
		return "", usageError{fmt.Errorf("--url needs the credentials of a service user with the role admin or manager: set %s and %s, or name a --credentials-file", idVariable, tokenVariable)}
	}
	value, ok := authorization(id, token)
	if !ok {
		return "", usageError{fmt.Errorf("%s and %s do not hold an id and a token", idVariable, tokenVariable)}
	}
	return value, nil
}

// authorization makes Basic credentials, or Bearer ones without an id. It reports
// false for what no server would take.
func authorization(id, token string) (string, bool) {
	if id == "" {
		value := "Bearer " + token
		_, ok := access.ParseBearer(value)
		return value, ok
	}
	value := "Basic " + base64.StdEncoding.EncodeToString([]byte(id+":"+token))
	_, ok := access.ParseBasic(value)
	return value, ok
}

// readCredentials reads a file that nobody else can.
func readCredentials(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return "", err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 && runtime.GOOS != "windows" {
		return "", fmt.Errorf("%q can be read by others (mode %04o); \"chmod 600\" it", path, mode)
	}
	text, err := io.ReadAll(io.LimitReader(file, access.MaxCredentialBytes+1))
	return strings.TrimSpace(string(text)), err
}

// offlineOptions are the settings of a store that is opened without a server: what
// the configuration says, if one is named, so that a token lives as long as if the
// server had issued it.
func (c *cli) offlineOptions() (opts store.Options, err error) {
	if c.config != "" {
		app, err := configuredApp(c.config, c.adapter)
		if err != nil {
			return opts, err
		}
		app.Store = "" // --store is another one perhaps, such as a backup
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
	// It tells of tokens that need another pepper; the audit trail is in the store.
	opts.Log = caddy.Log().Named("service_users").WithOptions(zap.IncreaseLevel(zap.WarnLevel))
	return opts, nil
}

// configuredApp reads the settings of service users out of a configuration.
func configuredApp(file, adapter string) (app caddymodule.App, err error) {
	text, _, _, err := caddycmd.LoadConfig(file, adapter)
	if err != nil {
		return app, err
	}
	var config struct {
		Apps struct {
			ServiceUsers json.RawMessage `json:"service_users"`
		} `json:"apps"`
	}
	if err := json.Unmarshal(text, &config); err != nil {
		return app, fmt.Errorf("--config: %w", err)
	}
	switch raw := config.Apps.ServiceUsers; {
	case raw != nil:
		if err := caddy.StrictUnmarshalJSON(raw, &app); err != nil {
			return app, fmt.Errorf("--config: service_users: %w", err)
		}
	case !bytes.Contains(text, []byte(`"service_users`)): // a directive alone leaves all at its default
		return app, errors.New("--config: this configuration has neither the global option nor a directive service_users")
	}
	return app, nil
}
