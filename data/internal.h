/* internal.h - shared by the files of data/: kinds of tokenizers, columns of numbers, building a domain, the validation split. */
#ifndef MUSTER_DATA_INTERNAL_H
#define MUSTER_DATA_INTERNAL_H
#include "data/data.h"

/* ------------------------------------------------------------------ kinds of tokenizers
 * A kind is one file, tokenizer_KIND.c: a structure that begins with this one, its functions, and a constructor for the table
 * in tokenizer.c. */
/* A place in (from, bytes] where a text may be cut; `bytes` when there is none before. */
typedef int64_t mu_cut_text(const char *text, int64_t bytes, int64_t from);
struct mu_tokenizer {
    char name[32], fingerprint[33];
    int vocab_size;
    int32_t eod;
    void (*encode)(const mu_tokenizer *t, const char *text, int64_t bytes, mu_take_ids *take, void *to);
    void (*encode_prompt)(const mu_tokenizer *t, const char *text, int64_t bytes, mu_take_ids *take, void *to);     /* NULL: encode */
    mu_cut_text *cut;           /* where a text may be cut: its parts have the same ids; NULL: nowhere */
    int64_t (*decode)(const mu_tokenizer *t, int32_t id, const char **bytes);
    mu_status (*write)(const mu_tokenizer *t, const char *path, mu_error *e);       /* NULL: there is nothing to write */
    void (*close)(mu_tokenizer *t);
    const char *path, *eod_text;        /* of a file, else NULL */
};
mu_tokenizer *mu_tokenizer_bytes_new(void);

/* ------------------------------------------------------------------ splitters (splitter.c)
 * A splitter cuts a text into pieces, between which BPE never merges: "gpt2", "cl100k", "qwen2", "o200k", "tekken", "deepseek",
 * "digits-gpt2". Constant, thread-safe. */
typedef struct mu_splitter mu_splitter;
const mu_splitter *mu_splitter_named(const char *name);         /* NULL: unknown */
const mu_splitter *mu_splitter_number(int i);                   /* NULL: no more */
const char *mu_splitter_name(const mu_splitter *s);
const char *mu_splitter_json(const mu_splitter *s);             /* "pre_tokenizer" of a tokenizer.json that splits so */
/* The end of the piece that begins at `from` < bytes: of the first piece, or of the next behind another piece. Bytes that are not
 * UTF-8 are allowed: a run of them is a piece. */
int64_t     mu_splitter_next(const mu_splitter *s, const char *text, int64_t bytes, int64_t from);

/* A byte-level BPE tokenizer from a vocabulary in memory, everything copied. Token i has id i, its bytes are raw. The special tokens
 * are tokens, too; the first of them ends a document. Merge r joins the tokens merges[r] to the token with the bytes of both;
 * lower r first. MU_STATUS_DATA: a merge has no such token, tokens are equal, there is no special token. */
typedef struct { const char *bytes; int64_t n; } mu_token;
typedef struct {
    const char *splitter;           /* name */
    int32_t n_tokens, n_merges, n_special;
    const mu_token *tokens;
    const int32_t (*merges)[2];
    const int32_t *special;         /* ids */
} mu_bpe_vocabulary;
mu_status mu_tokenizer_bpe_new(mu_tokenizer **t, const mu_bpe_vocabulary *v, mu_error *e) MU_MUST_USE;

/* ------------------------------------------------------------------ training BPE (piece_table.c, bpe_merge.c, bpe_train.c)
 * Distinct pieces of texts and how often they occur. */
typedef struct { int64_t count; uint64_t key; size_t at; uint32_t length; } mu_counted_piece;    /* at, key: of the table */
typedef struct mu_piece_table mu_piece_table;
mu_piece_table   *mu_piece_table_new(void);
void              mu_piece_table_free(mu_piece_table *t);
void              mu_piece_table_add(mu_piece_table *t, const char *bytes, int64_t length, int64_t count);
void              mu_piece_table_move(mu_piece_table *to, mu_piece_table *from);        /* empties `from` */
int64_t           mu_piece_table_length(const mu_piece_table *t);
mu_counted_piece *mu_piece_table_list(mu_piece_table *t);       /* all pieces, one behind another; nothing can be added any more */
const char       *mu_piece_table_bytes(const mu_piece_table *t, const mu_counted_piece *p);
/* The merges of these pieces, one after another. ids: of single bytes, all under n_ids; ids_max: one more than the largest id that
 * will be made; pairs that occur less than `least` times are not merged. Sorts the table, which is not needed afterwards.
 * MU_STATUS_DATA: too many pieces. */
