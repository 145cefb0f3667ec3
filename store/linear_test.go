package store

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/serviceusers/caddy-service-users/access"
)

var linear = flag.Int("linear", 150, "how many changes each of three goroutines makes in the test of linearizability; three others ask")

// linearInput is a step that is done to a register: a name under which there is
// one token at a time.
type linearInput struct {
	register int
	do       string // create, revoke, refresh, deactivate, activate, ask
	secret   string // that is asked with, revoked or refreshed
}

// linearState is what a register holds.
type linearState struct {
	live   string // the secret that comes in; "" is none
	active bool
}

// linearModel says what one may see who does a step after others: a token comes in
// from when it was issued until it was revoked, refreshed, or its service user
// deactivated.
var linearModel = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		parts := make(map[int][]porcupine.Operation)
		for _, op := range history {
			register := op.Input.(linearInput).register
			parts[register] = append(parts[register], op)
		}
		var list [][]porcupine.Operation
		for _, part := range parts {
			list = append(list, part)
		}
		return list
	},
	Init: func() any { return linearState{active: true} },
	Step: func(state, input, output any) (bool, any) {
		was, in, out := state.(linearState), input.(linearInput), output.(string)
		next := was
		switch in.do {
		case "create": // refused while there is a live one
			if out == "no" {
				return was.live != "", was
			}
			next.live = out
			return was.live == "", next
		case "revoke": // of what is revoked already is no fault
			if was.live == in.secret {
				next.live = ""
			}
			return out == "ok", next
		case "refresh":
			if out == "no" {
				return was.live != in.secret, was
			}
			next.live = out
			return was.live == in.secret, next
		case "deactivate", "activate":
			next.active = in.do == "activate"
			return out == "ok", next
		default:
			want := access.NoRule // let in, and nothing is allowed
			switch {
			case was.live != in.secret:
				want = access.TokenRevoked
			case !was.active:
				want = access.UserInactive
			}
			return out == want.String(), was
		}
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v: %v", input, output) },
}

