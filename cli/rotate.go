package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/store"
)

// rotation is what "token rotate" does with one token.
type rotation struct {
	User       string     `json:"service_user"` // its name
	TokenID    string     `json:"token_id"`
	Result     string     `json:"result"` // resultDue, "rotated", or the reason against it
	NewTokenID string     `json:"new_token_id,omitempty"`
	ExpiresAt  *time.Time `json:"expires_at,omitempty"` // of the new token
	File       string     `json:"file,omitempty"`       // for the new secret
	uri        string     // of the token
	begun      bool       // an earlier run has left the file empty
}

const resultDue = "to be rotated"

func (c *cli) rotateTokensCommand(root *cobra.Command) {
	var within, filter, grace, dir string
	var dryRun bool
	rotate := c.command(root, "rotate [USER…]",
		"Replaces the tokens of service users, or all that end soon, "+
			"and writes each new secret to its own file",
		"token rotate --ends-within 14d --grace 24h --secret-dir secrets --dry-run",
		func(users []string) error {
			_, err := admin.ParseDuration(cmp.Or(within, "1d"))
			_, bad := admin.ParseDuration(grace)
			chosen := min(len(users), 1) + min(len(filter), 1) + min(len(within), 1)
			if err != nil || bad != nil || chosen != 1 || graceless(grace) || dir == "" {
				return usagef("name service users or give --filter or --ends-within, and give --grace " +
					"and --secret-dir, such as --ends-within 14d --grace 24h --secret-dir secrets")
			}
			list, err := c.rotations(dir, func() ([]*rotation, error) {
				if within != "" {
					return c.rotationsWithin(within, dir)
				}
				return c.rotationsOf(users, filter, dir)
			})
			if err != nil {
				return err
			}
			due := slices.DeleteFunc(slices.Clone(list),
				func(r *rotation) bool { return r.Result != resultDue })
			if !dryRun && len(due) > 0 {
				if err := c.sure("Replace %s? The old ones stay valid for %s.",
					plural(len(due), "token"), grace); err != nil {
					return err
				}
				err = c.rotateAll(due, grace, dir)
			}
			rows := table{{"SERVICE USER", "TOKEN", "RESULT", "NEW TOKEN", "ENDS", "FILE"}}
			for _, r := range list {
				rows.add(r.User, r.TokenID, r.Result, r.NewTokenID, when(r.ExpiresAt), r.File)
			}
			return errors.Join(c.print(map[string]any{"tokens": list}, rows), err)
		})
	flags := rotate.Flags()
	flags.StringVar(&within, "ends-within", "", "the tokens that end within this time, such as 14d")
	flags.StringVar(&filter, "filter", "", "in place of names: the tokens of every service user that meets this "+
		"`EXPR` in CEL over obj")
	flags.StringVar(&grace, "grace", "", "how long the old tokens stay valid, such as 24h")
	flags.StringVar(&dir, "secret-dir", "", "the directory for the files, each named NAME.TOKEN after "+
		"the old token; group and others must not be able to write into it")
	flags.BoolVar(&dryRun, "dry-run", false, "only show what would be rotated")
	c.destructive(rotate, func() bool { return !dryRun })
}

// secretName is the name of a file for the secret that replaces a token.
var secretName = regexp.MustCompile(`^(.+)\.(token_[0-9A-Za-z]{27})$`)

// rotations lists the tokens that find returns, and those whose rotation an earlier run did not
// complete.
func (c *cli) rotations(dir string, find func() ([]*rotation, error)) ([]*rotation, error) {
	if err := checkSecretDir(dir); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("--secret-dir: %w", err)
	}
	list := []*rotation{}
	for _, entry := range entries {
		m, path := secretName.FindStringSubmatch(entry.Name()), filepath.Join(dir, entry.Name())
		if info, err := os.Stat(path); m == nil || err != nil || info.Size() > 0 {
			continue
		}
		name, _ := url.PathUnescape(m[1]) // an error leaves "", which is not found
		u, err := c.user(name)
		if err != nil {
			return nil, fmt.Errorf("%q is from an earlier run: %w; remove it to go on without its token",
				path, err)
		}
		list = append(list, &rotation{
			User: name, TokenID: m[2], Result: resultDue, File: path,
			uri: u.URI + "/tokens/" + m[2], begun: true,
		})
	}
	found, err := find()
	for _, r := range found {
		if !slices.ContainsFunc(list, func(begun *rotation) bool { return begun.TokenID == r.TokenID }) {
			list = append(list, r)
		}
	}
	return list, err
}