typedef struct mu_bpe_merger mu_bpe_merger;
mu_status mu_bpe_merger_new(mu_bpe_merger **m, mu_piece_table *t, const int32_t ids[256], int32_t n_ids, int32_t ids_max, int64_t least,
                            mu_error *e) MU_MUST_USE;
void      mu_bpe_merger_free(mu_bpe_merger *m);
/* The most frequent pair of tokens, and of several the one with the smallest ids; returns its count, 0 when there is none. */
int64_t   mu_bpe_merger_next(mu_bpe_merger *m, int32_t *left, int32_t *right);
void      mu_bpe_merger_join(mu_bpe_merger *m, int32_t made);   /* this pair becomes the token `made` */

/* ------------------------------------------------------------------ documents on all threads (batches.c)
 * Documents, the large ones in parts, are collected in batches. */
typedef struct { int64_t end; bool ends_document; } mu_batch_part;
typedef struct {
    char *text;                 /* part i: [parts[i - 1].end, parts[i].end) */
    int64_t bytes, n_parts;
    mu_batch_part *parts;
    void *result;               /* of `work`, NULL at first; stays for the next batch in the same place */
    int64_t room, parts_room;
} mu_batch;
typedef struct {
    void (*work)(void *context, mu_batch *b);           /* on any thread */
    void (*take)(void *context, const mu_batch *b);     /* on the calling thread, in the order of the documents; or NULL */
    void (*free)(void *result);                         /* or NULL */
    mu_cut_text *cut;                                   /* where a document may be cut; NULL: nowhere */
    void *context;
} mu_batch_work;
typedef struct mu_batches mu_batches;
/* Runs `read`, which passes documents to mu_batches_add. Returns its status, after all work is done. */
mu_status mu_batches_run(const mu_batch_work *work, mu_status (*read)(mu_batches *b, void *from, mu_error *e), void *from,
                         mu_error *e) MU_MUST_USE;
/* read: as in mu_document, for mu_activity_done. */
void      mu_batches_add(mu_batches *b, const char *text, int64_t bytes, int64_t read);
mu_cut_text mu_cut_line;        /* for every named splitter: between a line that ends visibly and one that begins with a letter */

/* ------------------------------------------------------------------ columns (column.c)
 * An array of numbers: growable in memory; or in a token file, read in blocks through the corpus's cache. */
typedef struct mu_cache mu_cache;
mu_cache  *mu_cache_new(int64_t bytes);
void       mu_cache_free(mu_cache *cache);              /* after freeing its columns */
mu_column *mu_column_new(mu_store_type type);           /* in memory: U16 or I32 for ids, I64 for offsets */
/* The dataset `name` of the file; borrows file and cache. MU_STATUS_DATA when it has another type. */
mu_status  mu_column_open(mu_column **c, mu_store_type type, mu_store *file, const char *name, mu_cache *cache,
                          mu_error *e) MU_MUST_USE;
/* n ids from any source, read through the cache in blocks of block_bytes; owns the source. */
typedef mu_status mu_column_read_ids(void *source, int64_t first, int64_t n, int32_t *ids, mu_error *e);
mu_column *mu_column_from(mu_store_type type, int64_t n, void *source, mu_column_read_ids *read, void (*close)(void *source),
                          mu_cache *cache, int64_t block_bytes);
void       mu_column_free(mu_column *c);
int64_t    mu_column_length(const mu_column *c);
mu_store_type mu_column_type(const mu_column *c);
size_t     mu_column_size(const mu_column *c);          /* bytes per number */
/* Numbers [first, first + n) in the column's type. */
mu_status  mu_column_read(const mu_column *c, int64_t first, int64_t n, void *numbers, mu_error *e) MU_MUST_USE;
/* The same for ids, as 32 bits. */
mu_status  mu_column_ids(const mu_column *c, int64_t first, int64_t n, int32_t *ids, mu_error *e) MU_MUST_USE;
void       mu_column_append_ids(mu_column *c, const int32_t *ids, int64_t n);
void       mu_column_append(mu_column *c, const mu_column *more);      /* of the same type, in memory */
void       mu_column_append_offset(mu_column *c, int64_t offset);
void       mu_column_clear(mu_column *c);               /* no numbers, the capacity stays */
void       mu_column_trim(mu_column *c);                /* frees unused capacity */
mu_store_type mu_ids_type(int vocab_size);              /* 16 bits if sufficient, else 32 */

