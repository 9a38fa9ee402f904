/* fuzz_store.c - changes bytes in the metadata of an HDF5 file that muster wrote, recomputes every checksum, and
 * lets the store open and read the result, each time in a separate process. No process may die of a signal, hold
 * more than 256 MiB or take more than 10 s.
 *
 *   fuzz_store FILE N SEED NAME...      N inputs; NAME: arrays that are read, besides a walk over all metadata
 *   fuzz_store FILE set HEX+OFFSET BYTE...   changes the file itself: OFFSET bytes after the first place with the bytes HEX
 *                                       the following get the values BYTE..., and checksums are made to fit
 *
 * Ending with an error is correct, and so is reading data. Inputs that fail are kept as fuzz-SEED-I.h5. */
#include "base/base.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SUM = 4, MAX_MIB = 256, MAX_SECONDS = 10, READ_ALL = 0, REFUSED = 1, NOT_READ = 2, ENDINGS = 3 };

typedef struct {
    size_t at, bytes;
} piece;
static piece *pieces;
static size_t n_pieces;
static unsigned char *original, *bytes;
static size_t size;
static mu_error e;

/* ------------------------------------------------------------------ pieces and their checksums */

static uint32_t rotate(uint32_t x, int k) { return x << k | x >> (32 - k); }

static uint64_t number(const unsigned char *p, size_t n) {
    uint64_t x = 0;
    while (n--) x = x << 8 | p[n];
    return x;
}

/* Bob Jenkins' lookup3, by the description: not the store's code, which is what is tried here. */
static uint32_t lookup3(const unsigned char *p, size_t n) {
    uint32_t x[3];
    x[0] = x[1] = x[2] = 0xdeadbeef + (uint32_t)n;
    static const int mix[6] = { 4, 6, 8, 16, 19, 4 }, end[7] = { 14, 11, 25, 16, 4, 14, 24 };
    while (n > 12) {
        for (int i = 0; i < 3; i++) x[i] += (uint32_t)number(p + 4 * i, 4);
        for (int i = 0; i < 6; i++) {
            uint32_t *to = &x[i % 3], *from = &x[(i + 2) % 3];
            *to -= *from, *to ^= rotate(*from, mix[i]), *from += x[(i + 1) % 3];
        }
        p += 12, n -= 12;
    }
    if (n == 0) return x[2];
    for (int i = 0; i < 3; i++) {
        size_t left = n > 4 * (size_t)i ? n - 4 * (size_t)i : 0;
        x[i] += (uint32_t)number(p + 4 * i, left < 4 ? left : 4);
    }
    for (int i = 0; i < 7; i++) {
        uint32_t *to = &x[(i + 2) % 3], from = x[(i + 1) % 3];
        *to ^= from, *to -= rotate(from, end[i]);
    }
    return x[2];
}

/* Where the sum of a piece stands, and what it should be: at the end, or in a heap's block behind its head, taken as 0. */
static size_t sum_place(const unsigned char *p, size_t n) { return memcmp(p, "FHDB", 4) ? n - SUM : 17; }
static uint32_t sum_of(unsigned char *p, size_t n) {
    if (memcmp(p, "FHDB", 4)) return lookup3(p, n - SUM);
    unsigned char kept[SUM];
    memcpy(kept, p + 17, SUM);
    memset(p + 17, 0, SUM);
    uint32_t sum = lookup3(p, n);
    memcpy(p + 17, kept, SUM);
    return sum;
}

/* Bytes of an object header by what it says itself; of the superblock 48. Anything else: 0. */
static size_t said_length(const unsigned char *p, size_t left) {
    if (left >= 48 && !memcmp(p, "\x89HDF", 4)) return 48;
    if (left < 32 || memcmp(p, "OHDR", 4)) return 0;
    size_t at = p[5] & 0x20 ? 22 : 6, width = (size_t)1 << (p[5] & 3);
    uint64_t messages = number(p + at, width);
    return messages < left ? at + width + messages + SUM : 0;
}

