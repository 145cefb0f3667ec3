package cli

import (
	"io"

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
	exitNotYet
)

const cliHelp = `Manages the service users of a running Caddy, through its admin endpoint. With
--store it works on a store without a running Caddy. With --url it works
through a site, from any machine, with the credentials of a service user that is
an admin or a manager: from SERVICE_USER_ID and SERVICE_USER_TOKEN, or from
--credentials-file. Name a service user or a group by its id or its name.

Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 conflict, 5 not allowed,
6 unreachable, 7 done, but with --wait not in force on every node yet. A check
with findings (lint, check-log, scan, check) ends with 1.`

// cli is one run of a command, with the flags and the outputs of all commands.
type cli struct {
	address, config, adapter string
	store, pepperFile        string
	url, credentialsFile     string
	login                    string // describes the credentials for url, in an error
	insecureHTTP, create     bool
	wait                     string // the parameter of changes, or ""
	output                   string
	json                     bool   // output is JSON
	yes                      bool   // answer every question with yes
	dryRun                   bool   // show the effect of a change, and change nothing
	secretFile               string // file for an issued secret; "" is the standard output
	stdout, stderr           io.Writer
	terminal                 bool          // stderr is a terminal
	client                   *admin.Client // of the running Caddy, a site door or the store file
}

func newCLI() *cli { return &cli{output: outputTable, client: new(admin.Client)} }

// commands adds every command below "caddy service-user".
func (c *cli) commands(root *cobra.Command) {
	root.Use = "service-user COMMAND"
	root.Long = cliHelp
	root.Example = "  " + commandName + "create billing-sync --group people-readers"
	root.SetHelpTemplate(helpTemplate)
	flags := root.PersistentFlags()
	flags.StringVar(&c.address, "address", "",
		"the address of the admin endpoint of the running Caddy, host:port or unix//path")
	flags.StringVarP(&c.config, "config", "c", "",
		"take the address of the admin endpoint, or with --store the settings of service users, "+
			"from this configuration")
	flags.StringVarP(&c.adapter, "adapter", "a", "", "the adapter of the configuration")
	flags.StringVar(&c.store, "store", "",
		"work on this store, a file or a URL postgres://…, without a running Caddy; "+
			"{env.NAME} or {file./path} hides a password from other users")
	flags.BoolVar(&c.create, "create", false,
		"with --store: create a missing store; works also without a command")
	flags.StringVar(&c.pepperFile, "pepper-file", "", "with --store: the pepper_file of the configuration")
	flags.StringVar(&c.url, "url", "",
		"use the service_users_admin of this site, such as https://admin.example.com")
	flags.StringVar(&c.credentialsFile, "credentials-file", "",
		"with --url: a file with \"id:token\" or a token, which only you can read")
	flags.BoolVar(&c.insecureHTTP, "insecure-http", false,
		"with --url: send credentials over http:// to another machine, in the clear")
	flags.StringVar(&c.wait, "wait", "", "after a change, wait at most this `TIME`, such as 2s, "+
		"until it is in force on every node; report those that are late")
	flags.StringVar(&c.output, "output", outputTable,
		"the `FORMAT` of results: table, json (the answer of the REST API) or csv")
	flags.BoolVar(&c.json, "json", false, "short for --output json")
	root.PersistentPreRunE = c.prepare
	c.usageErrors(root)
	// "caddy service-user --store PATH --create" works without a command, for the build of an image.
	help := root.RunE
	root.RunE = func(cmd *cobra.Command, args []string) error {
		if !c.create || len(args) > 0 {
			return help(cmd, args)
		}
		made := c.connected(func([]string) error { return c.done("the store is %s", c.store) })
		return c.exit(cmd, made(args))
	}

	c.userCommands(root)
	c.tokenCommands(c.group(root, "token", "Manages the tokens of a service user",
		"token create billing-sync --ttl 90d"))
	c.groupCommands(c.group(root, "group", "Manages permission groups and their members",
		"group add people-readers billing-sync"))
	c.ruleCommands(c.group(root, "rule", "Manages the rules of a permission group",
		"rule add people-readers \"allow GET /v1/people/{id}\""))
	c.permissionCommands(c.group(root, "permission",
		"Manages the catalogue of permissions, and grants them to groups",
		"permission grant people-readers people.address.view"))
	c.rightsCommands(root)
	c.auditCommands(c.group(root, "audit", "Reads and verifies the audit trail", "audit verify"))
	c.backupCommands(root)
	c.copyCommand(root)
	c.nodeCommands(c.group(root, "node", "Shows the processes that decide requests by one store", "node list"))
	c.healthCommand(root)
	c.olderCommand(root)
	c.scanCommand(root)
	c.lintCommand(root)
	c.checkLogCommand(root)
	c.versionCommand(root)
}
