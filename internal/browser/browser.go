// Package browser drives a real Chromium in tests of the console.
package browser

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	control "github.com/chromedp/cdproto/browser"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
)

// patience is how long a test waits for a page.
const patience = 20 * time.Second

// Browser is a Chromium that ends with its test. Its pages may read the clipboard.
type Browser struct{ ctx context.Context }

// Start starts Chromium. Without one the test is skipped; with CI=true it fails. The headless shell
// is Chromium without windows, and takes half of the CPU time.
func Start(t *testing.T) *Browser {
	t.Helper()
	path, err := exec.LookPath("chromium-headless-shell")
	if err != nil {
		path, err = exec.LookPath("chromium")
	}
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("this test needs Chromium: apt-get install chromium-headless-shell")
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.NoSandbox,
		chromedp.DisableGPU, chromedp.Flag("hide-scrollbars", true), chromedp.UserDataDir(t.TempDir()),
		chromedp.WSURLReadTimeout(time.Minute))
	ctx, end := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(end)
	ctx, end = chromedp.NewContext(ctx)
	t.Cleanup(end)
	if err := chromedp.Do(ctx); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"clipboard-read", "clipboard-write"} {
		_, err := chromedp.CallBrowser(ctx, control.SetPermission, control.SetPermissionParams{
			Permission: &control.PermissionDescriptor{Name: name, AllowWithoutSanitization: name == "clipboard-read"},
			Setting:    control.PermissionSettingGranted,
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return &Browser{ctx}
}

// Action is a step in a tab, such as a click.
type Action = chromedp.Action[chromedp.Void]

// Tab is a tab of a browser, for one test.
type Tab struct {
	t   *testing.T
	ctx context.Context
}

// Tab opens a tab. header has pairs of names and values that each of its requests carries.
func (b *Browser) Tab(t *testing.T, header ...string) *Tab {
	t.Helper()
	ctx, end := chromedp.NewContext(b.ctx)
	t.Cleanup(end)
	tab := &Tab{t, ctx}
	fields := network.Headers{}
	for i := 0; i < len(header); i += 2 {
		fields[header[i]] = header[i+1]
	}
	if err := chromedp.Do(ctx); err != nil { // opens the tab, which lives as long as this context
		t.Fatal(err)
	}
	call(tab, network.Enable, network.EnableParams{})
	call(tab, network.SetExtraHTTPHeaders, network.SetExtraHTTPHeadersParams{Headers: fields})
	call(tab, emulation.SetFocusEmulationEnabled, emulation.SetFocusEmulationEnabledParams{Enabled: true})
	tab.Size(1280, 800)
	return tab
}

// call sends a command of the protocol.
func call[P, R any](b *Tab, command cdp.Command[P, R], params P) R {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	result, err := chromedp.Call(ctx, command, params)
	if err != nil {
		b.t.Fatal(err)
	}
	return result
}

// Run runs actions of chromedp.
func (b *Tab) Run(actions ...Action) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		b.t.Fatalf("%v; the page:\n%s", err, b.Text())
	}
}

// Open goes to an address and returns the status of the answer.
func (b *Tab) Open(url string) int {
	b.t.Helper()
	return b.Leave(chromedp.Navigate(url))
}

// Leave runs actions that lead to another page, and returns the status of that one.
func (b *Tab) Leave(actions ...Action) int {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	resp, err := chromedp.RunResponse(ctx, actions...)
	if err != nil {
		b.t.Fatalf("%v; the page:\n%s", err, b.Text())
	}
	if resp == nil { // the answer was there before the events of it were asked for
		return Eval[int](b, "performance.getEntriesByType('navigation')[0].responseStatus")
	}
	return int(resp.Status)
}

// Press clicks a link or a button with a text, and returns the status of the page that follows.
func (b *Tab) Press(text string) int {
	b.t.Helper()
	return b.Leave(chromedp.Click(named(text)))
}

// Click clicks an element that leads to no other page.
func (b *Tab) Click(text string) {
	b.t.Helper()
	b.Run(chromedp.Click(named(text)))
}

// named finds the visible control with a text, or with an accessible name.
func named(text string) string {
	q := strconv.Quote(text)
	return "//*[self::a or self::button or self::summary or self::label]" +
		"[normalize-space()=" + q + " or @aria-label=" + q + "]"
}

