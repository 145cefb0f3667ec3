package store

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
)

// seconds is an instant relative to the present of newClock.
func seconds(n int) time.Time { return newClock().Now().Add(time.Duration(n) * time.Second) }

func numbered(n int, format string) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf(format, i)
	}
	return list
}

func labels(keys ...string) map[string]string {
	m := make(map[string]string)
	for _, k := range keys {
		m[k] = "v"
	}
	return m
}

const (
	emoji = "\U0001F600"
	year9 = 253402300799 // the last second of the year 9999
)

// texts are bad values of any text of at most limit characters.
func texts(limit int) map[string]string {
	return map[string]string{
		strings.Repeat("x", limit+1):   fmt.Sprintf("%d characters long, at most %d", limit+1, limit),
		strings.Repeat(emoji, limit+1): fmt.Sprintf("%d characters long, at most %d", limit+1, limit),
		"a\x00b":                       "U+0000",
		"a\tb":                         "U+0009",
		"a\x1b[31mb":                   "U+001B",
		"a\x7fb":                       "U+007F",
		"a\u0085b":                     "U+0085",
		"a\u2028b":                     "U+2028",
		"a\u202eb":                     "U+202E",
		"a\u200bb":                     "U+200B",
		"a\ufeffb":                     "U+FEFF",
		"a\xffb":                       "valid UTF-8",
	}
}

type badUser struct {
	name, field, advice string
	edit                func(*ServiceUser)
}