static void find_pieces(void) {
    static const char *const signatures[] = { "\x89HDF", "OHDR", "OCHK", "FRHP", "FHDB", "FHIB", "FSHD",
                                              "FSSE",    "BTHD", "BTLF", "BTIN", "FAHD", "FADB" };
    for (size_t at = 0; at + 8 < size; at++)
        for (size_t s = 0; s < sizeof signatures / sizeof *signatures; s++) {
            unsigned char *p = original + at;
            if (memcmp(p, signatures[s], 4)) continue;
            size_t n = said_length(p, size - at), most = n ? n : 66000;
            for (n = n ? n : 24; n <= most && at + n <= size; n++)
                if (number(p + sum_place(p, n), SUM) == sum_of(p, n)) {
                    pieces = mu_realloc(pieces, n_pieces + 1, sizeof *pieces);
                    pieces[n_pieces++] = (piece){ at, n };
                    break;
                }
        }
}

static void repair(void) {
    for (size_t i = 0; i < n_pieces; i++) {
        unsigned char *p = bytes + pieces[i].at;
        size_t n = memcmp(p, "OHDR", 4) ? pieces[i].bytes : said_length(p, size - pieces[i].at);
        if (n < 8 || n > size - pieces[i].at) continue;
        uint32_t sum = sum_of(p, n);
        for (int k = 0; k < SUM; k++) p[sum_place(p, n) + (size_t)k] = (unsigned char)(sum >> 8 * k);
    }
}

/* ------------------------------------------------------------------ changes */

static uint64_t state;
static uint64_t draw(uint64_t below) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state % below;
}

static void put(size_t at, uint64_t value, size_t n) {
    for (size_t i = 0; i < n && at + i < size; i++) bytes[at + i] = (unsigned char)(value >> 8 * i);
}

static void change(void) {
    piece p = pieces[draw(n_pieces)], other = pieces[draw(n_pieces)];
    size_t at = p.at + draw(p.bytes);
    while (!bytes[at] && draw(8)) at = p.at + draw(p.bytes); /* most zeros are unused space */
    const uint64_t odd[] = { 0,        1,        UINT64_MAX, INT64_MAX,  size,
                             size - 1, 1u << 31, UINT32_MAX, draw(size), p.at };
    switch (draw(7)) {
    case 0: bytes[at] ^= (unsigned char)(1 << draw(8)); break;
    case 1: bytes[at] = (unsigned char)draw(256); break;
    case 2: bytes[at] = draw(2) ? 0xff : 0; break;
    case 3: put(at, odd[draw(sizeof odd / sizeof *odd)], (size_t)1 << draw(4)); break;
    case 4: put(at, other.at, 8); break; /* another piece's address */
    case 5: bytes[at] = (unsigned char)(bytes[at] + (draw(2) ? 1 : 255)); break;
    case 6: memmove(bytes + at, bytes + other.at + draw(other.bytes), draw(p.at + p.bytes - at) % 24); break;
    }
}

static bool write_file(const char *path) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    bool written = fd >= 0 && write(fd, bytes, size) == (ssize_t)size;
    return close(fd) == 0 && written;
}

/* ------------------------------------------------------------------ trying */

/* In a process of its own: opens, walks, reads. */
static int look(const char *path, char **names, int n_names) {
    mu_store *s;
    int ending = READ_ALL;
    if (mu_store_open(&s, path, &e))
        return strstr(e.text, "not an HDF5 file as muster writes it") ? REFUSED : NOT_READ;
    if (mu_store_walk(path, &e)) ending = NOT_READ;
    for (int i = 0; i < n_names; i++) {
        mu_store_type type;
        int n_dims;
        int64_t shape[4], n = 8;
        if (mu_store_shape(s, names[i], &type, &n_dims, shape, &e)) {
            ending = NOT_READ;
            continue;
        }
        for (int k = 0; k < n_dims; k++) n *= shape[k];
        void *data = mu_alloc((size_t)n, 1);
        if (mu_store_read(s, names[i], type, n_dims, shape, data, &e)) ending = NOT_READ;
        int64_t chunk, part = n_dims == 1 ? shape[0] / 2 : 0;
        if (mu_store_chunk(s, names[i], &chunk, &e) || (part && mu_store_read_part(s, names[i], type, part, part, data, &e)))
            ending = NOT_READ;
        free(data);
    }
    return mu_store_close(s, &e) ? NOT_READ : ending;
}

