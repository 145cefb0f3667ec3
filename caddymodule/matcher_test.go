package caddymodule

import "testing"

// TestServiceUserMatcher asks a site that answers with the matcher that a request
// has met.
func TestServiceUserMatcher(t *testing.T) {
	s, _, user := withUpstream(t, guarded("", "otherwise pass\npublic GET /public\nerrors caddy\nself /self", `
	vars /forged service_users.identity boss
	@programs service_user
	@people not service_user
	@upper {
		service_user
		path /upper/*
	}
	header @programs X-Early yes
	respond @upper upper
	route /nested/* {
		service_users {
			errors caddy
		}
		respond @programs program
		respond @people person
	}
	respond @programs program
	respond @people person
	handle_errors {
		respond @programs program
		respond @people "person {err.status_code}"
	}`))
	s.mustCLI("group", "create", "others", "--rule", "deny * /denied")
	s.mustCLI("group", "add", "others", "billing-sync")
	wrong := credentials{user.id, user.secret + "x"}
	for _, tt := range []struct {
		name, path string
		who        credentials
		header     []string
		want       string
	}{
		{"a service user", "/x", user, nil, "program"},
		{"nobody", "/x", credentials{}, nil, "person"},
		{"another scheme", "/x", credentials{}, []string{"Authorization: Bearer ey.foreign"}, "person"},
		{"forged headers", "/x", credentials{}, []string{"X-Service-User-Id: " + user.id}, "person"},
		{"a wrong token", "/x", wrong, nil, "person 401"},
		{"a refused service user", "/denied", user, nil, "person 403"},
		{"a public path with credentials", "/public", user, nil, "person"},
		{"a foreign variable", "/forged", credentials{}, nil, "person"},
		{"a service user, with a foreign variable", "/forged", user, nil, "program"},
		{"beside another matcher", "/upper/x", user, nil, "upper"},
		{"the other matcher alone", "/upper/x", credentials{}, nil, "person"},
		{"a handler around another", "/nested/x", user, nil, "program"},
		{"a handler around another, nobody", "/nested/x", credentials{}, nil, "person 401"},
	} {
		got := s.get(tt.path, tt.who, tt.header...)
		if got.body != tt.want {
			t.Errorf("%s: got %d %q, want %q", tt.name, got.StatusCode, got.body, tt.want)
		}
		if early := got.Header.Get("X-Early"); early != "" {
			t.Errorf("%s: a handler before service_users has matched", tt.name)
		}
	}
}
