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
    O(CHOICE,  tokenizer,    "bytes",   0,   0,   "bytes", FIXED, "bytes: ids 0-255 are bytes, 256 ends a document") \
    O(DOMAINS, train,        NULL,      1,   0,   NULL, TEXTS, "list of {domain: NAME, path: FOLDER, FILE.txt, FILE.jsonl or token FILE.h5, weight: 1.0}; path synthetic: the built-in generator") \
    O(FLOAT,   val_fraction, "0.02",    0,   0.9, NULL, TEXTS, "share of each domain's tokens that is kept for validation; whole documents, spread over it, where there are enough")

typedef struct { MU_OPTIONS_DATA(MU_OPTION_FIELD) } mu_data_config;

/* ------------------------------------------------------------------ tokenizer (tokenizer.c)
 * Bytes today; byte-pair encoding has its place in mu_tokenizer_open and as one more set of functions. */
typedef struct mu_tokenizer mu_tokenizer;
mu_tokenizer *mu_tokenizer_open(const char *name);              /* "bytes"; NULL for an unknown name */
void        mu_tokenizer_close(mu_tokenizer *t);
const char *mu_tokenizer_name(const mu_tokenizer *t);
int         mu_tokenizer_vocab_size(const mu_tokenizer *t);
int         mu_tokenizer_eod(const mu_tokenizer *t);            /* the end-of-document id */
/* Appends the ids of the text to tokens[] (room for `bytes` of them); returns how many. */
int64_t     mu_tokenizer_encode(const mu_tokenizer *t, const char *text, int64_t bytes, uint16_t *tokens);
/* Bytes of one id into out (at most `room`); 0 for the end of a document. */
int         mu_tokenizer_decode(const mu_tokenizer *t, int id, char *out, int room);

/* ------------------------------------------------------------------ corpus (corpus.c, text.c, token_file.c, synthetic.c)
 * All domains of a run, tokenized, in memory. Each document is followed by the end-of-document id. */
typedef struct {
    char name[64];
    double weight;
    uint16_t *tokens;           /* heap */
    int64_t n_tokens;
    int64_t n_documents, *document_offsets;     /* n_documents + 1 offsets into tokens */
    int64_t text_bytes;         /* bytes of text in n_tokens, for bits per byte */
    char fingerprint[33];       /* XXH3-128 of the tokens */
} mu_domain;
typedef struct {
    int n_domains;
    mu_domain *domains;
    char fingerprint[33];       /* XXH3-128 of tokenizer, domain names and tokens */
    bool synthetic;             /* some domain comes from the generator */
} mu_corpus;
/* Reads every domain of the list: folders (every .txt is a document, every line of a .jsonl with "text"
 * is one; sorted by name, sub-folders included; what is not read is counted in the log), single files, token files (a token file may hold several
 * domains: the one named `domain` is taken), or `synthetic`. Errors name the path, and the line of a .jsonl:
 * MU_STATUS_NOINPUT missing or unreadable, MU_STATUS_DATA for content (no text, bad JSON, other tokenizer). */
mu_status mu_corpus_open(mu_corpus *c, const mu_option_domains *list, const mu_tokenizer *t, uint64_t seed,
                         mu_error *e) MU_MUST_USE;
void      mu_corpus_close(mu_corpus *c);
/* An HDF5 token file: /domains/NAME/{tokens,document_offsets,text_bytes}, /tokenizer, /fingerprint. */
mu_status mu_corpus_write(const mu_corpus *c, const mu_tokenizer *t, const char *path, mu_error *e) MU_MUST_USE;
/* Whether that could be written, before the long work of reading texts. A token file that is there already would be replaced,
 * and its fingerprint is in *fingerprint, else ""; MU_STATUS_USAGE when anything else is there. */
mu_status mu_token_file_check(const char *path, char fingerprint[33], mu_error *e) MU_MUST_USE;
/* Nats a token of the best prediction that ignores context: the entropy of the token frequencies. */
double    mu_domain_unigram_entropy(const mu_domain *d, int vocab_size);

/* ------------------------------------------------------------------ loader (loader.c)
 * The global batch of step s depends on seed, corpus and s only: sample g is drawn from a domain with
 * its share (weight x tokens, normalised), by Philox keyed with g; within a domain the training
 * sequences are visited in an order shuffled anew each epoch. State = samples drawn from each domain. */
typedef struct mu_loader mu_loader;
typedef struct { int domain; int64_t sequence; int64_t global_sample; } mu_sample;
/* What of a domain is for validation. DOCUMENTS: whole documents where there are enough, else single sequences, spread
 * over the domain; val_fraction of it, with whole documents half to twice that, at least one sequence where it has ten,
 * at most a tenth unless val_fraction asks for more. More text at its end never leaves less to train on (split.c).
 * TAIL: the split of older checkpoints, the last val_fraction, at least 16 sequences where there are more. */
typedef enum { MU_VAL_DOCUMENTS, MU_VAL_TAIL } mu_val_split;
/* Borrows the corpus. MU_STATUS_DATA when a domain is shorter than one training sequence. */
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
/* The state: n_domains + 1 numbers, the last the number of samples drawn so far. */
int       mu_loader_state_size(const mu_loader *l);
void      mu_loader_state_get(const mu_loader *l, int64_t *state);
mu_status mu_loader_state_set(mu_loader *l, const int64_t *state, mu_error *e) MU_MUST_USE;
/* Is it the state of a loader of these domains, of so many tokens (NULL: not known), after `samples` samples? A domain may be
 * drawn as often as chance allows once in 1e13. MU_STATUS_DATA when not. */
mu_status mu_loader_state_check(const mu_option_domains *train, const int64_t *tokens, const int64_t *state, int64_t samples,
                                mu_error *e) MU_MUST_USE;

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
