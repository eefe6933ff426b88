/* Runs in a guest. It writes blocks of 64 KiB to a disk, past the page cache, round and round, one after another. Each is filled
 * with its number in the order of writing, so that whoever reads the disk can tell of which moment it is.
 *
 *     writer DEVICE BLOCKS PAUSE_US
 *
 * SIGUSR1: says how many were written, and how long the longest took since it last said so, in microseconds. SIGTERM: says it
 * and ends. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 65536 };

static volatile sig_atomic_t asked, ended;

static void ask(int number) {
    if (number == SIGTERM) ended = 1;
    asked = 1;
}

static int64_t now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000LL + now.tv_nsec / 1000;
}

int main(int count, char **given) {
    signal(SIGUSR1, ask);
    signal(SIGTERM, ask);
    if (count != 4) return 2;
    uint64_t blocks = strtoull(given[2], NULL, 10), number = 0;
    useconds_t pause = (useconds_t)strtoul(given[3], NULL, 10);
    int disk = open(given[1], O_WRONLY | O_DIRECT);
    uint64_t *block;
    if (disk < 0 || posix_memalign((void **)&block, 4096, BLOCK)) return 1;
    puts("@@ WRITING");
    fflush(stdout);
    int64_t longest = 0, failed = 0;
    while (!ended || asked) {
        number++;
        for (int i = 0; i < BLOCK / 8; i++) block[i] = number;
        int64_t begun = now_us();
        if (pwrite(disk, block, BLOCK, (off_t)(number % blocks) * BLOCK) != BLOCK) failed++;
        int64_t took = now_us() - begun;
        if (took > longest) longest = took;
        if (!asked && pause) usleep(pause);
        if (asked) {
            asked = 0;
            printf("@@ WRITTEN %llu %lld %lld\n", (unsigned long long)number, (long long)longest, (long long)failed);
            fflush(stdout);
            longest = 0;
        }
    }
    return 0;
}
