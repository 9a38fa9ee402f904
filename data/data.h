/* data.h - from text with domain labels to batches: tokenizers, token files, corpora, the loader.
 * Includes only base/; ranks are plain numbers. Everything here is Local. */
#ifndef MUSTER_DATA_H
#define MUSTER_DATA_H
#include "base/base.h"

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/*       type     key           default    min  max  choices  use  help */
#define MU_OPTIONS_DATA(O) \
    O(STRING,  tokenizer,    "bytes",   0,   0,   NULL, SHAPE, "bytes (ids 0-255 are bytes, 256 ends a document), or the path of a tokenizer.json with a BPE model, or of the folder that holds it") \
    O(DOMAINS, train,        NULL,      1,   0,   NULL, TEXTS, "list of {domain: NAME, path: FOLDER, FILE.txt, FILE.jsonl or FILE.json (each also .gz or .zst) or a token file (FILE.h5, FILE.bin of llm.c or Megatron), weight: 1.0}; path synthetic: the built-in generator") \
    O(STRING,  text_key,     "text",    0,   0,   NULL, EVAL, "key of the text in the objects of .jsonl and .json files") \
    O(PHASES,  phases,       "[]",      0,   0,   NULL, FREE, "list of {until_step: STEP, mix: {DOMAIN: WEIGHT, ...}}: up to that step only these domains of train are drawn, with these weights instead of theirs; the last phase lasts to the end; validation keeps all domains; on resume, phases of finished steps must not change") \
    O(FLOAT,   val_fraction, "0.02",    0,   0.9, NULL, TEXTS, "fraction of each domain's tokens held out for validation; whole documents, spread over the domain, where there are enough") \
    O(INT,     cache_mib,    "256",     8,   1048576, NULL, EVAL, "cache per rank for token files, MiB; token files are read in blocks, texts are held in memory")

typedef struct { MU_OPTIONS_DATA(MU_OPTION_FIELD) } mu_data_config;

/* ------------------------------------------------------------------ tokenizer (tokenizer.c, tokenizer_KIND.c)
 * Text to ids and back. Ids are in [0, vocab_size). */
typedef struct mu_tokenizer mu_tokenizer;
/* Opens a built-in tokenizer ("bytes"), a tokenizer.json, or the folder that holds one: a name with '/' or '.', or of an existing
 * file. MU_STATUS_CONFIG: unknown name; NOINPUT: missing file; DATA: not a supported tokenizer.json (which key, which value). The
 * caller closes it. */
mu_status   mu_tokenizer_open(mu_tokenizer **t, const char *name_or_path, mu_error *e) MU_MUST_USE;
bool        mu_tokenizer_is_built_in(const char *name_or_path);
void        mu_tokenizer_close(mu_tokenizer *t);
const char *mu_tokenizer_name(const mu_tokenizer *t);           /* under 32 bytes, never a path */
const char *mu_tokenizer_fingerprint(const mu_tokenizer *t);    /* 32 hex digits, equal if and only if all ids are */
int         mu_tokenizer_vocab_size(const mu_tokenizer *t);
int32_t     mu_tokenizer_eod(const mu_tokenizer *t);            /* the end-of-document id */
const char *mu_tokenizer_eod_text(const mu_tokenizer *t);       /* "<|endoftext|>"; NULL for bytes */
const char *mu_tokenizer_path(const mu_tokenizer *t);           /* of the tokenizer.json; NULL when there is no file */
/* Passes the ids of the text to `take`, in order, some at a time. Thread-safe. Special tokens written in the text are ordinary
 * text: a document that contains "<|endoftext|>" does not end there. Nothing is put before or behind it. Bytes that
 * are not UTF-8 are kept where the vocabulary has a token for each byte. */
typedef void mu_take_ids(void *to, const int32_t *ids, int64_t n);
void        mu_tokenizer_encode(const mu_tokenizer *t, const char *text, int64_t bytes, mu_take_ids *take, void *to);
/* The same for a prompt: special tokens written in the text become their ids, and the tokens that "post_processor" puts in front
 * (<s> of Mixtral and Llama 3) come first; none behind it, as the text goes on. */
