package cli

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"

	"github.com/spf13/cobra"

	"github.com/serviceusers/caddy-service-users/admin"
)

// auditCommands adds the commands for the audit trail.
func (c *cli) auditCommands(root *cobra.Command) {
	c.listAuditCommand(root)
	head := url.Values{}
	verify := c.command(root, "verify", "Verifies the audit trail, and names the first bad record", "audit verify",
		func([]string) error {
			var r admin.AuditReport
			_, end := c.progress("verify", "")
			err := c.do(http.MethodGet, withQuery("/audit_events/verify", head), nil, &r)
			end()
			if err != nil {
				return err
			}
			err = c.print(r, table{{"records", r.Records}, {"head", r.Head}})
			if err == nil && !r.OK {
				err = fmt.Errorf("record %d is bad: %s", r.FirstBad, r.Problem)
			}
			return err
		})
	headFlag(verify, head)
}

func (c *cli) listAuditCommand(root *cobra.Command) {
	query := url.Values{}
	var limit int
	var names bool
	var list *cobra.Command
	list = c.command(root, "list", "Lists the changes and their actors, newest first",
		"audit list --action token. --since 7d",
		func([]string) error {
			switch {
			case limit < 0:
				return usagef("--limit must be at least 1, or 0 for no limit")
			case query.Has("since") && !list.Flags().Changed("limit"):
				limit = 0
			case limit > 0:
				query.Set("limit", fmt.Sprint(min(limit, 100))) // of one page
			}
			if names {
				query.Set("names", "true")
			}
			uri, seen, more := withQuery("/audit_events", query), 0, false
			list, err := all(c, uri, func(l *admin.AuditEventList) (*[]admin.AuditEvent, *admin.Page) {
				if seen += len(l.AuditEvents); limit > 0 && seen >= limit {
					more = seen > limit || l.NextPageURI != nil
					l.NextPageURI = nil // the last page that is needed
				}
				return &l.AuditEvents, &l.Page
			})
			if err != nil {
				return err
			}
			note := ""
			if more {
				list.AuditEvents = list.AuditEvents[:limit]
				query.Set("before_id", fmt.Sprint(list.AuditEvents[limit-1].Seq))
				list.NextPageURI = new(withQuery("/audit_events", query))
				note = fmt.Sprintf("These are the newest %s, and there are more; "+
					"--limit 0 lists all of them, --since 7d those of a week.",
					plural(limit, "record"))
			}
			rows := table{{"SEQ", "AT", "ACTOR", "ACTOR NAME", "ACTION", "RESOURCE", "NAME", "OPERATION"}}
			for _, e := range list.AuditEvents {
				rows.add(e.Seq, when(&e.CreatedAt), e.Actor, e.ActorName, e.Action,
					e.ResourceID, e.ResourceName, e.OperationID)
			}
			for i, row := range rows {
				if !names {
					rows[i] = slices.Delete(slices.Delete(row, 6, 7), 3, 4)
				}
			}
			return c.print(list, rows, note)
		})
	flags := list.Flags()
	flags.Var(parameter(query, "actor"), "actor",
		"only changes by this actor: human:NAME, local:USER, local (any user), system, anonymous, or a "+
			"service user by its id or name")
	flags.Var(parameter(query, "action"), "action",
		"only this action, such as token.revoke; \"token.\" selects every action of tokens")
	flags.Var(parameter(query, "resource_id"), "resource",
		"only changes that concern the resource with this id, or every service user and permission group "+
			"that has or had this name; also their tokens and memberships")
	flags.Var(parameter(query, "since"), "since",
		"all changes since this time: 7d (ago), 2026-11-21 (midnight UTC) or 2026-11-21T12:00:00Z")
	flags.Var(parameter(query, "until"), "until", "only changes before this time, in the forms of --since")
	flags.IntVar(&limit, "limit", 100, "the largest number of changes; 0 lists all of them, as --since does")
	flags.BoolVar(&names, "names", false, "shows names beside ids")
}

// headFlag adds the flag --head to a command that verifies the audit trail.
func headFlag(cmd *cobra.Command, query url.Values) {
	cmd.Flags().Var(parameter(query, "head"), "head",
		"the head of the audit trail from an earlier run, SEQ:HASH: reports a trail that was cut since then")
}

// healthCommand adds "health", the first command to run when requests fail.
func (c *cli) healthCommand(root *cobra.Command) {
	c.command(root, "health", "Shows whether Caddy can decide requests, and at which revision of the store",
		"health",
		func([]string) error {
			var r admin.Readiness
			if err := c.do(http.MethodGet, "/service_users/readyz", nil, &r); err != nil {
				return err
			}
			return c.print(r, table{
				{"status", r.Status}, {"store", r.Store}, {"source", r.Source}, {"copy", r.Copy},
				{"revision", r.Revision}, {"checked", when(&r.CheckedAt)},
			}.known())
		})
}
