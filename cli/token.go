package cli

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/store"
)

func (c *cli) tokenCommands(root *cobra.Command) {
	c.createTokenCommand(root)
	c.listTokensCommand(root)
	c.updateTokenCommand(root)
	c.refreshTokenCommand(root)
	c.rotateTokensCommand(root)
	c.revokeTokenCommand(root)
}

func (c *cli) listTokensCommand(root *cobra.Command) {
	query := url.Values{}
	var everyone bool
	list := c.command(root, "list [USER]", "Lists the tokens of a service user or of all of them, newest first",
		"token list --all --ends-within 14d",
		func(args []string) error {
			if everyone == (len(args) == 1) {
				return usagef("name a service user, or give --all to list the tokens of all of them")
			}
			uri := "/service_users/tokens"
			if !everyone {
				u, err := c.user(args[0])
				if err != nil {
					return err
				}
				uri = u.URI + "/tokens"
			}
			list, err := c.tokensAt(withQuery(uri, query))
			if err != nil {
				return err
			}
			return c.printTokens(list, everyone)
		})
	flags := list.Flags()
	flags.BoolVar(&everyone, "all", false, "the tokens of all service users")
	flags.Var(parameter(query, "state"), "state", "only active, pending, retiring, expired or revoked ones")
	flags.Var(parameter(query, "ends_within"), "ends-within",
		"only those that end within this time, such as 14d, and have not ended yet")
	flags.Var(parameter(query, "unused_for"), "unused-for",
		"only those that were valid and not used for this time, such as 60d; "+
			"without --state only those that have not ended")
}

func (c *cli) tokens(u admin.ServiceUser) (admin.TokenList, error) {
	return c.tokensAt(u.URI + "/tokens")
}

func (c *cli) tokensAt(uri string) (admin.TokenList, error) {
	return all(c, uri, func(l *admin.TokenList) (*[]admin.Token, *admin.Page) { return &l.Tokens, &l.Page })
}

// printTokens prints a list of tokens, with the service users if it has the tokens of all of them.
func (c *cli) printTokens(list admin.TokenList, everyone bool, notes ...string) error {
	if c.json {
		return c.print(list, nil) // with the ids of the groups
	}
	var ids []string
	for _, t := range list.Tokens {
		ids = append(ids, t.PermissionGroups...)
	}
	groups, err := c.groupNames(ids, true)
	if err != nil {
		return err
	}
	rows := table{{"ID", "HINT", "STATE", "DESCRIPTION", "USED", "LAST USED", "FROM", "ENDS", "CREATED",
		"BEGINS", "ALLOWED IPS", "GROUPS", "SERVICE USER"}}
	for _, t := range list.Tokens {
		end := t.ExpiresAt
		if t.RetiresAt != nil && (end == nil || t.RetiresAt.Before(*end)) {
			end = t.RetiresAt
		}
		used := fmt.Sprint(t.UseCount)
		if t.Drain != nil {
			used += fmt.Sprintf(" (%d since its refresh)", t.Drain.UseCount)
		}
		rows.add(t.ID, "…"+t.Hint, t.State, t.Description, used,
			when(t.LastUsedAt), t.LastUsedIP, when(end), when(&t.CreatedAt),
			when(t.NotBefore), strings.Join(t.AllowedIPs, ", "), groups.of(t.PermissionGroups),
			t.ServiceUserName)
	}
	if !everyone {
		for i, row := range rows {
			rows[i] = row[:len(row)-1]
		}
	}
	return c.print(list, rows, notes...)
}

