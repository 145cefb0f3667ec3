package cli

import (
	"runtime"

	"github.com/caddyserver/caddy/v2"
	"github.com/spf13/cobra"

	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/store"
)

// versionCommand adds "version", for reports of faults and before an update.
func (c *cli) versionCommand(root *cobra.Command) {
	version := c.localCommand(root, "version", "Shows the versions of the plugin, of Caddy, of Go and of the store", "version",
		c.onlyReads("version", func([]string) error {
			_, caddyVersion := caddy.Version()
			v := struct {
				Plugin string `json:"plugin"`
				Caddy  string `json:"caddy"`
				Go     string `json:"go"`
				Schema int    `json:"schema"`
			}{admin.Version(), caddyVersion, runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH, store.SchemaVersion()}
			return c.print(v, table{{"plugin", v.Plugin}, {"caddy", v.Caddy}, {"go", v.Go}, {"schema", v.Schema}})
		}))
	version.Long = `Shows the versions of this program: of the plugin, of Caddy, of Go, and of the
schema of a store. A program opens no store with a newer schema than its own, and
upgrades an older one. The version of the plugin is "dev" in a build without a tag
or revision.`
}
