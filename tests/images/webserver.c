/*
 * webserver: a static stand-in for the nginx and httpd that test images carry.
 *
 * Called as `nginx`, it behaves as the conformance suite expects of nginx: its
 * process title is "nginx: master process nginx ...", its comm is "nginx" and
 * its pid stands in /var/run/nginx.pid. Called as `httpd`, it prints a start
 * line that names httpd, as Apache does.
 *
 * usage: nginx|httpd [-p PORT] [anything else is kept in the title, ignored]
 * It answers every request with /usr/share/nginx/html/index.html, or a built-in
 * page, logs one line per request, and leaves on SIGTERM, SIGINT or SIGQUIT.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

static const char TITLE_MARK[] = ": master process ";
static const char PAGE_FILE[] = "/usr/share/nginx/html/index.html";
static const char DEFAULT_PAGE[] =
    "<!DOCTYPE html><html><head><title>Welcome</title></head>"
    "<body><h1>It works!</h1></body></html>\n";
/* A client that connects and stays silent is dropped after this time. */
static const int CLIENT_TIMEOUT_SECONDS = 10;

static void leave(int sig)
{
    (void)sig;
    unlink("/var/run/nginx.pid");
    _exit(0);
}

/* One `execve` of ourselves with a long argv[0]: the plain way to a process title. */
static void become_master(char **argv, const char *name)
{
    char self[4096], title[4096];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n < 0)
        return; /* no /proc: serve without the title */
    self[n] = 0;
    int at = snprintf(title, sizeof title, "%s%s%s", name, TITLE_MARK, name);
    for (char **a = argv + 1; *a && at < (int)sizeof title - 1; a++)
        at += snprintf(title + at, sizeof title - at, " %s", *a);
    char *old = argv[0];
    argv[0] = title;
    /* The title takes the place of all arguments; the port travels in the environment. */
    char *only[] = {title, NULL};
    execv(self, only);
    argv[0] = old;
}

static void respond(int fd, const char *peer)
{
    char request[8192], page[65536];
    struct timeval limit = {CLIENT_TIMEOUT_SECONDS, 0};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    size_t have = 0;
    while (have < sizeof request - 1) {
        ssize_t n = read(fd, request + have, sizeof request - 1 - have);
        if (n <= 0)
            return;
        have += (size_t)n;
        request[have] = 0;
        if (strstr(request, "\r\n\r\n") || strstr(request, "\n\n"))
            break;
    }
    size_t size = sizeof DEFAULT_PAGE - 1;
    memcpy(page, DEFAULT_PAGE, size);
    int file = open(PAGE_FILE, O_RDONLY | O_CLOEXEC);
    if (file >= 0) {
        ssize_t n = read(file, page, sizeof page);
        if (n > 0)
            size = (size_t)n;
        close(file);
    }
    int body = strncmp(request, "HEAD ", 5) != 0;
    dprintf(fd,
            "HTTP/1.1 200 OK\r\nServer: stand-in\r\nContent-Type: text/html\r\n"
            "Content-Length: %zu\r\nConnection: close\r\n\r\n",
            size);
    for (size_t done = 0; body && done < size;) {
        ssize_t n = write(fd, page + done, size - done);
        if (n <= 0)
            return;
        done += (size_t)n;
    }
    request[strcspn(request, "\r\n")] = 0;
    printf("%s - - \"%s\" 200 %zu\n", peer, request, size);
    fflush(stdout);
}

static int listen_on(int port)
{
    int one = 1, zero = 0, fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0) {
        struct sockaddr_in6 any = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof zero);
        if (bind(fd, (void *)&any, sizeof any) == 0 && listen(fd, 128) == 0)
            return fd;
        close(fd);
    }
    /* A namespace without IPv6. */
    struct sockaddr_in any4 = {.sin_family = AF_INET, .sin_port = htons(port)};
    fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (void *)&any4, sizeof any4) || listen(fd, 128))
        return -1;
    return fd;
}

int main(int argc, char **argv)
{
    const char *slash = strrchr(argv[0], '/');
    char name[64];
    int titled = strstr(argv[0], TITLE_MARK) != NULL;
    snprintf(name, sizeof name, "%s", titled ? argv[0] : slash ? slash + 1 : argv[0]);
    if (titled)
        *strstr(name, TITLE_MARK) = 0;
    if (!titled) {
        for (int i = 1; i + 1 < argc; i++)
            if (strcmp(argv[i], "-p") == 0)
                setenv("WEBSERVER_PORT", argv[i + 1], 1);
        if (strcmp(name, "nginx") == 0)
            become_master(argv, name);
    }
    const char *wanted = getenv("WEBSERVER_PORT");
    int port = wanted ? atoi(wanted) : 80;

    prctl(PR_SET_NAME, name);
    struct sigaction stop = {.sa_handler = leave};
    sigaction(SIGTERM, &stop, NULL);
    sigaction(SIGINT, &stop, NULL);
    sigaction(SIGQUIT, &stop, NULL);
    signal(SIGCHLD, SIG_IGN); /* the kernel reaps: we may be pid 1 */
    signal(SIGPIPE, SIG_IGN);

    int server = listen_on(port);
    if (server < 0) {
        fprintf(stderr, "%s: listen on port %d: %s\n", name, port, strerror(errno));
        return 1;
    }
    if (strcmp(name, "nginx") == 0) {
        int pidfile = open("/var/run/nginx.pid", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
        if (pidfile >= 0) {
            dprintf(pidfile, "%d\n", getpid());
            close(pidfile);
        }
    } else {
        printf("[core:notice] Command line: '%s -D FOREGROUND'\n", name);
    }
    fflush(stdout);

    for (;;) {
        struct sockaddr_in6 from;
        socklen_t size = sizeof from;
        char peer[INET6_ADDRSTRLEN] = "-";
        int fd = accept4(server, (void *)&from, &size, SOCK_CLOEXEC);
        if (fd < 0)
            continue;
        if (from.sin6_family == AF_INET6)
            inet_ntop(AF_INET6, &from.sin6_addr, peer, sizeof peer);
        if (fork() == 0) {
            close(server);
            respond(fd, peer);
            _exit(0);
        }
        close(fd);
    }
}
