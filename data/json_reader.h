/* json_reader.h - reads a JSON text from its beginning to its end, for files whose lists and objects are too large for a tree. */
#ifndef MUSTER_DATA_JSON_READER_H
#define MUSTER_DATA_JSON_READER_H
#include "data/internal.h"

/* The first error holds: then every function returns false, 0 or nothing. */
typedef struct {
    const char *start, *at, *end;
    char error[256];                /* empty: none */
    const char *error_at;
    char *text;                     /* of the last string, NUL added */
    int64_t n, room;
} mu_json_reader;

void mu_json_reader_init(mu_json_reader *r, const char *text, int64_t bytes);
void mu_json_reader_free(mu_json_reader *r);
void mu_json_reader_fail(mu_json_reader *r, const char *fmt, ...) MU_PRINTF(2, 3);      /* at the last value */
int64_t mu_json_reader_line(const mu_json_reader *r);                                   /* of the error, from 1 */
/* '{', '[', '"', a digit or '-', 't', 'f', 'n': what comes next; 0 at the end. */
char mu_json_reader_peek(mu_json_reader *r);
/* A string into r->text, valid UTF-8 without U+0000. */
bool mu_json_reader_string(mu_json_reader *r);
bool mu_json_reader_int(mu_json_reader *r, int64_t most, int64_t *value);               /* from 0 to most */
bool mu_json_reader_take(mu_json_reader *r, char c);                                    /* '[' or '{' and so on: it must be next */
/* In a list or object behind its opening bracket, or behind a value: whether another comes; its closing bracket is taken. */
bool mu_json_reader_more(mu_json_reader *r, char closing, bool first);
bool mu_json_reader_key(mu_json_reader *r);                                             /* a string and ':' */
/* Skips a value, whose brackets are at most 64 deep: its extent. Its scalars are not checked. */
bool mu_json_reader_skip(mu_json_reader *r, const char **from, int64_t *bytes);

/* The escape of a string whose backslash is at *at: its bytes of UTF-8 into out, *at moves behind it. Returns their number; 0 when it is
 * none of JSON's, or half of a pair. */
int mu_json_escape(const char **at, const char *end, char out[4]);

#endif
