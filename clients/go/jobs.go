package foreman

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// A Request is a job to be done.
type Request struct {
	// Endpoint is the Ollama route that the job is for, /api/chat if empty.
	Endpoint string
	// Body is what the endpoint takes: a [ChatRequest], an [EmbedRequest], or
	// anything else of which encoding/json makes an object with a model.
	Body any

	// WebhookURL is told of every transition, if set.
	WebhookURL string
	// Metadata comes back in every answer and event; at most 4 KiB of it.
	Metadata map[string]any
	// ExpiresIn fails the job if it is still queued then; zero is never.
	ExpiresIn time.Duration
	// Timeout is the longest a run may take, if not zero.
	Timeout time.Duration

	// IdempotencyKey makes the request the same over restarts of the calling
	// program: whoever submits it again gets the job there is. Without one a
	// random key is used, which does the same within the call. Batches have a
	// key of their own and pass over this one.
	IdempotencyKey string
}

// encode is the request as POST /jobs takes it, on one line.
func (r Request) encode() ([]byte, error) {
	body, err := json.Marshal(r.Body)
	if err != nil {
		return nil, fmt.Errorf("foreman: the request's body: %w", err)
	}
	if len(body) == 0 || body[0] != '{' {
		return nil, fmt.Errorf("foreman: the request's body is no JSON object but %.40s", body)
	}
	own, err := json.Marshal(struct {
		Endpoint   string         `json:"endpoint,omitempty"`
		WebhookURL string         `json:"state_webhook_url,omitempty"`
		Metadata   map[string]any `json:"metadata,omitempty"`
		ExpiresIn  string         `json:"expires_in,omitempty"`
		Timeout    string         `json:"timeout,omitempty"`
	}{r.Endpoint, r.WebhookURL, r.Metadata, duration(r.ExpiresIn), duration(r.Timeout)})
	if err != nil {
		return nil, fmt.Errorf("foreman: the request's metadata: %w", err)
	}
	switch {
	case len(own) == len("{}"):
		return body, nil
	case len(body) == len("{}"):
		return own, nil
	}
	// The body's own bytes stay as they are: what the target gets is what the
	// caller wrote.
	return append(append(body[:len(body)-1], ','), own[1:]...), nil
}

func duration(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return d.String()
}

func newKey() string {
	var key [16]byte
	if _, err := rand.Read(key[:]); err != nil {
		panic(err) // there is no system without randomness
	}
	return fmt.Sprintf("%x", key)
}

func (c *Client) posted(x exchange, body []byte) exchange {
	x.method, x.body = http.MethodPost, body
	x.takes = c.silence + time.Duration(len(body)/slowest)*time.Second
	return x
}

func jobPath(id string, more string) string { return "/jobs/" + url.PathEscape(id) + more }

// Submit hands a job over and returns it as it was taken, with its ID and
// State. The job is on foreman's disk then. Submit tries again while foreman
// is away or has no room, for as long as [WithPatience] says, which never makes
// a second job.
func (c *Client) Submit(ctx context.Context, r Request) (*Job, error) {
	body, err := r.encode()
	if err != nil {
		return nil, err
	}
	if r.IdempotencyKey == "" {
		r.IdempotencyKey = newKey()
	}
	x := c.posted(exchange{path: "/jobs", contentType: "application/json", key: r.IdempotencyKey}, body)
	var job *Job
	err = persist(ctx, c.patience, func() (err error) {
		job, err = c.job(ctx, x)
		return err
	})
	return job, err
}

// SubmitMany hands a batch of up to 10,000 jobs over, all of them or none,
// and returns them in the same order, with their IDs and States. The key
// makes the batch the same over restarts of the calling program; if it is
// empty a random one is used. If some of them are bad the [APIError] has
// their Lines.
func (c *Client) SubmitMany(ctx context.Context, key string, requests ...Request) ([]Job, error) {
	if len(requests) == 0 {
		return nil, nil
	}
	var body []byte
	for i, r := range requests {
		line, err := r.encode()
		if err != nil {
			return nil, fmt.Errorf("request %d: %w", i, err)
		}
		body = append(append(body, line...), '\n')
	}
	if key == "" {
		key = newKey()
	}
	x := c.posted(exchange{path: "/jobs", contentType: "application/x-ndjson", key: key}, body)
	var batch struct{ Jobs []Job }
	if err := persist(ctx, c.patience, func() error { return c.decode(ctx, x, &batch) }); err != nil {
		return nil, err
	}
	if len(batch.Jobs) != len(requests) {
		return nil, fmt.Errorf("foreman: %d jobs of %d requests", len(batch.Jobs), len(requests))
	}
	return batch.Jobs, nil
}

// Get looks at a job, once.
func (c *Client) Get(ctx context.Context, id string) (*Job, error) {
	return c.poll(ctx, id, 0)
}

// poll looks at a job, when it is over or after wait.
func (c *Client) poll(ctx context.Context, id string, wait time.Duration) (*Job, error) {
	x := exchange{method: http.MethodGet, path: jobPath(id, ""), takes: c.silence + wait}
	if wait > 0 {
		x.path += fmt.Sprintf("?wait=%g", wait.Seconds())
	}
	return c.job(ctx, x)
}

