/* data.h - text with domain labels becomes batches: tokenizers, token files, corpora, the loader.
 * Includes only base/; ranks appear as plain numbers. Everything here is Local. */
#ifndef MUSTER_DATA_H
#define MUSTER_DATA_H
#include "base/base.h"

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/*       type     key           default    min  max  choices  use  help */
#define MU_OPTIONS_DATA(O) \
    O(STRING,  tokenizer,    "bytes",   0,   0,   NULL, FIXED, "bytes (ids 0-255 are bytes, 256 ends a document), or the path of a tokenizer file (no format is supported yet)") \
    O(DOMAINS, train,        NULL,      1,   0,   NULL, TEXTS, "list of {domain: NAME, path: FOLDER, FILE.txt, FILE.jsonl or token FILE.h5, weight: 1.0}; path synthetic: the built-in generator") \
    O(FLOAT,   val_fraction, "0.02",    0,   0.9, NULL, TEXTS, "share of each domain's tokens that is kept for validation; whole documents, spread over it, where there are enough") \
    O(INT,     cache_mib,    "256",     8,   1048576, NULL, EVAL, "cache of each rank for token files, MiB; token files are read in blocks, texts are held in memory")

typedef struct { MU_OPTIONS_DATA(MU_OPTION_FIELD) } mu_data_config;

/* ------------------------------------------------------------------ tokenizer (tokenizer.c, tokenizer_KIND.c)
 * Text to ids and back. An id is from 0 to vocab_size - 1. */
typedef struct mu_tokenizer mu_tokenizer;
/* By a name ("bytes") or a path: what has a '/' or a '.' in it, or is there. MU_STATUS_CONFIG: no such name; NOINPUT: the file
 * is missing; DATA: it is not a tokenizer that can be read. */
mu_status   mu_tokenizer_open(mu_tokenizer **t, const char *name_or_path, mu_error *e) MU_MUST_USE;
void        mu_tokenizer_close(mu_tokenizer *t);
const char *mu_tokenizer_name(const mu_tokenizer *t);           /* under 32 bytes, never a path */
const char *mu_tokenizer_fingerprint(const mu_tokenizer *t);    /* 32 hex digits, equal where all ids are */
int         mu_tokenizer_vocab_size(const mu_tokenizer *t);
int32_t     mu_tokenizer_eod(const mu_tokenizer *t);            /* the end-of-document id */
/* Gives the ids of the text to `take`, in order, some at a time. */
typedef void mu_take_ids(void *to, const int32_t *ids, int64_t n);
void        mu_tokenizer_encode(const mu_tokenizer *t, const char *text, int64_t bytes, mu_take_ids *take, void *to);
/* The bytes of one id, borrowed from the tokenizer, and how many; 0 for the end of a document and for what is no id. */
int64_t     mu_tokenizer_decode(const mu_tokenizer *t, int32_t id, const char **bytes);
/* Was `what` (a path, for the message) made with this tokenizer? MU_STATUS_DATA when the name differs, or the fingerprint;
 * files of older versions have none (""), and the name decides. */
mu_status   mu_tokenizer_check(const mu_tokenizer *t, const char *what, const char *name, const char *fingerprint,
                               mu_error *e) MU_MUST_USE;

/* ------------------------------------------------------------------ corpus (corpus.c; of one domain: domain.c, text.c, token_file.c, synthetic.c)
 * All domains of a run, tokenized: texts in memory, token files in blocks that a cache of limited size keeps. Each document is
 * followed by the end-of-document id. */
typedef struct mu_column mu_column;
typedef struct {
    char name[64];
    double weight;
    int64_t n_tokens, n_documents;
    int64_t text_bytes;         /* bytes of text in n_tokens, for bits per byte */
    double unigram_entropy;     /* nats per token of the best prediction that ignores context */
    char fingerprint[33];       /* XXH3-128 of the ids: 16 bits each, 32 when the vocabulary has more than 65536 */
    mu_column *tokens, *document_offsets;       /* offsets: n_documents + 1; see mu_domain_ids, mu_domain_document_ends */
    mu_store *file;             /* of a token file, open; else NULL */
} mu_domain;
typedef struct {
    int n_domains;
    mu_domain *domains;
    char fingerprint[33];       /* XXH3-128 of tokenizer, domain names and tokens */
    bool synthetic;             /* some domain comes from the generator */
    struct mu_cache *cache;
} mu_corpus;
/* Reads every domain of the list: folders (every .txt is a document, every line of a .jsonl with "text"
 * is one; sorted by name, sub-folders included; what is not read is counted in the log), single files, token files (a token file may hold several
 * domains: the one named `domain` is taken), or `synthetic`. Token files are scanned once and stay open; a cache of
 * cache_bytes, or of one block where that is more, holds what was read of them last. Errors name the path, and the line of a .jsonl:
 * MU_STATUS_NOINPUT missing or unreadable, MU_STATUS_DATA for content (no text, bad JSON, other tokenizer). */
mu_status mu_corpus_open(mu_corpus *c, const mu_option_domains *list, const mu_tokenizer *t, uint64_t seed,
                         int64_t cache_bytes, mu_error *e) MU_MUST_USE;
