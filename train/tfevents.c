/* tfevents.c - encodes the events of TensorBoard.
 *
 * Sources. Records: tensorflow/core/lib/io/record_writer.h (u64 length, u32 masked CRC of the length, data, u32 masked CRC of the data,
 * all little-endian) and lib/hash/crc32c.h (the mask). Messages: tensorflow/core/util/event.proto (Event, SessionLog) and
 * core/framework/summary.proto (Summary). Their encoding: protobuf.dev/programming-guides/encoding (a key is
 * field << 3 | wire type; 0: varint, 1: 64 bits, 2: length and bytes, 5: 32 bits). */
#include "train/tfevents.h"

#include <stdlib.h>
#include <string.h>

void mu_bytes_add(mu_bytes *b, const void *data, size_t n) {
    if (b->n + n > b->capacity) {
        b->capacity = 2 * (b->n + n);
        b->data = mu_realloc(b->data, b->capacity, 1);
    }
    if (n) memcpy(b->data + b->n, data, n);
    b->n += n;
}

void mu_bytes_free(mu_bytes *b) {
    free(b->data);
    *b = (mu_bytes){ 0 };
}

static void add_little_endian(mu_bytes *b, uint64_t value, int n) {
    uint8_t bytes[8];
    for (int i = 0; i < n; i++) bytes[i] = (uint8_t)(value >> 8 * i);
    mu_bytes_add(b, bytes, (size_t)n);
}

/* ------------------------------------------------------------------ protobuf */

static void add_varint(mu_bytes *b, uint64_t value) {
    uint8_t bytes[10];
    size_t n = 0;
    do bytes[n++] = (uint8_t)((value & 127) | (value > 127 ? 128 : 0));
    while (value >>= 7);
    mu_bytes_add(b, bytes, n);
}

static void add_int(mu_bytes *b, int field, int64_t value) {
    add_varint(b, (uint64_t)field << 3);
    add_varint(b, (uint64_t)value);
}

static void add_double(mu_bytes *b, int field, double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    add_varint(b, (uint64_t)field << 3 | 1);
    add_little_endian(b, bits, 8);
}

static void add_float(mu_bytes *b, int field, float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    add_varint(b, (uint64_t)field << 3 | 5);
    add_little_endian(b, bits, 4);
}

static void add_field(mu_bytes *b, int field, const void *data, size_t n) {
    add_varint(b, (uint64_t)field << 3 | 2);
    add_varint(b, n);
    mu_bytes_add(b, data, n);
}

static void add_text(mu_bytes *b, int field, const char *text) { add_field(b, field, text, strlen(text)); }

/* Adds a message as a field, and frees it. */
static void add_message(mu_bytes *b, int field, mu_bytes *message) {
    add_field(b, field, message->data, message->n);
    mu_bytes_free(message);
}

/* ------------------------------------------------------------------ messages: the numbers of their fields */

enum { EVENT_WALL_TIME = 1, EVENT_STEP = 2, EVENT_FILE_VERSION = 3, EVENT_SUMMARY = 5, EVENT_SESSION_LOG = 7 };
enum { SESSION_STATUS = 1, SESSION_START = 1 };
enum { SUMMARY_VALUE = 1, VALUE_TAG = 1, VALUE_SIMPLE = 2, VALUE_IMAGE = 4 };
enum { IMAGE_HEIGHT = 1, IMAGE_WIDTH = 2, IMAGE_COLORSPACE = 3, IMAGE_ENCODED = 4, RGBA = 4 };

void mu_summary_scalar(mu_bytes *summary, const char *tag, float value) {
    mu_bytes v = { 0 };
    add_text(&v, VALUE_TAG, tag);
    add_float(&v, VALUE_SIMPLE, value);
    add_message(summary, SUMMARY_VALUE, &v);
}

void mu_summary_image(mu_bytes *summary, const char *tag, int64_t width, int64_t height, const uint8_t *png, size_t png_bytes) {
    mu_bytes v = { 0 }, image = { 0 };
    add_int(&image, IMAGE_HEIGHT, height);
    add_int(&image, IMAGE_WIDTH, width);
    add_int(&image, IMAGE_COLORSPACE, RGBA);
    add_field(&image, IMAGE_ENCODED, png, png_bytes);
    add_text(&v, VALUE_TAG, tag);
    add_message(&v, VALUE_IMAGE, &image);
    add_message(summary, SUMMARY_VALUE, &v);
}

/* ------------------------------------------------------------------ records */

/* Castagnoli's polynomial, reflected. */
static void fill_table(uint32_t table[256]) {
    for (uint32_t i = 0; i < 256; i++) {
        table[i] = i;
        for (int bit = 0; bit < 8; bit++) table[i] = table[i] >> 1 ^ (table[i] & 1 ? 0x82f63b78u : 0);
    }
}

uint32_t mu_crc32c(const void *data, size_t n) {
    static uint32_t table[256];
    const uint8_t *bytes = data;
    uint32_t crc = UINT32_MAX;
    if (!table[1]) fill_table(table);
    for (size_t i = 0; i < n; i++) crc = crc >> 8 ^ table[(crc ^ bytes[i]) & 255];
    return ~crc;
}

static void add_masked_crc(mu_bytes *out, size_t first) {
    uint32_t crc = mu_crc32c(out->data + first, out->n - first);
    add_little_endian(out, (uint32_t)((crc >> 15 | crc << 17) + 0xa282ead8u), 4);
}

/* Adds an event with one field as a record. */
static void add_record(mu_bytes *out, double seconds, int64_t step, int field, const void *data, size_t n) {
    mu_bytes event = { 0 };
    add_double(&event, EVENT_WALL_TIME, seconds);
    if (step) add_int(&event, EVENT_STEP, step);
    add_field(&event, field, data, n);
    size_t first = out->n;
    add_little_endian(out, event.n, 8);
    add_masked_crc(out, first);
    first = out->n;
    mu_bytes_add(out, event.data, event.n);
    add_masked_crc(out, first);
    mu_bytes_free(&event);
}

void mu_event_version(mu_bytes *out, double seconds) {
    static const char version[] = "brain.Event:2";
    add_record(out, seconds, 0, EVENT_FILE_VERSION, version, sizeof version - 1);
}

void mu_event_start(mu_bytes *out, double seconds, int64_t step) {
    mu_bytes session = { 0 };
    add_int(&session, SESSION_STATUS, SESSION_START);
    add_record(out, seconds, step, EVENT_SESSION_LOG, session.data, session.n);
    mu_bytes_free(&session);
}

void mu_event_summary(mu_bytes *out, double seconds, int64_t step, const mu_bytes *summary) {
    add_record(out, seconds, step, EVENT_SUMMARY, summary->data, summary->n);
}