func TestBadServiceUsers(t *testing.T) {
	rows := []badUser{
		{"no name", "name", "must not be empty", func(u *ServiceUser) { u.Name = "" }},
		{"name begins with a space", "name", "white space", func(u *ServiceUser) { u.Name = " a" }},
		{"name ends with a space", "name", "white space", func(u *ServiceUser) { u.Name = "a\u00a0" }},
		{"name is an id", "name", "must not look like an id", func(u *ServiceUser) { u.Name = newID("service", seconds(0)) }},
		{"name of two lines", "name", "U+000A", func(u *ServiceUser) { u.Name = "a\nb" }},
		{"owner of two lines", "owner", "U+000A", func(u *ServiceUser) { u.Owner = "a\nb" }},
		{"alias with a colon", "alias", "must be 1 to 64 of", func(u *ServiceUser) { u.Alias = "a:b" }},
		{"alias with a space", "alias", "must be 1 to 64 of", func(u *ServiceUser) { u.Alias = "a b" }},
		{"alias with an umlaut", "alias", "must be 1 to 64 of", func(u *ServiceUser) { u.Alias = "ä" }},
		{"alias of 65", "alias", "must be 1 to 64 of", func(u *ServiceUser) { u.Alias = strings.Repeat("a", 65) }},
		{"alias like an id", "alias", `not begin with "service_"`, func(u *ServiceUser) { u.Alias = "service_x" }},
		{"unknown role", "role", "none of admin, manager, member", func(u *ServiceUser) { u.Role = "root" }},
		{"role in capitals", "role", "none of admin, manager, member", func(u *ServiceUser) { u.Role = "Admin" }},
		{"33 teams", "teams", "at most 32", func(u *ServiceUser) { u.Teams = numbered(33, "t%d") }},
		{"empty team", "teams", "1 to 64 ASCII letters", func(u *ServiceUser) { u.Teams = []string{""} }},
		{"team with a comma", "teams", "1 to 64 ASCII letters", func(u *ServiceUser) { u.Teams = []string{"ok", "a,b"} }},
		{"team with a quote", "teams", "1 to 64 ASCII letters", func(u *ServiceUser) { u.Teams = []string{`a"b`} }},
		{"team with a wildcard", "teams", "1 to 64 ASCII letters", func(u *ServiceUser) { u.Teams = []string{"a%"} }},
		{"team of two lines", "teams", "1 to 64 ASCII letters", func(u *ServiceUser) { u.Teams = []string{"a\n"} }},
		{"team of 65", "teams", "1 to 64 ASCII letters", func(u *ServiceUser) { u.Teams = []string{strings.Repeat("a", 65)} }},
		{"65 labels", "labels", "at most 64", func(u *ServiceUser) { u.Labels = labels(numbered(65, "k%d")...) }},
		{"empty key", "labels", "begin with a letter or digit", func(u *ServiceUser) { u.Labels = labels("") }},
		{"key with a space", "labels", "begin with a letter or digit", func(u *ServiceUser) { u.Labels = labels("a b") }},
		{"key of 64", "labels", "1 to 63", func(u *ServiceUser) { u.Labels = labels(strings.Repeat("k", 64)) }},
		{"key that begins with a dot", "labels", "begin with a letter or digit", func(u *ServiceUser) { u.Labels = labels(".a") }},
		{"65 addresses", "allowed_ips", "at most 64", func(u *ServiceUser) { u.AllowedIPs = numbered(65, "10.0.0.%d") }},
		{"expires now", "expires_at", "has passed already", func(u *ServiceUser) { u.ExpiresAt = seconds(0) }},
		{"expires within this second", "expires_at", "has passed already", func(u *ServiceUser) { u.ExpiresAt = seconds(0).Add(999 * time.Millisecond) }},
		{"expired at the epoch", "expires_at", "has passed already", func(u *ServiceUser) { u.ExpiresAt = time.Unix(0, 0) }},
		{"expires in the year 10000", "expires_at", "9999", func(u *ServiceUser) { u.ExpiresAt = time.Unix(year9+1, 0) }},
		{"expires in the year 10000 in London", "expires_at", "9999", func(u *ServiceUser) { u.ExpiresAt = time.Unix(year9+1, 0).In(time.FixedZone("", -3600)) }},
	}
	for _, bad := range []string{"", "10.0.0.0/33", "10.0.0", "10.0.0.1 ", "localhost", "10.0.0.0-10.0.0.9", "fe80::1%eth0", "::ffff:10.0.0.0/90", "1.2.3.4:80", "*"} {
		rows = append(rows, badUser{"address " + bad, "allowed_ips", "such as 10.0.0.0/8", func(u *ServiceUser) { u.AllowedIPs = []string{"10.0.0.1", bad} }})
	}
	for _, f := range []struct {
		field string
		limit int
		place func(*ServiceUser) *string
	}{
		{"name", 255, func(u *ServiceUser) *string { return &u.Name }},
		{"display_name", 255, func(u *ServiceUser) *string { return &u.DisplayName }},
		{"owner", 255, func(u *ServiceUser) *string { return &u.Owner }},
		{"description", 2000, func(u *ServiceUser) *string { return &u.Description }},
	} {
		for bad, advice := range texts(f.limit) {
			rows = append(rows, badUser{fmt.Sprintf("%s %.10q", f.field, bad), f.field, advice, func(u *ServiceUser) { *f.place(u) = bad }})
		}
	}
	for bad, advice := range texts(255) {
		rows = append(rows, badUser{fmt.Sprintf("label %.10q", bad), "labels", advice, func(u *ServiceUser) { u.Labels = map[string]string{"k": bad} }})
	}

	w := newWorld(t, Options{})
	before := dump(t, w.Store)
	for _, row := range rows {
		u := ServiceUser{Profile: access.Profile{Name: "n"}}
		row.edit(&u)
		_, _, err := w.CreateServiceUser(ctx, alice, u, nil)
		wantInvalid(t, "create, "+row.name, err, row.field, row.advice)
		wantInvalid(t, "update, "+row.name, w.changeUser(row.edit), row.field, row.advice)
	}
	same(t, "rows", dump(t, w.Store), before)
}