void        mu_tokenizer_encode_prompt(const mu_tokenizer *t, const char *text, int64_t bytes, mu_take_ids *take, void *to);
/* Sets *bytes to the bytes of an id, owned by the tokenizer, and returns their number; 0 for special tokens (end-of-document is
 * one) and invalid ids. The ids of a text decode to the text, except for what a normalizer changed: with Mixtral's, a space stands
 * before it. */
int64_t     mu_tokenizer_decode(const mu_tokenizer *t, int32_t id, const char **bytes);
/* Writes a tokenizer.json that gives the same ids here and in Hugging Face's tokenizers; where its end-of-document token does not
 * follow from it, also tokenizer_config.json beside it, which must not exist with another. MU_STATUS_USAGE for "bytes". */
mu_status   mu_tokenizer_write(const mu_tokenizer *t, const char *path, mu_error *e) MU_MUST_USE;
/* Checks that `what` (a path, for the message) was made with this tokenizer. MU_STATUS_DATA when the name or the fingerprint
 * differs; files of older versions have no fingerprint (""). */
mu_status   mu_tokenizer_check(const mu_tokenizer *t, const char *what, const char *name, const char *fingerprint,
                               mu_error *e) MU_MUST_USE;

/* ------------------------------------------------------------------ texts (text.c, text_files.c, input.c, json_text.c) */
typedef struct {
    const char *text;           /* valid during the call; never empty; no NUL inside */
    int64_t bytes;
    const char *path;           /* its file, and the line where it begins */
    int64_t line;
    int64_t read;               /* bytes of files read so far, of mu_text_bytes in all */
} mu_document;
/* Takes a document; a status other than MU_STATUS_OK ends the reading, with its error. */
typedef mu_status mu_take_document(void *to, const mu_document *d, mu_error *e);
/* Passes every document of a path to `take`, one after another, in memory for the largest one: of a .txt (one document), a .jsonl (one
 * a line), a .json (an object, or arrays of objects and strings), each also .gz or .zst, or of all these in a folder, sub-folders and
 * links included, in the order of their paths. text_key: the objects' string with the text. What is not read in a folder is
 * logged. Errors name the path, and line and place in its text. MU_STATUS_NOINPUT: missing or unreadable; DATA: no text at all, bad
 * JSON, truncated or corrupt compressed data, too large. */
mu_status mu_text_each(const char *path, const char *text_key, mu_take_document *take, void *to, mu_error *e) MU_MUST_USE;
mu_status mu_text_bytes(const char *path, int64_t *bytes, mu_error *e) MU_MUST_USE;    /* of its text files on disk, for progress */

/* ------------------------------------------------------------------ training a tokenizer (bpe_train.c)
 * Byte-level BPE. Vocabulary and merges are those of Hugging Face's BpeTrainer with the same documents, the alphabet of its
 * ByteLevel and max_token_length None: each step merges the pair of tokens that occurs most often, of several the one with
 * the smallest ids (left, then right). The result does not depend on the number of threads. Texts are streamed; memory: the largest
 * document, and about 60 bytes for each distinct piece and 12 for each byte of one. */
enum { MU_BPE_VOCAB_MAX = 1 << 20 };
typedef struct {
    int64_t vocab_size;             /* special tokens, 256 bytes, merges */
    int64_t min_frequency;          /* pairs that occur less often are not merged; at least 1 */
    const char *splitter;           /* between its pieces nothing is merged: "gpt2", "cl100k", "qwen2", "o200k", ... */
    int n_special;
    const char *const *special;     /* ids 0, 1, ...; the first ends a document */
    const char *text_key;
} mu_bpe_training;
typedef struct { int64_t documents, text_bytes, pieces, merges; } mu_bpe_trained;       /* pieces: distinct ones */
/* MU_STATUS_USAGE: an unknown splitter, a vocabulary that is too small, a special token that cannot be one. */
mu_status mu_bpe_training_check(const mu_bpe_training *how, mu_error *e) MU_MUST_USE;
/* Trains on all documents of the paths (mu_text_each). Fewer merges than wanted: no other pair occurs min_frequency times. The
 * caller closes the tokenizer. MU_STATUS_USAGE as above; NOINPUT, DATA: the texts. mu_activity: "reading texts" (bytes of files),
 * then "merging" (tokens). */
