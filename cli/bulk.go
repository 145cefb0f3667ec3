package cli

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/admin"
)

// bulkVerb is a command that changes one service user or, in one transaction, many.
type bulkVerb struct {
	use, short, example string
	others              int                             // the number of arguments before the service users
	id                  func(string) (string, error)    // the id of a service user that an argument names
	one                 action                          // changes one service user
	asks                bool                            // one asks a question
	many                func([]string) (*change, error) // the change of many, from all arguments
}

// change is a change of many service users.
type change struct {
	admin.BulkInput
	question, done string                                      // "%s" is the number of service users
	around         func(*admin.BulkResult, func() error) error // makes the request; nil calls it
	fault          func(error) error                           // puts an error into the words of the user
	key            string                                      // the idempotency key, or ""
	begun          bool                                        // an earlier run was sure, and got no answer
}

// changeOf returns the change for a verb such as "delete".
func changeOf(do string) *change {
	return &change{
		BulkInput: admin.BulkInput{Do: do},
		question:  strings.ToUpper(do[:1]) + do[1:] + " %s?", done: do + "d %s",
	}
}

// bulkCommand adds a command that changes the service users in its arguments, or those that --filter
// selects. Unless it is a single one, the command shows the effect first, and asks.
func (c *cli) bulkCommand(root *cobra.Command, v bulkVerb) *cobra.Command {
	var filter string
	var cmd *cobra.Command
	filtered := func() bool { return cmd.Flags().Changed("filter") }
	cmd = c.command(root, v.use, v.short, v.example, func(args []string) error {
		users := args[v.others:]
		if len(users) == 1 && !c.dryRun {
			return v.one(args)
		}
		work, err := v.many(args)
		if err == nil && len(users) > 0 {
			work.IDs, err = c.userIDs(users, v.id)
		}
		if err != nil {
			return err
		}
		work.Filter = filter
		return c.bulk(work)
	})
	cmd.Flags().StringVar(&filter, "filter", "", "in place of names: every service user that meets this `EXPR` "+
		"in CEL over obj, such as 'obj.owner == \"jane@example.com\"'")
	c.checkArgs(cmd, func(args []string) error {
		switch {
		case filtered() && filter == "":
			return usagef("--filter is empty; give it a value or leave it out")
		case filtered() == (len(args) > v.others):
			return usagef("name service users, or select them by --filter; usage: %s", cmd.UseLine())
		}
		return nil
	})
	c.previewed(cmd, func() bool { return v.asks || filtered() || cmd.Flags().NArg() != v.others+1 })
	return cmd
}

// checkArgs adds a check of the arguments to a command.
func (c *cli) checkArgs(cmd *cobra.Command, check func([]string) error) {
	before := cmd.Args
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if err := before(cmd, args); err != nil {
			return err
		}
		return c.exit(cmd, check(args))
	}
}

// previewed adds the flags --dry-run and --yes. asks is the parameter when of [cli.destructive].
func (c *cli) previewed(cmd *cobra.Command, asks func() bool) {
	cmd.Flags().BoolVar(&c.dryRun, "dry-run", false, "show the effect, and change nothing")
	c.destructive(cmd, func() bool { return !c.dryRun && asks() })
}

// userID returns the id of the service user with this id or name.
func (c *cli) userID(idOrName string) (string, error) {
	u, err := c.user(idOrName)
	return u.ID, err
}

// userIDs returns the ids of service users, each once.
func (c *cli) userIDs(args []string, id func(string) (string, error)) (ids []string, err error) {
	count, end := c.progress("finding the service users", "found")
	defer end()
	for _, arg := range args {
		found, err := id(arg)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(ids, found) {
			ids = append(ids, found)
		}
		count.Add(1)
	}
	return ids, nil
}

// shownInQuestion is the number of service users that a preview before a question shows.
const shownInQuestion = 20

