/* bpe.h - the model of a BPE tokenizer: tokens, merges, and the ids of a piece; for the files of tokenizer_bpe.c. */
#ifndef MUSTER_DATA_BPE_H
#define MUSTER_DATA_BPE_H
#include "data/internal.h"

/* Ids on their way to `take`. */
enum { MU_IDS_ROOM = 4096 };
typedef struct { mu_take_ids *take; void *to; int n; int32_t ids[MU_IDS_ROOM]; } mu_ids;
static inline void mu_ids_flush(mu_ids *out) {
    if (out->n) out->take(out->to, out->ids, out->n);
    out->n = 0;
}
static inline void mu_ids_put(mu_ids *out, int32_t id) {
    if (out->n == MU_IDS_ROOM) mu_ids_flush(out);
    out->ids[out->n++] = id;
}

enum { MU_BPE_MOST = 1 << 22 };         /* ids and merges are below */
/* Ids of a vocabulary of n tokens are below: real ones have holes, and ids kept for later, but fewer. */
#define MU_BPE_IDS_MOST(n) (4 * (int64_t)(n) + (1 << 16))
/* byte_level: a token's text is written in GPT-2's alphabet, a character for each byte; else in plain characters, and characters
 * without a token are bytes <0xNN> (byte_fallback) or the unknown token (fuse_unk: one for several). ignore_merges: a piece that
 * is a token is that token. */
typedef struct { bool byte_level, byte_fallback, fuse_unk, ignore_merges; int32_t unk; } mu_bpe_options;    /* unk: id, or -1 */
typedef struct mu_bpe mu_bpe;

mu_bpe *mu_bpe_new(bool byte_level);
void    mu_bpe_free(mu_bpe *b);
/* Adds a token by its text. A reason why not ("its id is taken"), else NULL. id in [0, MU_BPE_MOST). */
const char *mu_bpe_add_token(mu_bpe *b, const char *text, int64_t n, int32_t id);
/* Adds the next merge, by texts: to the end, or in place of an equal one. The same. */
const char *mu_bpe_add_merge(mu_bpe *b, const char *left, int64_t left_n, const char *right, int64_t right_n);
/* After the last token and merge; then it is constant. A reason why these options cannot be, or NULL. */
const char *mu_bpe_finish(mu_bpe *b, const mu_bpe_options *o);

int32_t mu_bpe_id(const mu_bpe *b, const char *text, int64_t n);        /* of a token's text, -1: none */
int32_t mu_bpe_ids(const mu_bpe *b);                                    /* largest id + 1 */
int32_t mu_bpe_tokens(const mu_bpe *b);                                 /* their number */
int32_t mu_bpe_merges(const mu_bpe *b);
void    mu_bpe_merge(const mu_bpe *b, int32_t i, int32_t pair[2]);
int32_t mu_bpe_repeated(const mu_bpe *b);                               /* merges whose pair has another one behind, which counts */
const mu_bpe_options *mu_bpe_options_of(const mu_bpe *b);
/* The bytes of a token: of its raw bytes for byte level. -1: no such token. */
int64_t mu_bpe_bytes(const mu_bpe *b, int32_t id, const char **bytes);
char   *mu_bpe_text(const mu_bpe *b, int32_t id);                       /* as written in a file, heap */
char   *mu_bpe_spell(const char *bytes, int64_t n);                     /* raw bytes in GPT-2's alphabet, heap */
/* Whether no merge gives a token with "\u2581" behind another character: then texts may be cut before each run of them. */
bool    mu_bpe_cuts_at_spaces(const mu_bpe *b);
/* Whether the ids of some text can contain this one. */
bool    mu_bpe_makes(const mu_bpe *b, int32_t id);
void    mu_bpe_forbid(mu_bpe *b, int32_t id);   /* a piece with this text is not this token: with ignore_merges it would be */
/* The ids of a piece. Thread-safe. */
void    mu_bpe_encode(const mu_bpe *b, const char *piece, int64_t n, mu_ids *out);

#endif
