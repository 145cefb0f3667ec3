#!/bin/sh
# Builds Caddy with this plugin, and runs it. Needs Go and git, nothing else.
#
#   ./xcaddy.sh run [ARGS...]   build ./caddy if the sources changed, then
#                               "./caddy run", with Caddyfile.example unless
#                               ARGS name a --config
#   ./xcaddy.sh build           only build ./caddy
#
# The versions of Caddy and of xcaddy are those in go.mod and tools/go.mod.
# XCADDY_OUTPUT names another place for the binary.
set -eu

module=github.com/serviceusers/caddy-service-users
here=$(cd "$(dirname "$0")" && pwd)
output=${XCADDY_OUTPUT:-$here/caddy}

usage() {
	sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$0"
}

# The binary is stale if one of the plugin's own sources is newer. A
# directory is newer when a file in it was added or removed.
stale() {
	[ ! -x "$output" ] || [ -n "$(cd "$here" && find go.mod go.sum tools/go.mod plugin.go xcaddy.sh access store admin caddymodule cli internal \
		-newer "$output" ! -name '*_test.go' ! -path '*/testdata*' -print 2>/dev/null | head -n 1)" ]
}

build() {
	version=$(cd "$here" && go list -m -f '{{.Version}}' github.com/caddyserver/caddy/v2)
	echo "xcaddy.sh: building $output: Caddy $version with $module from $here" >&2
	# The version behind the module path is never looked up: the path is replaced
	# by this working tree. Without it the module proxy would be asked for a list
	# of versions, and some proxies refuse paths that were never published. It only
	# says what is built, in "caddy service-user version" and elsewhere.
	tag=$(git -C "$here" describe --tags --match 'v[0-9]*' --dirty 2>/dev/null ||
		git -C "$here" describe --always --dirty --exclude '*' 2>/dev/null | sed 's/^/v0.0.0-g/')
	(cd "$here" && go tool -modfile=tools/go.mod xcaddy build "$version" \
		--output "$output" --with "$module@${tag:-v0.0.0}=$here")
	touch "$output"
	echo "xcaddy.sh: built $output" >&2
}

has_config() {
	for arg in "$@"; do
		case $arg in
		-c | --config | -c=* | --config=*) return 0 ;;
		esac
	done
	return 1
}

command=${1:-}
[ $# -eq 0 ] || shift
case $command in
build)
	if [ $# -gt 0 ]; then
		echo "xcaddy.sh: build takes no arguments; see ./xcaddy.sh help" >&2
		exit 2
	fi
	build
	;;
run)
	if stale; then
		build
	fi
	if ! has_config "$@"; then
		set -- --config "$here/Caddyfile.example" --adapter caddyfile "$@"
	fi
	echo "xcaddy.sh: $output run $*" >&2
	exec "$output" run "$@"
	;;
help | -h | --help)
	usage
	;;
*)
	usage >&2
	exit 2
	;;
esac
