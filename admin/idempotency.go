package admin

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"regexp"

	"github.com/serviceusers/caddy-service-users/store"
)

// keyHeader is the request header of draft-ietf-httpapi-idempotency-key-header.
const keyHeader = "Idempotency-Key"

var errUselessKey = invalidField(keyHeader, "works only where a token is issued; leave it out")

// keyForm is a structured string (RFC 9651, section 3.3.3) or the same text without quotes.
var keyForm = regexp.MustCompile(`^(?:"((?:[ !#-\[\]-~]|\\["\\]){1,255})"|([!#-~][ -~]{0,254}))$`)

// takeKey calls decode, which reads the body, and sets by.Once if the request has an idempotency key.
func (c *call) takeKey(decode func() error) error {
	values := c.Header.Values(keyHeader)
	if len(values) == 0 || c.Method != http.MethodPost { // a repeated PUT, PATCH or DELETE changes nothing more
		return decode()
	}
	if !c.route.issuing { // a repetition does the work again
		return errUselessKey
	}
	m := keyForm.FindStringSubmatch(values[0])
	if len(values) > 1 || m == nil {
		return invalidField(keyHeader, "must be one text of 1 to 255 visible ASCII characters, "+
			"with or without quotes, such as a UUID")
	}
	sum := sha256.New()
	// A create without create_token issues a token or not by this header, too.
	fmt.Fprintf(sum, "%s %s %t\n", c.Method, c.URL.Path, c.foreign())
	c.Body = struct {
		io.Reader
		io.Closer
	}{io.TeeReader(c.Body, sum), c.Body}
	unlessKnown := c.Header.Values("If-None-Match")
	if len(unlessKnown) > 1 || len(unlessKnown) == 1 && unlessKnown[0] != "*" {
		return invalidField("If-None-Match", "beside "+keyHeader+" it can only be *; leave it out to get "+
			"the token of a lost answer with another secret")
	}
	err := decode()
	c.by.Once = &store.Once{
		Key: m[1] + m[2], Request: hex.EncodeToString(sum.Sum(nil)), New: len(unlessKnown) > 0,
	}
	return err
}
