package cli

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/store"
)

// setFlag is a flag that calls a function with its value.
type setFlag func(string) error

func (f setFlag) String() string        { return "" }
func (f setFlag) Type() string          { return "string" }
func (f setFlag) Set(text string) error { return f(text) }

// optional returns a flag for a field of a request. The field stays absent without the flag.
func optional[T ~string](field *admin.Opt[T]) setFlag {
	return func(text string) error {
		*field = admin.Some(T(text))
		return nil
	}
}

// parameter returns a flag for a parameter of a query. It refuses "", which would leave the parameter out.
func parameter(query url.Values, name string) setFlag {
	return func(text string) error {
		if query.Set(name, text); text == "" {
			return errors.New("is empty; give it a value or leave it out")
		}
		return nil
	}
}

// labelFlag is a flag KEY=VALUE that may be repeated. With removes, KEY- removes a label, and "" is
// an error; without, "" means no label.
type labelFlag struct {
	members map[string]*string // by key; nil removes the label
	removes bool
}

func (l *labelFlag) String() string { return "" }
func (l *labelFlag) Type() string   { return "KEY=VALUE" }

func (l *labelFlag) Set(text string) error {
	key, value, sets := strings.Cut(text, "=")
	member := &value
	switch {
	case sets:
	case l.removes && len(text) > 1 && strings.HasSuffix(text, "-"):
		key, member = strings.TrimSuffix(text, "-"), nil
	case l.removes:
		return errors.New("write it as KEY=VALUE, or as KEY- to remove the label")
	case text == "":
		return nil
	default:
		return errors.New("write it as KEY=VALUE")
	}
	if _, twice := l.members[key]; twice {
		return fmt.Errorf("%q is given twice", key)
	}
	if l.members == nil {
		l.members = make(map[string]*string)
	}
	l.members[key] = member
	return nil
}

// texts returns the labels of a flag that does not remove any, or nil without the flag.
func (l *labelFlag) texts() (texts map[string]string) {
	if l.members != nil {
		texts = make(map[string]string)
	}
	for key, value := range l.members {
		texts[key] = *value
	}
	return texts
}

// listFlag is three flags for a list: --add-NAME, --remove-NAME and --set-NAME.
type listFlag struct {
	cmd              *cobra.Command
	name             string
	add, remove, set []string
	canonical        func(string) (string, error) // converts a value to the server's form; nil keeps it
}

func (l *listFlag) register(cmd *cobra.Command, name, what string) {
	l.cmd, l.name = cmd, name
	flags := cmd.Flags()
	flags.StringSliceVar(&l.add, "add-"+name, nil, "adds "+what+" (may be repeated)")
	flags.StringSliceVar(&l.remove, "remove-"+name, nil, "removes "+what+" (may be repeated)")
	flags.StringSliceVar(&l.set, "set-"+name, nil, "replaces all: "+what+" (may be repeated); \"\" removes all")
	bare := func(string) error { // could mean to add or to replace
		return fmt.Errorf("write --add-%s or --remove-%[1]s to change the list, "+
			"or --set-%[1]s to replace all of it", name)
	}
	flags.Var(setFlag(bare), name, "")
	_ = flags.MarkHidden(name) // cannot fail: the flag exists
}

// check rejects flags that contradict each other, and converts their values to the server's form.
func (l *listFlag) check() error {
	set := l.cmd.Flags().Changed("set-" + l.name)
	for flag, list := range map[string][]string{"add-" + l.name: l.add, "remove-" + l.name: l.remove} {
		switch {
		case !l.cmd.Flags().Changed(flag):
			continue
		case set:
			return usagef("--set-%s replaces the whole list; leave it out, or --%s", l.name, flag)
		case len(list) == 0 || slices.Contains(list, ""):
			return usagef("--%s is empty; give it a value or leave it out", flag)
		}
		if l.canonical == nil {
			continue
		}
		for i := range list {
			var err error
			if list[i], err = l.canonical(list[i]); err != nil {
				return usagef("--%s: %w", flag, err)
			}
		}
	}
	for _, text := range l.add {
		if slices.Contains(l.remove, text) {
			return usagef("%q is in --add-%s and in --remove-%[2]s; leave it out of one of them",
				text, l.name)
		}
	}
	return nil
}

// checkLists checks the flags of a command for several lists, and replaces names of groups by ids.
func (c *cli) checkLists(groups *listFlag, others ...*listFlag) error {
	for _, f := range append(others, groups) {
		if err := f.check(); err != nil {
			return err
		}
	}
	for _, list := range []*[]string{&groups.add, &groups.remove, &groups.set} {
		var err error
		if *list, err = c.groupIDs(*list); err != nil {
			return err
		}
	}
	return nil
}

// edit returns the list after the change, or an absent field without a flag.
func (l *listFlag) edit(now []string) (in admin.Opt[[]string]) {
	if len(l.add)+len(l.remove) == 0 {
		return l.whole()
	}
	list := slices.DeleteFunc(slices.Clone(now), func(s string) bool { return slices.Contains(l.remove, s) })
	for _, s := range l.add {
		if !slices.Contains(list, s) {
			list = append(list, s)
		}
	}
	return admin.Some(notEmpty(list))
}

// whole returns the list of --set-NAME, or an absent field without that flag.
func (l *listFlag) whole() (in admin.Opt[[]string]) {
	if l.cmd.Flags().Changed("set-" + l.name) {
		in = admin.Some(notEmpty(l.set))
	}
	return in
}

// canonicalPrefix converts an address or a CIDR to the form in which the server shows it.
func canonicalPrefix(text string) (string, error) {
	p, err := store.ParsePrefix(text)
	if err != nil {
		return "", fmt.Errorf("%q is neither an address nor a CIDR such as 10.0.0.0/8", text)
	}
	return p.String(), nil
}

// notEmpty returns the values without "", so that --set-team "" means no team.
func notEmpty(list []string) []string {
	return slices.DeleteFunc(append([]string{}, list...), func(s string) bool { return s == "" })
}
