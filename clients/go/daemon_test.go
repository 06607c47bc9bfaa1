//go:build integration

package foreman_test

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	foreman "foreman/clients/go"
)

// The tests of this file need a real foreman at FOREMAN_TEST_URL, and fail
// without one; foreman/test/test_go_client.py runs them.

func daemon(t *testing.T, options ...foreman.Option) *foreman.Client {
	t.Helper()
	url := os.Getenv("FOREMAN_TEST_URL")
	if url == "" {
		t.Fatal("FOREMAN_TEST_URL is not set")
	}
	options = append([]foreman.Option{foreman.WithToken(os.Getenv("FOREMAN_TEST_TOKEN"))}, options...)
	client, err := foreman.New(url, options...)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func chat(model, text string) foreman.Request {
	return foreman.Request{Body: foreman.ChatRequest{
		Model:    model,
		Messages: []foreman.Message{{Role: "user", Content: text}},
	}}
}

func said(t *testing.T, result json.RawMessage) string {
	t.Helper()
	var answer foreman.ChatResponse
	if err := json.Unmarshal(result, &answer); err != nil {
		t.Fatal(err)
	}
	return answer.Message.Content
}

func TestDaemonRun(t *testing.T) {
	client, ctx := daemon(t), context.Background()
	request := chat("tiny-a", "hi")
	request.Metadata = map[string]any{"n": 7}
	request.Timeout = time.Minute
	job, err := client.Run(ctx, request)
	if err != nil {
		t.Fatal(err)
	}
	if text := said(t, job.Result); !strings.HasPrefix(text, " alpha bravo") {
		t.Errorf("it said %q", text)
	}
	if job.Model != "tiny-a" || job.Endpoint != "/api/chat" || string(job.Metadata) != `{"n":7}` || job.CompletedAt == nil || job.Timings.RunMS == nil {
		t.Errorf("got %+v", job)
	}
	content, err := client.Artifact(ctx, job.ID, "content")
	if err != nil || string(content) != said(t, job.Result) {
		t.Errorf("the content is %q, %v", content, err)
	}

	var failed *foreman.APIError
	if _, err = client.Run(ctx, chat("nope", "hi")); !errors.As(err, &failed) || failed.StatusCode != 404 || failed.Message != "model 'nope' not found" {
		t.Errorf("got %v of an unknown model", err)
	}
	if _, err = daemon(t, foreman.WithToken("wrong")).Run(ctx, chat("tiny-a", "hi")); !errors.As(err, &failed) || failed.StatusCode != 401 {
		t.Errorf("got %v of a wrong token", err)
	}
	request = foreman.Request{Body: map[string]any{"model": "tiny-rep", "prompt": "hi"}, Endpoint: "/api/generate"}
	var broken *foreman.JobError
	if _, err = client.Run(ctx, request); !errors.As(err, &broken) || broken.Job.Error.Code != "incomplete" {
		t.Errorf("got %v of a model that repeats itself", err)
	}
}

func TestDaemonOllama(t *testing.T) {
	client, ctx := daemon(t), context.Background()
	models, err := client.Tags(ctx)
	if err != nil || len(models) < 3 || models[0].Size == 0 || models[0].ModifiedAt.IsZero() {
		t.Errorf("the models are %+v, %v", models, err)
	}
	vectors, err := client.Embed(ctx, "tiny-embed", "one", "two")
	if err != nil || len(vectors) != 2 || len(vectors[0]) == 0 {
		t.Errorf("the vectors are %v, %v", vectors, err)
	}
	request := chat("tiny-a", "hi").Body.(foreman.ChatRequest)
	answer, err := client.Chat(ctx, request)
	if err != nil || !answer.Done || !strings.HasPrefix(answer.Message.Content, " alpha") {
		t.Errorf("it said %+v, %v", answer, err)
	}
	request.Model = "nope"
	var failed *foreman.APIError
	if _, err = client.Chat(ctx, request); !errors.As(err, &failed) || failed.StatusCode != 404 {
		t.Errorf("got %v", err)
	}
}

func TestDaemonBatch(t *testing.T) {
	client, ctx := daemon(t), context.Background()
	requests := []foreman.Request{chat("tiny-a", "one"), chat("tiny-b", "two"), chat("tiny-a", "three")}
	jobs, err := client.SubmitMany(ctx, "batch", requests...)
	if err != nil || len(jobs) != 3 {
		t.Fatalf("got %v, %v", jobs, err)
	}
	again, err := client.SubmitMany(ctx, "batch", requests...)
	if err != nil || len(again) != 3 || again[2].ID != jobs[2].ID {
		t.Errorf("again: %v, %v", again, err)
	}
	for _, job := range jobs {
		if _, err := client.Wait(ctx, job.ID); err != nil {
			t.Error(err)
		}
	}
	var failed *foreman.APIError
	_, err = client.SubmitMany(ctx, "", chat("tiny-a", "one"), chat("nope", "two"))
	if !errors.As(err, &failed) || len(failed.Lines) != 1 || failed.Lines[0].Line != 2 {
		t.Errorf("got %v", err)
	}
}

func TestDaemonCancel(t *testing.T) {
	client := daemon(t, foreman.WithCancel())
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	request := chat("slow", "hi")
	request.IdempotencyKey = "to be cancelled"
	job, err := client.Submit(ctx, request)
	if err != nil {
		t.Fatal(err)
	}
	go client.Stream(ctx, job.ID, func(json.RawMessage) error { cancel(); return nil }) // at its first word
	if _, err = client.Run(ctx, request); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	job, err = client.Get(context.Background(), job.ID)
	if err != nil || job.Error == nil || job.Error.Code != "cancelled" {
		t.Errorf("the job is %+v, %v", job, err)
	}
	if _, err = client.Cancel(context.Background(), job.ID); err != nil {
		t.Errorf("again: %v", err)
	}
}

// The test that runs this one kills foreman meanwhile, and starts it again at
// its Unix socket.
func TestDaemonKilled(t *testing.T) {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", os.Getenv("FOREMAN_TEST_SOCKET"))
	}
	client, err := foreman.New("http://localhost", foreman.WithHTTPClient(&http.Client{Transport: &http.Transport{DialContext: dial}}))
	if err != nil {
		t.Fatal(err)
	}
	job, err := client.Run(context.Background(), chat("slow", "hi"))
	if err != nil {
		t.Fatal(err)
	}
	if text := said(t, job.Result); !strings.HasSuffix(text, " end") || job.Attempt < 2 {
		t.Errorf("attempt %d said %q", job.Attempt, text)
	}
}
