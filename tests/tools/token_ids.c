/* token_ids.c - ids of texts, for comparison with other tokenizers. Arguments: a tokenizer, corpus or prompt, the file with the texts,
 * the file for the ids. Texts are a uint32 length and bytes each; ids a uint32 count and int32 each. The decoded bytes of each
 * text's ids must be that text with a fifth argument, "exact". With "write": the tokenizer is first written to the file
 * for the ids and ".json", and read there. With "time": MB per second of processor time, the best of five rounds. */
#include "data/data.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct { int32_t *ids; int64_t n, room; } id_list;

static void add_ids(void *to, const int32_t *ids, int64_t n) {
    id_list *l = to;
    if (l->n + n > l->room) l->ids = mu_realloc(l->ids, (size_t)(l->room = 2 * (l->n + n)), sizeof *l->ids);
    memcpy(l->ids + l->n, ids, (size_t)n * sizeof *ids);
    l->n += n;
}

static void fail(const char *text) {
    fprintf(stderr, "%s\n", text);
    exit(1);
}

static void check_exact(const mu_tokenizer *t, const char *text, uint32_t n, const id_list *l) {
    int64_t at = 0;
    const char *bytes;
    for (int64_t i = 0; i < l->n; i++) {
        int64_t more = mu_tokenizer_decode(t, l->ids[i], &bytes);
        if (at + more > n || memcmp(text + at, bytes, (size_t)more)) fail("the decoded ids are not the text");
        at += more;
    }
    if (at != n) fail("the decoded ids are shorter than the text");
}

int main(int argc, char **argv) {
    mu_error e;
    mu_tokenizer *t;
    char *data;
    size_t bytes;
    if (argc < 5) fail("token_ids TOKENIZER corpus|prompt TEXTS IDS [exact|write|time]");
    if (mu_tokenizer_open(&t, argv[1], &e) || mu_file_read(argv[3], (size_t)1 << 31, &data, &bytes, &e)) fail(e.text);
    if (argc > 5 && !strcmp(argv[5], "write")) {
        char *written = mu_format("%s.json", argv[4]);
        mu_tokenizer *first = t;
        if (mu_tokenizer_write(first, written, &e) || mu_tokenizer_open(&t, written, &e)) fail(e.text);
        mu_tokenizer_close(first);
        free(written);
    }
    bool prompt = !strcmp(argv[2], "prompt"), exact = argc > 5 && !strcmp(argv[5], "exact"), timed = argc > 5 && !strcmp(argv[5], "time");
    double best = 1e9;
    for (int round = 0; round < (timed ? 5 : 1); round++) {
        FILE *out = fopen(argv[4], "wb");
        id_list l = { 0 };
        double seconds = 0;
        if (!out) fail("cannot write");
        for (size_t at = 0; at + 4 <= bytes; ) {
            uint32_t n;
            memcpy(&n, data + at, 4);
            at += 4;
            l.n = 0;
            clock_t start = clock();
            (prompt ? mu_tokenizer_encode_prompt : mu_tokenizer_encode)(t, data + at, n, add_ids, &l);
            seconds += (double)(clock() - start) / CLOCKS_PER_SEC;
            if (exact) check_exact(t, data + at, n, &l);
            uint32_t count = (uint32_t)l.n;
            fwrite(&count, 4, 1, out);
            fwrite(l.ids, sizeof *l.ids, (size_t)l.n, out);
            at += n;
        }
        if (fclose(out)) fail("cannot write");
        free(l.ids);
        if (seconds < best) best = seconds;
    }
    if (timed) printf("%.1f MB/s\n", (double)bytes / best / 1e6);
    mu_tokenizer_close(t);
    free(data);
    return 0;
}
