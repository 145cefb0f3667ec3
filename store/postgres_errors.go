package store

import (
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// advise names the database, since errors of the server do not, and the way out.
func (e *postgresEngine) advise(err error) error {
	c := e.config
	var answer *pgconn.PgError
	advice := ""
	if errors.As(err, &answer) {
		switch answer.Code {
		case "28P01", "28000":
			advice = fmt.Sprintf("is the password of the role %q right, and does pg_hba.conf let it in from here, "+
				"with this sslmode?", c.User)
		case "3D000":
			advice = fmt.Sprintf("make the database: CREATE DATABASE %s OWNER %s",
				pgx.Identifier{c.Database}.Sanitize(), pgx.Identifier{c.User}.Sanitize())
		case "42501":
			advice = "give the role its own schema: " + e.ownSchema() +
				"; for a role without its own schema, docs/fleet.md lists the rights that it needs"
		case "42704", "08P01": // of the server, and of pgbouncer
			advice = "take the parameter out of the URL; a role can have its own: ALTER ROLE … SET search_path = …"
		case "42P01":
			advice = "the schema has no store; name another one with search_path=… in the URL"
		case "53300":
			advice = "raise max_connections, or put a pooler before the database"
		}
	} else if isLost(err) && !errors.Is(err, errStandby) {
		advice = "does the server run, is the address right, and do both sides agree about TLS (sslmode)?"
	}
	if advice != "" {
		err = fmt.Errorf("%w; %s", err, advice)
	}
	return fmt.Errorf("host %s, port %d, database %q, role %q: %w", c.Host, c.Port, c.Database, c.User, err)
}

// ownSchema returns how the role gets a schema of its own.
func (e *postgresEngine) ownSchema() string {
	return "CREATE SCHEMA service_users AUTHORIZATION " + pgx.Identifier{e.config.User}.Sanitize() +
		", and add search_path=service_users to the URL"
}

// postgresCode returns the SQLSTATE of an error of the server, and "" for other errors.
func postgresCode(err error) string {
	var answer *pgconn.PgError
	if errors.As(err, &answer) {
		return answer.Code
	}
	return ""
}

// isLost reports whether an error means that the connection to the server was not made, or was lost.
func isLost(err error) bool {
	var answer *pgconn.PgError
	if errors.As(err, &answer) && answer.Code != "" {
		// A pooler ends a connection with the code of a wrong message (08); 57014 is a cancelled
		// statement, and 25P03 comes after timeouts.idle.
		return strings.HasPrefix(answer.Code, "08") && answer.Severity != "ERROR" || answer.Code == "25P03" ||
			strings.HasPrefix(answer.Code, "57") && answer.Code != "57014"
	}
	var connecting *pgconn.ConnectError
	var network *net.OpError // net.Error is no measure: the errors of files and contexts are such, too
	return errors.As(err, &connecting) || errors.As(err, &network) || errors.Is(err, driver.ErrBadConn) ||
		errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, sql.ErrConnDone) || errors.Is(err, pgconn.ErrConnClosed)
}

// isPostgresFault reports whether an error comes from outside the contents of the tables: from the
// connection, a right, a lock or a resource.
func isPostgresFault(err error) bool {
	code := postgresCode(err)
	return isLost(err) || code != "" && !ofContents.MatchString(code)
}

// ofContents are the codes of errors about values (22, 23), a page (XX001) and an index (XX002).
var ofContents = regexp.MustCompile(`^(22|23|XX00[12])`)