// bulk makes a change of many service users and prints its effect. Without --yes it first asks the
// API for the effect, shows it and asks the user. Then the change is one of the service users that
// were shown, also if the filter selects others by then.
func (c *cli) bulk(work *change) (err error) {
	var r admin.BulkResult
	send := func() (err error) {
		_, end := c.progress("waiting for the answer", "")
		r = admin.BulkResult{}
		if work.key != "" {
			err = c.client.PostOnce(context.Background(), work.key, "/service_users/bulk", work.BulkInput, &r)
		} else {
			err = c.do(http.MethodPost, "/service_users/bulk", work.BulkInput, &r)
		}
		end()
		if err != nil && work.fault != nil {
			return work.fault(err)
		}
		return err
	}
	shown := c.dryRun || !c.yes && !work.begun
	if work.DryRun = shown; shown {
		if !c.dryRun { // with --dry-run the API says that there is nothing to wait for
			c.client.Wait = ""
		}
		if err := send(); err != nil {
			return err
		}
		if c.dryRun {
			return c.printBulk(r, -1, "dry run: nothing was changed; it would have "+work.summary(r))
		}
		preview := *c
		preview.stdout, preview.output, preview.json = c.stderr, outputTable, false
		if err := preview.printBulk(r, shownInQuestion, ""); err != nil {
			return err
		}
		if r.Changed > 0 {
			if err := c.sure(work.question, plural(r.Changed, "service user")); err != nil {
				return err
			}
		}
		c.client.Wait = c.wait
		work.DryRun, r.DryRun = false, false
		for _, e := range r.ServiceUsers {
			if work.Filter != "" {
				work.IDs = append(work.IDs, e.ID)
			}
		}
		work.Filter = ""
	}
	request := send
	if work.around != nil {
		request = func() error { return work.around(&r, send) }
	}
	if !shown || r.Changed > 0 {
		if err := request(); err != nil {
			return err
		}
	}
	defer func() { // after the output
		if err == nil && work.Remove != nil {
			err = c.stillMembers(work.Remove.PermissionGroups, r.ServiceUsers...)
		} else if err == nil && work.Do == "remove_from_group" {
			err = c.stillMembers([]string{work.PermissionGroup}, r.ServiceUsers...)
		}
	}()
	if c.output == outputTable && work.Do != "create" {
		if work.Filter != "" && r.Changed > 0 { // the caller has not seen the names
			if err := c.printBulk(r, -1, ""); err != nil {
				return err
			}
		}
		return c.done("%s", work.summary(r))
	}
	return c.printBulk(r, -1, work.summary(r))
}

// summary returns a sentence about the effect, such as "deleted 3 service users".
func (w *change) summary(r admin.BulkResult) string {
	text := strings.Replace(w.done, "%s", plural(r.Changed, "service user"), 1)
	switch {
	case len(r.ServiceUsers) == 0:
		text += ": the filter selects none"
	case r.Unchanged > 0:
		text += fmt.Sprintf("; %d needed no change", r.Unchanged)
	}
	return text
}

// printBulk prints the effect of a change on each service user, on most of them at most; -1 is all.
func (c *cli) printBulk(r admin.BulkResult, most int, note string) error {
	var ids []string
	for _, e := range r.ServiceUsers {
		for _, u := range []*admin.ServiceUser{e.Before, e.After} {
			if u != nil && !c.json {
				ids = append(ids, u.PermissionGroups...)
			}
		}
	}
	names, err := c.groupNames(ids, true)
	if err != nil {
		return err
	}
	rows := table{{"ID", "NAME", "LAST ACTIVE", "CHANGE"}}
	for i, e := range r.ServiceUsers {
		if i == most {
			note = fmt.Sprintf("… and %d more; --dry-run shows all", len(r.ServiceUsers)-most)
			break
		}
		last := ""
		if e.Before != nil {
			last = when(e.Before.LastActiveAt)
		}
		rows.add(e.ID, e.Name, last, effect(e, names))
	}
	return c.print(r, rows, note)
}

// effect describes the change of one service user. names has the names of permission groups by id.
func effect(e admin.BulkEntry, names map[string]string) string {
	before := e.Before
	switch {
	case e.After == nil:
		return "deleted"
	case before == nil: // compare with a new one that has only a name
		before = &admin.ServiceUser{Name: e.After.Name, Active: true, Role: access.Member}
	case before.DeletedAt != nil:
		return "brought back, inactive"
	}
	return strings.Join(userChanges(before, e.After, names), "; ")
}
