package foreman

import (
	"encoding/json"
	"time"
)

// A State is where a job stands. Done and Failed are final.
type State string

// The states of a job, in their order; Queued may come again.
const (
	Queued  State = "queued"
	Loading State = "loading"
	Working State = "working"
	Done    State = "done"
	Failed  State = "failed"
)

// Final reports whether a job in this state is over.
func (s State) Final() bool { return s == Done || s == Failed }

// A Job is what foreman tells of a job. Only ID and State are there in the
// answers to a submission; Position, SwapsAhead and ETASeconds while it is
// queued.
type Job struct {
	ID          string          `json:"job_id"`
	State       State           `json:"state"`
	Sync        bool            `json:"sync"`  // a client was waiting on the connection
	Model       string          `json:"model"` // as the caller wrote it
	Endpoint    string          `json:"endpoint"`
	Attempt     int             `json:"attempt"`  // how often the worker has picked it
	Failures    int             `json:"failures"` // the tries charged to it
	MaxAttempts int             `json:"max_attempts"`
	CreatedAt   time.Time       `json:"created_at"`
	StartedAt   *time.Time      `json:"started_at"`
	CompletedAt *time.Time      `json:"completed_at"`
	Error       *Failure        `json:"error"`
	Timings     Timings         `json:"timings"`
	Result      json.RawMessage `json:"result"` // the endpoint's unstreamed answer, once done
	Artifacts   []Artifact      `json:"artifacts"`
	Metadata    json.RawMessage `json:"metadata"`
	Webhook     *Webhook        `json:"webhook"`

	Position   *int     `json:"position"`    // how many run before it, plus one
	SwapsAhead *int     `json:"swaps_ahead"` // loads before it runs, its own included
	ETASeconds *float64 `json:"eta_seconds"` // until it is likely to be done
}

// A Failure is why a job has failed.
type Failure struct {
	// Code is one of cancelled, client_disconnected, expired, timeout,
	// invalid_request, model_not_found, model_load_failed, target_error,
	// incomplete, result_too_large, interrupted and attempts_exhausted.
	Code    string `json:"code"`
	Message string `json:"message"`
}

// Timings is where a job's time went, and what it has produced. What is not
// known, or not yet, is nil.
type Timings struct {
	QueuedMS            *int64   `json:"queued_ms"`
	WaitedFor           []string `json:"waited_for"` // the models that were worked for meanwhile
	LoadMS              *int64   `json:"load_ms"`
	FirstTokenMS        *int64   `json:"first_token_ms"`
	RunMS               *int64   `json:"run_ms"`
	PromptTokens        *int64   `json:"prompt_tokens"`
	OutputTokens        *int64   `json:"output_tokens"`
	TokensPerSecond     *float64 `json:"tokens_per_second"`
	TargetUnreachableMS *int64   `json:"target_unreachable_ms"`
}

// An Artifact is something that a job has left; [Client.Artifact] reads it.
type Artifact struct {
	Name        string  `json:"name"` // completion, content, thinking or partial
	ContentType string  `json:"content_type"`
	Size        int64   `json:"size"`
	SHA256      string  `json:"sha256"`
	Inline      *string `json:"inline"` // the text itself, if it is short
	URL         string  `json:"url"`    // a path
}

// A Webhook is whom a job tells, and how many of its events are in which
// state of delivery.
type Webhook struct {
	URL        string `json:"url"`
	Pending    int    `json:"pending"`
	Delivered  int    `json:"delivered"`
	Exhausted  int    `json:"exhausted"`  // the last retry has failed
	Superseded int    `json:"superseded"` // dropped in favour of the final event
	Gone       int    `json:"gone"`       // the receiver wants no more of this job
}

// An Event is the body of a webhook. Verify it with [VerifySignature], dedupe
// by its webhook-id header, and let the highest Sequence stand.
type Event struct {
	JobID         string          `json:"job_id"`
	State         State           `json:"state"`
	PreviousState *State          `json:"previous_state"` // nil of the first
	Sequence      int             `json:"sequence"`       // 1, 2, … within the job
	Timestamp     time.Time       `json:"timestamp"`      // of the transition
	Model         string          `json:"model"`
	Attempt       int             `json:"attempt"`
	Failures      int             `json:"failures"`
	Error         *Failure        `json:"error"`
	Result        json.RawMessage `json:"result"`    // if done, and not too large
	Artifacts     []Artifact      `json:"artifacts"` // if done
	Metadata      json.RawMessage `json:"metadata"`
	Timings       *Timings        `json:"timings"` // of the final event
}
