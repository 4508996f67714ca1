/* A server of chat completions that has nothing to compute: it only keeps time.
 *
 *   null_server PORT INTERVAL_US FIRST_US [LOG]
 *
 * POST: as many server-sent events as the body's "max_tokens" says, one chunk each, the first
 * FIRST_US (plus a phase below one interval, so that streams are not in step) after the request,
 * then one every INTERVAL_US; a role first, usage and [DONE] last. max_tokens 1 is answered at
 * once in one write. GET: a model list, whatever the path.
 * "stream K" in the body names the stream. On SIGTERM the times are written to LOG as records of
 * {u32 stream, u32 kind, i64 nanoseconds on CLOCK_MONOTONIC}; kind 0: the request was read,
 * 1: an event is about to be sent. One thread, epoll; built by bench.py.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define FDS 65536
#define IN 16384

typedef struct {
    int64_t due_ns, at_ns;
    int left, in_heap, used;
    uint32_t stream;
    char in[IN];
} conn_t;

typedef struct { uint32_t stream, kind; int64_t at_ns; } log_t;

static conn_t *conns[FDS];
static int heap[FDS], heap_n;
static log_t *entries;
static size_t logged, log_room;
static int64_t interval_ns, first_ns;
static uint32_t phase;
static volatile sig_atomic_t over;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void note(uint32_t stream, uint32_t kind, int64_t at_ns) {
    if (logged < log_room) entries[logged++] = (log_t){stream, kind, at_ns};
}

static void up(int i) {
    int fd = heap[i];
    while (i && conns[heap[(i - 1) / 2]]->due_ns > conns[fd]->due_ns) {
        heap[i] = heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    heap[i] = fd;
}

static void down(int i) {
    int fd = heap[i];
    for (;;) {
        int c = 2 * i + 1;
        if (c >= heap_n) break;
        if (c + 1 < heap_n && conns[heap[c + 1]]->due_ns < conns[heap[c]]->due_ns) c++;
        if (conns[heap[c]]->due_ns >= conns[fd]->due_ns) break;
        heap[i] = heap[c];
        i = c;
    }
    heap[i] = fd;
}

static void put(int fd, const char *data, size_t n) {
    while (n) {
        ssize_t k = send(fd, data, n, MSG_NOSIGNAL);
        if (k < 0 && errno == EAGAIN) { usleep(50); continue; }
        if (k <= 0) return;
        data += k;
        n -= k;
    }
}

static const char HEAD[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                           "Transfer-Encoding: chunked\r\n\r\n";

static int chunk(char *out, const char *data) {
    return sprintf(out, "%zx\r\n%s\r\n", strlen(data), data);
}

static int event(char *out, const char *delta, uint32_t stream) {
    char data[512];
    sprintf(data, "data: {\"id\":\"chatcmpl-%019lld\",\"object\":\"chat.completion.chunk\","
                  "\"created\":1790000000,\"model\":\"null\",\"choices\":[{\"index\":0,\"delta\":{%s},"
                  "\"logprobs\":null,\"finish_reason\":null}]}\n\n", (long long)stream, delta);
    return chunk(out, data);
}

static int last(char *out, int tokens) {
    char data[512];
    sprintf(data, "data: {\"id\":\"x\",\"object\":\"chat.completion.chunk\",\"choices\":[{\"index\":0,"
                  "\"delta\":{},\"finish_reason\":\"length\"}],\"usage\":{\"prompt_tokens\":10,"
                  "\"completion_tokens\":%d,\"total_tokens\":%d}}\n\ndata: [DONE]\n\n", tokens, 10 + tokens);
    int n = chunk(out, data);
    return n + sprintf(out + n, "0\r\n\r\n");
}

static void respond(int fd, conn_t *c, char *body) {
    static const char models[] = "{\"object\":\"list\",\"data\":[{\"id\":\"null\",\"object\":\"model\"}]}";
    char out[2048];
    int n = 0;
    if (c->in[0] == 'G') {
        n = sprintf(out, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
                    sizeof models - 1, models);
        put(fd, out, n);
        return;
    }
    char *tokens = strstr(body, "\"max_tokens\":"), *name = strstr(body, "stream ");
    c->at_ns = tokens ? atoi(tokens + 13) : 16;
    c->left = (int)c->at_ns;
    c->stream = name ? (uint32_t)atoi(name + 7) : 0xffffffffu;
    int64_t now = now_ns();
    n = sprintf(out, "%s", HEAD);
    n += event(out + n, "\"role\":\"assistant\",\"content\":\"\"", c->stream);
    if (c->left == 1) {
        n += event(out + n, "\"content\":\" token\"", c->stream);
        n += last(out + n, 1);
        put(fd, out, n);
        return;
    }
    note(c->stream, 0, now);
    put(fd, out, n);
    phase += 2654435769u;
    c->due_ns = now + first_ns + (int64_t)((double)phase / 4294967296.0 * (double)interval_ns);
    heap[heap_n] = fd;
    up(heap_n++);
}

static void emit(int fd, conn_t *c) {
    char out[1024];
    int64_t now = now_ns();
    note(c->stream, 1, now);
    put(fd, out, event(out, "\"content\":\" token\"", c->stream));
    c->due_ns += interval_ns;
    if (--c->left == 0) {
        put(fd, out, last(out, (int)c->at_ns));
        heap[0] = heap[--heap_n];
        if (heap_n) down(0);
    } else {
        down(0);
    }
}

static void drop(int fd) {
    for (int i = 0; i < heap_n; i++)
        if (heap[i] == fd) {
            heap[i] = heap[--heap_n];
            if (i < heap_n) { down(i); up(i); }
            break;
        }
    close(fd);
}

static void readable(int fd) {
    conn_t *c = conns[fd];
    ssize_t n = recv(fd, c->in + c->used, IN - 1 - c->used, 0);
    if (n <= 0) {
        if (n == 0 || errno != EAGAIN) drop(fd);
        return;
    }
    c->used += n;
    c->in[c->used] = 0;
    char *end = strstr(c->in, "\r\n\r\n");
    if (!end) return;
    char *length = strcasestr(c->in, "content-length:");
    int body = length && length < end ? atoi(length + 15) : 0;
    if (c->used < end + 4 - c->in + body) {
        if (c->used >= IN - 1) drop(fd);
        return;
    }
    c->used = 0;
    respond(fd, c, end + 4);
}

static void stop(int sig) { (void)sig; over = 1; }

int main(int argc, char **argv) {
    if (argc < 4) return 2;
    interval_ns = atoll(argv[2]) * 1000;
    first_ns = atoll(argv[3]) * 1000;
    if (argc > 4) {
        log_room = 8u << 20;
        entries = malloc(log_room * sizeof *entries);
    }
    struct rlimit most;
    getrlimit(RLIMIT_NOFILE, &most);
    most.rlim_cur = most.rlim_max;
    setrlimit(RLIMIT_NOFILE, &most);
    struct sigaction act = {.sa_handler = stop};
    sigaction(SIGTERM, &act, NULL);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in where = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])),
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(listener, (struct sockaddr *)&where, sizeof where) || listen(listener, 8192)) return 1;
    socklen_t size = sizeof where;
    getsockname(listener, (struct sockaddr *)&where, &size);
    printf("%d\n", ntohs(where.sin_port));
    fflush(stdout);
    int poll = epoll_create1(0);
    struct epoll_event ev = {.events = EPOLLIN, .data.fd = listener}, evs[512];
    epoll_ctl(poll, EPOLL_CTL_ADD, listener, &ev);
    while (!over) {
        int64_t now = now_ns();
        while (heap_n && conns[heap[0]]->due_ns <= now) emit(heap[0], conns[heap[0]]);
        int64_t wait_ns = heap_n ? conns[heap[0]]->due_ns - now_ns() : 1000000000LL;
        if (wait_ns < 0) wait_ns = 0;
        struct timespec wait = {wait_ns / 1000000000LL, wait_ns % 1000000000LL};
        int n = epoll_pwait2(poll, evs, 512, &wait, NULL);
        for (int i = 0; i < n; i++) {
            int fd = evs[i].data.fd;
            if (fd != listener) { readable(fd); continue; }
            while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                if (fd >= FDS) { close(fd); continue; }
                if (!conns[fd]) conns[fd] = malloc(sizeof(conn_t));
                memset(conns[fd], 0, offsetof(conn_t, in));
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                ev = (struct epoll_event){.events = EPOLLIN, .data.fd = fd};
                epoll_ctl(poll, EPOLL_CTL_ADD, fd, &ev);
            }
        }
    }
    if (argc > 4) {
        FILE *out = fopen(argv[4], "wb");
        if (!out || fwrite(entries, sizeof *entries, logged, out) != logged) return 1;
        fclose(out);
    }
    return 0;
}
