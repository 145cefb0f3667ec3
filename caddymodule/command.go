package caddymodule

import (
	"context"
	"io"
	"os"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/serviceusers/caddy-service-users/admin"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:      "service-user",
		Short:     "Manages service users, their tokens and permission groups",
		CobraFunc: func(root *cobra.Command) { newCLI().commands(root) },
	})
}

// The exit codes, for scripts.
const (
	exitFailed = 1 + iota
	exitUsage
	exitNotFound
	exitConflict
	exitNotAllowed
	exitUnreachable
)

const cliHelp = `Manages the service users of a running Caddy, through its admin endpoint, or
those in a store file when no Caddy runs (--store). A service user or a group is
named by its id or by its name.

Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 conflict, 5 not allowed,
6 unreachable.`

// cli is one run of the command: its flags, and where it prints.
type cli struct {
	address, config, adapter string
	store, pepperFile        string
	json                     bool
	stdout, stderr           io.Writer
}

func newCLI() *cli { return &cli{stdout: os.Stdout, stderr: os.Stderr} }

// action is what one command does with its arguments.
type action func(ctx context.Context, client *admin.Client, args []string) error

// commands hangs every command under "caddy service-user".
func (c *cli) commands(root *cobra.Command) {
	root.Use = "service-user COMMAND"
	root.Long = cliHelp
	root.Example = "  caddy service-user create billing-sync --group people-readers"
	root.SetHelpTemplate(helpTemplate)
	flags := root.PersistentFlags()
	flags.StringVar(&c.address, "address", "", "the address of the admin endpoint of the running Caddy, host:port or unix//path")
	flags.StringVarP(&c.config, "config", "c", "", "take the address of the admin endpoint from this configuration")
	flags.StringVarP(&c.adapter, "adapter", "a", "", "the adapter of the configuration")
	flags.StringVar(&c.store, "store", "", "work on this store file, without a running Caddy")
	flags.StringVar(&c.pepperFile, "pepper-file", "", "with --store: the pepper_file of the configuration")
	flags.BoolVar(&c.json, "json", false, "print what the REST API answers")
	c.usageErrors(root)

	c.userCommands(root)
	token := c.group(root, "token", "Manages the tokens of a service user",
		"caddy service-user token create billing-sync --ttl 90d")
	c.tokenCommands(token)
	group := c.group(root, "group", "Manages permission groups and their members",
		"caddy service-user group add people-readers billing-sync")
	c.groupCommands(group)
	rule := c.group(root, "rule", "Manages the rules of a permission group",
		"caddy service-user rule add people-readers \"allow GET /v1/people/{id}\"")
	c.ruleCommands(rule)
	permission := c.group(root, "permission", "Manages the catalogue of permissions, and which groups have them",
		"caddy service-user permission grant people-readers people.address.view")
	c.permissionCommands(permission)
	c.rightsCommands(root)
	c.lintCommand(root)
	c.checkLogCommand(root)
}