/* ------------------------------------------------------------------ one domain (domain.c) */

/* A domain being built from texts. */
typedef struct mu_domain_maker {
    mu_domain *domain;
    const mu_tokenizer *tokenizer;
    const char *path, *text_key;
    uint64_t seed;
    mu_batches *batches;
} mu_domain_maker;

/* Fills the domain with the documents that `read` adds, each with the end-of-document id; texts are encoded on all threads. */
mu_status mu_domain_make(mu_domain_maker *m, mu_status (*read)(mu_domain_maker *m, mu_error *e), mu_error *e) MU_MUST_USE;
/* Adds one document; nothing for an empty text. read: as in mu_document. */
void mu_domain_add(mu_domain_maker *m, const char *text, int64_t bytes, int64_t read);
/* Reads a complete domain once: computes fingerprint and entropy, and checks that every id is in the vocabulary and every
 * document ends with the end-of-document id. MU_STATUS_DATA names the path. */
mu_status mu_domain_scan(mu_domain *d, const mu_tokenizer *t, const char *path, mu_error *e) MU_MUST_USE;
void mu_domain_close(mu_domain *d);
void mu_corpus_fingerprint(mu_corpus *c, const mu_tokenizer *t);        /* corpus.c: sets it, from those of its domains */

/* Maximum bytes of text of a domain, over all of its files. */
#define MU_DOMAIN_BYTES_MAX ((int64_t)4 << 30)

/* text.c: mu_text_each, into a domain. */
mu_status mu_text_read(mu_domain_maker *m, mu_error *e) MU_MUST_USE;
mu_status mu_text_measure(mu_domain_size *size, const char *domain, const char *path, mu_error *e) MU_MUST_USE;

/* ------------------------------------------------------------------ texts
 * text_files.c: the text files of a path (a folder, or one such file), sorted. Free in any case. */
#define MU_TEXT_NAMES ".txt, .jsonl or .json"
typedef struct { char **list; size_t n; struct mu_text_contents *contents; } mu_text_files;
mu_status mu_text_files_find(mu_text_files *f, const char *path, mu_error *e) MU_MUST_USE;
void      mu_text_files_empty(mu_text_files *f, size_t i);      /* file i has no text */
void      mu_text_files_log(mu_text_files *f);                  /* a note of what is not read in the folder */
void      mu_text_files_free(mu_text_files *f);
bool      mu_text_named(const char *name);                      /* text.c: whether the ending is one of these, also with .gz or .zst */
/* input.c: the bytes of a plain file, decompressed by the ending of its name. MU_STATUS_DATA names the place in the file: truncated,
 * corrupt, or expanding without end. *in is set to NULL on failure. */
typedef struct mu_input mu_input;
mu_status mu_input_open(mu_input **in, const char *path, mu_error *e) MU_MUST_USE;
/* At most `room` > 0 bytes; *n is 0 at the end only. */
mu_status mu_input_read(mu_input *in, char *out, size_t room, size_t *n, mu_error *e) MU_MUST_USE;
int64_t   mu_input_size(const mu_input *in);                    /* bytes of the file */
int64_t   mu_input_taken(const mu_input *in);                   /* those read so far */
bool      mu_input_is_compressed(const mu_input *in);
void      mu_input_close(mu_input *in);
/* json_text.c: the text of a JSON value, decoded inside of `json`: of the string, or of the object's string `key` (NULL where there is
 * none). False when it is not valid JSON: `why`, `line` from 0 in the value, and byte `at` of that line. */
typedef struct {
    char *text;
    int64_t bytes, line, at;
    bool is_object, is_string, has_key;
    char why[160];
} mu_json_text;
bool      mu_json_text_find(mu_json_text *t, char *json, int64_t bytes, const char *key);

/* ------------------------------------------------------------------ other sources of a domain */

/* token_file.c: the domain d->name of a token file, which must have been made with this tokenizer. By name also one of raw_file.c. */
mu_status mu_token_file_open(mu_domain *d, const mu_tokenizer *t, const char *path, mu_cache *cache, mu_error *e) MU_MUST_USE;
mu_status mu_token_file_measure(mu_domain_size *size, const char *domain, const mu_tokenizer *t, const char *path,
                                mu_error *e) MU_MUST_USE;
