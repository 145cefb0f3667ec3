package store

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/internal/pgtest"
)

// Names that read alike are one name, whoever comes second, and the refusal does not
// say whose it is.
func TestNamesThatReadAlike(t *testing.T) {
	for _, row := range []struct{ first, second string }{
		{"root", "Root"}, {"root", "ROOT"}, {"Root", "root"},
		{"root", "root\ufe0f"}, {"ro\U000E0100ot", "root"}, // variation selectors
		{"root", "ｒｏｏｔ"}, {"root", "𝐫𝗈𝓸𝚝"}, {"root", "ⓡoot"}, // compatibility forms
		{"root", "ro\u034fot"}, {"root", "root\u3164"}, {"root", "ro\u115fot"}, // not to be seen
		{"café", "CAFÉ"}, {"straße", "STRASSE"}, {"ﬁle", "file"}, {"σίσυφος", "ΣΊΣΥΦΟΣ"}, {"ꮃꮃ", "ᎳᎳ"},
		{"billing sync", "billing  sync"}, {"billing sync", "billing\u3164 sync"},
		{"①", "1"}, {"２", "2"},
	} {
		w := newWorld(t, Options{})
		made, _ := addUser(w.Store, row.first)
		_, _, err := w.CreateServiceUser(ctx, alice, ServiceUser{Profile: access.Profile{Name: row.second}}, nil)
		if kind(err) != "conflict: taken name" {
			t.Errorf("%+q after %+q: got %v, want that it is taken", row.second, row.first, err)
			continue
		}
		if strings.Contains(err.Error(), made.ID) || strings.Contains(err.Error(), fmt.Sprintf("%q", row.first)) {
			t.Errorf("%+q: got %v, want that it does not name the other", row.second, err)
		}
		if err := w.changeUser(func(u *ServiceUser) { u.Name = row.second }); kind(err) != "conflict: taken name" {
			t.Errorf("%+q after %+q, by an update: got %v, want that it is taken", row.second, row.first, err)
		}
		// Its own name can be written in another way, and is free again after a delete.
		must(w.UpdateServiceUser(ctx, alice, made.ID, 0, func(u *ServiceUser) error { u.Name = row.second; return nil }))
		mustDo(w.DeleteServiceUser(ctx, alice, made.ID, 0, 0))
		again, _ := addUser(w.Store, row.first)
		if _, err := w.UndeleteServiceUser(ctx, alice, made.ID); kind(err) != "conflict: taken name" {
			t.Errorf("%+q, brought back beside %+q: got %v, want that it is taken", row.second, row.first, err)
		}
		must(w.UpdateServiceUser(ctx, alice, again.ID, 0, func(u *ServiceUser) error { u.Name = "other"; return nil }))
		must(w.UndeleteServiceUser(ctx, alice, made.ID))
	}
}