func (c *cli) createTokenCommand(root *cobra.Command) {
	var in admin.TokenInput
	var addresses, groups []string
	create := c.command(root, "create USER", "Issues a token and prints it, once",
		"token create billing-sync --description ci --ttl 90d",
		on(c.user, func(u admin.ServiceUser, _ []string) error {
			ids, err := c.groupIDs(groups)
			if err != nil {
				return err
			}
			in.AllowedIPs, in.PermissionGroups = admin.Some(notEmpty(addresses)), admin.Some(ids)
			note := ""
			if !u.Active {
				note = fmt.Sprintf("%s is inactive: \"reactivate %s\" accepts its tokens.", u.Name, u.Name)
			}
			return c.issueToken(u.URI+"/tokens", in, note)
		}))
	tokenFlags(create, &in)
	flags := create.Flags()
	flags.StringSliceVar(&addresses, "allowed-ip", nil,
		"an address or CIDR that it may come from (may be repeated)")
	flags.StringSliceVar(&groups, "group", nil,
		"narrows it to the rules of this permission group (id or name; may be repeated)")
	c.issuing(create)
}

// tokenFlags adds the flags that create and update share. They set fields of in.
func tokenFlags(cmd *cobra.Command, in *admin.TokenInput) {
	flags := cmd.Flags()
	flags.Var(optional(&in.Description), "description", "its purpose, for people")
	flags.Var(optional(&in.Metadata), "metadata", "a text for programs")
	flags.Var(optional(&in.TTL), "ttl", "how long it is valid from now on, such as 90d")
	flags.Var(optional(&in.ExpiresAt), "expires-at",
		"when it expires, such as 2030-01-31T12:00:00Z; \"\" means never")
	flags.Var(optional(&in.NotBefore), "not-before", "the time from which it is valid; \"\" means at once")
}

func (c *cli) updateTokenCommand(root *cobra.Command) {
	var in admin.TokenInput
	var addresses, groups listFlag
	update := c.command(root, "update USER TOKEN", "Changes the given fields of a token, and prints it",
		"token update billing-sync token_2x… --ttl 90d --add-allowed-ip 192.0.2.0/24",
		func(args []string) error {
			if err := c.checkLists(&groups, &addresses); err != nil {
				return err
			}
			uri, _, err := c.tokenOf(args, false)
			if err != nil {
				return err
			}
			read := func() (t admin.Token, err error) {
				err = c.do(http.MethodGet, uri, nil, &t)
				return t, err
			}
			before, after, err := changeLatest(c, read, func(t admin.Token) (string, string, any) {
				in.AllowedIPs = addresses.edit(t.AllowedIPs)
				in.PermissionGroups = groups.edit(t.PermissionGroups)
				return t.URI, t.ETag, in
			})
			if err != nil {
				return err
			}
			if c.json {
				return c.print(after, nil)
			}
			note := ""
			if len(before.AllowedIPs) > 0 && len(after.AllowedIPs) == 0 {
				note = "It may come from any address now."
			}
			if after.State == store.TokenRevoked {
				note = "It stays revoked; \"token create\" issues another one."
			}
			return c.printTokens(admin.TokenList{Tokens: []admin.Token{after}}, false, note)
		})
	tokenFlags(update, &in)
	addresses.register(update, "allowed-ip", "an address or CIDR that it may come from")
	addresses.canonical = canonicalPrefix
	groups.register(update, "group", "a permission group, by id or name, to whose rules it is narrowed")
}

func (c *cli) refreshTokenCommand(root *cobra.Command) {
	var in admin.RefreshInput
	var grace string
	refresh := c.command(root, "refresh USER [TOKEN]",
		"Issues a new secret in the place of a token and prints it, once",
		"token refresh billing-sync token_2x… --grace 24h",
		func(args []string) error {
			uri, id, err := c.tokenOf(args, true)
			if err != nil {
				return err
			}
			if graceless(grace) {
				if err := c.sureOfToken(uri, "Replace %s of %s? The old token ends at once, and its "+
					"uploads and downloads are cut; with --grace it stays valid for a while.",
					id, args[0]); err != nil {
					return err
				}
			}
			in.Grace = admin.Some(grace)
			return c.issueToken(uri+"/refresh", in, "")
		})
	flags := refresh.Flags()
	flags.Var(optional(&in.TTL), "ttl",
		"how long the new token is valid, such as 90d; default: as long as the old one was")
	flags.StringVar(&grace, "grace", "", "how long the old token stays valid, such as 24h; "+
		"default: it is revoked at once, and its streams, uploads and downloads are cut")
	c.issuing(refresh)
	c.destructive(refresh, func() bool { return graceless(grace) })
}

