package cli

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
	c.createTokenCommand(root)
	c.command(root, "list USER", "Lists the tokens of a service user, newest first",
		"caddy service-user token list billing-sync", 1,
		onUser(func(ctx context.Context, client *admin.Client, u admin.ServiceUser, _ []string) error {
			tokens := []admin.Token{}
			err := admin.All(ctx, client, u.URI+"/tokens", func(l admin.TokenList) admin.Page {
				tokens = append(tokens, l.Tokens...)
				return l.Page
			})
			if err != nil {
				return err
			}
			list := admin.TokenList{Tokens: tokens, Page: admin.Page{URI: u.URI + "/tokens"}}
			return c.print(list, func(w io.Writer) {
				fmt.Fprintln(w, "ID\tHINT\tSTATE\tDESCRIPTION\tUSED\tLAST USED\tFROM\tENDS\tCREATED")
				for _, t := range tokens {
					end := t.ExpiresAt
					if t.RetiresAt != nil && (end == nil || t.RetiresAt.Before(*end)) {
						end = t.RetiresAt
					}
					used := fmt.Sprint(t.UseCount)
					if t.Drain != nil {
						used += fmt.Sprintf(" (%d since its refresh)", t.Drain.UseCount)
					}
					fmt.Fprintf(w, "%s\t…%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n",
						t.ID, t.Hint, t.State, dash(cell(t.Description)), used,
						when(t.LastUsedAt), dash(t.LastUsedIP), when(end), when(&t.CreatedAt))
				}
			})
		}))
	c.refreshTokenCommand(root)
	c.revokeTokenCommand(root)
}

func (c *cli) createTokenCommand(root *cobra.Command) {
	var in admin.TokenInput
	var addresses, groups []string
	create := c.command(root, "create USER", "Issues a token and prints it, once",
		"caddy service-user token create billing-sync --description ci --ttl 90d", 1,
		onUser(func(ctx context.Context, client *admin.Client, u admin.ServiceUser, _ []string) error {
			ids, err := groupIDs(ctx, client, groups)
			if err != nil {
				return err
			}
			in.AllowedIPs, in.PermissionGroups = admin.Some(notEmpty(addresses)), admin.Some(ids)
			var t admin.Token
			request := func() error { return client.Do(ctx, http.MethodPost, u.URI+"/tokens", in, &t) }
			if err := c.issue(request, &t.Secret); err != nil {
				return err
			}
			return c.printIssued(t)
		}))
	flags := create.Flags()
	flags.Var(optFlag[string]{&in.Description}, "description", "what it is for")
	flags.Var(optFlag[string]{&in.TTL}, "ttl", "how long it lives, such as 90d")
	flags.Var(optFlag[string]{&in.ExpiresAt}, "expires-at", "when it expires, such as 2030-01-31T12:00:00Z")
	flags.Var(optFlag[string]{&in.NotBefore}, "not-before", "when it begins to be valid")
	flags.StringSliceVar(&addresses, "allowed-ip", nil,
		"an address or CIDR that it may come from (may be repeated)")
	flags.StringSliceVar(&groups, "group", nil,
		"narrows what it may do to this permission group (id or name; may be repeated)")
	c.issuing(create)
}

func (c *cli) refreshTokenCommand(root *cobra.Command) {
	var grace string
	refresh := c.command(root, "refresh USER TOKEN", "Issues a new secret in the place of a token and prints it, once",
		"caddy service-user token refresh billing-sync token_2x… --grace 24h", 2,
		func(ctx context.Context, client *admin.Client, args []string) error {
			uri, err := tokenURI(ctx, client, args)
			if err != nil {
				return err
			}
			if graceless(grace) {
				use, err := c.useOf(ctx, client, uri)
				if err != nil {
					return err
				}
				if err := c.sure("Replace %s of %s? The old token ends at once, and a long upload or download "+
					"with it; --grace lets it go on for a while. %s", args[1], args[0], use); err != nil {
					return err
				}
			}
			var t admin.Token
			request := func() error {
				return client.Do(ctx, http.MethodPost, uri+"/refresh", admin.RefreshInput{Grace: admin.Some(grace)}, &t)
			}
			if err := c.issue(request, &t.Secret); err != nil {
				return err
			}
			return c.printIssued(t)
		})
	refresh.Flags().StringVar(&grace, "grace", "", "how long the old token goes on, such as 24h; "+
		"default: it is revoked at once, and its streams, uploads and downloads are cut")
	c.issuing(refresh)
	c.destructive(refresh, func() bool { return graceless(grace) })
}

func (c *cli) revokeTokenCommand(root *cobra.Command) {
	c.destructive(c.command(root, "revoke USER TOKEN",
		"Ends a token for good; its streams, uploads and downloads are cut",
		"caddy service-user token revoke billing-sync token_2x… --yes", 2,
		func(ctx context.Context, client *admin.Client, args []string) error {
			uri, err := tokenURI(ctx, client, args)
			if err != nil {
				return err
			}
			use, err := c.useOf(ctx, client, uri)
			if err != nil {
				return err
			}
			if err := c.sure("Revoke %s of %s? Whoever uses it is refused from then on. %s",
				args[1], args[0], use); err != nil {
				return err
			}
			if err := client.Do(ctx, http.MethodDelete, uri, nil, nil); err != nil {
				return err
			}
			return c.done("revoked %s", args[1])
		}), nil)
}

// graceless reports whether a refresh ends the old token at once.
func graceless(grace string) bool {
	if grace == "" {
		return true
	}
	d, err := admin.ParseDuration(grace)
	return err == nil && d == 0 // the server explains an invalid grace
}

// tokenURI returns the path of a token. args are the service user and the id of the token.
func tokenURI(ctx context.Context, client *admin.Client, args []string) (string, error) {
	u, err := client.FindServiceUser(ctx, args[0])
	if err == nil {
		err = checkID("token", args[1])
	}
	return u.URI + "/tokens/" + args[1], err
}

// checkID rejects a text that is not an id, before it becomes part of a path.
func checkID(kind, id string) error {
	if !store.ValidID(kind, id) {
		return admin.NewError(http.StatusNotFound, "ERR_NOT_FOUND",
			fmt.Sprintf("there is no %s %q; it is named by its id, %[1]s_…", kind, id))
	}
	return nil
}

func (c *cli) printIssued(t admin.Token) error {
	return c.print(t, func(w io.Writer) {
		fmt.Fprintf(w, "id\t%s\n", t.ID)
		if t.Secret != "" {
			fmt.Fprintf(w, "token\t%s\n", t.Secret)
		}
		if t.ExpiresAt != nil {
			fmt.Fprintf(w, "expires\t%s\n", when(t.ExpiresAt))
		}
		if old := t.Replaced; old != nil {
			fmt.Fprintf(w, "old token\t%s", old.State)
			if old.RetiresAt != nil {
				fmt.Fprintf(w, " until %s", when(old.RetiresAt))
			}
			if old.LastUsedAt != nil {
				fmt.Fprintf(w, ", last used %s from %s", when(old.LastUsedAt), dash(old.LastUsedIP))
			}
			fmt.Fprintln(w)
		}
	}, c.secretNote(t.Secret))
}
