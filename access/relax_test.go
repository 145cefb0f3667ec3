package access

import (
	"strings"
	"testing"
)

// TestRelax checks each option on its own: what it lets pass, and what it still
// does not.
func TestRelax(t *testing.T) {
	for option, targets := range map[Relax]map[string]string{
		EncodedSlash: {
			"/a%2Fb": "/a\x00b", "/a%2fb/c": "/a\x00b/c", "/a%2F": "/a\x00",
			"/a%2F..%2Fb": "", "/..%2Fadmin": "", "/a%2F%2Fb": "", "/%2Fadmin": "", "/a/%2Fb": "", "/a%2F/b": "", "/a%00b": "",
			"/a%5Cb": "", "/a%252Fb": "", "/a%2F.": "", "/a%2F%20b": "", "//a": "", "/a;b": "",
		},
		EncodedPercent: {
			"/a%25b": "/a%b", "/100%25": "/100%", "/%252e%252e/a": "/%2e%2e/a",
			"/%2e%2e/a": "", "/a%2Fb": "", "/a%": "", "/a%2": "", "/a%3Bb": "", "/a%23": "", "/a%3F": "",
		},
		Semicolon: {
			"/a;b=c/d": "/a;b=c/d", "/a%3Bb": "/a;b", "/a;": "/a;", "/a.b;v=1.": "/a.b;v=1.",
			"/..;/a": "", "/.;/a": "", "/..%3Ba": "", "/a/..;x=y/b": "", "/;a": "", "/;/a": "", "/a/;x": "", "/a.;x": "", "/ ;x": "", "/a;b%20": "", "/a%2Fb": "", "/a;%00": "",
		},
		MergedSlashes: {
			"/a//b": "/a/b", "//evil.example/x": "/evil.example/x", "/a///": "/a/", "/a//b?c=//d": "/a/b", "//": "/",
			"/a//../b": "", "/a/.//b": "", "/a%2F/b": "", "//%2e%2e/a": "",
		},
		TrailingDot: {
			"/a.": "/a.", "/a./b": "/a./b", "/a%2e": "/a.", "/a..": "/a..",
			"/.": "", "/..": "", "/...": "", "/a/..": "", "/a/%2e": "", "/%2e%2e/a": "", "/a.%20": "",
		},
		NonNFC: {
			"/e%cc%81": "/e\u0301", "/%e2%84%a6": "/\u2126",
			"/%c0%ae": "", "/%e2%80%a5": "", "/%ef%bc%8f": "", "/%c5%bf": "", "/%e2%84%aa": "", "/..%cd%be/a": "", "/%e2%80%ae": "", "/%ff": "",
		},
	} {
		name := Problem{}.allowedBy(option).Option
		if RelaxByName()[name] != option {
			t.Errorf("option %d has the name %q", option, name)
		}
		for target, want := range targets {
			merged := target
			if option == MergedSlashes {
				merged = MergeSlashes(target)
			}
			path, problem := option.CheckTarget(merged)
			if path != want || problem.OK() != (want != "") {
				t.Errorf("%s: %q: got %q, %v, want %q", name, target, path, problem, want)
			}
			// Without the option it is refused, and the advice names the option.
			if _, strict := CheckTarget(target); strict.OK() {
				t.Errorf("%s: %q passes without it", name, target)
			} else if want != "" && !strings.HasSuffix(strict.Advice(), "; the option "+name+" would let it pass") {
				t.Errorf("%s: %q: got the advice %q", name, target, strict.Advice())
			}
		}
	}
	if len(RelaxByName()) != len(relaxNames) || RelaxByName()["allow_semicolon"] != Semicolon {
		t.Errorf("got the options %v", RelaxByName())
	}
}

// TestDenyOfRelaxedPaths checks that what an operator lets pass does not lead
// around a deny, whichever way the upstream reads it.
func TestDenyOfRelaxedPaths(t *testing.T) {
	const all = EncodedSlash | EncodedPercent | Semicolon | TrailingDot | NonNFC
	d := with(t, NewDirectory(Peppers{}, ""), Changes{
		Revision: 1, Users: []User{user(1, "g")},
		Groups: []Group{group(t, "g", "allow * /{rest...}", "deny * /admin/{rest...}", "deny * /é", "deny GET /files/{name}/raw")},
	})
	p, _ := d.Authenticate(login(1), here, 1)
	for target, want := range map[string]Reason{
		"/admin%2Fx": DeniedByRule, "/ADMIN%2fx": DeniedByRule, "/admin;a=b/x": DeniedByRule, "/admin;/x": DeniedByRule, "/admin;a%2Fx": DeniedByRule,
		"/admin%3Bx": DeniedByRule, "/admin%2Fx;y": DeniedByRule, "/e%cc%81": DeniedByRule, "/E%cc%81": DeniedByRule,
		"/files/a/raw;x": DeniedByRule, "/files/a%2Fraw": DeniedByRule, "/public%2Fadmin": Granted, "/public;admin/x": Granted, "/x%2Fadmin%2Fy": Granted,
		"/files/a;x/b": Granted,
	} {
		path, problem := all.CheckTarget(target)
		if !problem.OK() {
			t.Errorf("%s: %v", target, problem)
			continue
		}
		if got := d.Authorize(p, Action{Method: "GET", Path: path}).Reason; got != want {
			t.Errorf("%s: got %s, want %s", target, got, want)
		}
	}
	// An encoded slash is no separator for an allow.
	narrow := with(t, d, Changes{Revision: 2, Groups: []Group{group(t, "g", "allow GET /a/b", "allow GET /x/{y}")}})
	for target, want := range map[string]Reason{"/a%2Fb": NoRule, "/a/b": Granted, "/x/c%2Fd": Granted, "/x%2Fc": NoRule} {
		path, _ := all.CheckTarget(target)
		if got := narrow.Authorize(p, Action{Method: "GET", Path: path}).Reason; got != want {
			t.Errorf("%s: got %s, want %s", target, got, want)
		}
	}
}
