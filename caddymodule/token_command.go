package caddymodule

import (
	"context"
	"fmt"
	"io"
	"net/http"

	"github.com/spf13/cobra"

	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/store"
)

func (c *cli) tokenCommands(root *cobra.Command) {
	var description, ttl, expires, notBefore string
	var allowed, groups []string
	var create *cobra.Command
	create = c.command(root, "create USER", "Issues a token and prints it, once",
		"caddy service-user token create billing-sync --description ci --ttl 90d", 1,
		func(ctx context.Context, client *admin.Client, args []string) error {
			u, err := client.FindServiceUser(ctx, args[0])
			if err != nil {
				return err
			}
			in := admin.TokenInput{Description: admin.Some(description), AllowedIPs: admin.Some(notEmpty(allowed))}
			if create.Flags().Changed("group") {
				ids, err := groupIDs(ctx, client, groups)
				if err != nil {
					return err
				}
				in.PermissionGroups = admin.Some(ids)
			}
			for flag, field := range map[string]*admin.Opt[string]{"ttl": &in.TTL, "expires-at": &in.ExpiresAt, "not-before": &in.NotBefore} {
				if create.Flags().Changed(flag) {
					*field = admin.Some(create.Flags().Lookup(flag).Value.String())
				}
			}
			var t admin.Token
			if err := client.Do(ctx, http.MethodPost, u.URI+"/tokens", in, &t); err != nil {
				return err
			}
			return c.printIssued(t)
		})
	flags := create.Flags()
	flags.StringVar(&description, "description", "", "what it is for")
	flags.StringVar(&ttl, "ttl", "", "how long it lives, such as 90d")
	flags.StringVar(&expires, "expires-at", "", "when it expires, such as 2030-01-31T12:00:00Z")
	flags.StringVar(&notBefore, "not-before", "", "when it begins to be valid")
	flags.StringSliceVar(&allowed, "allowed-ip", nil, "an address or CIDR that it may come from (may be repeated)")
	flags.StringSliceVar(&groups, "group", nil, "narrows what it may do to this permission group (id or name; may be repeated)")

	c.command(root, "list USER", "Lists the tokens of a service user, newest first",
		"caddy service-user token list billing-sync", 1,
		func(ctx context.Context, client *admin.Client, args []string) error {
			u, err := client.FindServiceUser(ctx, args[0])
			if err != nil {
				return err
			}
			tokens := []admin.Token{}
			err = admin.All(ctx, client, u.URI+"/tokens", func(l admin.TokenList) admin.Page {
				tokens = append(tokens, l.Tokens...)
				return l.Page
			})
			if err != nil {
				return err
			}
			return c.print(admin.TokenList{Tokens: tokens, Page: admin.Page{URI: u.URI + "/tokens"}}, func(w io.Writer) {
				fmt.Fprintln(w, "ID\tHINT\tSTATE\tDESCRIPTION\tEXPIRES\tCREATED")
				for _, t := range tokens {
					end := t.ExpiresAt
					if t.RetiresAt != nil && (end == nil || t.RetiresAt.Before(*end)) {
						end = t.RetiresAt
					}
					fmt.Fprintf(w, "%s\t…%s\t%s\t%s\t%s\t%s\n", t.ID, t.Hint, t.State, dash(cell(t.Description)), when(end), when(&t.CreatedAt))
				}
			})
		})

	var grace string
	refresh := c.command(root, "refresh USER TOKEN", "Issues a new secret in the place of a token and prints it, once",
		"caddy service-user token refresh billing-sync token_2x… --grace 24h", 2,
		func(ctx context.Context, client *admin.Client, args []string) error {
			uri, err := tokenURI(ctx, client, args)
			if err != nil {
				return err
			}
			var t admin.Token
			if err := client.Do(ctx, http.MethodPost, uri+"/refresh", admin.RefreshInput{Grace: admin.Some(grace)}, &t); err != nil {
				return err
			}
			return c.printIssued(t)
		})
	refresh.Flags().StringVar(&grace, "grace", "", "how long the old token goes on, such as 24h; default: it is revoked at once")

	c.command(root, "revoke USER TOKEN", "Ends a token for good",
		"caddy service-user token revoke billing-sync token_2x…", 2,
		func(ctx context.Context, client *admin.Client, args []string) error {
			uri, err := tokenURI(ctx, client, args)
			if err != nil {
				return err
			}
			if err := client.Do(ctx, http.MethodDelete, uri, nil, nil); err != nil {
				return err
			}
			return c.done("revoked %s", args[1])
		})
}

func tokenURI(ctx context.Context, client *admin.Client, args []string) (string, error) {
	u, err := client.FindServiceUser(ctx, args[0])
	if err == nil {
		err = checkID("token", args[1])
	}
	return u.URI + "/tokens/" + args[1], err
}

// checkID refuses what is not an id before it becomes part of a path.
func checkID(kind, id string) error {
	if !store.ValidID(kind, id) {
		return admin.NewError(http.StatusNotFound, "ERR_NOT_FOUND", fmt.Sprintf("there is no %s %q; it is named by its id, %[1]s_…", kind, id))
	}
	return nil
}

func (c *cli) printIssued(t admin.Token) error {
	return c.print(t, func(w io.Writer) {
		fmt.Fprintf(w, "id\t%s\ntoken\t%s\n", t.ID, t.Secret)
		if t.ExpiresAt != nil {
			fmt.Fprintf(w, "expires\t%s\n", when(t.ExpiresAt))
		}
	}, secretNote(t.Secret))
}