// TestSecretsAreNotStored writes a secret, in spellings of which a lenient reader makes
// it again, into every text that a record keeps.
func TestSecretsAreNotStored(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Options{})
	whole := w.token.Secret
	wide := strings.Join(strings.Split(whole, ""), "\x00") + "\x00"
	spellings := map[string]string{
		"whole": whole, "cut by one": whole[:len(whole)-1], "cut to the half": whole[:27], "in capitals": strings.ToUpper(whole), "without its prefix": whole[4:],
		"in base64": base64.StdEncoding.EncodeToString([]byte(whole)), "in hex": hex.EncodeToString([]byte(whole)), "in UTF-16, base64": base64.StdEncoding.EncodeToString([]byte(wide)),
	}
	before := dump(t, w.Store)
	for name, s := range spellings {
		user := map[string]func(*ServiceUser){
			"name": func(u *ServiceUser) { u.Name = s }, "display_name": func(u *ServiceUser) { u.DisplayName = "x " + s }, "owner": func(u *ServiceUser) { u.Owner = s },
			"description": func(u *ServiceUser) { u.Description = "a\n" + s }, "alias": func(u *ServiceUser) { u.Alias = s[:min(64, len(s))] },
			"teams": func(u *ServiceUser) { u.Teams = []string{"ops", s[:min(64, len(s))]} }, "labels": func(u *ServiceUser) { u.Labels = map[string]string{"k": s} },
		}
		for field, edit := range user {
			wantInvalid(t, field+", "+name, w.changeUser(edit), field, "holds a secret")
		}
		wantInvalid(t, "label key, "+name, w.changeUser(func(u *ServiceUser) { u.Labels = labels(s[:min(63, len(s))]) }), "labels", "holds a secret")
		wantInvalid(t, "description of a token, "+name, w.changeToken(func(k *Token) { k.Description = s }), "description", "holds a secret")
		wantInvalid(t, "metadata, "+name, w.changeToken(func(k *Token) { k.Metadata = `{"key":"` + s + `"}` }), "metadata", "holds a secret")
		_, err := w.CreateToken(ctx, alice, w.user.ID, Token{Metadata: s})
		wantInvalid(t, "metadata of a new token, "+name, err, "metadata", "holds a secret")
		_, err = w.CreateGroup(ctx, alice, Group{Name: s})
		wantInvalid(t, "group, "+name, err, "name", "holds a secret")
		_, err = w.CreateGroup(ctx, alice, Group{Name: "x", Description: s})
		wantInvalid(t, "description of a group, "+name, err, "description", "holds a secret")
		_, err = w.AddRule(ctx, alice, w.readers.ID, access.Rule{Effect: access.Allow, Methods: []string{"GET"}, Path: "/v1/" + s})
		wantInvalid(t, "rule, "+name, err, "rules", "holds a secret")
		_, err = w.AddRule(ctx, alice, w.readers.ID, access.Rule{Effect: access.Allow, Methods: []string{"GET"}, Path: "/v1", Name: s})
		wantInvalid(t, "name of a rule, "+name, err, "rules.name", "holds a secret")
	}
	same(t, "rows", dump(t, w.Store), before)

	// An actor is whoever a proxy says, and a login is what a stranger says.
	_, err := w.CreateGroup(ctx, Actor{Name: "human:" + whole}, Group{Name: "x"})
	mustDo(err)
	mustDo(w.NoteAttempt(ctx, Actor{Name: Anonymous}, "", Attempt{Login: whole[:40]}))
	for _, e := range must(w.trail(ctx, "", 0, 2)) {
		if text := fmt.Sprintf("%+v %s", e, e.After); access.FindLeak(text) != access.NoLeak || strings.Contains(text, whole[:20]) {
			t.Errorf("the audit trail: got %s", text)
		}
	}

	// Older versions took a secret as metadata. It does not go on, and the token does.
	if _, err := w.write.Exec(`UPDATE tokens SET metadata = $1 WHERE id = $2`, whole, w.token.ID); err != nil {
		t.Fatal(err)
	}
	if issued := must(w.refreshOf(ctx, alice, w.user.ID, w.token.ID, 0)); issued.Metadata != "csu_…" {
		t.Errorf("metadata of the successor: got %q, want the secret masked", issued.Metadata)
	}
}

func wantInvalid(t *testing.T, what string, err error, field, advice string) {
	t.Helper()
	var e *Error
	switch {
	case !errors.As(err, &e) || !errors.Is(err, ErrInvalid):
		t.Errorf("%s: got %v, want an invalid value", what, err)
	case e.Field != field:
		t.Errorf("%s: field: got %q, want %q (%v)", what, e.Field, field, err)
	case !strings.Contains(e.Msg, advice):
		t.Errorf("%s: got %q, want %q in it", what, e.Msg, advice)
	case access.FindLeak(e.Msg) != access.NoLeak:
		t.Errorf("%s: a secret stands in %q", what, e.Msg)
	}
}

