// Package clitest runs "caddy service-user" inside of a test binary that links package
// cli. A process of its own would spend more time on its start than on the command.
package clitest

import (
	"fmt"
	"io"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
)

// Tree returns "caddy" with no other command than "service-user".
func Tree() *cobra.Command {
	root, serviceUser := &cobra.Command{Use: "caddy"}, new(cobra.Command)
	root.AddCommand(serviceUser)
	caddycmd.Commands()["service-user"].CobraFunc(serviceUser)
	return root
}

// Run runs "caddy service-user" with arguments and returns its exit code. The command
// shares the standard input, the environment and the working directory of the test.
func Run(stdout, stderr io.Writer, args ...string) int {
	root := Tree()
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetArgs(append([]string{"service-user"}, args...))
	err := root.Execute()
	if err == nil {
		return 0
	}
	code := 1
	_, _ = fmt.Sscanf(err.Error(), "exiting with status %d", &code) // Caddy does not export the type
	return code
}