bool      mu_is_hdf5(const char *path);                 /* whether the name ends with .h5 or .hdf5 */
bool      mu_is_token_file(const char *path);           /* that, or one as below */
/* raw_file.c: a token file of another program, or all of a folder. */
mu_status mu_raw_file_open(mu_domain *d, const mu_tokenizer *t, const char *path, mu_cache *cache, mu_error *e) MU_MUST_USE;
bool      mu_raw_file_named(const char *path);          /* whether the name ends with .bin or .idx */
bool      mu_raw_folder(const char *path);              /* whether it is a folder with .bin files, and neither texts nor folders beside them */
typedef enum { MU_RAW_U8, MU_RAW_I16, MU_RAW_U16, MU_RAW_I32, MU_RAW_U32, MU_RAW_I64 } mu_raw_type;
size_t    mu_raw_size(mu_raw_type type);
/* Bytes [at, at + bytes) of the file. */
mu_status mu_raw_read(int fd, const char *path, int64_t at, void *out, size_t bytes, mu_error *e) MU_MUST_USE;
/* Where the ids lie: n from byte `begin` on. next_end, if set, gives the end of the next document, at most n, the first document's
 * first; documents may be empty. start: a special token with this id begins a document and belongs to it; -1: none does. `close` is
 * called in any case. The caller closes fd (-1: not open) and frees path. */
typedef struct mu_raw_tokens mu_raw_tokens;
struct mu_raw_tokens {
    char *path;
    int fd;
    mu_raw_type type;
    int64_t begin, n, documents_left;
    int32_t start;
    void *ends;
    mu_status (*next_end)(mu_raw_tokens *t, int64_t *end, mu_error *e);
    void (*close)(mu_raw_tokens *t);
};
mu_status mu_llmc_file_open(mu_raw_tokens *t, const char *path, mu_error *e) MU_MUST_USE;
/* *is_megatron: whether there is an index; if not, nothing is opened. */
mu_status mu_megatron_file_open(mu_raw_tokens *t, const char *path, bool *is_megatron, mu_error *e) MU_MUST_USE;
/* synthetic.c: all documents that the generator makes for a domain of this name. */
mu_status mu_synthetic_make(mu_domain_maker *m, mu_error *e) MU_MUST_USE;
void      mu_synthetic_measure(mu_domain_size *size, const char *domain, uint64_t seed);

/* order.c: the order of n training sequences of a domain, a permutation for every epoch. Above 2^20 sequences it takes no memory, unless
 * it is made in memory as older runs did. */
typedef struct { int64_t n, epoch; bool in_memory; uint32_t *list; } mu_order;
void    mu_order_init(mu_order *o, int64_t n, bool in_memory);
int64_t mu_order_at(mu_order *o, const mu_rng *key, int64_t epoch, int64_t place);     /* key: of this epoch */
void    mu_order_free(mu_order *o);
int64_t mu_order_compute(const mu_rng *key, int64_t n, int64_t place);         /* n <= 2^62 */

/* split.c: the validation split. A stream is a concatenation of pieces of the domain; token `at` of the stream is token `from`
 * of the domain. */
typedef struct { int64_t from, at; } mu_piece;
typedef struct { int64_t tokens, n, room; mu_piece *pieces; } mu_stream;
typedef struct {
    int64_t n_train, n_val;         /* sequences */
    mu_stream rest, kept;           /* kept: for validation only (MU_VAL_DOCUMENTS) */
    int64_t n_held, n_spread, before;   /* validation sequences of `rest`: spread over those before `before`, and all from it on */
    int64_t step;                   /* validation sequence i is number i * step (mod n_val) of kept, then held */
} mu_split;
/* Borrows nothing; call mu_split_free in any case. MU_STATUS_DATA when there is no training sequence. */
mu_status mu_split_make(mu_split *s, const mu_domain *d, int64_t seq_len, double fraction, mu_val_split rule,
                        mu_error *e) MU_MUST_USE;
void mu_split_free(mu_split *s);
/* seq_len inputs and their targets; d: the domain of the split. */
void mu_split_read_train(const mu_split *s, const mu_domain *d, int64_t sequence, int64_t seq_len, int32_t *tokens,
                         int32_t *targets);
void mu_split_read_val(const mu_split *s, const mu_domain *d, int64_t sequence, int64_t seq_len, int32_t *tokens,
                       int32_t *targets);

#endif