func (c *cli) revokeTokenCommand(root *cobra.Command) {
	c.destructive(c.command(root, "revoke USER [TOKEN]",
		"Ends a token for good; its streams, uploads and downloads are cut",
		"token revoke billing-sync token_2x… --yes",
		func(args []string) error {
			uri, id, err := c.tokenOf(args, false)
			if err != nil {
				return err
			}
			if err := c.sureOfToken(uri, "Revoke %s of %s? Every client that uses it is refused then.",
				id, args[0]); err != nil {
				return err
			}
			return c.change(http.MethodDelete, uri, "revoked %s", id)
		}), nil)
}

// sureOfToken asks a question about a token, and adds its last use. args are those of [cli.sure].
func (c *cli) sureOfToken(uri, question string, args ...any) error {
	var t admin.Token
	if !c.yes {
		if err := c.do(http.MethodGet, uri, nil, &t); err != nil {
			return err
		}
	}
	return c.sure(question+" %s", append(args, lastUse([]admin.Token{t}))...)
}

// graceless reports whether a refresh ends the old token at once.
func graceless(grace string) bool {
	d, err := admin.ParseDuration(cmp.Or(grace, "0s"))
	return err == nil && d == 0 // the server explains an invalid grace
}

// tokenOf returns the path and the id of a token. args are the service user and the id. Without the id
// the error lists the live tokens; with sole, the only token that can be refreshed is meant.
func (c *cli) tokenOf(args []string, sole bool) (uri, id string, err error) {
	u, err := c.user(args[0])
	if err != nil {
		return "", "", err
	}
	if len(args) > 1 {
		return u.URI + "/tokens/" + args[1], args[1], checkID("token", args[1])
	}
	list, err := c.tokens(u)
	var live []string
	for _, t := range list.Tokens {
		ended := t.State == store.TokenExpired || t.State == store.TokenRevoked
		if !ended && !(sole && t.State == store.TokenRetiring) {
			id, live = t.ID, append(live, strings.TrimSpace(t.ID+" …"+t.Hint+" "+t.Description))
		}
	}
	switch {
	case err != nil:
	case live == nil:
		err = fmt.Errorf("%s has no live token; \"token create\" issues one", u.Name)
	case len(live) > 1 || !sole:
		err = usagef("name one of the tokens of %s by its id: %s", u.Name, strings.Join(live, ", "))
	}
	return u.URI + "/tokens/" + id, id, err
}

// issueToken sends a request that issues a token, and prints the token.
func (c *cli) issueToken(uri string, in any, note string) error {
	var t admin.Token
	request := func(key string) error { return c.client.PostOnce(context.Background(), key, uri, in, &t) }
	if err := c.issue(request, &t.Secret); err != nil {
		return err
	}
	rows := table{
		{"id", t.ID}, {"token", t.Secret}, {"begins", when(t.NotBefore)}, {"expires", when(t.ExpiresAt)},
	}.known()
	if old := t.Replaced; old != nil {
		state := string(old.State)
		if old.RetiresAt != nil {
			state += " until " + when(old.RetiresAt)
		}
		if old.LastUsedAt != nil {
			from := cmp.Or(old.LastUsedIP, "-") // a Unix socket has no address
			state += fmt.Sprintf(", last used %s from %s", when(old.LastUsedAt), from)
		}
		rows.add("old token", state)
	}
	return c.print(t, rows, c.secretNote(t.Secret), note)
}
