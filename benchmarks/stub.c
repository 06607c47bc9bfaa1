/* As much of an Ollama server as the benchmarks need, and too fast to be in their way.

   Usage: stub PORT MODEL...      (port 0 picks one; the port is printed on the first line)

   One thread a connection, blocking calls.  A model's name says how it answers a chat:
   `chunks-COUNT-INTERVAL-BYTES-DELAY`: so many lines of so many bytes, so many milliseconds apart, the first after
   DELAY milliseconds.  Each line's content begins with the time at which it was made: microseconds of CLOCK_MONOTONIC in
   16 digits.
   A chat with "stream": false is answered by one object after DELAY.

   `GET /_stub/events` gives what happened since it was asked last, a line each: `r` (a chat has come), `d` (its answer
   is with the kernel) or `g` (its client has gone), a blank, and the time in the same microseconds. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { REQUEST_MAX = 1 << 20, OUT_MAX = 1 << 18, FLUSH_AT = 1 << 16, NAME_MAX_ = 200 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct event { char kind; long long at; } *events;
static size_t event_count, event_room;
static char resident[NAME_MAX_];
static char **models;
static int model_count;

static long long now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

static void note(char kind) {
    long long at = now_us();
    pthread_mutex_lock(&lock);
    if (event_count == event_room) {
        event_room = event_room ? 2 * event_room : 1024;
        events = realloc(events, event_room * sizeof *events);
    }
    events[event_count++] = (struct event){kind, at};
    pthread_mutex_unlock(&lock);
}

static int send_all(int fd, const char *data, size_t size) {
    while (size) {
        ssize_t sent = send(fd, data, size, MSG_NOSIGNAL);
        if (sent < 0) return -1;
        data += sent, size -= sent;
    }
    return 0;
}

static int answer(int fd, const char *type, const char *body, size_t size) {
    char head[300];
    int length = sprintf(head,
        "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nDate: Sat, 21 Nov 2026 01:21:18 GMT\r\nContent-Length: %zu\r\n\r\n", type, size);
    return send_all(fd, head, length) || send_all(fd, body, size) ? -1 : 0;
}

/* Wait, unless the client goes first: then -1. */
static int wait_us(int fd, long long us) {
    struct pollfd watched = {fd, POLLIN | POLLRDHUP, 0};
    struct timespec t = {us / 1000000, us % 1000000 * 1000};
    return us <= 0 || ppoll(&watched, 1, &t, NULL) == 0 ? 0 : -1;
}

/* The value of a JSON field that is a string, or the rest of the body from the value on. */
static const char *field(const char *body, const char *name) {
    char quoted[32];
    sprintf(quoted, "\"%s\"", name);
    const char *found = strstr(body, quoted);
    return found ? found + strlen(quoted) + strspn(found + strlen(quoted), " :") : NULL;
}

static void model_of(const char *body, char *name) {
    const char *value = field(body, "model");
    sscanf(value ? value : "", "\"%199[^\"]", name);
}

static int chat(int fd, const char *body, char *out) {
    char name[NAME_MAX_] = "";
    int count = 8, interval = 0, bytes = 140, delay = 0;
    model_of(body, name);
    sscanf(name, "chunks-%d-%d-%d-%d", &count, &interval, &bytes, &delay);
    note('r');
    if (wait_us(fd, delay * 1000LL)) return note('g'), -1;

    char head[400], end[700];
    int head_size = sprintf(head, "{\"model\":\"%s\",\"created_at\":\"2026-11-21T01:21:18.017214264Z\",\"message\":{\"role\":\"assistant\",\"content\":\"", name);
    int end_size = sprintf(end, "%s\"},\"done\":true,\"done_reason\":\"stop\",\"total_duration\":9,\"load_duration\":1,"
        "\"prompt_eval_count\":5,\"prompt_eval_duration\":1,\"eval_count\":%d,\"eval_duration\":1}\n", head, count);
    const char *stream = field(body, "stream");
    if (stream && !strncmp(stream, "false", 5)) {
        note('d');
        return answer(fd, "application/json; charset=utf-8", end, end_size - 1);
    }
    size_t size = sprintf(out, "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nDate: Sat, 21 Nov 2026 01:21:18 GMT\r\nTransfer-Encoding: chunked\r\n\r\n");
    static const char tail[] = "\"},\"done\":false}\n";
    int tail_size = strlen(tail), padding = bytes - head_size - 16 - tail_size;
    if (padding < 1) padding = 1;
    long long due = now_us();
    for (int i = 0; i < count; i++) {
        if (i && interval && wait_us(fd, due - now_us())) return note('g'), -1;
        due += interval * 1000LL;
        size += sprintf(out + size, "%x\r\n%s%016lld", head_size + 16 + padding + tail_size, head, now_us());
        memset(out + size, 'x', padding), size += padding;
        size += sprintf(out + size, "%s\r\n", tail);
        if (interval || size > FLUSH_AT) {
            if (send_all(fd, out, size)) return note('g'), -1;
            size = 0;
        }
    }
    size += sprintf(out + size, "%x\r\n%s\r\n0\r\n\r\n", end_size, end);
    note('d');
    return send_all(fd, out, size);
}