/* READ_ALL ... NOT_READ, or -1 with the reason said. */
static int try(const char *path, char **names, int n_names, int i) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        setrlimit(RLIMIT_CORE, &(struct rlimit){ 0, 0 });
        alarm(MAX_SECONDS);
        if (!freopen("/dev/null", "w", stderr)) _exit(9);
        _exit(look(path, names, n_names));
    }
    int status;
    struct rusage used;
    if (child < 0 || wait4(child, &status, 0, &used) != child) return -1;
    if (WIFSIGNALED(status)) printf("input %d: signal %d\n", i, WTERMSIG(status));
    else if (used.ru_maxrss > MAX_MIB * 1024) printf("input %d: %ld MiB\n", i, used.ru_maxrss / 1024);
    else if (WEXITSTATUS(status) >= ENDINGS) printf("input %d: exit code %d\n", i, WEXITSTATUS(status));
    else return WEXITSTATUS(status);
    return -1;
}

static int fuzz(int n, unsigned seed, char **names, int n_names) {
    int endings[ENDINGS] = { 0 }, failed = 0;
    char path[64], kept[64];
    snprintf(path, sizeof path, "fuzz-%u.h5", seed);
    memcpy(bytes, original, size);
    if (!write_file(path) || try(path, names, n_names, -1) != READ_ALL) {
        printf("the file itself is not read whole: %s\n", e.text);
        return 1;
    }
    for (int i = 0; i < n; i++) {
        state = ((uint64_t)seed << 32 | (unsigned)i) * 0x9e3779b97f4a7c15u + 1;
        for (int k = 0; k < 8; k++) draw(2);
        memcpy(bytes, original, size);
        for (uint64_t k = 1 + draw(3); k > 0; k--) change();
        repair();
        int ending = write_file(path) ? try(path, names, n_names, i) : -1;
        if (ending >= 0) endings[ending]++;
        else {
            failed++;
            snprintf(kept, sizeof kept, "fuzz-%u-%d.h5", seed, i);
            write_file(kept);
        }
    }
    unlink(path);
    printf(
        "%d inputs from %zu pieces: %d refused before HDF5, %d let through and not read whole, %d read, %d failed\n",
        n, n_pieces, endings[REFUSED], endings[NOT_READ], endings[READ_ALL], failed);
    return failed > 0;
}

/* HEX+OFFSET: that many bytes after the first place with these bytes; the size of the file when there is none. */
static size_t place(const char *text) {
    unsigned char wanted[32];
    const char *plus = strchr(text, '+');
    size_t n = plus ? (size_t)(plus - text) / 2 : 0;
    if (n == 0 || n > sizeof wanted) return size;
    for (size_t i = 0; i < n; i++)
        wanted[i] = (unsigned char)strtoul((char[]){ text[2 * i], text[2 * i + 1], 0 }, NULL, 16);
    unsigned char *found = memmem(original, size, wanted, n);
    return found ? (size_t)(found - original) + strtoul(plus, NULL, 0) : size;
}

static int set(const char *path, const char *where, char **values, int n) {
    size_t at = place(where);
    if (at + (size_t)n > size) return printf("no place %s in %s\n", where, path), 1;
    memcpy(bytes, original, size);
    for (int i = 0; i < n; i++) bytes[at + (size_t)i] = (unsigned char)strtoul(values[i], NULL, 0);
    repair();
    return !write_file(path);
}

int main(int argc, char **argv) {
    char *text;
    if (argc < 4) return MU_STATUS_USAGE;
    if (mu_file_read(argv[1], 1 << 26, &text, &size, &e)) return puts(e.text), MU_STATUS_NOINPUT;
    original = (unsigned char *)text;
    bytes = mu_alloc(size, 1);
    find_pieces();
    if (strcmp(argv[2], "set")) return fuzz(atoi(argv[2]), (unsigned)atoi(argv[3]), argv + 4, argc - 4);
    return set(argv[1], argv[3], argv + 4, argc - 4);
}