void      mu_corpus_close(mu_corpus *c);
/* An HDF5 token file: /domains/NAME/{tokens,document_offsets,text_bytes}, /tokenizer, /tokenizer_fingerprint, /fingerprint. */
mu_status mu_corpus_write(const mu_corpus *c, const mu_tokenizer *t, const char *path, mu_error *e) MU_MUST_USE;
/* Whether that could be written, before the long work of reading texts. A token file that is there already would be replaced,
 * and its fingerprint is in *fingerprint, else ""; MU_STATUS_USAGE when anything else is there. */
mu_status mu_token_file_check(const char *path, char fingerprint[33], mu_error *e) MU_MUST_USE;
/* Ids [first, first + n) of a domain; the offsets behind the last ids of documents [first, first + n). A token file that can no
 * longer be read is fatal. */
void      mu_domain_ids(const mu_domain *d, int64_t first, int64_t n, int32_t *ids);
void      mu_domain_document_ends(const mu_domain *d, int64_t first, int64_t n, int64_t *ends);
/* What a domain is in size, found without reading it. Of texts: a token a byte, which is the most, and documents as if each
 * file were one. `bytes` of ids and offsets, which a text has in memory and a token file (in_file) as far as the cache has
 * room. Errors as those of mu_corpus_open. */
typedef struct { int64_t tokens, documents, bytes; bool in_file; } mu_domain_size;
mu_status mu_domain_measure(mu_domain_size *size, const mu_option_domain *d, const mu_tokenizer *t, uint64_t seed,
                            mu_error *e) MU_MUST_USE;

/* ------------------------------------------------------------------ loader (loader.c)
 * The global batch of step s depends on seed, corpus and s only: sample g is drawn from a domain with
 * its share (weight x tokens, normalised), by Philox keyed with g; within a domain the training
 * sequences are visited in an order shuffled anew each epoch, keyed by the domain's name. State = samples drawn from each
 * domain. */
typedef struct mu_loader mu_loader;
typedef struct { int domain; int64_t sequence; int64_t global_sample; } mu_sample;
/* What of a domain is for validation. DOCUMENTS_BY_HASH: val_fraction of its sequences, at least one where it has ten; whole
 * documents, chosen by a hash of their beginnings, where there are enough, else single sequences, too, spread over the
 * domain. More text, wherever it comes in, never leaves less to train on (split.c). Splits of older checkpoints: DOCUMENTS,
 * whole documents chosen in their order, and TAIL, the last val_fraction, at least 16 sequences where there are more. */
typedef enum { MU_VAL_DOCUMENTS_BY_HASH, MU_VAL_DOCUMENTS, MU_VAL_TAIL } mu_val_split;
/* Borrows the corpus. MU_STATUS_DATA when a domain is shorter than one training sequence or has more than 2^32 - 1;
 * MU_STATUS_CONFIG for weights that leave nothing to train on. */
mu_status mu_loader_open(mu_loader **l, const mu_corpus *c, int64_t seq_len, double val_fraction, mu_val_split split,
                         uint64_t seed, mu_error *e) MU_MUST_USE;
void      mu_loader_close(mu_loader *l);
/* The next global batch: `n` samples in global order; advances the state. */
void      mu_loader_next(mu_loader *l, int64_t n, mu_sample *samples);
/* Tokens and targets of one sample: seq_len inputs, and the same shifted by one. */
void      mu_loader_read(const mu_loader *l, const mu_sample *s, int32_t *tokens, int32_t *targets);
/* Validation sequences of a domain, in an order that spreads the first few over all. No target of theirs is one of a
 * training sequence. */
int64_t   mu_loader_val_sequences(const mu_loader *l, int domain);
void      mu_loader_val_read(const mu_loader *l, int domain, int64_t sequence, int32_t *tokens, int32_t *targets);
int64_t   mu_loader_train_sequences(const mu_loader *l, int domain);
double    mu_loader_share(const mu_loader *l, int domain);
/* The state: of each domain, in the corpus's order, how many samples it has given; then how many there were in all. */
int       mu_loader_state_size(const mu_loader *l);
void      mu_loader_state_get(const mu_loader *l, int64_t *state);
/* The state of a loader of these sources (their names count). A domain that is not one of them starts at 0, and what has no
 * domain here is left out: sources may be added, replaced and weighted anew. MU_STATUS_DATA when it is none. */
mu_status mu_loader_state_set(mu_loader *l, const mu_option_domains *sources, const int64_t *state, mu_error *e) MU_MUST_USE;
/* The state for a checkpoint of `train`, after `samples` samples; with it the tokens of each domain, by which its share can be
 * told without the texts. l NULL: values that are loaded are only checked. */
void mu_loader_state(mu_loader *l, const mu_option_domains *train, int64_t samples, mu_state_visitor *v);
/* Is it the state of a loader of these domains, of so many tokens (NULL: not known), after `samples` samples? A domain may be
 * drawn as often as chance allows once in 1e13. MU_STATUS_DATA when not. */
mu_status mu_loader_state_check(const mu_option_domains *train, const int64_t *tokens, const int64_t *state, int64_t samples,
                                mu_error *e) MU_MUST_USE;

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
