package access

import (
	"testing"
)

// TestRelax checks each option on its own: what it lets pass, and what it still
// does not.
func TestRelax(t *testing.T) {
	for option, targets := range map[Relax]map[string]string{
		EncodedSlash: {
			"/a%2Fb": "/a\x00b", "/a%2fb/c": "/a\x00b/c", "/a%2F": "/a\x00",
			"/a%2F%2Fb": "/a\x00\x00b", "/a/%2Fb": "/a/\x00b", "/a%2F/b": "/a\x00/b", "/queues/%2F/orders": "/queues/\x00/orders", "/http%3A%2F%2Fhost": "/http:\x00\x00host",
			"/a%2F..%2Fb": "", "/..%2Fadmin": "", "/%2Fadmin": "", "/%2F": "", "/a%00b": "",
			"/a%5Cb": "", "/a%252Fb": "", "/a%2F.": "", "/a%2F%20b": "", "//a": "", "/a;b": "",
		},
		EncodedPercent: {
			"/a%25b": "/a%b", "/100%25": "/100%", "/a%252Eb": "/a%2Eb", "/a%25%32%35zz": "/a%25zz",
			"/%252e%252e/a": "", "/a%252f..%252fb": "", "/a%2500": "", "/a%250a": "", "/%2525252e%2525252e": "", "/%25u002e%25u002e": "", "/%252fa": "", "/a%25c0%25ae": "",
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
		EncodedHash: {
			"/C%23": "/C#", "/a%23b/c": "/a#b/c", "/%23room:a": "/#room:a",
			"/..%23a": "", "/a/.%23": "", "/a#b": "", "/a%23/../b": "", "/a%23%3F": "",
		},
		EncodedQuestionMark: {
			"/who%3F": "/who?", "/a%3Fb/c?d": "/a?b/c",
			"/..%3F": "", "/a%3F/..": "", "/a%3F%23": "",
		},
		EncodedBackslash: {
			"/DOMAIN%5Cuser": "/DOMAIN\\user", "/a%5c": "/a\\", "/a%5C%5Cb": "/a\\\\b",
			"/a%5C..%5Cb": "", "/..%5ca": "", "/%5Cevil": "", "/a\\b": "", "/a%5C.": "",
		},
		EdgeSpace: {
			"/%20a": "/ a", "/a%20": "/a ", "/a/%20b%20/c": "/a/ b /c",
			"/%20": "", "/a/%20/b": "", "/a b": "", "/%20.": "", "/.%20.": "", "/%20..%20/a": "", "/a/%20%20": "",
		},
		Latin1: {
			"/caf%E9": "/caf\xe9", "/%e9%ea": "/\xe9\xea", "/%E9t%E9/%FF": "/\xe9t\xe9/\xff", "/%C3%A9/%E9": "/é/\xe9", "/%A0a": "/\xa0a",
			"/%c0%ae%c0%ae/a": "", "/%c0%afa": "", "/%80": "", "/a%9f": "", "/%e0%80%ae": "", "/caf\xe9": "", "/%f0%80%80%ae": "", "/.%E9%2e/..": "", "/.%ad.": "", "/%A0..": "",
		},
		Lookalikes: {
			"/" + percent("who？"): "/who？", "/" + percent("a…b"): "/a…b", "/" + percent("a／b"): "/a／b", "/" + percent("wait…"): "/wait…", "/" + percent("50％"): "/50％",
			"/" + percent("…"): "", "/" + percent("‥") + "/a": "", "/" + percent("．"): "", "/" + percent("a／．．／b"): "", "/" + percent("／a"): "", "/" + percent("％2e％2e"): "", "/" + percent("..？a"): "",
		},
		UnicodeSpaces: {
			"/" + percent("9.41\u202fAM"): "/9.41\u202fAM", "/" + percent("a\u00a0b"): "/a\u00a0b", "/" + percent("\u3000a"): "/\u3000a", "/" + percent("a\u3000"): "/a\u3000",
			"/" + percent("..\u00a0"): "", "/" + percent("\u3000.") + "/a": "", "/" + percent("a\u2028b"): "", "/" + percent("a\u0085b"): "",
		},
		FormatCharacters: {
			"/" + percent("می\u200cخواهم"): "/می\u200cخواهم", "/" + percent("👨\u200d👩"): "/👨\u200d👩", "/" + percent("a\u00adb"): "/a\u00adb",
			"/" + percent(".\u200c."): "", "/" + percent("\u200b..") + "/a": "", "/" + percent("a\ue000b"): "", "/" + percent("a\u0378b"): "",
		},
		RawBrackets: {
			"/[x]": "/[x]", "/a|b^c": "/a|b^c", "/a[]=1": "/a[]=1",
			"/{x}": "", "/a\"b": "", "/<a>": "", "/a`b": "", "/a\\b": "", "/[..]/..": "",
		},
		NonNFC: {
			"/e%cc%81": "/e\u0301", "/%e2%84%a6": "/\u2126",
			"/%c0%ae": "", "/%e2%80%a5": "", "/%ef%bc%8f": "", "/%c5%bf": "", "/%e2%84%aa": "", "/a%20": "", "/..%cd%be/a": "", "/%e2%80%ae": "", "/%ff": "",
		},
	} {
		name := option.Lines()[0]
		for target, want := range targets {
			path, problem := option.CheckTarget(target)
			if path != want || problem.OK() != (want != "") {
				t.Errorf("%s: %q: got %q, %v, want %q", name, target, path, problem, want)
			}
			// Without the option it is refused. The advice names the option exactly if it helps.
			_, strict := Judge("GET", "a", target, 0)
			if strict.OK() {
				t.Errorf("%s: %q passes without it", name, target)
			}
			if want != "" && strict.Advice() != strict.Detail+"; the option "+name+" would let it pass" {
				t.Errorf("%s: %q: got the advice %q", name, target, strict.Advice())
			}
			if _, problem := Judge("GET", "a", target, strict.Need); problem.OK() != (strict.Need != 0) {
				t.Errorf("%q: with %v it passes: %t", target, strict.Need.Lines(), problem.OK())
			}
			if _, problem := Judge("GET", "a", target, option); problem.Need&option != 0 {
				t.Errorf("%q: got advice of %s, which is on", target, name)
			}
		}
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