func TestKindsOfInvalid(t *testing.T) {
	w := newWorld(t, Options{})
	if err := w.changeUser(func(u *ServiceUser) { u.Name = "" }); !errors.Is(err, ErrEmpty) || !errors.Is(err, ErrInvalid) {
		t.Errorf("an empty name: got %v, want %v", err, ErrEmpty)
	}
	if err := w.changeUser(func(u *ServiceUser) { u.Name = strings.Repeat("x", 256) }); !errors.Is(err, ErrTooLong) || !errors.Is(err, ErrInvalid) {
		t.Errorf("a long name: got %v, want %v", err, ErrTooLong)
	}
}

func TestGoodServiceUsers(t *testing.T) {
	w := newWorld(t, Options{})
	for i, row := range []struct {
		name string
		u    ServiceUser
		want func(*ServiceUser) // what the store makes of it; nil is the same
	}{
		{"one letter", ServiceUser{Profile: access.Profile{Name: "x"}}, nil},
		{"255 letters", ServiceUser{Profile: access.Profile{Name: strings.Repeat("x", 255), DisplayName: strings.Repeat("x", 255), Owner: strings.Repeat("x", 255), Description: strings.Repeat("x", 2000)}}, nil},
		{"255 emoji", ServiceUser{Profile: access.Profile{Name: strings.Repeat(emoji, 255), DisplayName: strings.Repeat(emoji, 255), Owner: strings.Repeat(emoji, 255), Description: strings.Repeat(emoji, 2000)}}, nil},
		{"two lines", ServiceUser{Profile: access.Profile{Name: "a b", Description: "a\nb\n"}}, nil},
		{"markup and quotes", ServiceUser{Profile: access.Profile{Name: `<b>'"\{http.request.header.x}` + "`$&", Labels: map[string]string{"k": `<b>'"\{env.HOME}`}}}, nil},
		{"almost an id", ServiceUser{Profile: access.Profile{Name: "service_x", Alias: "Service_x"}}, nil},
		{"alias of 64", ServiceUser{Profile: access.Profile{Name: "a1", Alias: strings.Repeat("a", 60) + "._@-"}}, nil},
		{"alias that is the name of another", ServiceUser{Profile: access.Profile{Name: "a2", Alias: "x"}}, nil},
		{"roles", ServiceUser{Profile: access.Profile{Name: "a3", Role: access.Admin}}, nil},
		{"32 teams", ServiceUser{Profile: access.Profile{Name: "a4", Teams: numbered(32, "t%02d")}}, nil},
		{"team of 64", ServiceUser{Profile: access.Profile{Name: "a5", Teams: []string{"0 ._:-" + strings.Repeat("a", 58)}}}, nil},
		{"64 labels", ServiceUser{Profile: access.Profile{Name: "a6", Labels: labels(numbered(64, "k%d")...)}}, nil},
		{"key of 63", ServiceUser{Profile: access.Profile{Name: "a7", Labels: map[string]string{"0._/-" + strings.Repeat("k", 58): strings.Repeat(emoji, 255), "e": ""}}}, nil},
		{"64 addresses", ServiceUser{Profile: access.Profile{Name: "a8"}, AllowedIPs: numbered(64, "10.0.%d.0/24")}, func(u *ServiceUser) { u.AllowedIPs = sorted(u.AllowedIPs) }},
		{"addresses in any spelling", ServiceUser{Profile: access.Profile{Name: "a9"}, AllowedIPs: []string{"10.1.2.3/8", "::FFFF:192.0.2.1", "::ffff:192.0.2.0/120", "2001:DB8::1", "0.0.0.0/0", "::/0", "10.0.0.0/8"}}, func(u *ServiceUser) {
			u.AllowedIPs = []string{"0.0.0.0/0", "10.0.0.0/8", "192.0.2.0/24", "192.0.2.1/32", "2001:db8::1/128", "::/0"}
		}},
		{"expires in a second", ServiceUser{Profile: access.Profile{Name: "b1"}, ExpiresAt: seconds(1)}, nil},
		{"expires at the end of the year 9999", ServiceUser{Profile: access.Profile{Name: "b2"}, ExpiresAt: time.Unix(year9, 0).UTC()}, nil},
	} {
		w.clock.add(time.Nanosecond * time.Duration(i))
		made, _, err := w.CreateServiceUser(ctx, alice, row.u, nil)
		if err != nil {
			t.Errorf("%s: got %v, want no error", row.name, err)
			continue
		}
		want := row.u
		if row.want != nil {
			row.want(&want)
		}
		read := must(w.readUser(ctx, Local, made.ID))
		show := func(u ServiceUser) string {
			return fmt.Sprintf("%q %q %q %q %q %v %v %v %v", u.Name, u.DisplayName, u.Description, u.Owner, u.Alias, u.Teams, u.Labels, u.AllowedIPs, u.ExpiresAt)
		}
		if show(read) != show(want) || !reflect.DeepEqual(read, made) {
			t.Errorf("%s: got %s, want %s", row.name, show(read), show(want))
		}
	}
	trail(t, w.Store)
}

