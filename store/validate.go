package store

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/serviceusers/caddy-service-users/access"
)

// The limits of records.
const (
	maxName       = 255 // characters
	maxText       = 2000
	maxMetadata   = 4096 // bytes
	maxUser       = 64   // characters of the name of a user of the machine
	maxTeams      = 32
	maxLabels     = 64
	maxAllowedIPs = 64
	maxRules      = 10_000
	maxConditions = 1000 // rules with a condition, in one group
	maxCatalogue  = 2000 // permissions
	maxGranted    = 500  // rules of one permission
	maxLiveTokens = 100  // per service user
	maxRotations  = 10   // by the service user, within an hour, of one token and its successors
)

var (
	groupName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9 ._:-]{0,63}$`)
	labelKey  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$`)
	idForm    = regexp.MustCompile(`^[a-z]+_[0-9A-Za-z]{27}$`)

	errMappedPrefix = errors.New("an IPv4-mapped prefix shorter than /96")
)

const groupNameAdvice = "%q must be 1 to 64 ASCII letters, digits, spaces and \". _ : -\", " +
	"and begin with a letter or digit"

// checkFinalSpace checks a new name of a permission group or team. HTTP drops the space at the end of
// a list of names, so an upstream could read "admins " as "admins". Older names may have such a space.
func checkFinalSpace(field, name string) error {
	if strings.HasSuffix(name, " ") {
		return invalid(field, "%q must not end in a space; write %q", name, strings.TrimRight(name, " "))
	}
	return nil
}

// ValidID reports whether s has the form of an id with this prefix, for example "token".
func ValidID(prefix, s string) bool {
	return strings.HasPrefix(s, prefix+"_") && idForm.MatchString(s)
}

func checkName(field, s string) error {
	switch {
	case s == "":
		return &Error{ErrEmpty, field, "must not be empty"}
	case strings.TrimSpace(s) != s:
		return invalid(field, "must not begin or end with white space")
	case idForm.MatchString(s):
		return invalid(field, "must not look like an id")
	}
	return checkText(field, s, maxName)
}

func checkText(field, s string, limit int) error {
	if !utf8.ValidString(s) {
		return invalid(field, "is not valid UTF-8")
	}
	if n := utf8.RuneCountInString(s); n > limit {
		return &Error{ErrTooLong, field, fmt.Sprintf("is %d characters long, at most %d are allowed", n, limit)}
	}
	if err := checkNoSecret(field, s); err != nil {
		return err
	}
	for _, r := range s {
		if unicode.Is(unicode.C, r) || r == '\u2028' || r == '\u2029' {
			// Only the long texts, such as descriptions, may have several lines.
			if r != '\n' || limit != maxText {
				return invalid(field, "must not hold the control character U+%04X", r)
			}
		}
	}
	return nil
}

// checkNoSecret rejects texts that contain a secret, whole or cut. It must run before checks whose
// errors repeat the text.
func checkNoSecret(field string, texts ...string) error {
	for _, s := range texts {
		if access.FindLeak(s) == access.SecretLeak {
			return invalid(field, "holds a secret; secrets are never stored")
		}
	}
	return nil
}

func (u *ServiceUser) check(now time.Time, before *ServiceUser) error {
	check := checkNewName
	if before != nil && u.Name == before.Name {
		check = checkOldName
	}
	if err := cmp.Or(check(u.Name), u.checkTexts(), checkNoSecret("alias", u.Alias)); err != nil {
		return err
	}
	if u.Alias != "" && (!access.ValidLogin(u.Alias) || strings.HasPrefix(u.Alias, "service_")) {
		return invalid("alias", "must be 1 to 64 of A-Z a-z 0-9 . _ @ - and not begin with \"service_\"")
	}
	if !u.Role.Valid() {
		return invalid("role", "%q is none of admin, manager, member", u.Role)
	}
	var err error
	if u.Teams, err = checkTeams(u.Teams, before); err != nil {
		return err
	}
	if len(u.Labels) > maxLabels {
		return invalid("labels", "has %d entries, at most %d are allowed", len(u.Labels), maxLabels)
	}
	// JSON shows {} for both, so that an unchanged record is recognised as unchanged.
	if u.Labels == nil {
		u.Labels = map[string]string{}
	}
	for k, v := range u.Labels {
		if err := checkNoSecret("labels", k); err != nil {
			return err
		}
		if !labelKey.MatchString(k) {
			return invalid("labels", "the key %q must be 1 to 63 letters, digits and \". _ / -\", "+
				"and begin with a letter or digit", k)
		}
		if err := checkText("labels", v, maxName); err != nil {
			return err
		}
	}
	if u.AllowedIPs, err = checkAllowedIPs(u.AllowedIPs); err != nil {
		return err
	}
	// An end that has passed and stays the same must not prevent other changes.
	u.ExpiresAt = wholeSeconds(u.ExpiresAt)
	if before == nil || !before.ExpiresAt.Equal(u.ExpiresAt) {
		return checkFuture("expires_at", u.ExpiresAt, now)
	}
	return nil
}

