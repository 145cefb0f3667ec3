package caddymodule

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"go.uber.org/zap"

	"github.com/serviceusers/caddy-service-users/store"
)

// event is on its way to the handlers of Caddy's app events.
type event struct {
	name string
	data map[string]any
}

// events are those that no configuration has emitted yet. They outlive a configuration, as stores do. The length
// is that of some of the largest changes.
var events = make(chan event, 10_000)

const (
	// expiringInterval is the time between two looks for tokens that end soon.
	expiringInterval = 10 * time.Minute
	// handlerLimit is the time after which the context of an event handler ends.
	handlerLimit = time.Minute
)

// degraded is whether the last event about the health of a store was store.degraded. The store that a reload opens
// ends that.
var degraded atomic.Bool

// notify queues an event for an emitter. It never waits, so that a handler that hangs stops no change.
func notify(name string, data map[string]any) {
	if name == store.EventDegraded || name == store.EventRecovered {
		degraded.Store(name == store.EventDegraded)
	}
	select {
	case events <- event{name, data}:
		return
	default:
	}
	metrics.droppedEvents.Inc()
	if n := count(metrics.droppedEvents); n%1000 == 1 {
		mainLog().Error("events are dropped: a handler of Caddy's app events hangs or is too slow; mend it and reload "+
			"the configuration. The audit trail has all changes", zap.String("event", name))
	}
}

// emitter emits events to the handlers of one configuration. Handlers run one after another, in a goroutine of its
// own. One that hangs ends with it: the next configuration has another emitter.
type emitter struct {
	app    *App
	shared *shared
}

// Handle implements caddyevents.Handler, for the event "started": before it, handlers may not be subscribed yet.
func (e *emitter) Handle(context.Context, caddy.Event) error {
	go e.run()
	return nil
}

func (e *emitter) run() {
	tick := time.NewTicker(expiringInterval)
	defer tick.Stop()
	e.emitExpiring()
	for e.app.ctx.Err() == nil { // or select would choose between the end and an event of the next configuration
		select {
		case <-e.app.ctx.Done():
		case next := <-events:
			e.emit(next.name, next.data)
		case <-tick.C:
			e.emitExpiring()
		}
	}
}

// emitExpiring emits token.expiring. It claims a token only where the configuration has a handler for it, so that the
// handlers of a fleet can be on one of its nodes. ShouldEmit is also true for a log with the level debug, and for
// handlers of other modules.
func (e *emitter) emitExpiring() {
	const name = "token.expiring"
	live := e.shared.live.Load()
	if live == nil || !slices.ContainsFunc(e.app.events.Subscriptions, func(s *caddyevents.Subscription) bool {
		return slices.ContainsFunc(s.Events, func(event string) bool { return event == name || event == "" }) &&
			slices.ContainsFunc(s.Modules, func(id caddy.ModuleID) bool { return id == "service_users" || id == "" })
	}) {
		return
	}
	list, err := live.store.ClaimExpiring(context.WithoutCancel(e.app.ctx))
	if err != nil {
		mainLog().Error("the tokens that end soon cannot be claimed; the next try is in ten minutes", zap.Error(err))
	}
	for _, t := range list {
		e.emit(name, map[string]any{
			"token_id": t.TokenID, "service_user_id": t.UserID, "service_user_name": t.Name, "owner": t.Owner,
			"expires_at": t.ExpiresAt.Format(time.RFC3339), "days": t.Days,
		})
	}
}

// emit calls the handlers of an event. A reload does not end their context, so that no event is lost by it.
func (e *emitter) emit(name string, data map[string]any) {
	if !e.app.events.ShouldEmit(name) {
		return
	}
	defer func() {
		if r := recover(); r != nil {
			mainLog().Error("a handler of Caddy's app events has panicked", zap.String("event", name), zap.Any("panic", r),
				zap.Stack("stack"))
		}
	}()
	ctx, cancel := e.app.ctx, context.CancelFunc(nil) // a copy
	ctx.Context, cancel = context.WithTimeout(context.WithoutCancel(ctx.Context), handlerLimit)
	defer cancel()
	e.app.events.Emit(ctx, name, data)
}
