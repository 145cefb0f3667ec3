package packages

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestContainerRuns runs the command of the image as Docker would: as its user, without capabilities and new privileges, in
// a network of its own, with a root file system that is read-only. The gateway becomes ready, issues a token, answers
// requests with it, and writes nothing outside of the volume /data.
func TestContainerRuns(t *testing.T) {
	caddy := binary(t)
	if os.Getuid() != 0 {
		need(t, "this test makes namespaces: run it as root")
	}
	for _, program := range []string{"unshare", "setpriv", "curl", "mount", "ip"} {
		if _, err := exec.LookPath(program); err != nil {
			need(t, program+" is missing: install the Debian packages util-linux, mount, curl and iproute2")
		}
	}
	if output, err := exec.Command("unshare", "--mount", "--net", "--pid", "--fork", "true").CombinedOutput(); err != nil {
		t.Skipf("namespaces are not allowed here; a container has to be privileged: %s", output)
	}
	root := t.TempDir()
	for _, dir := range []string{"etc/caddy", "usr/bin", "data/caddy", "run/caddy", "tmp", "dev", "proc", "srv", "out"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	user := imageUser(t)
	compose := readCompose(t, "compose.yaml").Services["gateway"]
	health := compose.HealthCheck.Test[len(compose.HealthCheck.Test)-1]
	env := "XDG_DATA_HOME=/data XDG_CONFIG_HOME=/config"
	for name, value := range compose.Environment {
		env += fmt.Sprintf(" %s=%s", name, *value)
	}
	script := fmt.Sprintf(`
set -eu
root=$1 binary=$2 caddyfile=$3
mount --make-rprivate /
mount --bind "$root" "$root"
for dir in /bin /sbin /lib /lib64 /usr/lib /usr/sbin /etc/ssl; do
	[ -e "$dir" ] || continue
	mkdir -p "$root$dir"
	mount --rbind "$dir" "$root$dir"
done
mkdir -p "$root/usr/host" "$root/dev"
mount --bind /usr/bin "$root/usr/host"
mount --bind /dev "$root/dev"
mount -t proc proc "$root/proc"
cp "$binary" "$root/usr/bin/caddy"
cp "$caddyfile" "$root/etc/caddy/Caddyfile"
printf '127.0.0.1 localhost api\n' >"$root/etc/hosts"
printf 'caddy:x:%[1]s:%[1]s::/:/bin/sh\n' >"$root/etc/passwd"
chown -R %[1]s:%[1]s "$root/data" "$root/out"
chmod 0700 "$root/data" "$root/data/caddy"
mount --bind "$root/data" "$root/data"
mount --bind "$root/out" "$root/out" # for the results, not a part of the container
mount -t tmpfs -o uid=%[1]s,gid=%[1]s,mode=0700 tmpfs "$root/run/caddy"
mount -o remount,bind,ro "$root"
echo 0 >"$root/proc/sys/net/ipv4/ip_unprivileged_port_start" # as Docker does
ip link set lo up
exec chroot "$root" /usr/host/env -i PATH=/usr/bin:/bin:/usr/host HOME=/ %[2]s \
	/usr/host/setpriv --reuid %[1]s --regid %[1]s --clear-groups --no-new-privs --bounding-set -all --inh-caps -all \
	/bin/sh -c '%[3]s'
`, user, env, strings.ReplaceAll(inside, "HEALTH", health))
	file := filepath.Join(t.TempDir(), "run.sh")
	if err := os.WriteFile(file, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	caddyfile, err := filepath.Abs(filepath.Join(examples, "docker/Caddyfile"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "sh", file, root, caddy, caddyfile)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Run(); err != nil {
		log, _ := os.ReadFile(filepath.Join(root, "out/log"))
		t.Fatalf("%v\n%s\n%s", err, output.String(), log)
	}
	// The statuses of a request with the token, of one without, and of one that no rule allows.
	if got, want := strings.Fields(output.String()), []string{"200", "401", "403"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if stores, err := filepath.Glob(filepath.Join(root, "data/service_users.db")); err != nil || len(stores) != 1 {
		t.Errorf("the volume has no store (%v)", err)
	}
	if log := string(must(os.ReadFile(filepath.Join(root, "out/log")))); strings.Contains(log, "read-only file system") || strings.Contains(log, "permission denied") {
		t.Errorf("the gateway tries to write elsewhere:\n%s", log)
	}
}

// inside is the life of the container: the API, the gateway, a token, three requests and the end.
const inside = `
set -eu
caddy respond --listen :9000 --body hello >/out/api 2>&1 &
caddy run --config /etc/caddy/Caddyfile --adapter caddyfile >/out/log 2>&1 &
gateway=$!
/usr/host/curl -sf --retry 60 --retry-delay 1 --retry-all-errors -o /dev/null HEALTH
caddy service-user group create people-readers --rule "allow GET /v1/people/{id}" >/out/group
caddy service-user create billing-sync --group people-readers --json >/out/user
id=$(sed -n "s/^  \"id\": \"\(.*\)\",/\1/p" /out/user)
token=$(sed -n "s/^  \"token\": \"\(.*\)\",*/\1/p" /out/user)
ask() { /usr/host/curl -sk -o /dev/null -w "%{http_code}\n" --resolve localhost:443:127.0.0.1 "$@"; }
ask -u "$id:$token" https://localhost/v1/people/7
ask https://localhost/v1/people/7
ask -u "$id:$token" https://localhost/elsewhere
! touch /etc/caddy/x 2>/dev/null
kill "$gateway"
`

func must(text []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return text
}
