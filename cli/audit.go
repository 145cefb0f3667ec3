package cli

import (
	"fmt"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"

	"github.com/serviceusers/caddy-service-users/admin"
)

// auditCommands adds the commands for the audit trail.
func (c *cli) auditCommands(root *cobra.Command) {
	query := url.Values{}
	var limit int
	list := c.command(root, "list", "Lists the changes and their actors, newest first",
		"audit list --action token. --limit 20",
		func([]string) error {
			if limit < 1 {
				return usagef("--limit must be at least 1")
			}
			query.Set("limit", fmt.Sprint(min(limit, 100))) // of one page
			uri, seen := withQuery("/audit_events", query), 0
			list, err := all(c, uri, func(l *admin.AuditEventList) (*[]admin.AuditEvent, *admin.Page) {
				if seen += len(l.AuditEvents); seen >= limit {
					l.NextPageURI = nil // the last page that is needed
				}
				return &l.AuditEvents, &l.Page
			})
			if err != nil {
				return err
			}
			rows := table{{"SEQ", "AT", "ACTOR", "ACTION", "RESOURCE", "OPERATION"}}
			list.AuditEvents = list.AuditEvents[:min(len(list.AuditEvents), limit)]
			for _, e := range list.AuditEvents {
				rows.add(e.Seq, when(&e.CreatedAt), e.Actor, e.Action, e.ResourceID, e.OperationID)
			}
			return c.print(list, rows)
		})
	flags := list.Flags()
	flags.Var(parameter(query, "actor"), "actor",
		"only changes by this actor: human:NAME, the id of a service user, local, system or anonymous")
	flags.Var(parameter(query, "action"), "action",
		"only this action, such as token.revoke; \"token.\" selects every action of tokens")
	flags.Var(parameter(query, "resource_id"), "resource", "only changes of the resource with this id")
	flags.Var(parameter(query, "since"), "since", "only changes since this time, such as 2030-01-31T12:00:00Z")
	flags.Var(parameter(query, "until"), "until", "only changes before this time")
	flags.IntVar(&limit, "limit", 100, "the largest number of changes")

	head := url.Values{}
	verify := c.command(root, "verify", "Verifies the audit trail, and names the first bad record", "audit verify",
		func([]string) error {
			var r admin.AuditReport
			if err := c.do(http.MethodGet, withQuery("/audit_events/verify", head), nil, &r); err != nil {
				return err
			}
			err := c.print(r, table{{"records", r.Records}, {"head", r.Head}})
			if err == nil && !r.OK {
				err = fmt.Errorf("record %d is bad: %s", r.FirstBad, r.Problem)
			}
			return err
		})
	headFlag(verify, head)
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
				{"status", r.Status}, {"store", r.Store}, {"revision", r.Revision},
				{"checked", when(&r.CheckedAt)},
			})
		})
}
