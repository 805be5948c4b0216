/* Makes every metadata call on paths that contain $SLOW_PATH take $SLOW_MICROSECONDS longer, as on a
 * busy network file system. To be preloaded; paths that are relative to an open folder count if
 * they contain $SLOW_PATH, or if the folder's does. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

static void pause_if(int slow) {
    const char *text = getenv("SLOW_MICROSECONDS");
    if (!slow || !text)
        return;
    long us = atol(text);
    struct timespec pause = {us / 1000000, us % 1000000 * 1000};
    nanosleep(&pause, NULL);
}

static int is_slow(int folder, const char *path) {
    const char *part = getenv("SLOW_PATH");
    if (!part || !path)
        return 0;
    if (strstr(path, part))
        return 1;
    if (path[0] == '/' || folder == AT_FDCWD)
        return 0;
    char link[64], name[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t length = readlink(link, name, sizeof name - 1);
    if (length < 0)
        return 0;
    name[length] = 0;
    return strstr(name, part) != NULL;
}

#define HERE(path) pause_if(is_slow(AT_FDCWD, path))
#define AT(folder, path) pause_if(is_slow(folder, path))
#define REAL(type, name, parameters) \
    static type(*real) parameters; \
    if (!real) \
        real = (type(*) parameters)dlsym(RTLD_NEXT, #name)

#define PATH_CALL(type, name, parameters, path, arguments) \
    type name parameters { \
        REAL(type, name, parameters); \
        HERE(path); \
        return real arguments; \
    }
#define AT_CALL(type, name, parameters, folder, path, arguments) \
    type name parameters { \
        REAL(type, name, parameters); \
        AT(folder, path); \
        return real arguments; \
    }
#define OPEN_CALL(name) \
    int name(const char *path, int flags, ...) { \
        REAL(int, name, (const char *, int, ...)); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        HERE(path); \
        return real(path, flags, mode); \
    }
#define OPENAT_CALL(name) \
    int name(int folder, const char *path, int flags, ...) { \
        REAL(int, name, (int, const char *, int, ...)); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        AT(folder, path); \
        return real(folder, path, flags, mode); \
    }

OPEN_CALL(open)
OPEN_CALL(open64)
OPENAT_CALL(openat)
OPENAT_CALL(openat64)
PATH_CALL(int, creat, (const char *path, mode_t mode), path, (path, mode))
PATH_CALL(FILE *, fopen, (const char *path, const char *mode), path, (path, mode))
PATH_CALL(FILE *, fopen64, (const char *path, const char *mode), path, (path, mode))
PATH_CALL(DIR *, opendir, (const char *path), path, (path))
PATH_CALL(int, stat, (const char *path, struct stat *to), path, (path, to))
PATH_CALL(int, stat64, (const char *path, struct stat64 *to), path, (path, to))
PATH_CALL(int, lstat, (const char *path, struct stat *to), path, (path, to))
PATH_CALL(int, lstat64, (const char *path, struct stat64 *to), path, (path, to))
PATH_CALL(int, access, (const char *path, int mode), path, (path, mode))
PATH_CALL(int, mkdir, (const char *path, mode_t mode), path, (path, mode))
PATH_CALL(int, rmdir, (const char *path), path, (path))
PATH_CALL(int, unlink, (const char *path), path, (path))
PATH_CALL(int, rename, (const char *from, const char *to), to, (from, to))
PATH_CALL(int, link, (const char *from, const char *to), to, (from, to))
PATH_CALL(int, symlink, (const char *from, const char *to), to, (from, to))
PATH_CALL(int, chmod, (const char *path, mode_t mode), path, (path, mode))
AT_CALL(int, fstatat, (int folder, const char *path, struct stat *to, int flags), folder, path,
        (folder, path, to, flags))
AT_CALL(int, fstatat64, (int folder, const char *path, struct stat64 *to, int flags), folder, path,
        (folder, path, to, flags))
AT_CALL(int, mkdirat, (int folder, const char *path, mode_t mode), folder, path,
        (folder, path, mode))
AT_CALL(int, unlinkat, (int folder, const char *path, int flags), folder, path,
        (folder, path, flags))
AT_CALL(int, renameat, (int from, const char *old, int to, const char *path), to, path,
        (from, old, to, path))
AT_CALL(int, linkat, (int from, const char *old, int to, const char *path, int flags), to, path,
        (from, old, to, path, flags))
AT_CALL(int, utimensat, (int folder, const char *path, const struct timespec times[2], int flags),
        folder, path, (folder, path, times, flags))
