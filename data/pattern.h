/* pattern.h - what a step of a pre-tokenizer looks for: a regular expression (Oniguruma), a text, or a class of characters. */
#ifndef MUSTER_DATA_PATTERN_H
#define MUSTER_DATA_PATTERN_H
#include "data/internal.h"

typedef struct mu_pattern mu_pattern;
/* NULL: not a usable expression, *why says so in at most `room` bytes. */
mu_pattern *mu_pattern_regex(const char *text, int64_t n, char *why, size_t room);
mu_pattern *mu_pattern_text(const char *text, int64_t n);           /* not empty */
typedef enum { MU_PATTERN_NUMBER, MU_PATTERN_PUNCTUATION } mu_pattern_class;
mu_pattern *mu_pattern_of_class(mu_pattern_class class);            /* each character that is in the class */
void        mu_pattern_free(mu_pattern *p);

/* The parts of a text in order, matches and what is between them; empty matches, too, where an expression has them. */
typedef struct { int64_t from, to; bool match; } mu_part;
typedef void mu_take_part(void *to, mu_part part);
void mu_pattern_parts(const mu_pattern *p, const char *text, int64_t n, mu_take_part *take, void *to);

#endif
