package caddymodule

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// validateRow is a Caddyfile and what "caddy validate" says to it.
type validateRow struct {
	name, caddyfile string
	refusal         string // a part of the message; "" means that it is accepted
}

func accepts(name, caddyfile string) validateRow {
	return validateRow{name: name, caddyfile: caddyfile}
}

func refuses(name, caddyfile, message string) validateRow {
	return validateRow{name, caddyfile, message}
}

// TestValidate runs "caddy validate" on whole Caddyfiles. Whatever it says, it
// leaves no file behind.
func TestValidate(t *testing.T) {
	// Caddyfiles with these lines in the global option and the two directives.
	site := func(lines ...string) string {
		return "http://localhost:{$API_PORT} {\n\tservice_users {\n\t\t" + strings.Join(lines, "\n\t\t") + "\n\t}\n\treverse_proxy localhost:{$UPSTREAM_PORT}\n}\n"
	}
	app := func(lines ...string) string {
		return "{\n\tservice_users {\n\t\t" + strings.Join(lines, "\n\t\t") + "\n\t}\n}\n\n" + site()
	}
	door := func(lines ...string) string {
		return "http://localhost:{$ADMIN_PORT} {\n\tservice_users_admin {\n\t\t" + strings.Join(lines, "\n\t\t") + "\n\t}\n}\n"
	}
	example := exampleCaddyfile(t)
	checkFormat(t, "Caddyfile.example", []byte(example))
	for _, row := range []validateRow{
		accepts("the example", example),
		accepts("no setting at all", site()),
		accepts("a door alone", door()),
		accepts("the global option alone", "{\n\tservice_users\n}\n"),
		accepts("no service users", "http://localhost:{$API_PORT} {\n\trespond ok\n}\n"),
		accepts("two sites of one app", site()+"\n"+door("admins alice")),
		refuses("the option twice", "{\n\tservice_users\n\tservice_users\n}\n", "appears a second time; put its settings into one block, at Caddyfile:3"),

		accepts("store", app("store {$SERVICE_USERS_STORE}")),
		accepts("store by placeholder", app("store {env.SERVICE_USERS_STORE}")),
		accepts("store in a directory that is not there yet", app("store nowhere/service_users.db")),
		accepts("store by URL", app("store postgres://db.example.com/users")),
		accepts("store by the other scheme", app("store postgresql://db.example.com/users")),
		accepts("a node that never changes the store", app("store postgres://db.example.com/users", "read_only")),
		refuses("store by a file that is missing", app("store {file.missing}"), "store: evaluated placeholder {file.missing} is empty"),
		refuses("store by another URL", app("store sqlite:///users.db"), `store: the place of the store begins with \"sqlite://\", which is neither the path of a SQLite database nor a URL like postgres://ROLE:PASSWORD@HOST:5432/DATABASE`),
		refuses("unknown placeholder", app("store {nothing.of.this.name}"), "store: unrecognized placeholder {nothing.of.this.name}"),

		accepts("pepper_file", app("pepper_file pepper")),
		accepts("two peppers", app("pepper_file peppers")),
		accepts("pepper_file by placeholder", app("pepper_file {env.PEPPER_FILE}")),
		refuses("no pepper_file", app("pepper_file missing"), "pepper_file: open missing: no such file or directory"),
		refuses("pepper_file by an empty placeholder", app("pepper_file {env.NOTHING}"), "pepper_file: evaluated placeholder {env.NOTHING} is empty"),
		refuses("empty pepper_file", app("pepper_file empty"), `pepper_file \"empty\": the file holds no key: put one key on a line`),
		refuses("pepper_file of comments", app("pepper_file comments"), `pepper_file \"comments\": the file holds no key`),
		refuses("short pepper", app("pepper_file short"), `pepper_file \"short\": pepper on line 2 has 15 bytes, at least 16 are needed`),
		refuses("pepper twice", app("pepper_file twice"), `pepper_file \"twice\": pepper on line 2 is in the file twice`),
		refuses("pepper_file is a directory", app("pepper_file ."), `pepper_file: \".\" is a directory; name a file in it`),

		accepts("lifetimes", app("token_ttl 30d", "max_token_ttl 30d")),
		accepts("max_token_ttl alone", app("max_token_ttl 30d")),
		refuses("max_staleness shorter than a second", app("max_staleness 10ms"), "max_staleness 10ms is shorter than a look at the store may take; the least is 1s"),
		refuses("token_ttl beyond max_token_ttl", app("token_ttl 31d", "max_token_ttl 30d"), "token_ttl 744h0m0s is longer than max_token_ttl 720h0m0s"),
		refuses("no duration", app("token_ttl 90"), `\"90\" is not a duration such as 90d or 36h, at Caddyfile:3`),

		accepts("decisions", app("decisions 100")),
		accepts("no decisions", app("decisions off")),
		refuses("too many decisions", app("decisions 2000000"), `\"2000000\" is neither a number from 1 to 1000000 nor \"off\", at Caddyfile:3`),

		accepts("mode observe", site("mode observe")),
		accepts("mode enforce", site("mode enforce")),
		refuses("another mode", site("mode off"), `mode \"off\": choose \"enforce\" or \"observe\"`),

		accepts("realm", site(`realm "Example API (v1)"`)),
		refuses("realm with a quote", site("realm `a\"b`"), "only visible ASCII without quotes and backslashes is allowed in a challenge"),
		refuses("realm with a backslash", site("realm `a\\b`"), "only visible ASCII"),
		refuses("realm beyond ASCII", site("realm Zürich"), `realm \"Zürich\": only visible ASCII`),
		refuses("realm with a line end", site("realm \"a\nb\""), "only visible ASCII"),

		accepts("headers", site("headers id name display_name groups role teams token_id")),
		accepts("no headers", site("headers none")),
		refuses("headers unknown", site("headers id email"), `headers: \"email\" is none of id, name, display_name, groups, role, teams, token_id`),
		refuses("headers in another case", site("headers ID"), `headers: \"ID\" is none of`),
		refuses("headers twice", site("headers id name id"), `headers: \"id\" is in the list twice`),
		refuses("headers nothing", site("headers"), "headers has too many or too few arguments; write it as in: headers id name, at Caddyfile:3"),

		accepts("header_prefix", site("header_prefix X-Machine-")),
		accepts("header_prefix without a dash", site("header_prefix X-Machine")),
		refuses("header_prefix too short", site("header_prefix X-"), `header_prefix \"X-\" is not the beginning of a header name`),
		refuses("header_prefix of dashes", site("header_prefix -----"), "is not the beginning of a header name"),
		refuses("header_prefix with a space", site(`header_prefix "X Machine"`), "is not the beginning of a header name"),
		refuses("header_prefix with a colon", site("header_prefix X-Machine:"), "is not the beginning of a header name"),

		accepts("strip and keep", site("strip X-Internal", "keep X-Real-IP X-User")),
		refuses("strip with a space", site(`strip "X Internal"`), `\"X Internal\" is not a header name`),
		refuses("strip with a colon", site("strip X-Internal:"), `\"X-Internal:\" is not a header name`),
		refuses("strip empty", site(`strip ""`), `\"\" is not a header name`),
		refuses("keep with a space", site(`keep "X User"`), `\"X User\" is not a header name`),
		refuses("keep a credential", site("keep Authorization"), "keep Authorization: it covers Authorization, which cannot be kept"),
		refuses("keep a credential in another case", site("keep proxy_authorization"), "keep proxy_authorization: it covers Proxy-Authorization, which cannot be kept"),
		refuses("keep what rules the connection", site("keep X-User TE"), "keep TE: it covers TE, which cannot be kept"),

		accepts("public", site("public GET /healthz", "public * docs.example.com/{rest...}")),
		accepts("public under a condition", site("public GET /v1/{id} when params.id == '7'")),
		refuses("public under a condition over nobody", site("public GET /v1/x when user.name == 'a'"), "there is no service user here, so the condition cannot look at user.name, at Caddyfile:3"),
		refuses("public without a path", site("public GET"), `public: name methods and a path, as in \"public GET,HEAD /healthz\", at Caddyfile:3`),
		refuses("public with a wildcard", site("public GET /docs/*"), "or {rest...} at the end for all that follow, at Caddyfile:3"),
		refuses("a matcher", strings.Replace(site(), "service_users", "service_users /api/*", 1), `service_users takes no matcher and no argument (got \"/api/*\")`),

		accepts("admins and managers", door("admins alice bob", "managers carol team=finance group=readers")),
		accepts("everybody is an admin", door("admins *")),
		refuses("managers without a team", door("managers carol"), `managers: name at least one person and one team, as in \"managers carol team=finance\", at Caddyfile:3`),
		refuses("managers without a person", door("managers team=finance"), "managers: name at least one person and one team"),
		refuses("everybody a manager", door("managers * team=finance"), `manager \"*\": name one person and at least one team`),
		refuses("admin and manager", door("admins alice bob", "managers carol bob team=finance"), `\"bob\" is named as an admin and as a manager; choose one`),
		refuses("manager twice", door("managers carol team=a", "managers carol team=b"), `managers: \"carol\" appears a second time; put all teams and groups of a person on one line, at Caddyfile:4`),
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, "PEPPER_FILE=pepper")
			work, stores := filepath.Join(s.dir, "work"), filepath.Join(s.dir, "stores")
			s.env = append(s.env, "SERVICE_USERS_STORE="+filepath.Join(stores, "service_users.db"))
			for _, dir := range []string{work, stores} {
				if err := os.Mkdir(dir, 0o700); err != nil {
					t.Fatal(err)
				}
			}
			const one, two = "0123456789abcdef", "fedcba9876543210"
			files := map[string]string{
				"Caddyfile": row.caddyfile, "pepper": one + "\n", "peppers": "# new\n" + two + "\n\n# old\n" + one + "\n",
				"empty": "", "comments": "# nothing\n\n", "short": one + "\n" + two[:15] + "\n", "twice": one + "\n" + one + "\n",
			}
			for name, text := range files {
				if err := os.WriteFile(filepath.Join(work, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}

			cmd := exec.Command(caddyBinary(), "validate", "--config", "Caddyfile", "--adapter", "caddyfile")
			var out bytes.Buffer
			cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = work, s.env, &out, &out
			if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
				t.Fatal(err)
			}
			code, wantCode, wantText := cmd.ProcessState.ExitCode(), 0, "Valid configuration"
			if row.refusal != "" {
				wantCode, wantText = 1, row.refusal
			}
			if code != wantCode || !strings.Contains(out.String(), wantText) {
				t.Errorf("got exit code %d, want %d and %q:\n%s", code, wantCode, wantText, &out)
			}
			err := filepath.WalkDir(s.dir, func(path string, entry fs.DirEntry, err error) error {
				if err == nil && !entry.IsDir() && (filepath.Dir(path) != work || files[entry.Name()] == "" && entry.Name() != "empty") {
					t.Errorf("%s was left behind", path)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}