mu_status mu_bpe_train(mu_tokenizer **t, mu_bpe_trained *result, const mu_bpe_training *how, int n_paths, char *const *paths,
                       mu_error *e) MU_MUST_USE;

/* ------------------------------------------------------------------ corpus (corpus.c; of one domain: domain.c, text.c, token_file.c, raw_file.c, synthetic.c)
 * All domains of a run, tokenized: texts in memory, token files in blocks through a cache of limited size. Each document
 * ends with the end-of-document id. */
typedef struct mu_column mu_column;
typedef struct {
    char name[64];
    double weight;
    int64_t n_tokens, n_documents;
    int64_t text_bytes;         /* bytes of text in n_tokens, for bits per byte */
    double unigram_entropy;     /* unigram baseline, nats per token */
    char fingerprint[33];       /* XXH3-128 of the ids: 16 bits each, 32 when the vocabulary has more than 65536 */
    mu_column *tokens, *document_offsets;       /* offsets: n_documents + 1; see mu_domain_ids, mu_domain_document_ends */
    mu_store *file;             /* the open token file; else NULL */
} mu_domain;
typedef struct {
    int n_domains;
    mu_domain *domains;
    char fingerprint[33];       /* XXH3-128 of tokenizer, domain names and tokens */
    bool synthetic;             /* at least one domain is generated */
    struct mu_cache *cache;
} mu_corpus;
/* Reads every domain of the list: texts (mu_text_each), token files (HDF5, which may hold several domains:
 * the one named `domain` is used; of llm.c or Megatron: text_bytes is then what the ids decode to), or `synthetic`. Token files are scanned once and stay open, with a cache of cache_bytes, at least one
 * block. The caller closes it. Errors name the path, and the line of a text: MU_STATUS_NOINPUT: missing or unreadable;
 * MU_STATUS_DATA: content (no text, bad JSON, another tokenizer). */
mu_status mu_corpus_open(mu_corpus *c, const mu_option_domains *list, const char *text_key, const mu_tokenizer *t, uint64_t seed,
                         int64_t cache_bytes, mu_error *e) MU_MUST_USE;
void      mu_corpus_close(mu_corpus *c);
/* An HDF5 token file: /domains/NAME/{tokens,document_offsets,text_bytes}, /tokenizer, /tokenizer_fingerprint, /fingerprint. */
mu_status mu_corpus_write(const mu_corpus *c, const mu_tokenizer *t, const char *path, mu_error *e) MU_MUST_USE;
/* Checks that the token file can be written, before texts are read. An existing token file would be replaced, its fingerprint is
 * returned in `fingerprint` (else ""); MU_STATUS_USAGE for any other existing file. */
mu_status mu_token_file_check(const char *path, char fingerprint[33], mu_error *e) MU_MUST_USE;
/* Groups the documents of all domains, long ones in pieces, by their words into k clusters, which replace the domains: "cluster-00", the largest,
 * and so on (clusters.c). All ids are then in memory. `r` says what each is; free it. The result depends on texts, k and seed only. MU_STATUS_DATA: fewer
 * pieces than clusters. */
enum { MU_CLUSTERS_MAX = 1000 };
typedef struct {
    int n, n_from;              /* clusters; domains before */
    int64_t *tokens;            /* [n, n_from] */
    char (*words)[128];         /* [n]: the most typical ones */
} mu_clusters;
mu_status mu_corpus_cluster(mu_corpus *c, const mu_tokenizer *t, int k, uint64_t seed, mu_clusters *r, mu_error *e) MU_MUST_USE;
void      mu_clusters_free(mu_clusters *r);
/* Ids [first, first + n) of a domain; end offsets of documents [first, first + n). Fatal when a token file cannot be read any
 * more. */