func TestNewNames(t *testing.T) {
	w := newWorld(t, Options{})
	for _, row := range []struct{ name, advice string }{
		// In several scripts.
		{"r\u043eot", "mixes the scripts Latin and Cyrillic"}, {"аdmin", "mixes the scripts Cyrillic and Latin"}, {"αdmin", "Greek"}, {"root日本", ""}, {"日本ルートroot", ""},
		{"ㄅ日a", ""}, {"한국어 root 日", ""}, {"ルート한", "Hangul"}, {"日本д", "Cyrillic"}, {"корень", ""}, {"корень №5", ""}, {"ρίζα", ""}, {"جذر", ""}, {"root-1_2.3@x/y", ""},
		{"а𝖽𝗆𝗂𝗇", "mixes the scripts Cyrillic and Latin"}, {"Οoot", "Greek"}, {"ꮃorker", "Cherokee"}, {"😀 root ™", ""}, {"שורשroot", "Hebrew"},
		// Separators of lists and logins.
		{"a, b", "U+002C"}, {"a,b", "U+002C"}, {"a，b", "U+FF0C"}, {"a﹐b", "U+FE50"}, {"human:admin", "U+003A"}, {"human：admin", "U+FF1A"}, {"human﹕admin", "U+FE55"}, {"human︓admin", "U+FE13"},
		{"human\ua789admin", "U+A789"}, {"human\u2236admin", "U+2236"}, {"human\u02d0admin", "U+02D0"}, {"a\u201ab", "U+201A"},
		{"a-b", ""}, {"a;b", ""}, {"日本、東京", ""},
		// Spaces.
		{"a\u00a0b", "U+00A0"}, {"a\u3000b", "U+3000"}, {"a\u2003b", "U+2003"}, {"a\u202fb", "U+202F"}, {"a\u1680b", "U+1680"}, {"a\u2800b", "U+2800"}, {"a\u2029b", "U+2029"}, {"a b", ""},
		{"root\U0001d159", "U+1D159"}, {"root\ufffc", "U+FFFC"}, {"\U00013441", "U+13441"},
		// Not composed.
		{"cafe\u0301", "send it as \"caf\u00e9\""}, {"\u212b", "normalisation form C"}, {"x\u0307\u0323", "normalisation form C"}, {"\u1112\u1161\u11ab", "normalisation form C"}, {"caf\u00e9", ""}, {"Việt Nam", ""}, {"한", ""},
		// Control, format, private, unassigned.
		{"a\u200bb", "U+200B"}, {"a\u200db", "U+200D"}, {"a\u00adb", "U+00AD"}, {"a\u2066b", "U+2066"}, {"a\U000E0061b", "U+E0061"}, {"a\ue000b", "U+E000"}, {"a\u0378b", "U+0378"}, {"a\ufdd0b", "U+FDD0"},
		// Nothing to be seen.
		{"\u3164", "visible character"}, {"\u115f\u1160", "visible character"}, {"\ufe0f", "visible character"},
		// Ids.
		{"service_" + strings.Repeat("0", 27) + "\ufe0f", "look like an id"}, {"SERVICE_" + strings.Repeat("0", 27), "look like an id"},
	} {
		u, _, err := w.CreateServiceUser(ctx, alice, ServiceUser{Profile: access.Profile{Name: row.name}}, nil)
		if row.advice != "" {
			wantInvalid(t, fmt.Sprintf("%+q", row.name), err, "name", row.advice)
			wantInvalid(t, fmt.Sprintf("%+q, by an update", row.name), w.changeUser(func(u *ServiceUser) { u.Name = row.name }), "name", row.advice)
		} else if err != nil || u.Name != row.name {
			t.Errorf("%+q: got %+q, %v, want that it is taken as it is", row.name, u.Name, err)
		}
	}
}

// The key of a key is that key, and no key holds what cannot be seen.
func TestNameKey(t *testing.T) {
	t.Parallel()
	check := func(t tb, name string) {
		key := nameKey(name)
		if again := nameKey(key); again != key {
			t.Errorf("%+q: got the key %+q, and of that %+q", name, key, again)
		}
		if strings.ContainsFunc(key, func(r rune) bool {
			return unicode.In(r, unicode.Cf, unicode.Variation_Selector, unicode.Zs) && r != ' '
		}) {
			t.Errorf("%+q: the key %+q holds what cannot be seen", name, key)
		}
	}
	for r := rune(0); r <= unicode.MaxRune; r++ {
		if utf8.ValidRune(r) && unicode.In(r, unicode.L, unicode.M, unicode.N, unicode.P, unicode.S, unicode.Zs, unicode.Cf) {
			check(t, "a"+string(r)+"b")
			check(t, string(r)+"\u0345\u0301")
		}
	}
	rapid.Check(t, func(t *rapid.T) { check(t, rapid.String().Draw(t, "name")) })
}

