//go:build linux

package pgtest

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// A server has all that was committed after each end, answers nothing while it is paused, and ends with the test.
func TestOwn(t *testing.T) {
	t.Parallel()
	var dir string
	var pids []int
	t.Run("one", func(t *testing.T) {
		s := Own(t, "work_mem=8MB")
		dir = s.Dir
		var memory string
		if err := s.QueryRow(`SHOW work_mem`, nil, &memory); err != nil || memory != "8MB" {
			t.Errorf("work_mem: got %s, %v", memory, err)
		}
		if err := s.Exec(`CREATE TABLE things (n INT)`); err != nil {
			t.Fatal(err)
		}
		for i, end := range []func() error{
			s.Kill, func() error { return s.Stop(Fast) }, func() error { return s.Stop(Immediate) },
			func() error { _, err := s.Pause(); return err },
		} {
			if err := s.Exec(`INSERT INTO things VALUES (1)`); err != nil {
				t.Fatal(err)
			}
			if err := end(); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			if _, err := pgx.Connect(ctx, s.SocketURL(Superuser, "public")); err == nil {
				t.Errorf("end %d: it answers", i)
			}
			cancel()
			again := s.Start
			if i == 3 {
				again = s.Continue
			}
			if err := again(); err != nil {
				t.Fatal(err)
			}
			var n int
			if err := s.QueryRow(`SELECT count(*) FROM things`, nil, &n); err != nil || n != i+1 {
				t.Errorf("end %d: got %d rows, %v, want %d", i, n, err, i+1)
			}
		}
		var err error
		if pids, err = s.Pause(); err != nil { // it ends all the same
			t.Fatal(err)
		}
	})
	if err := await(pids, func(state string) bool { return state == "" || state == "Z" }); err != nil {
		t.Error(err)
	}
	if err := gone(dir); err != nil {
		t.Error(err)
	}
}

// gone waits until a folder is removed.
func gone(dir string) (err error) {
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if _, err := os.Stat(dir); err != nil {
			return nil
		}
	}
	return errors.New("the folder is there: " + dir)
}
