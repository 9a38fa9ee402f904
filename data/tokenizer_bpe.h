/* tokenizer_bpe.h - a BPE tokenizer as read from tokenizer.json: what stands before and behind the model. For tokenizer_bpe*.c. */
#ifndef MUSTER_DATA_TOKENIZER_BPE_H
#define MUSTER_DATA_TOKENIZER_BPE_H
#include "data/bpe.h"
#include "data/pattern.h"
#include "data/unicode.h"

#include <jansson.h>

typedef struct { char *text; int64_t n; } mu_text;      /* heap, NUL added */

/* An added token: found in texts before anything else. raw: before the normalizer. */
typedef struct {
    mu_text text;
    int32_t id;
    bool special, single_word, lstrip, rstrip, normalized;
} mu_added_token;

/* Finds the longest added token that begins at the leftmost place: texts sorted by bytes. */
typedef struct {
    int n;
    struct { mu_text text; int token; } *list;          /* token: index into added */
    bool first[256];                                    /* bytes with which one begins */
} mu_added_finder;

typedef enum { MU_NORMALIZE_FORM, MU_NORMALIZE_PREPEND, MU_NORMALIZE_REPLACE } mu_normalize_kind;
typedef struct {
    mu_normalize_kind kind;
    mu_unicode_form form;
    mu_text text, by;           /* prepended; or replaced and what by */
} mu_normalize_step;

typedef enum { MU_SPLIT_ISOLATED, MU_SPLIT_REMOVED, MU_SPLIT_CONTIGUOUS, MU_SPLIT_WITH_PREVIOUS, MU_SPLIT_WITH_NEXT } mu_split_behavior;
typedef enum { MU_PREPEND_NEVER, MU_PREPEND_FIRST, MU_PREPEND_ALWAYS } mu_prepend;
typedef enum { MU_STEP_SPLITTER, MU_STEP_PATTERN, MU_STEP_SPACE, MU_STEP_METASPACE } mu_step_kind;
typedef struct {
    mu_step_kind kind;
    const mu_splitter *splitter;
    mu_pattern *pattern;
    mu_split_behavior behavior;
    bool invert;
    mu_prepend prepend;         /* METASPACE: spaces become `text`, which is put first; SPACE: a space is put first */
    mu_text text;
} mu_split_step;

enum { MU_BPE_STEPS = 16 };
/* Sections of the file that are kept as they are. */
enum { MU_SECTION_TRUNCATION, MU_SECTION_PADDING, MU_SECTION_NORMALIZER, MU_SECTION_PRE_TOKENIZER, MU_SECTION_POST_PROCESSOR,
       MU_SECTION_DECODER, MU_SECTIONS };
extern const char *const mu_section_names[MU_SECTIONS];

typedef struct {
    mu_tokenizer tokenizer;
    mu_bpe *bpe;
    int n_added;
    mu_added_token *added;
    mu_added_finder raw, normalized;
    int n_front;
    int32_t front[MU_BPE_STEPS];        /* ids that "post_processor" puts before a prompt */
    bool any_plain;             /* an added token is not special: it is found in every text */
    int n_normalize, n_steps;
    mu_normalize_step normalize[MU_BPE_STEPS];
    mu_split_step steps[MU_BPE_STEPS];
    json_t *sections[MU_SECTIONS];
    mu_text decode_what, decode_by;     /* replaced in the text of each token; of 0 bytes: nothing */
    mu_text *decoded;           /* vocab_size texts, borrowed from decoded_bytes and the model */
    char *decoded_bytes;
    char *path, *eod_text;
} mu_bpe_tokenizer;

/* tokenizer_bpe.c: an empty one; its functions. */
mu_bpe_tokenizer *mu_bpe_tokenizer_new(bool byte_level);
void mu_bpe_tokenizer_free(mu_bpe_tokenizer *t);
mu_text mu_text_copy(const char *text, int64_t n);
/* The text through the normalizer: heap, or NULL when it stays. */
char *mu_bpe_normalize(const mu_bpe_tokenizer *t, const char *text, int64_t n, int64_t *out);
void mu_added_finder_make(mu_added_finder *f, const mu_bpe_tokenizer *t, bool normalized);

/* tokenizer_bpe_steps.c: reads "normalizer", "pre_tokenizer" and "decoder" into t; adds what decides ids to `says`. `where`: the
 * file, for messages. */
bool mu_bpe_is_byte_level(json_t *pre_tokenizer);
mu_status mu_bpe_read_steps(mu_bpe_tokenizer *t, const char *where, mu_json *says, mu_error *e) MU_MUST_USE;

/* tokenizer_bpe_read.c: the last part of building: everything but the model and sections is made from these. */
mu_status mu_bpe_tokenizer_finish(mu_bpe_tokenizer *t, const char *where, const char *eod, mu_error *e) MU_MUST_USE;
mu_status mu_bpe_tokenizer_read(mu_tokenizer **t, const char *path, mu_error *e) MU_MUST_USE;
/* The token that ends documents by its usual name, or NULL. */
const char *mu_bpe_usual_eod(const mu_bpe_tokenizer *t);
/* "eos_token" of a tokenizer_config.json in the folder, heap; NULL: none. */
mu_status mu_bpe_read_eos(const char *folder, char **eos, mu_error *e) MU_MUST_USE;
/* tokenizer_bpe_write.c */
mu_status mu_bpe_tokenizer_write(const mu_tokenizer *t, const char *path, mu_error *e) MU_MUST_USE;

#endif
