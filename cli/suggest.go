package cli

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/store"
)

// synonyms contains the words that people try for a command, by its name.
var synonyms = map[string]string{
	"add": "create new update join", "create": "add new make issue", "grant": "give add",
	"delete": "remove rm del destroy", "remove": "delete rm del leave", "withdraw": "revoke remove delete",
	"deactivate": "disable lock suspend block", "reactivate": "enable activate unlock resume",
	"refresh": "rotate renew regenerate", "revoke": "delete remove rm disable deactivate",
	"show": "get describe view info members", "list": "ls", "update": "edit set modify patch change rename",
	"backup": "dump export save", "restore": "recover", "load": "import apply", "lint": "validate",
	"audit": "log logs trail history events", "verify": "check", "health": "status ping ready",
	"explain": "why can test", "copy": "move migrate transfer cp clone", "node": "nodes replicas cluster fleet",
	"forget": "delete remove rm", "group": "role roles", "token": "key keys secret credential",
}

// unknownCommand returns the error for words that name no command below cmd, with the commands that
// the caller probably meant: those of cmd, or else those below its commands.
func unknownCommand(cmd *cobra.Command, words []string) error {
	word := strings.ReplaceAll(words[0], "_", "-")
	if word == "import" && cmd.Name() == "service-user" {
		return usagef("unknown command %q; \"create --from FILE\" makes the service users of a CSV file, "+
			"and \"permission load FILE\" reads the catalogue", word)
	}
	if len(words) > 1 && slices.Contains([]string{"user", "users", "service-user", "service-users"}, word) {
		return usagef("unknown command %q; leave it out: %s", words[0], shellLine(cmd.CommandPath(), words[1:]))
	}
	var meant []string
	suggest := func(above *cobra.Command) {
		for _, name := range slices.Compact(above.SuggestionsFor(word)) {
			meant = append(meant, strings.TrimPrefix(above.CommandPath()+" "+name, commandName))
		}
	}
	if suggest(cmd); meant == nil {
		for _, below := range cmd.Commands() {
			suggest(below)
		}
	}
	if meant == nil {
		return usagef("unknown command %q; see \"%s --help\"", words[0], cmd.CommandPath())
	}
	return usagef("unknown command %q; did you mean \"%s\"? See \"%s --help\"",
		words[0], strings.Join(meant, `" or "`), cmd.CommandPath())
}

// unknownFlag adds the flag that the caller probably meant to an error about the flags of cmd.
func unknownFlag(cmd *cobra.Command, err error) error {
	if words := cmd.Flags().Args(); cmd.HasSubCommands() && len(words) > 0 {
		return unknownCommand(cmd, words) // whose flags are unknown, too
	}
	see := "; see"
	if unknown := (*pflag.NotExistError)(nil); errors.As(err, &unknown) {
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden || f.Value.Type() != "boolfunc" { // the older name of a flag
				names = append(names, f.Name)
			}
		})
		f := cmd.Flags().Lookup(access.NearestWord(unknown.GetSpecifiedName(), names))
		if f != nil && f.Hidden { // it only says which flags replace it
			err = fmt.Errorf("%w; %w", err, f.Value.Set(""))
		} else if f != nil {
			err, see = fmt.Errorf("%w; did you mean --%s", err, f.Name), "? See"
		}
	}
	return usagef("%w%s \"%s --help\"", err, see, cmd.CommandPath())
}

// shellLine adds arguments to a line for a shell.
func shellLine(line string, args []string) string {
	for _, arg := range args {
		line += " " + store.ShellWord(arg)
	}
	return line
}

// looks contains the form of arguments that have one, by their name in the usage of a command.
var looks = map[string]func(string) bool{
	"URL":     func(s string) bool { return strings.HasPrefix(s, "/") || strings.Contains(s, "://") },
	"RULE":    func(s string) bool { return strings.HasPrefix(s, "allow ") || strings.HasPrefix(s, "deny ") },
	"RULE_ID": func(s string) bool { return store.ValidID("rule", s) },
	"TOKEN":   func(s string) bool { return store.ValidID("token", s) },
	"METHOD": func(s string) bool {
		return slices.Contains(strings.Fields("GET HEAD POST PUT PATCH DELETE OPTIONS"), strings.ToUpper(s))
	},
}

// inOrder returns the arguments of a command in the order of their names in its usage. If no argument
// has the form for a place, inOrder returns args.
func inOrder(names, args []string) []string {
	right := slices.Clone(args)
	for i, name := range names[:min(len(names), len(args))] {
		method := name == "METHOD" && access.CheckMethod(right[i]).OK() // a rarer one, such as PURGE
		if fits := looks[name]; fits != nil && !fits(right[i]) && !method {
			j := slices.IndexFunc(right, fits)
			if j < 0 {
				return args
			}
			right[i], right[j] = right[j], right[i]
		}
	}
	return right
}