func TestBadTokens(t *testing.T) {
	type bad struct {
		name, field, advice string
		edit                func(*Token)
	}
	rows := []bad{
		{"description of two lines", "description", "U+000A", func(k *Token) { k.Description = "a\nb" }},
		{"metadata of 4097 bytes", "metadata", "at most 4096 bytes", func(k *Token) { k.Metadata = strings.Repeat("x", 4097) }},
		{"metadata of 1025 emoji", "metadata", "at most 4096 bytes", func(k *Token) { k.Metadata = strings.Repeat(emoji, 1025) }},
		{"metadata that is no text", "metadata", "valid UTF-8", func(k *Token) { k.Metadata = "\xff" }},
		{"metadata with a zero", "metadata", "U+0000", func(k *Token) { k.Metadata = "a\x00" }},
		{"65 addresses", "allowed_ips", "at most 64", func(k *Token) { k.AllowedIPs = numbered(65, "10.0.0.%d") }},
		{"no address", "allowed_ips", "such as 10.0.0.0/8", func(k *Token) { k.AllowedIPs = []string{"x"} }},
		{"unknown group", "permission_groups", "there is no permission group", func(k *Token) { k.Groups = []string{"group_x"} }},
		{"expires now", "expires_at", "has passed already", func(k *Token) { k.ExpiresAt = seconds(0) }},
		{"expires in the year 10000", "expires_at", "9999", func(k *Token) { k.ExpiresAt = time.Unix(year9+1, 0) }},
		{"begins at its end", "not_before", "before expires_at", func(k *Token) { k.NotBefore, k.ExpiresAt = seconds(5), seconds(5) }},
		{"begins in the second of its end", "not_before", "before expires_at", func(k *Token) { k.NotBefore, k.ExpiresAt = seconds(5), seconds(5).Add(time.Millisecond) }},
		{"begins behind its end", "not_before", "before expires_at", func(k *Token) { k.NotBefore, k.ExpiresAt = seconds(6), seconds(5) }},
		{"begins in the year 10000", "not_before", "9999", func(k *Token) { k.NotBefore = time.Unix(year9+1, 0) }},
		{"begins before the epoch", "not_before", "1970", func(k *Token) { k.NotBefore = time.Unix(-1, 0) }},
		{"begins before Christ", "not_before", "1970", func(k *Token) { k.NotBefore = time.Date(-1, 1, 1, 0, 0, 0, 0, time.UTC) }},
	}
	for text, advice := range texts(255) {
		rows = append(rows, bad{fmt.Sprintf("description %.10q", text), "description", advice, func(k *Token) { k.Description = text }})
	}
	w := newWorld(t, Options{})
	before := dump(t, w.Store)
	for _, row := range rows {
		var k Token
		row.edit(&k)
		_, err := w.CreateToken(ctx, alice, w.user.ID, k)
		wantInvalid(t, "create, "+row.name, err, row.field, row.advice)
		wantInvalid(t, "update, "+row.name, w.changeToken(row.edit), row.field, row.advice)
		var first Token
		row.edit(&first)
		_, _, err = w.CreateServiceUser(ctx, alice, ServiceUser{Profile: access.Profile{Name: "n"}}, &first)
		wantInvalid(t, "with a service user, "+row.name, err, row.field, row.advice)
	}
	same(t, "rows", dump(t, w.Store), before)
}

