package caddymodule

import (
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

const (
	// logWait is how long a line of the log may hold up the goroutine that writes it.
	logWait = 100 * time.Millisecond
	// maxLogLines is how many lines wait for a log that does not take them.
	maxLogLines = 1000
)

// mainLog returns the log of code that outlives a configuration, such as a store. Its lines go to the default log of
// the configuration in force.
var mainLog = sync.OnceValue(func() *zap.Logger { return prompt(caddy.Log).Named("service_users") })

// moduleLog returns the log of a module.
func moduleLog(log *zap.Logger) *zap.Logger { return prompt(func() *zap.Logger { return log }) }

// prompt returns a log whose lines never block for longer than logWait, whatever the writer of the log does: a pipe that
// nobody reads, or a hung disk, must stop neither a request nor a change nor the look for changes. A goroutine
// writes the lines, in their order, and ends after the last one. Usually it has written a line before the call
// returns. The lines go to the log that current returns, and do not wait for those of another one before it.
func prompt(current func() *zap.Logger) *zap.Logger {
	var mu sync.Mutex
	var last *zap.Logger
	var queue *logQueue
	to := func() (zapcore.Core, *logQueue) {
		log := current()
		mu.Lock()
		defer mu.Unlock()
		if log != last {
			last, queue = log, new(logQueue)
		}
		return log.Core(), queue
	}
	return current().WithOptions(zap.WrapCore(func(zapcore.Core) zapcore.Core { return promptCore{to} }))
}

// promptCore is a [zapcore.Core] in front of another one.
type promptCore struct {
	to func() (zapcore.Core, *logQueue)
}

func (c promptCore) Enabled(level zapcore.Level) bool {
	core, _ := c.to()
	return core.Enabled(level)
}

func (c promptCore) Sync() error {
	core, _ := c.to()
	return core.Sync()
}

func (c promptCore) With(fields []zapcore.Field) zapcore.Core {
	return promptCore{func() (zapcore.Core, *logQueue) {
		core, queue := c.to()
		return core.With(fields), queue
	}}
}

func (c promptCore) Check(entry zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if !c.Enabled(entry.Level) {
		return checked
	}
	return checked.AddCore(entry, c)
}

func (c promptCore) Write(entry zapcore.Entry, fields []zapcore.Field) error {
	core, queue := c.to()
	queue.put(logLine{core, entry, fields, make(chan struct{})})
	return nil
}

// writeErrors gets the errors of writers, such as a full disk.
var writeErrors = zapcore.Lock(os.Stderr)

type logLine struct {
	core    zapcore.Core
	entry   zapcore.Entry
	fields  []zapcore.Field
	written chan struct{}
}

// write writes a line. A panic of a writer or of a value would end Caddy, since nobody else recovers it here.
func (l *logLine) write() {
	defer close(l.written)
	defer func() {
		if r := recover(); r != nil {
			metrics.droppedLines.Inc()
			fmt.Fprintf(writeErrors, "a line of the log is missing, after a panic: %v\n", r)
		}
	}()
	// The core may have several writers, each with a level of its own: Check chooses those of the line.
	if checked := l.core.Check(l.entry, nil); checked != nil {
		checked.ErrorOutput = writeErrors
		checked.Write(l.fields...)
	}
}

// logQueue has the lines that are not written yet, the first of which is being written.
type logQueue struct {
	mu    sync.Mutex
	lines []logLine
	late  bool // a line has waited in vain: until all are written, no other one waits
}

func (q *logQueue) put(line logLine) {
	q.mu.Lock()
	if len(q.lines) == maxLogLines {
		q.mu.Unlock()
		metrics.droppedLines.Inc()
		return
	}
	if q.lines = append(q.lines, line); len(q.lines) == 1 {
		go q.write(line)
	}
	late := q.late
	q.mu.Unlock()
	if late {
		return
	}
	end := time.NewTimer(logWait)
	defer end.Stop()
	select {
	case <-line.written:
	case <-end.C:
		q.mu.Lock()
		q.late = len(q.lines) > 0
		q.mu.Unlock()
	}
}

// write writes lines, of which this is the first, until all are written.
func (q *logQueue) write(line logLine) {
	for more := true; more; {
		line.write()
		q.mu.Lock()
		q.lines = q.lines[1:]
		if more = len(q.lines) > 0; more {
			line = q.lines[0]
		} else {
			q.lines, q.late = nil, false
		}
		q.mu.Unlock()
	}
}
