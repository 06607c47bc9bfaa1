package foreman

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// A proxy that redirects turns a POST into a GET, which has no job for it; that
// is an error, and nothing goes to where it points.
func TestRedirectsAreNotFollowed(t *testing.T) {
	h := newHouse(t)
	h.job = map[string]any{"jobs": []any{}, "next": nil}
	for _, status := range []int{301, 302, 303, 307, 308} {
		proxy := httptest.NewServer(http.RedirectHandler(h.URL+"/jobs", status))
		defer proxy.Close()
		for _, options := range [][]Option{nil, {WithToken("t")}} {
			c, err := New(proxy.URL, options...)
			if err != nil {
				t.Fatal(err)
			}
			var answer *APIError
			if job, err := c.Submit(context.Background(), hello); !errors.As(err, &answer) || answer.StatusCode != status {
				t.Errorf("%d: got %+v, %v", status, job, err)
			}
		}
	}
	if seen := h.seen(); len(seen) != 0 {
		t.Errorf("it was asked %v", seen)
	}
}

// What answers 200 and is no foreman is neither taken for a job nor waited for.
func TestWhatIsNoJob(t *testing.T) {
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, `{"jobs": [{"job_id": "J1"}], "status": "ok"}`)
	}))
	defer other.Close()
	c, err := New(other.URL)
	if err != nil {
		t.Fatal(err)
	}
	ctx, done := context.WithTimeout(context.Background(), 20*time.Second)
	defer done()
	if job, err := c.Submit(ctx, hello); err == nil {
		t.Errorf("submitted %+v", job)
	}
	if job, err := c.Wait(ctx, "J1"); err == nil || ctx.Err() != nil {
		t.Errorf("waited for %+v, %v", job, err)
	}
	if jobs, err := c.SubmitMany(ctx, "", hello, hello); err == nil {
		t.Errorf("submitted %+v", jobs)
	}
	if jobs, err := c.SubmitMany(ctx, ""); err != nil || len(jobs) != 0 {
		t.Errorf("submitted %+v, %v, of none", jobs, err)
	}
}

// A foreman that stops, or a proxy that does not wait, answers at once: it is
// not asked in a circle.
func TestWaitDoesNotAskInACircle(t *testing.T) {
	h := newHouse(t)
	h.polls = 1 << 30
	ctx, done := context.WithTimeout(context.Background(), time.Second)
	defer done()
	job, err := h.client(t).Wait(ctx, "J1")
	if !errors.Is(err, context.DeadlineExceeded) || job == nil || job.State != Working {
		t.Errorf("got %+v, %v", job, err)
	}
	if n := len(h.seen()); n > 6 {
		t.Errorf("it was asked %d times in a second", n)
	}
}

// A connection on which nothing comes any more ends, though nobody closes it:
// in the middle of an artifact, of a stream and of the answer to a question.
func TestSilenceEnds(t *testing.T) {
	leave := make(chan struct{})
	silent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, `{"job_id": "J1",`)
		w.(http.Flusher).Flush()
		<-leave
	}))
	defer silent.Close()
	defer close(leave)
	c, err := New(silent.URL)
	if err != nil {
		t.Fatal(err)
	}
	c.silence = 200 * time.Millisecond
	begun := time.Now()
	ctx := context.Background()
	_, artifact := c.Artifact(ctx, "J1", "content")
	_, question := c.Get(ctx, "J1")
	stream := c.Stream(ctx, "J1", func(json.RawMessage) error { return nil })
	for name, err := range map[string]error{"artifact": artifact, "question": question, "stream": stream} {
		if err == nil || errors.Is(err, context.Canceled) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if took := time.Since(begun); took > 30*time.Second {
		t.Errorf("that took %s", took)
	}
}

// A slow answer is no silent one.
func TestSlowIsNotSilent(t *testing.T) {
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for range 20 {
			fmt.Fprint(w, "x")
			w.(http.Flusher).Flush()
			time.Sleep(100 * time.Millisecond)
		}
	}))
	defer slow.Close()
	c, err := New(slow.URL)
	if err != nil {
		t.Fatal(err)
	}
	c.silence = time.Second
	if body, err := c.Artifact(context.Background(), "J1", "content"); err != nil || len(body) != 20 {
		t.Errorf("got %q, %v", body, err)
	}
}

// Nobody's wish puts a call to sleep for days, and no number overflows.
func TestRetryAfterHasABound(t *testing.T) {
	for text, want := range map[string]time.Duration{"7": 7 * time.Second, "-1": 0, "999999": longestWish, "99999999999999": longestWish} {
		if got := min(retryAfter(text), longestWish); got != want {
			t.Errorf("%s: %s", text, got)
		}
	}
	err := &APIError{StatusCode: 503, RetryAfter: 9999 * time.Hour}
	if rest := resting(firstPause, err); rest > longestWish*5/4+time.Second {
		t.Errorf("it rests for %s", rest)
	}
}