func TestGoodTokens(t *testing.T) {
	w := newWorld(t, Options{})
	for _, k := range []Token{
		{},
		{Description: strings.Repeat(emoji, 255), Metadata: strings.Repeat(emoji, 1024)},
		{Metadata: strings.Repeat("\n", 4096)},
		{Metadata: "{\"a\":\t\"<\\\"\"}\r\n", AllowedIPs: []string{"192.0.2.1/32"}},
		{ExpiresAt: seconds(1)},
		{NotBefore: time.Unix(1, 0).UTC(), ExpiresAt: time.Unix(year9, 0).UTC()},
		{NotBefore: seconds(5), ExpiresAt: seconds(6), Groups: []string{w.closers.ID}}, // a group that its user is not in
		{NotBefore: time.Unix(year9, 0).UTC()},
	} {
		issued, err := w.CreateToken(ctx, alice, w.user.ID, k)
		if err != nil {
			t.Errorf("%+v: got %v, want no error", k, err)
			continue
		}
		read := must(w.Token(ctx, Local, w.user.ID, issued.ID))
		show := func(k Token) string {
			return fmt.Sprintf("%q %q %v %v %v %v", k.Description, k.Metadata, k.AllowedIPs, k.Groups, k.ExpiresAt, k.NotBefore)
		}
		if show(read) != show(k) {
			t.Errorf("got %s, want %s", show(read), show(k))
		}
	}
}

type badCondition struct{ name, text, field, advice string }

// badConditions are refused as the condition of a membership and of a rule.
// field is where a mistake in the expression is told.
func badConditions(field string) []badCondition {
	const nested = `user.labels.all(a, user.labels.all(b, user.labels.all(c, a != b || b != c)))`
	text := field
	if field == "rules" {
		text = "rules.when"
	}
	return []badCondition{
		{"syntax", `user.name ==`, field, "at character 13: Syntax error"},
		{"not a condition", `user.name`, field, "must be true or false"},
		{"unknown variable", `usr.name == "x"`, field, "undeclared reference to 'usr'"},
		{"unknown field", `user.nme == "x"`, field, "undefined field 'nme'"},
		{"of another type", `user.teams == "finance"`, field, "no matching overload"},
		{"the whole service user", `user == user`, field, "name a field of user"},
		{"too costly", nested, field, "can cost too much"},
		{"two lines", "user.name == \"x\" ||\nuser.name == \"y\"", field, "on one line"},
		{"no UTF-8", "user.name == \"\xff\"", text, "valid UTF-8"},
		{"a control character", "user.name == \"\x00\"", text, "U+0000"},
		{"a bad pattern", `user.name.matches("(")`, field, "invalid matches argument"},
		{"white space around it", ` true `, field, "without white space"},
		{"nothing but white space", ` `, field, "without white space"},
		{"2001 bytes", `user.name == "` + strings.Repeat("x", 2001-15) + `"`, text, "at most 2000 are allowed"},
		{"2001 bytes of fewer characters", `user.name == "` + strings.Repeat(emoji, 497) + `"`, field, "at most 2000 are allowed"},
		{"a secret", `user.name == "` + access.NewSecret() + `"`, text, "secrets are never stored"},
		{"a secret without quotes", `user.name == ` + access.NewSecret(), text, "secrets are never stored"},
	}
}