void      mu_domain_ids(const mu_domain *d, int64_t first, int64_t n, int32_t *ids);
void      mu_domain_document_ends(const mu_domain *d, int64_t first, int64_t n, int64_t *ends);
/* The size of a domain, without reading it. For texts an upper bound: one token per byte, one document per file. `bytes`: of ids
 * and offsets, in memory for texts, in the cache as far as they fit for token files (in_file). Errors as in mu_corpus_open. */
typedef struct { int64_t tokens, documents, bytes; bool in_file; } mu_domain_size;
mu_status mu_domain_measure(mu_domain_size *size, const mu_option_domain *d, const mu_tokenizer *t, uint64_t seed,
                            mu_error *e) MU_MUST_USE;

/* ------------------------------------------------------------------ loader (loader.c)
 * The global batch of step s depends only on seed, corpus and s: the domain of sample g is drawn with probability share
 * (weight x tokens, normalised; in phases, with the weights of the phase), by Philox keyed with g; within a domain all training sequences are shuffled every epoch,
 * keyed by the domain's name; documents stay in their order within sequences. State = samples drawn per domain.
 *
 * Replay: in a step that gives a domain share 0, of which samples were drawn before, samples are replaced with a small probability, by Philox
 * keyed with g, by one of the last few sequences that were drawn of it. A replaced sample counts as drawn from its own domain. */
typedef struct mu_loader mu_loader;
typedef struct { int domain; int64_t sequence; int64_t global_sample; } mu_sample;
/* The validation split of a domain. DOCUMENTS_BY_HASH: val_fraction of its sequences, at least one of ten; whole documents,
 * chosen by a hash of their beginnings, where there are enough, else also single sequences, spread over the domain. Adding text
 * anywhere never reduces the training set (split.c). Splits of older checkpoints: DOCUMENTS, whole documents chosen in order;
 * TAIL, the last val_fraction, at least 16 sequences where there are more. */
typedef enum { MU_VAL_DOCUMENTS_BY_HASH, MU_VAL_DOCUMENTS, MU_VAL_TAIL } mu_val_split;
/* Borrows the corpus; the caller closes the loader. MU_STATUS_DATA when a domain is shorter than one training sequence;
 * MU_STATUS_CONFIG for weights that leave no training data. */
mu_status mu_loader_open(mu_loader **l, const mu_corpus *c, int64_t seq_len, double val_fraction, mu_val_split split,
                         uint64_t seed, mu_error *e) MU_MUST_USE;
void      mu_loader_close(mu_loader *l);
/* For runs of older versions, before the first sample: the order of every domain is made in memory, not only of those with at most
 * 2^20 training sequences. MU_STATUS_DATA when a domain has more than 2^32 - 1 of them. */
mu_status mu_loader_order_in_memory(mu_loader *l, mu_error *e) MU_MUST_USE;
bool      mu_loader_is_order_in_memory(const mu_loader *l);
/* Samples are then drawn by these phases of steps with `per_step` samples each; after opening, before the first sample.
 * MU_STATUS_CONFIG: a domain is unknown, or weights leave no training data. */
mu_status mu_loader_set_phases(mu_loader *l, const mu_option_phases *phases, int64_t per_step, mu_error *e) MU_MUST_USE;
/* Up-sampling of rare domains (temperature sampling: Arivazhagan et al. 2019): in every phase shares become proportional to share^tau, 0 < tau <= 1
 * (1: as they are); mu_loader_share stays. After mu_loader_set_phases, before the first sample. Local, as are the next five. */