func (t *Token) check(now time.Time, before *Token) error {
	if err := cmp.Or(checkText("description", t.Description, maxName),
		checkNoSecret("metadata", t.Metadata)); err != nil {
		return err
	}
	if len(t.Metadata) > maxMetadata || !utf8.ValidString(t.Metadata) {
		return invalid("metadata", "must be valid UTF-8 of at most %d bytes", maxMetadata)
	}
	if strings.ContainsRune(t.Metadata, 0) {
		return invalid("metadata", "must not hold the control character U+0000")
	}
	var err error
	if t.AllowedIPs, err = checkAllowedIPs(t.AllowedIPs); err != nil {
		return err
	}
	t.ExpiresAt, t.NotBefore = wholeSeconds(t.ExpiresAt), wholeSeconds(t.NotBefore)
	if before == nil || !before.ExpiresAt.Equal(t.ExpiresAt) {
		if err := checkFuture("expires_at", t.ExpiresAt, now); err != nil {
			return err
		}
	}
	if !t.NotBefore.IsZero() && (t.NotBefore.Unix() <= 0 || t.NotBefore.Year() > 9999) {
		return invalid("not_before", "must lie between the years 1970 and 9999")
	}
	if !t.ExpiresAt.IsZero() && !t.NotBefore.Before(t.ExpiresAt) {
		return invalid("not_before", "must lie before expires_at")
	}
	t.Groups = sorted(t.Groups)
	return nil
}

func (g *Group) check(before *Group) error {
	if err := checkNoSecret("name", g.Name); err != nil {
		return err
	}
	if !groupName.MatchString(g.Name) {
		return invalid("name", groupNameAdvice, g.Name)
	}
	if idForm.MatchString(g.Name) {
		return invalid("name", "must not look like an id")
	}
	if before == nil || g.Name != before.Name {
		if err := checkFinalSpace("name", g.Name); err != nil {
			return err
		}
	}
	if err := checkText("description", g.Description, maxText); err != nil {
		return err
	}
	if !g.Mode.Valid() {
		return invalid("mode", "%q is neither enforce nor observe", g.Mode)
	}
	if g.MemberCondition != "" {
		// This check comes first: the error of ParseMembership repeats the text, which must
		// not contain a secret.
		if err := checkText("member_condition", g.MemberCondition, maxText); err != nil {
			return err
		}
		if _, err := access.ParseMembership(g.MemberCondition); err != nil {
			return invalid("member_condition", "%s", err)
		}
	}
	g.Permissions = sorted(g.Permissions)
	return checkRuleCount(g.Rules)
}

func checkRuleCount(rules []access.Rule) error {
	if len(rules) > maxRules {
		return invalid("rules", "has %d entries, at most %d are allowed", len(rules), maxRules)
	}
	conditions := 0
	for _, r := range rules {
		if r.When != "" {
			conditions++
		}
	}
	if conditions > maxConditions {
		return invalid("rules", "has %d rules with a condition, at most %d are allowed in one permission group",
			conditions, maxConditions)
	}
	return nil
}

var permissionKey = regexp.MustCompile(`^[a-z0-9_]+(\.[a-z0-9_]+){0,7}$`)

