package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"

	"github.com/serviceusers/caddy-service-users/admin"
)

// auditCommands adds the audit trail.
func (c *cli) auditCommands(root *cobra.Command) {
	filter := struct{ actor, action, resource, since, until string }{}
	var limit int
	list := c.command(root, "list", "Lists who changed what, newest first",
		"caddy service-user audit list --action token. --limit 20", 0,
		func(ctx context.Context, client *admin.Client, args []string) error {
			query := url.Values{}
			for name, value := range map[string]string{
				"actor": filter.actor, "action": filter.action, "resource_id": filter.resource, "since": filter.since, "until": filter.until,
			} {
				if value != "" {
					query.Set(name, value)
				}
			}
			if limit < 1 {
				return usageError{errors.New("--limit must be at least 1")}
			}
			query.Set("limit", fmt.Sprint(min(limit, 100)))
			events := []admin.AuditEvent{}
			err := admin.All(ctx, client, "/audit_events?"+query.Encode(), func(l admin.AuditEventList) admin.Page {
				events = append(events, l.AuditEvents...)
				if len(events) >= limit {
					events = events[:limit]
					return admin.Page{URI: l.URI}
				}
				return l.Page
			})
			if err != nil {
				return err
			}
			return c.print(admin.AuditEventList{AuditEvents: events, Page: admin.Page{URI: "/audit_events"}}, func(w io.Writer) {
				fmt.Fprintln(w, "SEQ\tAT\tACTOR\tACTION\tRESOURCE\tOPERATION")
				for _, e := range events {
					fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\n", e.Seq, when(&e.CreatedAt), cell(e.Actor), e.Action, dash(cell(e.ResourceID)), dash(e.OperationID))
				}
			})
		})
	flags := list.Flags()
	flags.StringVar(&filter.actor, "actor", "", "only changes by this actor: human:…, service_…, local, system, anonymous")
	flags.StringVar(&filter.action, "action", "", "only this action, such as token.revoke; \"token.\" is all that begin so")
	flags.StringVar(&filter.resource, "resource", "", "only changes of what has this id")
	flags.StringVar(&filter.since, "since", "", "only changes since, such as 2030-01-31T12:00:00Z")
	flags.StringVar(&filter.until, "until", "", "only changes before")
	flags.IntVar(&limit, "limit", 100, "at most so many")

	var head string
	verify := c.command(root, "verify", "Verifies the audit trail, and names the first bad record",
		"caddy service-user audit verify", 0,
		func(ctx context.Context, client *admin.Client, args []string) error {
			uri := "/audit_events/verify"
			if head != "" {
				uri += "?head=" + url.QueryEscape(head)
			}
			var r admin.AuditReport
			if err := client.Do(ctx, http.MethodGet, uri, nil, &r); err != nil {
				return err
			}
			err := c.print(r, func(w io.Writer) {
				fmt.Fprintf(w, "records\t%d\nhead\t%s\n", r.Records, r.Head)
			})
			if err == nil && !r.OK {
				err = fmt.Errorf("record %d is bad: %s", r.FirstBad, r.Problem)
			}
			return err
		})
	verify.Flags().StringVar(&head, "head", "", "a head that was noted down before, SEQ:HASH: tells a trail that was cut since")
}

// healthCommand adds what a person looks at first.
func (c *cli) healthCommand(root *cobra.Command) {
	c.command(root, "health", "Shows whether requests can be decided, and on what",
		"caddy service-user health", 0,
		func(ctx context.Context, client *admin.Client, args []string) error {
			var r admin.Readiness
			if err := client.Do(ctx, http.MethodGet, "/service_users/readyz", nil, &r); err != nil {
				return err
			}
			return c.print(r, func(w io.Writer) {
				fmt.Fprintf(w, "status\t%s\nstore\t%s\nrevision\t%d\nchecked\t%s\n", r.Status, cell(r.Store), r.Revision, when(&r.CheckedAt))
			})
		})
}
