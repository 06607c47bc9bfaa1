package foreman

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// house is a foreman of one job, as far as a client can tell.
type house struct {
	*httptest.Server

	mu       sync.Mutex
	requests []string          // "POST /jobs" …, in their order
	bodies   map[string]string // of accepted submissions, by key
	job      map[string]any
	polls    int // before the job is over

	// before may answer a request in the house's place; n counts them from 1.
	before func(n int, w http.ResponseWriter, r *http.Request) (answered bool)
	// after may spoil an exchange whose work is done.
	after func(n int, w http.ResponseWriter, r *http.Request) (spoiled bool)
}

func newHouse(t *testing.T) *house {
	h := &house{
		bodies: map[string]string{},
		job:    map[string]any{"job_id": "J1", "state": "done", "result": map[string]any{"done": true}},
	}
	h.Server = httptest.NewServer(h)
	t.Cleanup(h.Close)
	return h
}

func (h *house) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	h.requests = append(h.requests, r.Method+" "+r.URL.Path)
	n := len(h.requests)
	if h.before != nil && h.before(n, w, r) {
		return
	}
	var answer any
	switch {
	case r.Method == "POST" && r.URL.Path == "/jobs":
		key := r.Header.Get("Idempotency-Key")
		if known, ok := h.bodies[key]; ok && known != string(body) {
			w.WriteHeader(422)
			return
		}
		h.bodies[key] = string(body)
		answer = map[string]any{"job_id": "J1", "state": "queued", "position": 1}
	case r.URL.Path == "/jobs/J1/artifacts/completion":
		answer = map[string]any{"large": true}
	case h.polls > 0:
		h.polls--
		answer = map[string]any{"job_id": "J1", "state": "working"}
	default:
		answer = h.job
	}
	if h.after != nil && h.after(n, w, r) {
		return
	}
	json.NewEncoder(w).Encode(answer)
}

func (h *house) seen() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]string(nil), h.requests...)
}