func (p *Permission) check() error {
	if err := checkNoSecret("key", p.Key); err != nil {
		return err
	}
	if len(p.Key) > 64 || !permissionKey.MatchString(p.Key) {
		return invalid("key", "%q must be lower-case words of letters, digits and \"_\", joined by dots, "+
			"at most 64 characters, such as people.address.view", p.Key)
	}
	if err := cmp.Or(checkName("name", p.Name), checkText("category", p.Category, maxName),
		checkText("description", p.Description, maxText)); err != nil {
		return err
	}
	if len(p.Rules) == 0 || len(p.Rules) > maxGranted {
		return invalid("rules", "a permission stands for 1 to %d rules", maxGranted)
	}
	for i, r := range p.Rules {
		r, err := checkRule(r)
		if err != nil {
			return err
		}
		if r.Name != "" || r.Description != "" {
			return invalid("rules", "the rules of a permission have no name and description of their own")
		}
		p.Rules[i] = r
	}
	return nil
}

func checkRule(r access.Rule) (access.Rule, error) {
	// This check comes first, as in Group.check: the error of Check repeats the condition.
	err := cmp.Or(checkText("rules.when", r.When, maxText), checkNoSecret("rules", r.Host, r.Path))
	if err != nil {
		return r, err
	}
	if r, err = r.Check(); err != nil {
		return r, invalid("rules", "%s", err)
	}
	return r, cmp.Or(checkText("rules.name", r.Name, maxName),
		checkText("rules.description", r.Description, maxText))
}

func checkTeams(teams []string, before *ServiceUser) ([]string, error) {
	teams = sorted(teams)
	if len(teams) > maxTeams {
		return nil, invalid("teams", "has %d entries, at most %d are allowed", len(teams), maxTeams)
	}
	if err := checkNoSecret("teams", teams...); err != nil {
		return nil, err
	}
	for _, team := range teams {
		if !groupName.MatchString(team) {
			return nil, invalid("teams", groupNameAdvice, team)
		}
		if before == nil || !slices.Contains(before.Teams, team) {
			if err := checkFinalSpace("teams", team); err != nil {
				return nil, err
			}
		}
	}
	return teams, nil
}

// checkAllowedIPs converts addresses and CIDRs to one form: masked prefixes, sorted.
func checkAllowedIPs(list []string) ([]string, error) {
	if len(list) > maxAllowedIPs {
		return nil, invalid("allowed_ips", "has %d entries, at most %d are allowed", len(list), maxAllowedIPs)
	}
	out := make([]string, 0, len(list))
	for _, text := range list {
		p, err := ParsePrefix(text)
		if err != nil {
			return nil, invalid("allowed_ips",
				"%q is neither an address nor a CIDR such as 10.0.0.0/8", text)
		}
		out = append(out, p.String())
	}
	return sorted(out), nil
}

// ParsePrefix parses an address or a CIDR and returns it in the form of allowed_ips: masked, and
// IPv4-mapped IPv6 addresses as IPv4. The error is not nil for a mapped prefix shorter than /96.
func ParsePrefix(text string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(text); err == nil && addr.Zone() == "" {
		addr = addr.Unmap()
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	p, err := netip.ParsePrefix(text)
	if err == nil && p.Addr().Is4In6() {
		if p.Bits() < 96 {
			return p, errMappedPrefix
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked(), err
}

// wholeSeconds converts a time to the form in which the store keeps it: whole seconds, UTC.
func wholeSeconds(at time.Time) time.Time {
	if at.IsZero() {
		return at
	}
	return at.UTC().Truncate(time.Second)
}

func checkFuture(field string, at, now time.Time) error {
	if at.IsZero() {
		return nil
	}
	if !at.After(now) {
		return invalid(field, "%s has passed already", at.UTC().Format(time.RFC3339))
	}
	if at.Year() > 9999 {
		return invalid(field, "lies after the year 9999")
	}
	return nil
}

// sorted returns the distinct values in order. It never returns nil, so that JSON shows [].
func sorted(list []string) []string {
	out := append([]string{}, list...)
	slices.Sort(out)
	return slices.Compact(out)
}
