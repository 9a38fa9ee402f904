/* internal.h - what the files of data/ share: the making of one domain, document by document. */
#ifndef MUSTER_DATA_INTERNAL_H
#define MUSTER_DATA_INTERNAL_H
#include "data/data.h"

/* The domain being made and the room its two lists have. */
typedef struct {
    mu_domain *domain;
    const mu_tokenizer *tokenizer;
    int64_t token_room, document_room;
} mu_domain_maker;

/* Adds one document and the end-of-document id; nothing for an empty text. */
void mu_domain_add(mu_domain_maker *m, const char *text, int64_t bytes);

/* Text of a whole domain at most; the sum over its files. */
#define MU_DOMAIN_BYTES_MAX ((int64_t)4 << 30)

/* text.c: a folder, a .txt or a .jsonl. */
mu_status mu_text_read(mu_domain_maker *m, const char *path, mu_error *e) MU_MUST_USE;
/* token_file.c: the domain of that name in a token file; it must be of this tokenizer. */
mu_status mu_token_file_read(mu_domain *d, const mu_tokenizer *t, const char *path, mu_error *e) MU_MUST_USE;
bool      mu_token_file_named(const char *path);        /* by its ending: .h5 or .hdf5 */
/* synthetic.c: all documents of the domain that the generator knows by the domain's name. */
void      mu_synthetic_make(mu_domain_maker *m, uint64_t seed);

/* split.c: what of a domain is for validation. A stream is pieces of the domain, one after the other; token `at` of the
 * stream is token `from` of the domain. */
typedef struct { int64_t from, at; } mu_piece;
typedef struct { int64_t tokens, n, room; mu_piece *pieces; } mu_stream;
typedef struct {
    int64_t n_train, n_val;         /* sequences */
    mu_stream rest, kept;           /* kept: documents held out in whole */
    int64_t n_held, *held;          /* sequences of rest that are for validation, too; ascending */
    int64_t step;                   /* validation sequence i is number i * step of kept and held together */
} mu_split;
/* Borrows nothing; mu_split_free may follow any outcome. MU_STATUS_DATA when there is no sequence to train on. */
mu_status mu_split_make(mu_split *s, const mu_domain *d, int64_t seq_len, double fraction, mu_val_split rule,
                        mu_error *e) MU_MUST_USE;
void mu_split_free(mu_split *s);
/* seq_len inputs of the domain it was made of, and their targets. */
void mu_split_read_train(const mu_split *s, const mu_domain *d, int64_t sequence, int64_t seq_len, int32_t *tokens,
                         int32_t *targets);
void mu_split_read_val(const mu_split *s, const mu_domain *d, int64_t sequence, int64_t seq_len, int32_t *tokens,
                       int32_t *targets);

#endif