// What goroutines see that change and ask at once is what they would see one
// after another, in an order that no step that had ended comes late in.
func TestLinearizable(t *testing.T) {
	t.Parallel()
	const registers = 3
	s := open(t, place(t), Options{Poll: time.Millisecond})
	type issued struct{ id, secret string }
	var mu sync.Mutex // guards known
	var users [registers]string
	var known [registers][]issued // of the last tokens
	for i := range users {
		u, _, err := s.CreateServiceUser(ctx, Local, ServiceUser{Profile: access.Profile{Name: fmt.Sprint("u", i), Active: true}}, nil)
		mustDo(err)
		users[i] = u.ID
	}
	// "create" is one change that looks first, so that a register has one token.
	create := func(register int) (*Issued, error) {
		id := users[register]
		var made *Issued
		err := s.change(ctx, Local, func(tx *tx) (err error) {
			for _, k := range must(collect(must(tx.query(selectToken+` WHERE service_user_id = $1 AND revoked_at = 0`, id)), scanToken)) {
				return conflict("", "there is %s", k.ID)
			}
			made, err = tx.createToken(Token{UserID: id}, nil)
			return err
		})
		return made, err
	}
	start := time.Now()
	now := func() int64 { return int64(time.Since(start)) }
	histories := make([][]porcupine.Operation, 6)
	const changers = 3
	turns := make(chan bool, 64) // to ask: some around every change
	var changing, running sync.WaitGroup
	changing.Add(changers)
	from := random(t).Uint64()
	go func() { changing.Wait(); close(turns) }()
	for client := range histories {
		running.Go(func() {
			draw := rand.New(rand.NewPCG(from, uint64(client)))
			if client < changers {
				defer changing.Done()
			}
			for n := 0; client >= changers || n < *linear; n++ {
				in := linearInput{register: draw.IntN(registers), do: "ask"}
				if client >= changers {
					if _, ok := <-turns; !ok {
						return
					}
				} else {
					for range 2 {
						turns <- true
					}
					in.do = []string{"create", "create", "revoke", "refresh", "refresh", "deactivate", "activate", "activate"}[draw.IntN(8)]
				}
				var token issued
				mu.Lock()
				if list := known[in.register]; len(list) > 0 {
					token = list[max(0, len(list)-1-draw.IntN(3))]
				}
				mu.Unlock()
				if in.do == "revoke" || in.do == "refresh" || in.do == "ask" {
					if in.secret = token.secret; in.secret == "" {
						continue
					}
				}
				user := users[in.register]
				var made *Issued
				var err error
				out := "ok"
				call := now()
				switch in.do {
				case "create":
					made, err = create(in.register)
				case "revoke":
					err = s.revoke(ctx, Local, user, token.id)
				case "refresh":
					made, err = s.refreshOf(ctx, Local, user, token.id, 0)
				case "deactivate", "activate":
					_, err = s.UpdateServiceUser(ctx, Local, user, 0, func(u *ServiceUser) error { u.Active = in.do == "activate"; return nil })
				default:
					out = probe(s, user, in.secret, "GET /").String()
				}
				end := now()
				switch {
				case errors.Is(err, ErrConflict):
					out = "no"
				case err != nil:
					t.Errorf("%s: %v", in.do, err)
					return
				case made != nil:
					out = made.Secret
					mu.Lock()
					known[in.register] = append(known[in.register], issued{made.ID, made.Secret})
					mu.Unlock()
				}
				histories[client] = append(histories[client], porcupine.Operation{ClientId: client, Input: in, Call: call, Output: out, Return: end})
			}
		})
	}
	running.Wait()
	var history []porcupine.Operation
	count := make(map[string]int)
	for _, part := range histories {
		history = append(history, part...)
	}
	for _, op := range history {
		in, out := op.Input.(linearInput), op.Output.(string)
		if strings.HasPrefix(out, access.SecretPrefix) {
			out = "issued"
		}
		count[in.do+" "+out]++
	}
	switch result := porcupine.CheckOperationsTimeout(linearModel, history, 30*time.Second); result {
	case porcupine.Illegal:
		t.Errorf("%d steps in no order: %v", len(history), count)
	case porcupine.Unknown:
		t.Errorf("%d steps were too many to find an order for: try a smaller -linear", len(history))
	}
	t.Logf("%d steps: %v", len(history), count)
}

// The model takes no history for good in which an answer comes too late.
func TestLinearModel(t *testing.T) {
	history := func(steps ...string) (list []porcupine.Operation) {
		for i, text := range steps {
			f := strings.Fields(text)
			list = append(list, porcupine.Operation{Input: linearInput{0, f[0], f[1]}, Output: f[2], Call: int64(2 * i), Return: int64(2*i + 1)})
		}
		return list
	}
	for _, row := range []struct {
		want  bool
		steps []porcupine.Operation
	}{
		{true, history("create - a", "ask a no_rule", "revoke a ok", "ask a token_revoked", "create - b", "ask a token_revoked", "ask b no_rule")},
		{true, history("create - a", "deactivate - ok", "ask a user_inactive", "refresh a b", "ask a token_revoked", "activate - ok", "ask b no_rule")},
		{false, history("create - a", "revoke a ok", "ask a no_rule")},
		{false, history("create - a", "refresh a b", "ask a no_rule")},
		{false, history("create - a", "ask a token_revoked")},
		{false, history("create - a", "refresh a b", "refresh a c")},
		{false, history("create - a", "deactivate - ok", "ask a no_rule")},
		{false, history("create - a", "create - b")},
	} {
		if got := porcupine.CheckOperations(linearModel, row.steps); got != row.want {
			t.Errorf("%+v: got %t, want %t", row.steps, got, row.want)
		}
	}
	overlap := history("create - a", "revoke a ok", "ask a no_rule")
	overlap[1].Return = overlap[2].Return // it had not ended
	if !porcupine.CheckOperations(linearModel, overlap) {
		t.Error("a request during a revocation: got false, want true")
	}
}
