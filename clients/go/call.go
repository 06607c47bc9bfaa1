package foreman

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"
)

const (
	// silence is how long an exchange may take beyond the time that it takes
	// by its nature. Without a bound a connection whose other end is gone
	// would be waited on for ever.
	silence = 30 * time.Second
	// slowest is the pace, in bytes a second, at which a body still goes out
	// in time.
	slowest = 64 << 10

	// forever is the patience of one who waits for a job that is accepted.
	forever = math.MaxInt64

	firstPause   = 200 * time.Millisecond
	longestPause = 10 * time.Second
	// longestWish is how much of a Retry-After is believed.
	longestWish = 10 * time.Minute
)

// errSilent is what has happened to a connection that brings nothing.
var errSilent = errors.New("nothing came for too long")

// exchange is one request and the whole body of its answer.
type exchange struct {
	method, path string
	contentType  string // of the body
	body         []byte
	key          string // the idempotency key
	// takes bounds the time to the answer's head, and each silence after it;
	// zero leaves that to the context.
	takes time.Duration
}

// send opens the exchange; the answer's status is below 300.
func (c *Client) send(ctx context.Context, x exchange) (*http.Response, error) {
	ctx, leave := context.WithCancelCause(ctx)
	body := &watched{ctx: ctx, leave: leave, takes: x.takes}
	body.watch()
	response, err := c.begin(ctx, x)
	body.timer.Stop()
	if err != nil {
		defer leave(nil)
		return nil, body.told(err)
	}
	body.ReadCloser, response.Body = response.Body, body
	if response.StatusCode < 300 {
		return response, nil
	}
	defer response.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	return nil, answered(response.StatusCode, response.Header, text)
}

// begin sends the request and waits for the answer's head.
func (c *Client) begin(ctx context.Context, x exchange) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, x.method, c.base.String()+x.path, bytes.NewReader(x.body))
	if err != nil {
		return nil, fmt.Errorf("foreman: %w", err)
	}
	if x.contentType != "" {
		request.Header.Set("Content-Type", x.contentType)
	}
	if x.key != "" {
		request.Header.Set("Idempotency-Key", x.key)
	}
	response, err := c.own.Do(request)
	if err != nil {
		return nil, lost{fmt.Errorf("foreman: %w", err)}
	}
	return response, nil
}

// watched is an answer's body that ends when it is silent for too long.
type watched struct {
	io.ReadCloser
	ctx   context.Context
	leave context.CancelCauseFunc
	takes time.Duration
	timer *time.Timer
}

func (w *watched) watch() {
	takes := w.takes
	if takes == 0 {
		takes = forever
	}
	if w.timer == nil {
		w.timer = time.AfterFunc(takes, func() { w.leave(errSilent) })
	} else {
		w.timer.Reset(takes)
	}
}

// told is the error, or what was behind it.
func (w *watched) told(err error) error {
	if context.Cause(w.ctx) == errSilent {
		return lost{fmt.Errorf("foreman: %w", errSilent)}
	}
	return err
}

func (w *watched) Read(p []byte) (int, error) {
	w.watch()
	defer w.timer.Stop()
	n, err := w.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		err = w.told(err)
	}
	return n, err
}

func (w *watched) Close() error {
	defer w.leave(nil)
	return w.ReadCloser.Close()
}

// once carries out the exchange and returns the answer's body.
func (c *Client) once(ctx context.Context, x exchange) ([]byte, error) {
	response, err := c.send(ctx, x)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, lost{fmt.Errorf("foreman: %s %s: %w", x.method, x.path, err)}
	}
	return body, nil
}

// decode carries out the exchange and reads the answer into v.
func (c *Client) decode(ctx context.Context, x exchange, v any) error {
	body, err := c.once(ctx, x)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("foreman: %s %s: the answer %q: %w", x.method, x.path, excerpt(body), err)
	}
	return nil
}

// job carries out an exchange whose answer is a job.
func (c *Client) job(ctx context.Context, x exchange) (*Job, error) {
	job := new(Job)
	if err := c.decode(ctx, x, job); err != nil {
		return nil, err
	}
	if job.ID == "" || job.State == "" {
		return nil, fmt.Errorf("foreman: %s %s: the answer is no job", x.method, x.path)
	}
	return job, nil
}

// persist tries until it succeeds, fails for good, or the context or the
// patience ends.
func persist(ctx context.Context, patience time.Duration, try func() error) error {
	begun := time.Now()
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		err := try()
		if err == nil {
			return nil
		}
		if cause := ctx.Err(); cause != nil {
			return fmt.Errorf("foreman: %w", cause)
		}
		if !passes(err) {
			return err
		}
		rest := resting(pause, err)
		if time.Since(begun)+rest > patience {
			return err
		}
		if err := sleep(ctx, rest); err != nil {
			return err
		}
	}
}

// resting is for how long to do nothing after an error: a growing pause, or
// what the answer asks for.
func resting(pause time.Duration, err error) time.Duration {
	var answer *APIError
	if errors.As(err, &answer) && answer.RetryAfter > 0 {
		pause = min(answer.RetryAfter, longestWish)
	}
	return pause + rand.N(pause/4+1) // so that not all come back at once
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("foreman: %w", ctx.Err())
	}
}

// excerpt is the beginning of a body, for people.
func excerpt(body []byte) string {
	const length = 200
	text := strings.TrimSpace(string(body))
	if len(text) > length {
		text = strings.ToValidUTF8(text[:length], "") + "…"
	}
	return text
}