// rotationsWithin lists the tokens of all service users that end within a time.
func (c *cli) rotationsWithin(within, dir string) (list []*rotation, err error) {
	window, _ := admin.ParseDuration(within) // which was checked
	found, err := c.tokensAt(withQuery("/service_users/tokens", url.Values{"ends_within": {within}}))
	for _, t := range found.Tokens {
		r := &rotation{User: t.ServiceUserName, TokenID: t.ID, uri: t.URI}
		if r.Result, err = c.whyNotDue(t, window); err != nil {
			return nil, err
		}
		if r.Result == "" {
			r.Result, r.File = resultDue, secretPath(dir, t.ServiceUserName+"."+t.ID)
		}
		list = append(list, r)
	}
	return list, err
}

// rotationsOf lists the tokens that are valid and not retiring, of the named service users or of
// those that a filter selects.
func (c *cli) rotationsOf(names []string, filter, dir string) (list []*rotation, err error) {
	var chosen admin.ServiceUserList
	if filter != "" {
		chosen, err = all(c, withQuery("/service_users", url.Values{"filter": {filter}}),
			func(l *admin.ServiceUserList) (*[]admin.ServiceUser, *admin.Page) {
				return &l.ServiceUsers, &l.Page
			})
	}
	for _, name := range names {
		u, err := c.user(name)
		if err != nil {
			return nil, err
		}
		chosen.ServiceUsers = append(chosen.ServiceUsers, u)
	}
	for _, u := range chosen.ServiceUsers {
		found, err := c.tokensAt(withQuery(u.URI+"/tokens", url.Values{"state": {string(store.TokenActive)}}))
		if err != nil {
			return nil, err
		}
		for _, t := range found.Tokens {
			list = append(list, &rotation{
				User: u.Name, TokenID: t.ID, Result: resultDue, uri: t.URI,
				File: secretPath(dir, u.Name+"."+t.ID),
			})
		}
	}
	return list, err
}

// whyNotDue returns the reason not to rotate a token that ends soon, or "".
func (c *cli) whyNotDue(t admin.Token, window time.Duration) (string, error) {
	switch t.State {
	case store.TokenRetiring:
		return "replaced by " + t.ReplacedBy + " already", nil
	case store.TokenPending:
		return "not valid yet", nil
	}
	// If the lifetime is below the window, so is that of the successor, and every run would
	// replace it again. So a successor has to reach half of its life first.
	life := t.ExpiresAt.Sub(t.CreatedAt)
	half := t.CreatedAt.Add(life / 2)
	if life > window || time.Now().After(half) {
		return "", nil
	}
	all, err := c.tokensAt("/service_users/" + t.ServiceUserID + "/tokens")
	replaced := func(old admin.Token) bool { return old.ReplacedBy == t.ID }
	if err != nil || !slices.ContainsFunc(all.Tokens, replaced) {
		return "", err
	}
	return "replaced another token, and lives for less than --ends-within; due from " + when(&half), nil
}

// rotateAll rotates tokens one after another. It goes on after a refusal, and ends when the outcome
// of a request is not known.
func (c *cli) rotateAll(due []*rotation, grace, dir string) error {
	refused := 0
	for _, r := range due {
		err := c.rotate(r, grace, dir)
		var e *admin.Error
		switch {
		case errors.As(err, &e) && e.Status < 500:
			r.Result, r.File = e.Msg, ""
			refused++
		case err != nil:
			return fmt.Errorf("%s of %s: %w; the same command completes it", r.TokenID, r.User, err)
		}
	}
	if refused > 0 {
		return fmt.Errorf("%s could not be rotated; RESULT has the reason", plural(refused, "token"))
	}
	return nil
}

// rotate replaces a token, and writes the new secret to its file. The file exists, empty, before
// the request. If the answer is lost, a later run finds the empty file and repeats the request with
// the same key, and gets the token of the lost answer with another secret.
func (c *cli) rotate(r *rotation, grace, dir string) error {
	if !r.begun {
		if err := cmp.Or(newSecretFile("--secret-dir", r.File), store.SyncDir(dir)); err != nil {
			return err
		}
	}
	var t admin.Token
	err := c.client.PostOnce(context.Background(), "rotate "+r.TokenID, r.uri+"/refresh",
		admin.RefreshInput{Grace: admin.Some(grace)}, &t)
	var e *admin.Error
	if errors.As(err, &e) {
		switch e.Status {
		case http.StatusUnprocessableEntity:
			e.Msg = "begun by an earlier run with another --grace; give the same one"
		case http.StatusConflict, http.StatusNotFound: // no later run can get a secret
			err = errors.Join(err, os.Remove(r.File))
		}
	}
	if err != nil {
		return err
	}
	if err := saveSecret(r.File, t.Secret); err != nil {
		return errors.Join(err, newSecretFile("--secret-dir", r.File))
	}
	r.Result, r.NewTokenID, r.ExpiresAt = "rotated", t.ID, t.ExpiresAt
	return nil
}
