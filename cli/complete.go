package cli

import (
	"cmp"
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/admin"
)

// completionTimeout is how long somebody who presses the tab key waits at most.
const completionTimeout = 500 * time.Millisecond

// complete has every command suggest its arguments and the values of its flags.
// Names come from the admin endpoint of the running Caddy; when it does not answer
// there are none. A store is not opened for that, and no credential is sent.
func (c *cli) complete(cmd *cobra.Command) {
	for _, sub := range cmd.Commands() {
		c.complete(sub)
	}
	for name, known := range flagValues {
		if cmd.LocalFlags().Lookup(name) != nil {
			_ = cmd.RegisterFlagCompletionFunc(name, c.suggest(known))
		}
	}
	if cmd.HasSubCommands() {
		return
	}
	usage, _, _ := strings.Cut(cmd.Use, " |") // the first of two forms
	places := strings.Fields(usage)[1:]
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
		switch n := len(args); {
		case strings.Contains(usage, "FILE") || strings.Contains(usage, "PATH"):
			return nil, cobra.ShellCompDirectiveDefault
		case n < len(places) && argumentValues[places[n]] != nil:
			return c.suggest(argumentValues[places[n]])(cmd, args, begun)
		}
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
}

// suggest makes a completion of what is known to stand in a place.
func (c *cli) suggest(known values) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, begun string) (list []cobra.Completion, _ cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(context.Background(), completionTimeout)
		defer cancel()
		q := question{ctx: ctx, args: args, add: func(value, about string) {
			if strings.HasPrefix(value, begun) && cell(value) == value {
				list = append(list, cobra.CompletionWithDesc(value, cell(about)))
			}
		}}
		if c.store == "" && c.url == "" {
			q.client, _, _ = c.connect(ctx)
		}
		known(q)
		return list, cobra.ShellCompDirectiveNoFileComp
	}
}

// question is a place in a command line that somebody wants to fill in.
type question struct {
	ctx    context.Context
	client *admin.Client // nil: nobody can be asked
	args   []string      // that stand before it
	add    func(value, about string)
}

// values adds what could stand in a place. Errors are nobody's business here.
type values func(question)

var argumentValues = map[string]values{
	"USER": userNames, "GROUP": groupNames, "KEY": permissionKeys, "TOKEN": tokenIDs, "RULE_ID": ruleIDs,
	"METHOD": words("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"),
}

var flagValues = map[string]values{
	"group": groupNames, "permission": permissionKeys, "token": tokenIDs,
	"add-group": groupNames, "remove-group": groupNames, "set-group": groupNames,
	"created-by": userNames,
	"role":       words(string(access.Member), string(access.Manager), string(access.Admin)),
	"mode":       words(string(access.Enforce), string(access.Observe)),
	"output":     words(string(outputTable), string(outputJSON), string(outputCSV)),
}

func words(list ...string) values {
	return func(q question) {
		for _, word := range list {
			q.add(word, "")
		}
	}
}

func userNames(q question) {
	if q.client == nil {
		return
	}
	_ = admin.All(q.ctx, q.client, "/service_users", func(l admin.ServiceUserList) admin.Page {
		for _, u := range l.ServiceUsers {
			q.add(u.Name, cmp.Or(u.DisplayName, u.Description))
		}
		return l.Page
	})
}

func groupNames(q question) {
	if q.client == nil {
		return
	}
	_ = admin.All(q.ctx, q.client, "/permission_groups", func(l admin.GroupList) admin.Page {
		for _, g := range l.PermissionGroups {
			q.add(g.Name, g.Description)
		}
		return l.Page
	})
}

func permissionKeys(q question) {
	var l admin.PermissionList
	if q.client == nil || q.client.Do(q.ctx, http.MethodGet, "/service_users/permissions", nil, &l) != nil {
		return
	}
	for _, p := range l.Permissions {
		q.add(p.Key, p.Name)
	}
}

func tokenIDs(q question) {
	if q.client == nil || len(q.args) == 0 {
		return
	}
	u, err := q.client.FindServiceUser(q.ctx, q.args[0])
	if err != nil {
		return
	}
	_ = admin.All(q.ctx, q.client, u.URI+"/tokens", func(l admin.TokenList) admin.Page {
		for _, t := range l.Tokens {
			q.add(t.ID, strings.TrimSpace("…"+t.Hint+" "+string(t.State)+" "+t.Description))
		}
		return l.Page
	})
}

func ruleIDs(q question) {
	if q.client == nil || len(q.args) == 0 {
		return
	}
	g, err := q.client.FindGroup(q.ctx, q.args[0])
	if err != nil {
		return
	}
	for _, r := range g.Rules {
		q.add(r.ID, r.Text)
	}
}
