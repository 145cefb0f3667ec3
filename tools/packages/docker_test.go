package packages

import (
	"context"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// instruction is a line of a Dockerfile.
type instruction struct {
	name  string
	args  []string
	flags []string
}

// readDockerfile returns the stages of the Dockerfile. The first one has the instructions before the first FROM.
func readDockerfile(t *testing.T) [][]instruction {
	t.Helper()
	file, err := os.Open(filepath.Join(examples, "docker/Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	parsed, err := parser.Parse(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range parsed.Warnings {
		t.Errorf("Dockerfile: %s", w.Short)
	}
	stages := make([][]instruction, 1)
	for _, node := range parsed.AST.Children {
		line := instruction{name: strings.ToUpper(node.Value), flags: node.Flags}
		for arg := node.Next; arg != nil; arg = arg.Next {
			line.args = append(line.args, arg.Value)
		}
		if line.name == "FROM" {
			stages = append(stages, nil)
		}
		stages[len(stages)-1] = append(stages[len(stages)-1], line)
	}
	return stages
}

// find returns the arguments of the instructions with this name in a stage.
func find(stage []instruction, name string) [][]string {
	var found [][]string
	for _, line := range stage {
		if line.name == name {
			found = append(found, line.args)
		}
	}
	return found
}

// imageUser returns the user id of the image, which is not root and owns /data.
func imageUser(t *testing.T) string {
	t.Helper()
	stages := readDockerfile(t)
	last := stages[len(stages)-1]
	users := find(last, "USER")
	if len(users) != 1 || last[len(last)-1].name != "USER" {
		t.Fatalf("got %v, want one USER, in the last line", users)
	}
	uid, gid, ok := strings.Cut(users[0][0], ":")
	if !ok || !regexp.MustCompile(`^[1-9]\d*$`).MatchString(uid) || gid != uid {
		t.Fatalf("got USER %s, want two equal numbers: Kubernetes sees by a number that it is not root", users[0][0])
	}
	if own := "install -d -o " + uid + " -g " + gid + " -m 0700 /data /data/caddy"; !in(find(last, "RUN")[0], own) {
		t.Errorf("got RUN %q, want %q", find(last, "RUN"), own)
	}
	return uid
}

// TestDockerfile: the stages follow the pattern of Caddy's image, with the version of Caddy in go.mod.
func TestDockerfile(t *testing.T) {
	imageUser(t)
	module, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	caddyVersion := regexp.MustCompile(`\tgithub.com/caddyserver/caddy/v2 v(\S+)`).FindSubmatch(module)[1]
	image := "caddy:" + string(caddyVersion)
	stages := readDockerfile(t)
	var froms [][]string
	for _, stage := range stages[1:] {
		froms = append(froms, stage[0].args)
	}
	want := [][]string{{image + "-builder", "AS", "release"}, {image + "-builder", "AS", "clone"}, {"scratch", "AS", "binary"},
		{"${SOURCE}", "AS", "build"}, {image}}
	if !slices.EqualFunc(froms, want, slices.Equal) {
		t.Errorf("got stages %q, want %q", froms, want)
	}
	const build = "XCADDY_SETCAP=0 xcaddy build --with github.com/serviceusers/caddy-service-users@"
	for i, version := range map[int]string{1: "${VERSION}", 2: "v0.0.0=/source"} {
		// A file with a capability does not start in a container without capabilities.
		if run := find(stages[i], "RUN"); len(run) != 1 || strings.TrimSpace(run[0][0]) != build+version {
			t.Errorf("got %q, want %q", run, build+version)
		}
	}
	if args := find(stages[0], "ARG"); len(args) != 1 || args[0][0] != "SOURCE=release" {
		t.Errorf("got %q, want ARG SOURCE=release", args)
	}
	if copies := find(stages[len(stages)-1], "COPY"); len(copies) != 1 || !in(copies[0], "/usr/bin/caddy") {
		t.Errorf("got %q, want one copy of /usr/bin/caddy", copies)
	}
}

// readCompose decodes and validates a compose file as docker compose does.
func readCompose(t *testing.T, name string) *types.Project {
	t.Helper()
	file, err := filepath.Abs(filepath.Join(examples, "docker", name))
	if err != nil {
		t.Fatal(err)
	}
	project, err := loader.LoadWithContext(context.Background(), types.ConfigDetails{
		WorkingDir: filepath.Dir(file), ConfigFiles: []types.ConfigFile{{Filename: file}}, Environment: types.Mapping{},
	}, func(o *loader.Options) { o.SetProjectName("example", true) })
	if err != nil {
		t.Fatal(err)
	}
	return project
}

// TestCompose: the gateways have no rights, and their ports, files, users and probes are those of the Caddyfile and the
// Dockerfile.
func TestCompose(t *testing.T) {
	for name, gateways := range map[string][]string{"compose.yaml": {"gateway"}, "compose.two-nodes.yaml": {"gateway-a", "gateway-b"}} {
		project := readCompose(t, name)
		if api := project.Services["api"]; len(api.Ports) > 0 || len(api.Networks) != 1 || !project.Networks["private"].Internal {
			t.Errorf("%s: a client reaches the API without the gateway: %v, %v", name, api.Ports, api.Networks)
		}
		for _, gateway := range gateways {
			checkGateway(t, name, project, project.Services[gateway])
		}
	}
}

func checkGateway(t *testing.T, name string, project *types.Project, s types.ServiceConfig) {
	t.Helper()
	name += ": " + s.Name
	env := map[string]string{}
	for key, value := range s.Environment {
		env[key] = *value
	}
	conf := readSite(t, filepath.Join(examples, "docker/Caddyfile"), env)
	if !s.ReadOnly || !in(s.CapDrop, "ALL") || len(s.CapAdd) > 0 || s.Privileged || s.User != "" || !in(s.SecurityOpt, "no-new-privileges:true") {
		t.Errorf("%s: has rights that it does not need", name)
	}
	user := imageUser(t)
	socket := false
	for _, mount := range s.Tmpfs {
		path, options, _ := strings.Cut(mount, ":")
		socket = socket || inDirectory(conf.socket, path) && options == "uid="+user+",gid="+user+",mode=0700"
	}
	if !socket || env["CADDY_ADMIN"] != "unix/"+conf.socket {
		t.Errorf("%s: got tmpfs %v and CADDY_ADMIN %s, want the directory of %s", name, s.Tmpfs, env["CADDY_ADMIN"], conf.socket)
	}
	targets := map[string]types.ServiceVolumeConfig{}
	for _, v := range s.Volumes {
		targets[v.Target] = v
	}
	if data := targets["/data"]; data.Type != "volume" || project.Volumes[data.Source].Name == "" {
		t.Errorf("%s: /data is not a volume: %+v", name, data)
	}
	if config := targets["/etc/caddy/Caddyfile"]; !config.ReadOnly || filepath.Base(config.Source) != "Caddyfile" {
		t.Errorf("%s: got %+v, want the Caddyfile, read-only", name, config)
	}
	if strings.HasPrefix(conf.store, "postgres:") {
		secret := regexp.MustCompile(`\{file\./run/secrets/(\w+)\}@(\w+)/`).FindStringSubmatch(conf.store)
		if secret == nil || len(s.Secrets) != 1 || s.Secrets[0].Source != secret[1] || project.Secrets[secret[1]].File == "" ||
			project.Services[secret[2]].Secrets[0].Source != secret[1] {
			t.Errorf("%s: the password in %q is not that of the database", name, conf.store)
		}
		if _, ok := s.DependsOn[secret[2]]; !ok {
			t.Errorf("%s: does not wait for its database", name)
		}
	} else if !inDirectory(conf.store, "/data") {
		t.Errorf("%s: the store %s is in no volume", name, conf.store)
	}
	if grace := s.StopGracePeriod; grace == nil || conf.ending >= time.Duration(*grace) {
		t.Errorf("%s: the end takes up to %v, and is cut after %v", name, conf.ending, grace)
	}
	for _, port := range s.Ports {
		target := map[uint32]string{80: "80", 443: "443"}[port.Target]
		// Caddy itself opens port 80 for a site with a certificate, to redirect.
		if !in(conf.ports, target) && !(target == "80" && in(conf.ports, "443")) {
			t.Errorf("%s: got port %d, want one of %v", name, port.Target, conf.ports)
		}
	}
	probe, err := url.Parse(s.HealthCheck.Test[len(s.HealthCheck.Test)-1])
	if err != nil || !conf.probes[probe.Port()+probe.Path] || probe.Path != "/ready" {
		t.Errorf("%s: got %v, want a path of %v", name, s.HealthCheck.Test, conf.probes)
	}
	if service, _, _ := strings.Cut(env["API_ADDRESS"], ":"); project.Services[service].Name == "" {
		t.Errorf("%s: there is no API %s", name, env["API_ADDRESS"])
	}
}
