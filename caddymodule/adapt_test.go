package caddymodule

import (
	"bytes"
	"encoding/json"
	goflag "flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

var update = goflag.Bool("update", false, "rewrite what the golden files in testdata expect")

// adaptLine separates a Caddyfile from what it is adapted to: JSON, or the text
// of the error.
const adaptLine = "\n----------\n"

// TestAdapt adapts the Caddyfiles of testdata/adapt. They are written as "caddy
// fmt" writes them, and every error tells file and line.
func TestAdapt(t *testing.T) {
	files, err := filepath.Glob("testdata/adapt/*.caddyfiletest")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	place := regexp.MustCompile(`, at Caddyfile:\d+( import chain .*)?$`)
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".caddyfiletest"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			input, want, _ := bytes.Cut(text, []byte(adaptLine))
			input = append(bytes.TrimRight(input, "\n"), '\n')
			checkFormat(t, file, input)
			got, err := adapt(input)
			if err != nil {
				if got = []byte(err.Error()); !place.Match(got) {
					t.Errorf("the error tells no place: %s", got)
				}
			}
			if *update {
				golden := string(input) + adaptLine[1:] + string(got) + "\n"
				if err := os.WriteFile(file, []byte(golden), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if string(got) != strings.TrimSpace(string(want)) {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

// adapt turns a Caddyfile into indented JSON.
func adapt(text []byte) ([]byte, error) {
	config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt(text, map[string]any{"filename": "Caddyfile"})
	if err != nil {
		return nil, err
	}
	var indented bytes.Buffer
	err = json.Indent(&indented, config, "", "\t")
	return indented.Bytes(), err
}

// checkFormat complains about a Caddyfile that "caddy fmt" would change.
func checkFormat(t *testing.T, file string, text []byte) {
	t.Helper()
	if difference, found := caddyfile.FormattingDifference(file, text); found {
		t.Errorf("%s:%d: not as \"caddy fmt\" writes it", file, difference.Line)
	}
}

// TestSettings: a setting is checked when its module is made, whatever form the
// configuration has.
func TestSettings(t *testing.T) {
	caddy.DefaultStorage.Path = t.TempDir()
	for _, test := range []struct{ handler, app, refusal string }{
		{handler: `"headers": []`},
		{handler: `"headers": ["token_id", "teams"]`},
		{handler: `"headers": ["none"]`},
		{handler: `"headers": ["none", "id"]`, refusal: `headers: none cannot be combined with others`},
		{handler: `"headers": ["id", "none"]`, refusal: `headers: none cannot be combined with others`},
		{handler: `"headers": ["id", "email"]`, refusal: `headers: "email" is none of id, name, display_name, groups, role, teams, token_id`},
		{handler: `"headers": ["Id"]`, refusal: `headers: "Id" is none of`},
		{handler: `"headers": ["display-name"]`, refusal: `headers: "display-name" is none of`},
		{handler: `"headers": ["id", "id"]`, refusal: `headers: "id" is in the list twice`},
		{handler: `"otherwise": "pass"`},
		{handler: `"otherwise": "pass unknown"`},
		{handler: `"otherwise": "unknown"`, refusal: `otherwise "unknown": choose "pass" or "pass unknown"`},
		{handler: `"mode": ""`},
		{handler: `"mode": "enforce"`},
		{handler: `"mode": "observe"`},
		{handler: `"mode": "Observe"`, refusal: `mode "Observe": choose "enforce" or "observe"`},
		{handler: `"mode": "observe "`, refusal: `mode "observe ": choose`},
		{handler: `"mode": true`, refusal: `cannot unmarshal bool`},
		{handler: `"public": ["GET /x when request.header(\"X-A\") == \"b\""]`},
		{handler: `"public": ["GET /x when user.role == \"admin\""]`, refusal: `the condition cannot look at user.role`},
		{handler: `"public": ["GET /x when true || user.labels[\"a\"] == \"b\""]`, refusal: `the condition cannot look at user.labels`},
		{handler: `"public": ["GET /x when params.y == \"b\""]`, refusal: `the path has no {y}`},
		{app: `"decisions": 0`},
		{app: `"decisions": 1`},
		{app: `"decisions": -7`},
		{app: `"decisions": 1000000`},
		{app: `"decisions": 1000001`, refusal: `decisions: 1000001 is more than can be remembered, 1000000`},
	} {
		handler, app := test.handler, test.app
		if handler == "" {
			handler = `"realm": "x"`
		}
		var config caddy.Config
		if err := json.Unmarshal([]byte(`{
			"admin": {"disabled": true},
			"logging": {"logs": {"default": {"writer": {"output": "discard"}}}},
			"apps": {"service_users": {`+app+`}, "http": {"servers": {"s": {"listen": ["localhost:0"], "routes": [{"handle": [
				{"handler": "service_users", `+handler+`}]}]}}}}
		}`), &config); err != nil {
			t.Fatal(err)
		}
		err := caddy.Validate(&config)
		if test.refusal == "" && err != nil || test.refusal != "" && (err == nil || !strings.Contains(err.Error(), test.refusal)) {
			t.Errorf("%s%s: got %v, want %q", test.handler, test.app, err, test.refusal)
		}
	}
}