func TestBadGroups(t *testing.T) {
	type bad struct {
		name, field, advice string
		edit                func(*Group)
	}
	rows := []bad{
		{"no name", "name", "1 to 64 ASCII letters", func(g *Group) { g.Name = "" }},
		{"name of 65", "name", "1 to 64 ASCII letters", func(g *Group) { g.Name = strings.Repeat("a", 65) }},
		{"name with a comma", "name", "1 to 64 ASCII letters", func(g *Group) { g.Name = "a,b" }},
		{"name with an umlaut", "name", "1 to 64 ASCII letters", func(g *Group) { g.Name = "ä" }},
		{"name that begins with a space", "name", "begin with a letter or digit", func(g *Group) { g.Name = " a" }},
		{"name that begins with a dash", "name", "begin with a letter or digit", func(g *Group) { g.Name = "-a" }},
		{"name of two lines", "name", "1 to 64 ASCII letters", func(g *Group) { g.Name = "a\n" }},
		{"name is an id", "name", "must not look like an id", func(g *Group) { g.Name = newID("group", seconds(0)) }},
		{"unknown mode", "mode", "neither enforce nor observe", func(g *Group) { g.Mode = "off" }},
		{"unknown permission", "permissions", `no permission "p.q" in the catalogue`, func(g *Group) { g.Permissions = []string{"p.q"} }},
		{"too many rules", "rules", "at most 10000", func(g *Group) { g.Rules = make([]access.Rule, 10_001) }},
		{"an empty rule", "rules", `a rule begins with "allow" or "deny"`, func(g *Group) { g.Rules = make([]access.Rule, 1) }},
	}
	for text, advice := range texts(2000) {
		rows = append(rows, bad{fmt.Sprintf("description %.10q", text), "description", advice, func(g *Group) { g.Description = text }})
	}
	for _, c := range badConditions("member_condition") {
		rows = append(rows, bad{"condition, " + c.name, c.field, c.advice, func(g *Group) { g.MemberCondition = c.text }})
	}
	for _, c := range []struct{ name, text, advice string }{
		{"the request", `request.method == "GET"`, "'request'"},
		{"a parameter", `params.id == "7"`, "undeclared reference to 'params'"},
		{"the instant", `now > user.created_at`, "undeclared reference to 'now'"},
	} {
		rows = append(rows, bad{"condition on " + c.name, "member_condition", c.advice, func(g *Group) { g.MemberCondition = c.text }})
	}
	w := newWorld(t, Options{})
	before := dump(t, w.Store)
	for _, row := range rows {
		g := Group{Name: "g"}
		row.edit(&g)
		_, err := w.CreateGroup(ctx, alice, g)
		wantInvalid(t, "create, "+row.name, err, row.field, row.advice)
		wantInvalid(t, "update, "+row.name, w.changeGroup(row.edit), row.field, row.advice)
	}
	same(t, "rows", dump(t, w.Store), before)
	for _, g := range []Group{
		{Name: "0"}, {Name: "a ._:-" + strings.Repeat("a", 58)}, {Name: "Readers"}, {Name: "group_x", Mode: access.Observe, Description: strings.Repeat(emoji, 1999) + "\n"},
	} {
		if made, err := w.CreateGroup(ctx, alice, g); err != nil || made.Name != g.Name || made.Description != g.Description {
			t.Errorf("%+v: got %+v, %v", g, made, err)
		}
	}
}