static int load(int fd, const char *body, char *out) {
    char name[NAME_MAX_] = "";
    model_of(body, name);
    const char *keep = field(body, "keep_alive");
    int unload = keep && keep[0] == '0' && (keep[1] == '}' || keep[1] == ',');
    pthread_mutex_lock(&lock);
    if (!unload) strcpy(resident, name);
    else if (!strcmp(resident, name)) *resident = 0;
    pthread_mutex_unlock(&lock);
    int size = sprintf(out, "{\"model\":\"%s\",\"created_at\":\"2026-11-21T01:21:18.017214264Z\",\"response\":\"\",\"done\":true,\"done_reason\":\"%s\"}",
        name, unload ? "unload" : "load");
    return answer(fd, "application/json; charset=utf-8", out, size);
}

static int list(int fd, char **names, int count, char *out) {
    int size = sprintf(out, "{\"models\":[");
    for (int i = 0; i < count; i++)
        size += sprintf(out + size, "%s{\"name\":\"%s\",\"model\":\"%s\",\"size\":1,\"size_vram\":1,\"digest\":\"\"}", i ? "," : "", names[i], names[i]);
    size += sprintf(out + size, "]}");
    return answer(fd, "application/json; charset=utf-8", out, size);
}

static int tell_events(int fd) {
    pthread_mutex_lock(&lock);
    char *text = malloc(24 * event_count + 1);
    size_t size = 0;
    for (size_t i = 0; i < event_count; i++) size += sprintf(text + size, "%c %lld\n", events[i].kind, events[i].at);
    event_count = 0;
    pthread_mutex_unlock(&lock);
    int result = answer(fd, "text/plain", text, size);
    free(text);
    return result;
}

static int serve_one(int fd, const char *request, const char *body, char *out) {
    char name[NAME_MAX_], *only = name;
    if (!strncmp(request, "POST /api/chat", 14)) return chat(fd, body, out);
    if (!strncmp(request, "POST /api/generate", 18)) return load(fd, body, out);
    if (!strncmp(request, "GET /api/tags", 13)) return list(fd, models, model_count, out);
    if (!strncmp(request, "GET /_stub/events", 17)) return tell_events(fd);
    if (!strncmp(request, "GET /api/ps", 11)) {
        pthread_mutex_lock(&lock);
        strcpy(name, resident);
        pthread_mutex_unlock(&lock);
        return list(fd, &only, *name != 0, out);
    }
    return answer(fd, "application/json; charset=utf-8", "{\"version\":\"0.32.15\"}", 21);
}

static void *serve(void *argument) {
    int fd = (int)(long)argument, one = 1;
    char *in = malloc(REQUEST_MAX + 1), *out = malloc(OUT_MAX);
    size_t have = 0;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    for (;;) {
        char *end;
        in[have] = 0;
        while (!(end = strstr(in, "\r\n\r\n"))) {
            ssize_t got = recv(fd, in + have, REQUEST_MAX - have, 0);
            if (got <= 0) goto over;
            in[have += got] = 0;
        }
        const char *length = strcasestr(in, "\r\ncontent-length:");
        size_t size = end + 4 - in + (length && length < end ? strtoul(length + 17, NULL, 10) : 0);
        while (have < size) {
            ssize_t got = recv(fd, in + have, REQUEST_MAX - have, 0);
            if (got <= 0) goto over;
            in[have += got] = 0;
        }
        if (serve_one(fd, in, end + 4, out)) goto over;
        memmove(in, in + size, have -= size);
    }
over:
    close(fd);
    free(in), free(out);
    return NULL;
}

int main(int count, char **arguments) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(arguments[1])), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 1024)) return perror("stub"), 1;
    getsockname(listener, (struct sockaddr *)&address, &size);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    models = arguments + 2, model_count = count - 2;
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        pthread_t thread;
        if (fd >= 0 && !pthread_create(&thread, NULL, serve, (void *)(long)fd)) pthread_detach(thread);
    }
}
