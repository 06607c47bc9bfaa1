package foreman

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

// A Message is one turn of a chat.
type Message struct {
	Role      string          `json:"role"` // system, user, assistant or tool
	Content   string          `json:"content"`
	Thinking  string          `json:"thinking,omitempty"`
	Images    [][]byte        `json:"images,omitempty"`
	ToolCalls json.RawMessage `json:"tool_calls,omitempty"`
	ToolName  string          `json:"tool_name,omitempty"`
}

// A ChatRequest is the body of /api/chat; Ollama's documentation tells what
// its fields mean.
type ChatRequest struct {
	Model     string          `json:"model"`
	Messages  []Message       `json:"messages"`
	Tools     json.RawMessage `json:"tools,omitempty"`
	Format    json.RawMessage `json:"format,omitempty"` // "json" or a schema
	Options   map[string]any  `json:"options,omitempty"`
	Think     any             `json:"think,omitempty"`      // a bool or a level
	KeepAlive any             `json:"keep_alive,omitempty"` // seconds, or text such as "10m"
}

// A ChatResponse is the answer of /api/chat, or a line of its stream.
type ChatResponse struct {
	Model           string        `json:"model"`
	CreatedAt       time.Time     `json:"created_at"`
	Message         Message       `json:"message"`
	Done            bool          `json:"done"`
	DoneReason      string        `json:"done_reason"`
	TotalDuration   time.Duration `json:"total_duration"`
	LoadDuration    time.Duration `json:"load_duration"`
	PromptEvalCount int           `json:"prompt_eval_count"`
	EvalCount       int           `json:"eval_count"`
}

// An EmbedRequest is the body of /api/embed.
type EmbedRequest struct {
	Model      string         `json:"model"`
	Input      []string       `json:"input"`
	Truncate   *bool          `json:"truncate,omitempty"`
	Dimensions int            `json:"dimensions,omitempty"`
	Options    map[string]any `json:"options,omitempty"`
	KeepAlive  any            `json:"keep_alive,omitempty"`
}

// A Model is one that Ollama has.
type Model struct {
	Name         string    `json:"name"`
	Size         int64     `json:"size"`
	Digest       string    `json:"digest"`
	ModifiedAt   time.Time `json:"modified_at"`
	Capabilities []string  `json:"capabilities"`
}

// Tags lists the models, newest first.
func (c *Client) Tags(ctx context.Context) ([]Model, error) {
	var list struct{ Models []Model }
	err := c.decode(ctx, exchange{method: http.MethodGet, path: "/api/tags", takes: c.silence}, &list)
	return list.Models, err
}

// Embed makes one vector of each input. A call for the model that foreman
// keeps for it (FOREMAN_EMBED_MODEL) passes the queue by; others wait their
// turn.
func (c *Client) Embed(ctx context.Context, model string, input ...string) ([][]float32, error) {
	var answer struct{ Embeddings [][]float32 }
	if err := c.native(ctx, "/api/embed", EmbedRequest{Model: model, Input: input}, &answer); err != nil {
		return nil, err
	}
	if len(answer.Embeddings) != len(input) {
		return nil, fmt.Errorf("foreman: %d embeddings of %d inputs", len(answer.Embeddings), len(input))
	}
	return answer.Embeddings, nil
}

// Chat asks as one asks any Ollama and waits on the connection: when the
// context ends, so does the work. It is not tried again; [Client.Run] is for
// work that must be done.
func (c *Client) Chat(ctx context.Context, r ChatRequest) (*ChatResponse, error) {
	unstreamed := struct {
		ChatRequest
		Stream bool `json:"stream"`
	}{ChatRequest: r}
	answer := new(ChatResponse)
	if err := c.native(ctx, "/api/chat", unstreamed, answer); err != nil {
		return nil, err
	}
	return answer, nil
}

// native makes a call of Ollama's own. Its answer may come hours later, behind
// a 200 that was sent to hold the line; so the body is looked at for an error.
func (c *Client) native(ctx context.Context, path string, question, answer any) error {
	body, err := json.Marshal(question)
	if err != nil {
		return fmt.Errorf("foreman: %w", err)
	}
	x := exchange{method: http.MethodPost, path: path, contentType: "application/json", body: body}
	text, err := c.once(ctx, x)
	if err != nil {
		return err
	}
	if err := failureIn(text); err != nil {
		return err
	}
	if err := json.Unmarshal(text, answer); err != nil {
		return fmt.Errorf("foreman: POST %s: the answer %q: %w", path, excerpt(text), err)
	}
	return nil
}