func TestBadRules(t *testing.T) {
	type bad struct {
		name, field, advice string
		rule                access.Rule
	}
	get := []string{"GET"}
	rows := []bad{
		{"no effect", "rules", `begins with "allow" or "deny"`, access.Rule{Methods: get, Path: "/"}},
		{"effect in capitals", "rules", `begins with "allow" or "deny"`, access.Rule{Effect: "Allow", Methods: get, Path: "/"}},
		{"no method", "rules", "1 to 32 methods", access.Rule{Effect: "allow", Path: "/"}},
		{"method in small letters", "rules", `"GET"`, access.Rule{Effect: "allow", Methods: []string{"get"}, Path: "/"}},
		{"method with a comma", "rules", "separated by commas", access.Rule{Effect: "allow", Methods: []string{"GET,PUT"}, Path: "/"}},
		{"star among others", "rules", "cannot be combined with others", access.Rule{Effect: "allow", Methods: []string{"GET", "*"}, Path: "/"}},
		{"CONNECT", "rules", "never passes", access.Rule{Effect: "deny", Methods: []string{"CONNECT"}, Path: "/"}},
		{"host with a port", "rules", "without a port", access.Rule{Effect: "allow", Methods: get, Host: "a:80", Path: "/"}},
		{"no path", "rules", `a path starts with "/"`, access.Rule{Effect: "allow", Methods: get}},
		{"path without a slash", "rules", `a path starts with "/"`, access.Rule{Effect: "allow", Methods: get, Path: "v1"}},
		{"encoded path", "rules", "decoded", access.Rule{Effect: "allow", Methods: get, Path: "/%41"}},
		{"star in the path", "rules", "{rest...}", access.Rule{Effect: "allow", Methods: get, Path: "/v1/*"}},
		{"name of two lines", "rules.name", "U+000A", access.Rule{Effect: "allow", Methods: get, Path: "/", Name: "a\nb"}},
		{"long name", "rules.name", "at most 255", access.Rule{Effect: "allow", Methods: get, Path: "/", Name: strings.Repeat("x", 256)}},
		{"long description", "rules.description", "at most 2000", access.Rule{Effect: "allow", Methods: get, Path: "/", Description: strings.Repeat("x", 2001)}},
	}
	for _, c := range badConditions("rules") {
		rows = append(rows, bad{"condition, " + c.name, c.field, c.advice, access.Rule{Effect: "deny", Methods: get, Path: "/{id}", When: c.text}})
	}
	for _, c := range []struct{ name, text, advice string }{
		{"a parameter that the path does not have", `params.name == "x"`, "the path has no {name}"},
		{"an unknown field of the request", `request.body == "x"`, "undefined field 'body'"},
		{"a header that is none", `request.header("a b") == ""`, "not the name of a header"},
	} {
		rows = append(rows, bad{"condition on " + c.name, "rules", c.advice, access.Rule{Effect: "allow", Methods: get, Path: "/{id}", When: c.text}})
	}
	w := newWorld(t, Options{})
	before := dump(t, w.Store)
	for _, row := range rows {
		_, err := w.CreateGroup(ctx, alice, Group{Name: "g", Rules: append(rules("allow GET /"), row.rule)})
		wantInvalid(t, "create, "+row.name, err, row.field, row.advice)
		wantInvalid(t, "update, "+row.name, w.changeGroup(func(g *Group) { g.Rules = append(g.Rules, row.rule) }), row.field, row.advice)
		_, err = w.AddRule(ctx, alice, w.readers.ID, row.rule)
		wantInvalid(t, "add, "+row.name, err, row.field, row.advice)
	}
	same(t, "rows", dump(t, w.Store), before)
}

// Many rules keep their ids when they are reordered, and there is an end to them.
func TestManyRules(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Options{})
	list := make([]access.Rule, 1000)
	for i := range list {
		list[i] = access.Rule{Effect: "allow", Methods: []string{"GET"}, Path: fmt.Sprintf("/v1/%d", i)}
	}
	mustDo(w.changeGroup(func(g *Group) { g.Rules = list }))
	ids := make(map[string]string)
	mustDo(w.changeGroup(func(g *Group) {
		for i, r := range g.Rules {
			ids[r.Path] = r.ID
			list[len(list)-1-i] = access.Rule{Effect: r.Effect, Methods: r.Methods, Path: r.Path}
		}
		g.Rules = list
	}))
	for i, r := range must(w.Group(ctx, Local, w.readers.ID)).Rules {
		if r.Path != list[i].Path || r.ID != ids[r.Path] {
			t.Fatalf("rule %d: got %s %s, want %s %s", i, r.ID, r.Path, ids[list[i].Path], list[i].Path)
		}
	}
	runSQL(t, w.path, fmt.Sprintf(`PRAGMA busy_timeout = 5000;
		WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %d)
		INSERT INTO rules SELECT 'rule_' || i, '%s', i, 'allow', 'GET', '', '/' || i, '', '', '', 0 FROM n`, maxRules-1, w.closers.ID))
	if _, err := w.AddRule(ctx, alice, w.closers.ID, rules("allow GET /x")[0]); kind(err) != "conflict rules" {
		t.Errorf("one rule more than %d: got %v, want a conflict", maxRules, err)
	}
}
