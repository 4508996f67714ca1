/* The yardstick: the least that a client of such streams can do, in C with epoll.
 *
 *   c_client PORT STREAMS TOKENS OUT     every stream once, times written to OUT
 *   c_client PORT STREAMS 1 - SECONDS    one-token requests, each stream as fast as it can
 *
 * A read is stamped, and the events in it are counted by their end marks; nothing is decoded.
 * Prints one line of JSON. OUT: records of {u32 stream, u32 kind, i64 nanoseconds on
 * CLOCK_MONOTONIC}; kind 0: the request is sent, 1: an event with output was read.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
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

typedef struct { uint32_t stream, kind; int64_t at_ns; } log_t;

static int stream_of[FDS], seen_of[FDS];
static log_t *entries;
static size_t logged;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static long rss_kib(void) {
    long pages = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (f && fscanf(f, "%ld %ld", &pages, &resident) != 2) resident = 0;
    if (f) fclose(f);
    return resident * (sysconf(_SC_PAGESIZE) / 1024);
}

static void ask(int fd, int stream, int tokens) {
    char body[512], out[1024];
    int n = sprintf(body, "{\"model\":\"null\",\"messages\":[{\"role\":\"user\",\"content\":\"stream %d\"}],"
                          "\"max_tokens\":%d,\"stream\":true}", stream, tokens);
    n = sprintf(out, "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                     "Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", n, body);
    if (send(fd, out, n, MSG_NOSIGNAL) != n) exit(1);
}

int main(int argc, char **argv) {
    if (argc < 5) return 2;
    int streams = atoi(argv[2]), tokens = atoi(argv[3]), open_n = 0;
    double seconds = argc > 5 ? atof(argv[5]) : 0;
    struct rlimit most;
    getrlimit(RLIMIT_NOFILE, &most);
    most.rlim_cur = most.rlim_max;
    setrlimit(RLIMIT_NOFILE, &most);
    entries = malloc(((size_t)streams * (tokens + 2) + 1) * sizeof *entries);
    long before_kib = rss_kib(), peak_kib = 0;
    int poll = epoll_create1(0), one = 1;
    struct sockaddr_in where = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])),
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int64_t start = now_ns();
    long requests = 0, events = 0;
    for (int s = 0; s < streams; s++) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        if (fd < 0 || fd >= FDS) return 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (connect(fd, (struct sockaddr *)&where, sizeof where) && errno != EINPROGRESS) return 1;
        struct epoll_event ev = {.events = EPOLLOUT, .data.fd = fd};
        epoll_ctl(poll, EPOLL_CTL_ADD, fd, &ev);
        stream_of[fd] = s;
        open_n++;
    }
    struct epoll_event evs[512];
    static char buffer[262144];
    while (open_n) {
        int n = epoll_wait(poll, evs, 512, 1000);
        for (int i = 0; i < n; i++) {
            int fd = evs[i].data.fd;
            if (evs[i].events == EPOLLOUT) {
                struct epoll_event ev = {.events = EPOLLIN, .data.fd = fd};
                epoll_ctl(poll, EPOLL_CTL_MOD, fd, &ev);
                if (!seconds) entries[logged++] = (log_t){stream_of[fd], 0, now_ns()};
                ask(fd, stream_of[fd], tokens);
                continue;
            }
            ssize_t k = recv(fd, buffer, sizeof buffer, 0);
            int64_t now = now_ns();
            if (k <= 0) return 1;
            for (char *p = buffer; (p = memmem(p, buffer + k - p, "\n\n", 2)); p += 2) {
                int which = seen_of[fd]++;  /* 0: the role; then the tokens */
                if (which < 1 || which > tokens) continue;
                events++;
                if (!seconds) entries[logged++] = (log_t){stream_of[fd], 1, now};
            }
            if (k >= 5 && !memcmp(buffer + k - 5, "0\r\n\r\n", 5) && seen_of[fd] > tokens) {
                seen_of[fd] = 0;
                requests++;
                if (seconds && now - start < seconds * 1e9) ask(fd, stream_of[fd], tokens);
                else { close(fd); open_n--; }
            }
        }
        if (!peak_kib && open_n == streams && events >= (long)streams * tokens / 2) peak_kib = rss_kib();
    }
    int64_t end = now_ns();
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    double cpu_s = used.ru_utime.tv_sec + used.ru_stime.tv_sec
                   + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1e-6;
    if (!seconds) {
        FILE *out = fopen(argv[4], "wb");
        if (!out || fwrite(entries, sizeof *entries, logged, out) != logged) return 1;
        fclose(out);
    }
    printf("{\"events\": %ld, \"requests\": %ld, \"cpu_s\": %.6f, \"wall_s\": %.6f, \"kib\": %ld}\n",
           events, requests, cpu_s, (end - start) * 1e-9, peak_kib - before_kib);
    return 0;
}
