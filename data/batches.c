/* batches.c - documents worked on by all threads.
 *
 * The calling thread reads; documents are collected in batches, and each full batch is a task of OpenMP, for any thread. Results
 * are taken in the order of the batches. A ring of batches bounds the memory: the reading thread works on a batch itself while
 * the others have enough to do, and waits for them where the ring is full. Large documents are cut into parts where that
 * changes no result. */
#include "data/unicode.h"

#include <stdlib.h>
#include <string.h>

enum { BATCH_BYTES = 1 << 18, RING_PER_THREAD = 4 };

struct mu_batches {
    const mu_batch_work *work;
    int threads;
    int n, first, used;                 /* ring: batches [first, first + used) are worked on; the next one is being filled */
    mu_batch *ring;
    bool *done;
    int waiting;                        /* tasks that are not finished */
    int64_t read, submitted;            /* of the source: with the last document; up to the part added last */
};

/* ------------------------------------------------------------------ the ring */

static void take_first(mu_batches *b) {
    if (b->work->take) b->work->take(b->work->context, &b->ring[b->first]);
    b->first = (b->first + 1) % b->n;
    b->used--;
}

static void take_finished(mu_batches *b) {
    while (b->used > 0) {
        bool done;
        #pragma omp atomic read seq_cst
        done = b->done[b->first];
        if (!done) break;
        take_first(b);
    }
}

static void take_all(mu_batches *b) {
    #pragma omp taskwait
    while (b->used > 0) take_first(b);
}

static mu_batch *current(mu_batches *b) { return &b->ring[(b->first + b->used) % b->n]; }

/* Hands the current batch to the threads and empties the next one. */
static void submit(mu_batches *b) {
    mu_batch *batch = current(b);
    bool *done = &b->done[batch - b->ring];
    int waiting;
    if (batch->n_parts == 0) return;
    *done = false;
    b->used++;
    #pragma omp atomic capture
    waiting = b->waiting++;
    #pragma omp task firstprivate(b, batch, done) if (b->threads > 1 && waiting < 2 * b->threads)
    {
        b->work->work(b->work->context, batch);
        #pragma omp atomic
        b->waiting--;
        #pragma omp atomic write seq_cst
        *done = true;
    }
    take_finished(b);
    if (b->used == b->n - 1) take_all(b);
    batch = current(b);
    batch->bytes = batch->n_parts = 0;
    mu_activity_done(b->submitted);
}

/* ------------------------------------------------------------------ parts of documents */

static void append(mu_batches *b, const char *text, int64_t bytes, bool ends_document) {
    mu_batch *batch = current(b);
    if (batch->bytes + bytes > BATCH_BYTES) {
        submit(b);
        batch = current(b);
    }
    if (batch->bytes + bytes > batch->room)
        batch->text = mu_realloc(batch->text, (size_t)(batch->room = batch->bytes + bytes + BATCH_BYTES / 4), 1);
    if (batch->n_parts == batch->parts_room)
        batch->parts = mu_realloc(batch->parts, (size_t)(batch->parts_room = 2 * batch->parts_room + 16), sizeof *batch->parts);
    memcpy(batch->text + batch->bytes, text, (size_t)bytes);
    batch->bytes += bytes;
    batch->parts[batch->n_parts++] = (mu_batch_part){ batch->bytes, ends_document };
}

void mu_batches_add(mu_batches *b, const char *text, int64_t bytes, int64_t read) {
    double weight = (double)(read - b->read) / (double)(bytes ? bytes : 1);
    for (int64_t at = 0, n; at < bytes; at += n) {
        n = bytes - at;
        if (b->work->cut && n > 2 * BATCH_BYTES) n = b->work->cut(text + at, n, BATCH_BYTES);
        append(b, text + at, n, at + n == bytes);
        b->submitted = b->read + (int64_t)(weight * (double)(at + n));
    }
    b->read = read;
}

/* Whether a character that is neither a space, nor a control character, nor unknown, ends at `end`. */
static bool visible_before(const unsigned char *text, const unsigned char *end) {
    enum { VISIBLE = MU_CHAR_LETTER | MU_CHAR_NUMBER | MU_CHAR_MARK | MU_CHAR_PUNCTUATION | MU_CHAR_SYMBOL };
    const unsigned char *p = end;
    int n;
    while (p > text && end - p < 4 && (*--p & 0xc0) == 0x80) { }
    return p < end && mu_char_class(p, end, &n) & VISIBLE && p + n == end;
}

int64_t mu_cut_line(const char *text, int64_t bytes, int64_t from) {
    const unsigned char *t = (const unsigned char *)text, *end = t + bytes;
    for (const unsigned char *p = t + from; p < end && (p = memchr(p, '\n', (size_t)(end - p))); p++) {
        int n;
        if (p + 1 < end && mu_char_class(p + 1, end, &n) & MU_CHAR_LETTER && visible_before(t, p)) return p + 1 - t;
    }
    return bytes;
}

/* ------------------------------------------------------------------ running */

mu_status mu_batches_run(const mu_batch_work *work, mu_status (*read)(mu_batches *b, void *from, mu_error *e), void *from, mu_error *e) {
    mu_batches b = { .work = work, .threads = mu_threads(), .n = RING_PER_THREAD * mu_threads() + 1 };
    mu_status status = MU_STATUS_OK;
    b.ring = mu_alloc((size_t)b.n, sizeof *b.ring);
    b.done = mu_alloc((size_t)b.n, sizeof *b.done);
    #pragma omp parallel num_threads(b.threads)
    #pragma omp master
    {
        status = read(&b, from, e);
        submit(&b);
        take_all(&b);
    }
    for (int i = 0; i < b.n; i++) {
        if (work->free) work->free(b.ring[i].result);
        free(b.ring[i].text);
        free(b.ring[i].parts);
    }
    free(b.ring);
    free(b.done);
    return status;
}