// A store from before the rules loads, keeps its names, and says which they are; what
// is new keeps to the rules, and a backup of it comes back.
func TestOlderNames(t *testing.T) {
	pgtest.SQLiteOnly(t, "PostgreSQL has no store with an older schema")
	path, opts := copyOfSchema(t, schema4)
	s := open(t, path, opts)
	named := make(map[string]ServiceUser)
	for _, u := range must(first(s.page(ctx, Local, userPage{Limit: 100}))) {
		named[u.Name] = u
	}
	odd := []string{"r\u043eot", "billing\u00a0sync", "a, b", "human:admin", "cafe\u0301", "\u3164", "lead\u2003er"}
	alike := []string{"Root", "root\ufe0f", "ｒｏｏｔ"}
	report := must(s.Check(ctx, Local, AuditHead{}))
	if len(report.Findings) > 0 {
		t.Errorf("findings: got %q, want none", report.Findings)
	}
	says := func(name, text string) bool {
		return slices.ContainsFunc(report.Notes, func(f string) bool {
			return strings.HasPrefix(f, named[name].ID+": ") && strings.Contains(f, text)
		})
	}
	for _, name := range odd {
		if !says(name, "it was right when it was written") {
			t.Errorf("%+q: got %q, want it among the names", name, report.Notes)
		}
	}
	for _, name := range alike {
		if !says(name, `reads like "root" of `+named["root"].ID) {
			t.Errorf("%+q: got %q, want that it reads like root", name, report.Notes)
		}
	}
	for _, name := range []string{"root", "straße", "billing-sync"} {
		if says(name, "") {
			t.Errorf("%+q: got %q, want that there is nothing about it", name, report.Notes)
		}
	}

	// They work, and change in all but their name.
	for _, name := range append(odd, alike...) {
		u := must(s.UpdateServiceUser(ctx, alice, named[name].ID, 0, func(u *ServiceUser) error { u.Owner = "somebody"; return nil }))
		if u.Name != name || u.Owner != "somebody" {
			t.Errorf("%+q: got %+q, owner %q", name, u.Name, u.Owner)
		}
	}
	for _, name := range []string{"ROOT", "Lead", "STRASSE", "billing-sync\ufe0f"} {
		if _, _, err := s.CreateServiceUser(ctx, alice, ServiceUser{Profile: access.Profile{Name: name}}, nil); kind(err) != "conflict: taken name" {
			t.Errorf("%+q: got %v, want that it is taken", name, err)
		}
	}

	// The name is not free as long as one of them has it.
	for _, name := range []string{"root\ufe0f", "ｒｏｏｔ", "Root"} {
		if _, _, err := s.CreateServiceUser(ctx, alice, ServiceUser{Profile: access.Profile{Name: "rOOT"}}, nil); kind(err) != "conflict: taken name" {
			t.Errorf("beside %+q: got %v, want that it is taken", name, err)
		}
		must(s.UpdateServiceUser(ctx, alice, named[name].ID, 0, func(u *ServiceUser) error { u.Name = "was " + u.ID[10:20]; return nil }))
	}
	must(s.UpdateServiceUser(ctx, alice, named["root"].ID, 0, func(u *ServiceUser) error { u.Name = "rOOT"; return nil }))
	report = must(s.Check(ctx, Local, AuditHead{}))
	if len(report.Notes) != len(odd) {
		t.Errorf("after the renames: got %q, want %d", report.Notes, len(odd))
	}

	// A backup with such names is restored.
	b := must(s.Backup(ctx, alice))
	var copied bytes.Buffer
	must(copied.ReadFrom(b))
	mustDo(b.Close())
	must(s.UpdateServiceUser(ctx, alice, named["a, b"].ID, 0, func(u *ServiceUser) error { u.Name = "a and b"; return nil }))
	mustDo(s.Close())
	_, _, err := RestoreFile(ctx, s.path, alice, bytes.NewReader(copied.Bytes()), s.opts, false)
	mustDo(err)
	s = open(t, s.path, s.opts)
	if u := must(s.readUser(ctx, Local, named["a, b"].ID)); u.Name != "a, b" {
		t.Errorf("after the restore: got %+q, want %+q", u.Name, "a, b")
	}
}

// A key that is not that of its name is found, and goes away with the next change.
func TestLostNameKey(t *testing.T) {
	w := newWorld(t, Options{})
	mustDo(w.Close())
	runSQL(t, w.path, `UPDATE service_users SET name_key = 'x'`)
	w.Store = open(t, w.path, w.opts)
	if report := must(w.Check(ctx, Local, AuditHead{})); len(report.Findings) > 0 || len(report.Notes) == 0 || !strings.Contains(report.Notes[0], w.user.ID) {
		t.Errorf("got %q, %q, want no damage and the name", report.Findings, report.Notes)
	}
	for _, u := range must(first(w.page(ctx, Local, userPage{Limit: 100}))) {
		must(w.UpdateServiceUser(ctx, alice, u.ID, 0, func(u *ServiceUser) error { u.Owner = "somebody"; return nil }))
	}
	if report := must(w.Check(ctx, Local, AuditHead{})); len(report.Notes) > 0 {
		t.Errorf("after a change: got %q, want nothing", report.Notes)
	}
}
