/* tfevents.h - files that TensorBoard reads: an append-only sequence of records, each an "Event" with scalars and images. Local. */
#ifndef MUSTER_TRAIN_TFEVENTS_H
#define MUSTER_TRAIN_TFEVENTS_H
#include "train/train.h"

/* ------------------------------------------------------------------ encoding (tfevents.c) */
/* Bytes of a message in the making; all zero at first. */
typedef struct { uint8_t *data; size_t n, capacity; } mu_bytes;
void mu_bytes_add(mu_bytes *b, const void *data, size_t n);
void mu_bytes_free(mu_bytes *b);

/* The values of a summary: one call each. */
void mu_summary_scalar(mu_bytes *summary, const char *tag, float value);
void mu_summary_image(mu_bytes *summary, const char *tag, int64_t width, int64_t height, const uint8_t *png, size_t png_bytes);
/* An event, framed as a record, is appended to *out. Seconds: since 1970. */
void mu_event_version(mu_bytes *out, double seconds);                       /* first in a file */
void mu_event_start(mu_bytes *out, double seconds, int64_t step);           /* readers forget what they have of `step` and later */
void mu_event_summary(mu_bytes *out, double seconds, int64_t step, const mu_bytes *summary);

uint32_t mu_crc32c(const void *data, size_t n);

/* ------------------------------------------------------------------ the events of a run (tensorboard.c)
 * RUN/tensorboard/, derived from the lines of metrics.jsonl: when they cannot be written, that is one warning, and no further events. */
typedef struct mu_tensorboard mu_tensorboard;
/* Begins a new file that continues those of earlier jobs after the resume step. Copies src, whose parts are borrowed. */
mu_tensorboard *mu_tensorboard_open(const mu_log_source *src);
/* The numbers of a line as scalars under their keys; of a statistics line its maps, too. The line's last bracket may be missing. */
void mu_tensorboard_line(mu_tensorboard *t, const mu_json *line);
void mu_tensorboard_sync(mu_tensorboard *t);
void mu_tensorboard_close(mu_tensorboard *t);           /* NULL is allowed, here and above */

#endif