func (h *house) client(t *testing.T, options ...Option) *Client {
	t.Helper()
	c, err := New(h.URL, options...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func cut(w http.ResponseWriter) bool {
	connection, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		panic(err)
	}
	connection.Close()
	return true
}

func refuse(w http.ResponseWriter, status int, retry string) bool {
	if retry != "" {
		w.Header().Set("Retry-After", retry)
	}
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"error": "not now"}`)
	return true
}

var hello = Request{Body: ChatRequest{Model: "m", Messages: []Message{{Role: "user", Content: "hi"}}}}

// Whatever goes wrong on the way, there is one job and its answer comes.
func TestRunGoesOnOverTrouble(t *testing.T) {
	h := newHouse(t)
	h.polls = 2
	h.before = func(n int, w http.ResponseWriter, r *http.Request) bool {
		switch n {
		case 1:
			return cut(w) // before it was read
		case 2:
			return refuse(w, 503, "")
		case 3:
			return refuse(w, 429, "0")
		case 7:
			return refuse(w, 502, "") // of a proxy
		}
		return false
	}
	h.after = func(n int, w http.ResponseWriter, r *http.Request) bool {
		// The job is accepted and nobody is told, twice, since net/http repeats
		// the first by itself; a poll breaks off.
		return (n == 4 || n == 5 || n == 8) && cut(w)
	}
	job, err := h.client(t).Run(context.Background(), hello)
	if err != nil {
		t.Fatal(err)
	}
	if job.ID != "J1" || job.State != Done || string(job.Result) != `{"done":true}` {
		t.Errorf("got %+v", job)
	}
	if len(h.bodies) != 1 {
		t.Errorf("submitted %d jobs: %v", len(h.bodies), h.bodies)
	}
	for key := range h.bodies {
		if len(key) != 32 {
			t.Errorf("the key is %q", key)
		}
	}
}

// Two runs of the same request are two jobs, unless their caller names a key.
func TestRunKeys(t *testing.T) {
	h := newHouse(t)
	for range 2 {
		if _, err := h.client(t).Run(context.Background(), hello); err != nil {
			t.Fatal(err)
		}
	}
	if len(h.bodies) != 2 {
		t.Errorf("%d keys of two runs", len(h.bodies))
	}
	named := hello
	named.IdempotencyKey = "order-7"
	if _, err := h.client(t).Run(context.Background(), named); err != nil {
		t.Fatal(err)
	}
	if _, ok := h.bodies["order-7"]; !ok {
		t.Errorf("the keys were %v", h.bodies)
	}
}

// What foreman asks to wait is waited.
func TestRetryAfterIsHonoured(t *testing.T) {
	h := newHouse(t)
	var refused, came time.Time
	h.before = func(n int, w http.ResponseWriter, r *http.Request) bool {
		if n == 1 {
			refused = time.Now()
			return refuse(w, 503, "1")
		}
		came = time.Now()
		return false
	}
	if _, err := h.client(t).Submit(context.Background(), hello); err != nil {
		t.Fatal(err)
	}
	if waited := came.Sub(refused); waited < time.Second {
		t.Errorf("came back after %s", waited)
	}
}

// A client does not wait longer than its patience, and says what it was told.
func TestPatienceEnds(t *testing.T) {
	h := newHouse(t)
	h.before = func(_ int, w http.ResponseWriter, _ *http.Request) bool { return refuse(w, 503, "3600") }
	_, err := h.client(t).Submit(context.Background(), hello)
	var answer *APIError
	if !errors.As(err, &answer) || answer.StatusCode != 503 || answer.Message != "not now" || answer.RetryAfter != time.Hour {
		t.Errorf("got %v", err)
	}
	if seen := h.seen(); len(seen) != 1 {
		t.Errorf("asked %d times", len(seen))
	}

	h.Close()
	if _, err = h.client(t, WithPatience(time.Millisecond)).Run(context.Background(), hello); err == nil {
		t.Error("no error though nobody is there")
	}
}

// A job that is accepted is waited for, however long foreman is away.
func TestWaitOutlastsPatience(t *testing.T) {
	h := newHouse(t)
	h.before = func(n int, w http.ResponseWriter, _ *http.Request) bool { return n <= 3 && refuse(w, 503, "") }
	job, err := h.client(t, WithPatience(0)).Wait(context.Background(), "J1")
	if err != nil || job.State != Done {
		t.Errorf("got %+v, %v", job, err)
	}
}

// What will not get better is not tried again.
func TestRefusalsAreFinal(t *testing.T) {
	for _, status := range []int{400, 401, 404, 410, 413, 422, 500} {
		h := newHouse(t)
		h.before = func(_ int, w http.ResponseWriter, _ *http.Request) bool { return refuse(w, status, "") }
		job, err := h.client(t).Run(context.Background(), hello)
		var answer *APIError
		if !errors.As(err, &answer) || answer.StatusCode != status || job != nil {
			t.Errorf("%d: got %v, %v", status, job, err)
		}
		if seen := h.seen(); len(seen) != 1 {
			t.Errorf("%d: asked %d times", status, len(seen))
		}
	}

	s := httptest.NewTLSServer(http.NotFoundHandler())
	s.Config.ErrorLog = nil
	defer s.Close()
	c, _ := New(s.URL)
	if _, err := c.Submit(context.Background(), hello); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("got %v of a stranger's certificate", err)
	}
}

// A caller that gives up is back at once, and is told which job goes on.
func TestRunEndsWithItsContext(t *testing.T) {
	for _, cancels := range []bool{false, true} {
		t.Run(fmt.Sprintf("cancels=%t", cancels), func(t *testing.T) {
			h := newHouse(t)
			h.polls = 1
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			h.after = func(n int, w http.ResponseWriter, r *http.Request) bool {
				if n == 3 { // the second poll; the first said that it works
					cancel()
					<-r.Context().Done()
					return true
				}
				return false
			}
			var options []Option
			if cancels {
				options = append(options, WithCancel())
			}
			job, err := h.client(t, options...).Run(ctx, hello)
			if !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
			if job == nil || job.ID != "J1" || job.State != Working {
				t.Errorf("got %+v", job)
			}
			last := h.seen()[len(h.seen())-1]
			if cancelled := last == "POST /jobs/J1/cancel"; cancelled != cancels {
				t.Errorf("the last request was %s", last)
			}
		})
	}
}

// A caller that gives up while the submission is on its way leaves no job
// behind, if it asked for that.
func TestRunCancelsWhatItHasNotHeardOf(t *testing.T) {
	h := newHouse(t)
	ctx, cancel := context.WithCancel(context.Background())
	h.after = func(n int, w http.ResponseWriter, r *http.Request) bool {
		if n == 1 {
			cancel()
			<-r.Context().Done()
		}
		return n == 1
	}
	if job, err := h.client(t, WithCancel()).Run(ctx, hello); !errors.Is(err, context.Canceled) || job != nil {
		t.Errorf("got %v, %v", job, err)
	}
	if last := h.seen()[len(h.seen())-1]; last != "POST /jobs/J1/cancel" || len(h.bodies) != 1 {
		t.Errorf("the last request was %s of %d jobs", last, len(h.bodies))
	}
}

// A failed job is an error that carries the job.
func TestWaitTellsFailure(t *testing.T) {
	h := newHouse(t)
	h.job = map[string]any{"job_id": "J1", "state": "failed", "error": map[string]any{"code": "timeout", "message": "Too long."}}
	_, err := h.client(t).Wait(context.Background(), "J1")
	var failed *JobError
	if !errors.As(err, &failed) || failed.Job.Error.Code != "timeout" {
		t.Fatalf("got %v", err)
	}
	if got := err.Error(); got != "foreman: job J1 failed: Too long. (timeout)" {
		t.Errorf("it reads %q", got)
	}
}

// A result that is too large to be in the job is fetched.
func TestWaitFetchesLargeResults(t *testing.T) {
	h := newHouse(t)
	h.job["result"] = nil
	job, err := h.client(t).Wait(context.Background(), "J1")
	if err != nil || strings.TrimSpace(string(job.Result)) != `{"large":true}` {
		t.Errorf("got %+v, %v", job, err)
	}
}

// A poll is shorter than the HTTP client's own limit.
func TestWaitMindsTheTimeout(t *testing.T) {
	h := newHouse(t)
	var asked string
	h.before = func(_ int, _ http.ResponseWriter, r *http.Request) bool {
		asked = r.URL.Query().Get("wait")
		return false
	}
	c := h.client(t, WithHTTPClient(&http.Client{Timeout: 10 * time.Second}))
	if _, err := c.Wait(context.Background(), "J1"); err != nil || asked != "5" {
		t.Errorf("waited %q, %v", asked, err)
	}
}

// Cancelling twice does no harm; cancelling what is done is told.
func TestCancelAgain(t *testing.T) {
	h := newHouse(t)
	h.before = func(_ int, w http.ResponseWriter, r *http.Request) bool {
		return strings.HasSuffix(r.URL.Path, "/cancel") && refuse(w, 409, "")
	}
	var answer *APIError
	if _, err := h.client(t).Cancel(context.Background(), "J1"); !errors.As(err, &answer) || answer.StatusCode != 409 {
		t.Errorf("got %v", err)
	}
	h.job = map[string]any{"job_id": "J1", "state": "failed", "error": map[string]any{"code": "cancelled"}}
	if job, err := h.client(t).Cancel(context.Background(), "J1"); err != nil || job.State != Failed {
		t.Errorf("got %+v, %v", job, err)
	}
}

// The token goes to foreman and to nobody else, in whoever's hands the HTTP
// client is.
func TestTokenStaysHome(t *testing.T) {
	var away, home []string
	stranger := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		away = append(away, r.Header.Get("Authorization"))
	}))
	defer stranger.Close()
	h := newHouse(t)
	h.before = func(_ int, w http.ResponseWriter, r *http.Request) bool {
		home = append(home, r.Header.Get("Authorization"))
		http.Redirect(w, r, stranger.URL, http.StatusTemporaryRedirect)
		return true
	}
	response, err := h.client(t, WithToken("secret")).HTTPClient().Get(h.URL)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if fmt.Sprint(home, away) != "[Bearer secret] []" {
		t.Errorf("home saw %q, the stranger %q", home, away)
	}
}

// A bad line of a batch is named.
func TestSubmitMany(t *testing.T) {
	h := newHouse(t)
	var body []byte
	h.before = func(_ int, w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Content-Type") != "application/x-ndjson" || r.Header.Get("Idempotency-Key") != "night" {
			return refuse(w, 415, "")
		}
		fmt.Fprint(w, `{"jobs": [{"job_id": "A", "state": "queued"}, {"job_id": "B", "state": "done"}]}`)
		return true
	}
	jobs, err := h.client(t).SubmitMany(context.Background(), "night", hello, hello)
	if err != nil || len(jobs) != 2 || jobs[0].ID != "A" || jobs[1].State != Done {
		t.Fatalf("got %+v, %v (%s)", jobs, err, body)
	}
	h.before = func(_ int, w http.ResponseWriter, r *http.Request) bool {
		w.WriteHeader(400)
		fmt.Fprint(w, `{"error": "1 line is bad", "lines": [{"line": 2, "error": "model: missing"}]}`)
		return true
	}
	_, err = h.client(t).SubmitMany(context.Background(), "", hello, hello)
	var answer *APIError
	if !errors.As(err, &answer) || len(answer.Lines) != 1 || answer.Lines[0] != (LineError{2, "model: missing"}) {
		t.Errorf("got %v", err)
	}
	if _, err := h.client(t).SubmitMany(context.Background(), "", hello, Request{Body: 7}); err == nil {
		t.Error("no error of a request that is no object")
	}
}

// What the target gets is what the caller wrote; foreman's fields come after.
func TestEncode(t *testing.T) {
	const raw = `{"model":"m","options":{"seed":1.0},"prompt":"\u003c"}`
	for _, test := range []struct {
		request Request
		want    string // empty: an error
	}{
		{Request{Body: json.RawMessage(raw)}, raw},
		{
			Request{Endpoint: "/api/generate", Body: json.RawMessage(raw), ExpiresIn: 90 * time.Minute},
			raw[:len(raw)-1] + `,"endpoint":"/api/generate","expires_in":"1h30m0s"}`,
		},
		{
			Request{Body: json.RawMessage(`{}`), WebhookURL: "http://h", Metadata: map[string]any{"n": 1}, Timeout: time.Second / 2},
			`{"state_webhook_url":"http://h","metadata":{"n":1},"timeout":"500ms"}`,
		},
		{
			Request{Body: EmbedRequest{Model: "m", Input: []string{"a"}}, Endpoint: "/api/embed"},
			`{"model":"m","input":["a"],"endpoint":"/api/embed"}`,
		},
		{Request{}, ""},
		{Request{Body: []int{1}}, ""},
		{Request{Body: map[string]any{"f": func() {}}}, ""},
	} {
		got, err := test.request.encode()
		if string(got) != test.want || (err == nil) != (test.want != "") {
			t.Errorf("%+v: got %s, %v", test.request, got, err)
		}
	}
}

// A stream comes line by line, without the blanks that hold it open.
func TestStream(t *testing.T) {
	const first, last = `{"message":{"content":"a"},"done":false}`, `{"message":{"content":"b"},"done":true}`
	for _, test := range []struct {
		body  string
		lines int
		err   string
	}{
		{first + "\n" + last + "\n", 2, ""},
		{"  " + first + "\n" + last, 2, ""},
		{"  \n", 0, ""},
		{first + "\n" + `{"error":"the job was deleted"}` + "\n", 1, "foreman: 200: the job was deleted"},
	} {
		h := newHouse(t)
		h.before = func(_ int, w http.ResponseWriter, _ *http.Request) bool {
			fmt.Fprint(w, test.body)
			return true
		}
		var lines []json.RawMessage
		err := h.client(t).Stream(context.Background(), "J1", func(line json.RawMessage) error {
			lines = append(lines, line)
			return nil
		})
		if len(lines) != test.lines || (err == nil) != (test.err == "") || err != nil && err.Error() != test.err {
			t.Errorf("%q: got %q, %v", test.body, lines, err)
		}
		if len(lines) > 0 && !bytes.Equal(lines[0], []byte(first)) {
			t.Errorf("%q: the first is %s", test.body, lines[0])
		}
		stop := errors.New("enough")
		if err := h.client(t).Stream(context.Background(), "J1", func(json.RawMessage) error { return stop }); test.lines > 0 && err != stop {
			t.Errorf("%q: got %v of a reader who has enough", test.body, err)
		}
	}
}

// A stream that breaks off is not taken for one that has ended.
func TestStreamBreaks(t *testing.T) {
	h := newHouse(t)
	h.before = func(_ int, w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Length", "100")
		fmt.Fprintln(w, `{"done":false}`)
		return true
	}
	err := h.client(t).Stream(context.Background(), "J1", func(json.RawMessage) error { return nil })
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v", err)
	}
}

// An error that came behind a held line is one.
func TestChat(t *testing.T) {
	h := newHouse(t)
	answer := `{"model":"m","message":{"role":"assistant","content":"Hello."},"done":true,"eval_count":2}`
	h.before = func(_ int, w http.ResponseWriter, _ *http.Request) bool {
		fmt.Fprint(w, "  ", answer)
		return true
	}
	got, err := h.client(t).Chat(context.Background(), ChatRequest{Model: "m"})
	if err != nil || got.Message.Content != "Hello." || !got.Done || got.EvalCount != 2 {
		t.Errorf("got %+v, %v", got, err)
	}
	answer = `{"error":"the queue was emptied"}`
	_, err = h.client(t).Chat(context.Background(), ChatRequest{Model: "m"})
	var failed *APIError
	if !errors.As(err, &failed) || failed.StatusCode != 200 || failed.Message != "the queue was emptied" {
		t.Errorf("got %v", err)
	}
	answer = `<html>a proxy's page</html>`
	if _, err = h.client(t).Chat(context.Background(), ChatRequest{Model: "m"}); err == nil {
		t.Error("no error of a page")
	}
}

// An URL that cannot be right is told before it is used.
func TestNew(t *testing.T) {
	for _, bad := range []string{"", "foreman:8080", "unix:/run/foreman", "http://", "http://h?q", "http://user@h", "http://\x7f"} {
		if _, err := New(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	for _, good := range []string{"http://127.0.0.1:8080", "https://h/foreman/"} {
		if _, err := New(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
}
