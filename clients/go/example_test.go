package foreman_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"strings"
	"time"

	foreman "foreman/clients/go"
)

// Have something done, whatever happens on the way.
func Example() {
	client, err := foreman.New(baseURL, foreman.WithToken(token))
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()

	job, err := client.Run(ctx, foreman.Request{Body: foreman.ChatRequest{
		Model:    "tiny-a",
		Messages: []foreman.Message{{Role: "user", Content: "Which words come first?"}},
		Options:  map[string]any{"num_predict": 3},
	}})
	var failed *foreman.JobError
	switch {
	case errors.As(err, &failed):
		log.Fatalf("foreman has tried: %s", failed.Job.Error.Message)
	case errors.Is(err, context.DeadlineExceeded) && job != nil:
		log.Fatalf("job %s goes on without us", job.ID)
	case err != nil:
		log.Fatal(err)
	}
	var answer foreman.ChatResponse
	if err := json.Unmarshal(job.Result, &answer); err != nil {
		log.Fatal(err)
	}
	fmt.Println(answer.Message.Content)
	// Output: alpha bravo charlie
}

// Hand a night's work over at once and collect it in the order it was given.
func ExampleClient_SubmitMany() {
	client, err := foreman.New(baseURL, foreman.WithToken(token))
	if err != nil {
		log.Fatal(err)
	}
	ctx := context.Background()

	var requests []foreman.Request
	for _, text := range []string{"one", "two"} {
		requests = append(requests, foreman.Request{
			Body:     foreman.ChatRequest{Model: "tiny-a", Messages: []foreman.Message{{Role: "user", Content: text}}},
			Metadata: map[string]any{"text": text},
		})
	}
	jobs, err := client.SubmitMany(ctx, "", requests...)
	if err != nil {
		log.Fatal(err)
	}
	for _, job := range jobs {
		done, err := client.Wait(ctx, job.ID)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(done.State)
	}
	// Output:
	// done
	// done
}

// Read along with a job.
func ExampleClient_Stream() {
	client, err := foreman.New(baseURL, foreman.WithToken(token))
	if err != nil {
		log.Fatal(err)
	}
	ctx := context.Background()

	job, err := client.Submit(ctx, foreman.Request{Body: foreman.ChatRequest{
		Model:    "tiny-a",
		Messages: []foreman.Message{{Role: "user", Content: "Which words come first?"}},
		Options:  map[string]any{"num_predict": 3},
	}})
	if err != nil {
		log.Fatal(err)
	}
	err = client.Stream(ctx, job.ID, func(line json.RawMessage) error {
		var piece foreman.ChatResponse
		if err := json.Unmarshal(line, &piece); err != nil {
			return err
		}
		fmt.Print(piece.Message.Content)
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
	// Output: alpha bravo charlie
}

// Receive webhooks.
func ExampleVerifySignature() {
	const secret = "whsec_dGhpcnR5LXR3byBieXRlcyBvZiBhIHNlY3JldA=="

	http.HandleFunc("POST /hook", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		// Check before you parse.
		if err := foreman.VerifySignature(r.Header, body, secret, foreman.Tolerance); err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		var event foreman.Event
		if err := json.Unmarshal(body, &event); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		log.Printf("job %s is %s", event.JobID, event.State)
	})
}

// An Ollama provider, such as those of Go's LLM libraries, needs foreman's
// URL and an HTTP client that sends the token; this is one in small.
func ExampleClient_HTTPClient() {
	client, err := foreman.New(baseURL, foreman.WithToken(token))
	if err != nil {
		log.Fatal(err)
	}
	provider := ollamaProvider{url: baseURL, http: client.HTTPClient()}
	err = provider.ChatStream(context.Background(), "tiny-a", "Which words come first?", func(text string) {
		fmt.Print(text)
	})
	if err != nil {
		log.Fatal(err)
	}
	// Output: alpha bravo charlie
}

type ollamaProvider struct {
	url  string
	http *http.Client
}

func (p ollamaProvider) ChatStream(ctx context.Context, model, prompt string, text func(string)) error {
	body, err := json.Marshal(map[string]any{
		"model":    model,
		"messages": []map[string]string{{"role": "user", "content": prompt}},
		"stream":   true,
		"options":  map[string]any{"num_predict": 3},
	})
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url+"/api/chat", strings.NewReader(string(body)))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := p.http.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("ollama: %s", response.Status)
	}
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		var line struct {
			foreman.ChatResponse
			Error string
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return err
		}
		if line.Error != "" { // it may come behind a 200
			return errors.New(line.Error)
		}
		text(line.Message.Content)
	}
	return lines.Err()
}
