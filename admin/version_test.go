package admin

import (
	"runtime/debug"
	"testing"
)

func TestVersion(t *testing.T) {
	const module = "example.com/plugin"
	other := &debug.Module{Path: "example.com/other", Version: "v9.9.9"}
	for _, c := range []struct {
		name string
		main debug.Module
		deps []*debug.Module
		want string
	}{
		{"a tag, as xcaddy builds it", debug.Module{Path: "caddy", Version: "(devel)"}, []*debug.Module{other, {Path: module, Version: "v1.2.3"}}, "v1.2.3"},
		{"a directory, described by git", debug.Module{Path: "caddy"}, []*debug.Module{{Path: module, Version: "v1.2.3-4-g0123abc", Replace: &debug.Module{Path: "/src"}}}, "v1.2.3-4-g0123abc"},
		{"a directory without a version", debug.Module{Path: "caddy"}, []*debug.Module{{Path: module, Version: "v0.0.0", Replace: &debug.Module{Path: "/src"}}}, "dev"},
		{"a directory that the go command found", debug.Module{Path: "caddy"}, []*debug.Module{{Path: module, Version: "v0.0.0-00010101000000-000000000000", Replace: &debug.Module{Path: "/src"}}}, "dev"},
		{"a fork", debug.Module{Path: "caddy"}, []*debug.Module{{Path: module, Version: "v1.2.3", Replace: &debug.Module{Path: "example.com/fork", Version: "v1.2.4"}}}, "v1.2.4"},
		{"the main module at a tag", debug.Module{Path: module, Version: "v1.2.3"}, nil, "v1.2.3"},
		{"the main module after a tag", debug.Module{Path: module, Version: "v1.2.4-0.20261130054100-0123456789ab+dirty"}, nil, "v1.2.4-0.20261130054100-0123456789ab+dirty"},
		{"the main module without git", debug.Module{Path: module, Version: "(devel)"}, nil, "dev"},
		{"another program", *other, nil, "dev"},
	} {
		if got := versionIn(&debug.BuildInfo{Main: c.main, Deps: c.deps}, module); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
	if _, ok := debug.ReadBuildInfo(); !ok || Version() == "" {
		t.Errorf("got %q, want a version", Version())
	}
}
