package caddymodule

import (
	"net/http"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// outcome has the fields of a request in the access log and in its trace. None is a secret.
type outcome struct {
	outcome    string // as in the metric caddy_service_users_requests_total
	user       string // the id of a service user whose secret is right, or ""
	token      string
	rule       string // the id of the rule that decided, or the key of its permission
	decisionID string
}

// each calls f for the fields, without the empty ones unless all is set.
func (o *outcome) each(all bool, f func(name, value string)) {
	for _, field := range [...][2]string{
		{"outcome", o.outcome}, {"service_user", o.user}, {"token", o.token}, {"rule", o.rule},
		{"decision_id", o.decisionID},
	} {
		if all || field[1] != "" {
			f(field[0], field[1])
		}
	}
}

// outcomeVar is the name of the request variable with the outcome, if the request is logged or traced.
const outcomeVar = "service_users.outcome"

// show adds the outcome of a request to its line in the access log, and to the span that a handler such as "tracing"
// has begun before. Without both it does not call of, and allocates nothing. A second handler in the chain overwrites
// the fields of the first one.
func show(r *http.Request, vars variables, of func() outcome) {
	ctx := r.Context()
	span := trace.SpanFromContext(ctx)
	server, _ := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	logged := server != nil && server.Logs != nil
	if !logged && !span.IsRecording() {
		return
	}
	shown := of()
	before, second := vars[outcomeVar].(*outcome)
	shown.each(second, func(name, value string) { span.SetAttributes(attribute.String("service_users."+name, value)) })
	if second {
		*before = shown
		return
	}
	vars[outcomeVar] = &shown
	if extra, ok := ctx.Value(caddyhttp.ExtraLogFieldsCtxKey).(*caddyhttp.ExtraLogFields); ok && logged {
		extra.Add(zap.Inline(zapcore.ObjectMarshalerFunc(func(into zapcore.ObjectEncoder) error {
			shown.each(false, into.AddString)
			return nil
		})))
	}
}

// just is an outcome without a service user.
func just(word string) func() outcome { return func() outcome { return outcome{outcome: word} } }