// Fill replaces the value of a field.
func (b *Tab) Fill(field, value string) {
	b.t.Helper()
	b.Run(chromedp.SetValue(chromedp.CSS(b.field(field)), value))
}

// Tick clicks a tick or a choice with a value.
func (b *Tab) Tick(field, value string) {
	b.t.Helper()
	b.Run(chromedp.Click(chromedp.CSS(fmt.Sprintf("[name=%q][value=%q]", field, value))))
}

func (b *Tab) field(name string) string {
	return fmt.Sprintf("main [name=%q]:not([type=hidden])", name)
}

// Value returns the value of a field.
func (b *Tab) Value(field string) string {
	b.t.Helper()
	return Eval[string](b, fmt.Sprintf("document.querySelector(%q).value", b.field(field)))
}

// Eval runs a script in the page and returns its value.
func Eval[T any](b *Tab, script string) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	value, err := chromedp.Run(ctx, chromedp.Evaluate[T](script, chromedp.EvalAwaitPromise))
	if err != nil {
		b.t.Fatal(err)
	}
	return value
}

// Text returns the visible text of the page.
func (b *Tab) Text() string {
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	text, err := chromedp.Run(ctx, chromedp.Evaluate[string]("document.body.innerText"))
	if err != nil {
		return err.Error()
	}
	return text
}

// Want fails the test unless the visible text of the page contains each part.
func (b *Tab) Want(parts ...string) {
	b.t.Helper()
	text := b.Text()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			b.t.Fatalf("the page does not show %q:\n%s", part, text)
		}
	}
}

// Strike presses a key that has a character, such as '/'. Unlike chromedp.KeyEvent it types the
// character only if no script of the page takes the key.
func (b *Tab) Strike(key rune) {
	b.t.Helper()
	text := string(key)
	down := input.DispatchKeyEventParams{Type: input.DispatchKeyEventTypeKeyDown, Key: text, Text: text}
	call(b, input.DispatchKeyEvent, down)
	call(b, input.DispatchKeyEvent, input.DispatchKeyEventParams{Type: input.DispatchKeyEventTypeKeyUp, Key: text})
}

// Size sets the size of the window in pixels.
func (b *Tab) Size(width, height int64) {
	b.t.Helper()
	call(b, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{
		Width: width, Height: height, DeviceScaleFactor: 1,
	})
}

// Scheme sets whether the viewer prefers "light" or "dark".
func (b *Tab) Scheme(name string) {
	b.t.Helper()
	call(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{
		{Name: "prefers-color-scheme", Value: name}, {Name: "prefers-reduced-motion", Value: "reduce"},
	}})
}

// WithoutScript switches scripts off.
func (b *Tab) WithoutScript() {
	b.t.Helper()
	call(b, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
}

// Overflow returns how many pixels the page is wider than the window.
func (b *Tab) Overflow() int {
	b.t.Helper()
	return Eval[int](b, "document.documentElement.scrollWidth - document.documentElement.clientWidth")
}

// Shot writes a picture of the whole page into a file.
func (b *Tab) Shot(path string) {
	b.t.Helper()
	beyond := true
	picture := call(b, page.CaptureScreenshot, page.CaptureScreenshotParams{CaptureBeyondViewport: &beyond}).Data
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(path, picture, 0o644); err != nil {
		b.t.Fatal(err)
	}
}

// Violation is a rule of axe that a page breaks.
type Violation struct {
	ID, Help string
	Nodes    []struct{ HTML, FailureSummary string }
}

// LoadAxe loads the script of axe, which is at a path, into the page.
func (b *Tab) LoadAxe(path string) {
	b.t.Helper()
	script, err := os.ReadFile(path)
	if err != nil {
		b.t.Fatal(err)
	}
	Eval[int](b, string(script)+"\n;0")
}

// Axe returns what axe finds in the page. rules limits it to the named rules.
func (b *Tab) Axe(rules ...string) []Violation {
	b.t.Helper()
	options := "{resultTypes: ['violations']}"
	if len(rules) > 0 {
		options = fmt.Sprintf("{resultTypes: ['violations'], runOnly: %q.split(' ')}", strings.Join(rules, " "))
	}
	return Eval[[]Violation](b, "axe.run(document, "+options+").then(r => r.violations)")
}