void      mu_loader_upsample(mu_loader *l, double tau);
/* Of the first `samples` samples of a run, those of the runs before it included, the expected number from this domain; replay is not counted. */
double    mu_loader_expected(const mu_loader *l, int64_t samples, int domain);
/* Replay (Rolnick et al. 2019) of the domains that are marked [n_domains], while they are absent: each replaces this share of the samples, all
 * together at most MU_REPLAY_MOST of them. `sequences`: the number of last ones that are replayed. */
#define MU_REPLAY_MOST 0.5
void      mu_loader_set_replay(mu_loader *l, double share, int64_t sequences, const bool *domains);
bool      mu_loader_is_absent(const mu_loader *l, int64_t step, int domain);    /* marked, drawn before, and not drawn in this step */
int64_t   mu_loader_replay_sequences(const mu_loader *l, int domain);           /* at most that number, and the domain's training sequences */
int64_t   mu_loader_replay_sequence(const mu_loader *l, int domain, int64_t i); /* number i of them, for mu_sample */
/* For a fork: the next sample is number `first`, and of each domain the first earlier[i] samples are taken as drawn. The state
 * counts from here. */
void      mu_loader_continue(mu_loader *l, int64_t first, const int64_t *earlier);
/* The next global batch: `n` samples in global order; advances the state. */
void      mu_loader_next(mu_loader *l, int64_t n, mu_sample *samples);
/* Tokens and targets of one sample: seq_len inputs, and the same shifted by one. */
void      mu_loader_read(const mu_loader *l, const mu_sample *s, int32_t *tokens, int32_t *targets);
/* Validation sequences of a domain, ordered so that the first few are spread over all. They share no target with training
 * sequences. */
int64_t   mu_loader_val_sequences(const mu_loader *l, int domain);
void      mu_loader_val_read(const mu_loader *l, int domain, int64_t sequence, int32_t *tokens, int32_t *targets);
int64_t   mu_loader_train_sequences(const mu_loader *l, int domain);
double    mu_loader_share(const mu_loader *l, int domain);             /* by the weights of the corpus, whatever the phases */
double    mu_loader_share_at(const mu_loader *l, int64_t step, int domain);     /* of the samples of this step; the first is 1 */
/* The phase of a step: the first is 0, and the last lasts to the end. 0 without phases. */
int       mu_phase_of_step(const mu_option_phases *phases, int64_t step);
double    mu_phase_weight(const mu_option_phase *phase, const char *domain);    /* 0 for a domain that it does not name */
/* The state: samples drawn per domain, in the corpus's order, then their total. */
int       mu_loader_state_size(const mu_loader *l);
void      mu_loader_state_get(const mu_loader *l, int64_t *state);
/* Sets the state of a loader with these sources, matched by name. A domain without a source starts at 0, a source without a
 * domain is ignored: sources may be added, replaced and reweighted. MU_STATUS_DATA for an invalid state. */
mu_status mu_loader_state_set(mu_loader *l, const mu_option_domains *sources, const int64_t *state, mu_error *e) MU_MUST_USE;
/* What the samples of a run are drawn from. */
typedef struct {
    const mu_option_domains *train;
    const mu_option_phases *phases;     /* NULL or empty: one phase with the weights of `train` */
    int64_t per_step;                   /* samples per step */
    int64_t steps_before;               /* of the runs that this one was forked from; their samples are not of this mixture */
    double upsample;                    /* tau of mu_loader_upsample; 0: none */
} mu_mixture;
/* The state for a checkpoint of such a run, after `samples` samples, and the tokens per domain, from which shares can be computed
 * without the texts. l NULL: loaded values are only checked. */
void mu_loader_state(mu_loader *l, const mu_mixture *mix, int64_t samples, mu_state_visitor *v);
/* Checks that this can be the state of a loader of this mixture, with `tokens` per domain (NULL: unknown), after `samples`
 * samples: draws less likely than 1e-13 are errors. MU_STATUS_DATA if not. */
mu_status mu_loader_state_check(const mu_mixture *mix, const int64_t *tokens, const int64_t *state, int64_t samples,
                                mu_error *e) MU_MUST_USE;

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