// Wait waits for a job to be over, over dropped connections and restarts of
// foreman, for as long as it takes. A job that has failed is a [JobError]. The
// Result of one that is done is there whatever its size.
//
// If the context ends first, Wait returns the job as it was last seen, nil if
// it was not, and an error.
func (c *Client) Wait(ctx context.Context, id string) (*Job, error) {
	wait := 30 * time.Second
	if limit := c.http.Timeout; limit > 0 {
		wait = min(wait, limit/2)
	}
	var job *Job
	for pause := firstPause; job == nil || !job.State.Final(); {
		asked := time.Now()
		err := persist(ctx, forever, func() error {
			seen, err := c.poll(ctx, id, wait)
			if err == nil {
				job = seen
			}
			return err
		})
		if err != nil {
			return job, err
		}
		// An answer before its time comes from a foreman that stops.
		if job.State.Final() || time.Since(asked) >= wait/2 {
			pause = firstPause
			continue
		}
		if err := sleep(ctx, resting(pause, nil)); err != nil {
			return job, err
		}
		pause = min(2*pause, longestPause)
	}
	if job.State == Failed {
		return job, &JobError{job}
	}
	if len(job.Result) == 0 || string(job.Result) == "null" {
		return job, persist(ctx, forever, func() (err error) {
			job.Result, err = c.Artifact(ctx, id, "completion")
			return err
		})
	}
	return job, nil
}

// Run has a job done and returns it when it is: [Client.Submit] and
// [Client.Wait] in one. Whatever happens on the way, it runs once: requests
// that had to be repeated find the job there is.
//
// A job that has failed is a [JobError]. If the context ends first, Run
// returns at once with the job as it was last seen (nil if foreman has not
// answered yet), and the job goes on; see [WithCancel].
func (c *Client) Run(ctx context.Context, r Request) (*Job, error) {
	if r.IdempotencyKey == "" {
		r.IdempotencyKey = newKey()
	}
	taken, err := c.Submit(ctx, r)
	if err == nil {
		var job *Job
		if job, err = c.Wait(ctx, taken.ID); job != nil {
			taken = job
		}
	}
	if c.cancelsJobs && ctx.Err() != nil && (taken == nil || !taken.State.Final()) {
		c.abandon(ctx, taken, r)
	}
	return taken, err
}

// abandon cancels a job whose caller is gone, as well as it can in a moment.
func (c *Client) abandon(ctx context.Context, job *Job, r Request) {
	ctx, done := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer done()
	if job == nil {
		// The job may be there without our having been told its ID: asked
		// again, foreman tells.
		var err error
		if job, err = c.Submit(ctx, r); err != nil {
			return
		}
	}
	_, _ = c.Cancel(ctx, job.ID)
}

// Cancel cancels a job and returns it, failed. Cancelling it again does no
// harm; if it is over for another reason that is an [APIError] with status
// 409.
func (c *Client) Cancel(ctx context.Context, id string) (*Job, error) {
	job, err := c.job(ctx, c.posted(exchange{path: jobPath(id, "/cancel")}, nil))
	var answer *APIError
	if errors.As(err, &answer) && answer.StatusCode == http.StatusConflict {
		if seen, err := c.Get(ctx, id); err == nil && seen.Error != nil && seen.Error.Code == "cancelled" {
			return seen, nil
		}
	}
	return job, err
}

// Artifact reads an artifact of a job: "completion", "content", "thinking" or
// "partial".
func (c *Client) Artifact(ctx context.Context, id, name string) ([]byte, error) {
	return c.once(ctx, exchange{method: http.MethodGet, path: jobPath(id, "/artifacts/"+url.PathEscape(name)), takes: c.silence})
}

// Stream reads along with a job: it calls line with each line that the job
// produces, from the beginning, and returns after the last. What a line holds
// is the endpoint's; [ChatResponse] of /api/chat. The bytes are line's to
// keep.
//
// An error that ends the stream, because the job failed or has to be tried
// again, is an [APIError] with status 200; [Client.Wait] tells the two apart.
// An error of line's ends it too, and is returned as it is.
func (c *Client) Stream(ctx context.Context, id string, line func(json.RawMessage) error) error {
	response, err := c.send(ctx, exchange{method: http.MethodGet, path: jobPath(id, "/stream"), takes: 3 * c.silence}) // it has a blank every 30 s
	if err != nil {
		return err
	}
	defer response.Body.Close()
	reader := bufio.NewReader(response.Body)
	for {
		text, err := reader.ReadBytes('\n')
		if text = bytes.TrimSpace(text); len(text) > 0 && (err == nil || err == io.EOF) {
			if failure := failureIn(text); failure != nil {
				return failure
			}
			if err := line(text); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("foreman: the stream of job %s: %w", id, err)
		}
	}
}

// failureIn is the error that a body with status 200 holds in place of an
// answer, nil if it does not.
func failureIn(body []byte) error {
	var document struct {
		Error *string `json:"error"`
	}
	if json.Unmarshal(body, &document) != nil || document.Error == nil {
		return nil
	}
	return &APIError{StatusCode: http.StatusOK, Message: *document.Error}
}
