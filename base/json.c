/* json.c - writes JSON into a growing buffer; commas are inserted automatically. */
#include "base/base.h"
#include "base/internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

int mu_utf8_decode(const char *s, size_t n, uint32_t *code) {
    static const uint32_t smallest[5] = { 0, 0, 0x80, 0x800, 0x10000 };
    const unsigned char *u = (const unsigned char *)s;
    if (n == 0)
        return 0;
    int length = u[0] < 0x80 ? 1 : u[0] < 0xC2 ? 0 : u[0] < 0xE0 ? 2 : u[0] < 0xF0 ? 3 : u[0] < 0xF5 ? 4 : 0;
    if (length == 0 || (size_t)length > n)
        return 0;
    uint32_t c = length == 1 ? u[0] : u[0] & (0x7Fu >> length);
    for (int i = 1; i < length; i++) {
        if ((u[i] & 0xC0) != 0x80)
            return 0;
        c = c << 6 | (u[i] & 0x3Fu);
    }
    /* longer than needed, half of a UTF-16 pair, or beyond Unicode */
    if (c < smallest[length] || (c >= 0xD800 && c < 0xE000) || c > 0x10FFFF)
        return 0;
    *code = c;
    return length;
}

/* printf and strtod follow the locale's decimal point, which may even be several bytes: whatever is
 * neither digit, sign nor exponent becomes one '.'. Leading zeros of the exponent go too: 1e-05 is 1e-5. */
void mu_float_text(double value, char text[40]) {
    char printed[48];
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(printed, sizeof printed, "%.*g", digits, value);
        if (strtod(printed, NULL) == value)
            break;
    }
    char *out = text;
    for (const char *p = printed; *p; p++) {
        if (strchr("0123456789+-e", *p)) {
            *out++ = *p;
            if (*p == 'e') {
                *out++ = *++p;
                while (p[1] == '0' && p[2])
                    p++;
            }
        } else if (out == text || out[-1] != '.') {
            *out++ = '.';
        }
    }
    *out = '\0';
    if (value == 0 && signbit(value))
        strcpy(text, "-0.0");           /* readers take -0 for the integer 0 */
}

static void append(mu_json *j, const char *bytes, size_t n) {
    if (j->length + n + 1 > j->capacity) {
        j->capacity = 2 * (j->length + n + 1);
        j->text = mu_realloc(j->text, j->capacity, 1);
    }
    memcpy(j->text + j->length, bytes, n);
    j->length += n;
    j->text[j->length] = '\0';
}

static void append_text(mu_json *j, const char *text) {
    append(j, text, strlen(text));
}

static void append_escaped(mu_json *j, const char *s, size_t n) {
    static const char special[] = "\"\\\b\f\n\r\t", letter[] = "\"\\bfnrt";
    append_text(j, "\"");
    for (size_t i = 0; i < n;) {
        uint32_t code = 0;
        int length = mu_utf8_decode(s + i, n - i, &code);
        const char *at = length == 1 && code ? strchr(special, (int)code) : NULL;
        if (length == 0) {
            append_text(j, "\xEF\xBF\xBD");
            length = 1;
        } else if (at) {
            append(j, (char[2]){ '\\', letter[at - special] }, 2);
        } else if (code < 0x20) {
            char hex[8];
            append(j, hex, (size_t)snprintf(hex, sizeof hex, "\\u%04x", (unsigned)code));
        } else {
            append(j, s + i, (size_t)length);
        }
        i += (size_t)length;
    }
    append_text(j, "\"");
}

/* Writes the text before a value: the comma after an earlier one, and the key inside an object. */
static void before(mu_json *j, const char *key_or_null) {
    if (j->comma)
        append_text(j, ",");
    j->comma = true;
    if (key_or_null) {
        append_escaped(j, key_or_null, strlen(key_or_null));
        append_text(j, ":");
    }
}

void mu_json_init(mu_json *j) {
    *j = (mu_json){ .text = mu_alloc(256, 1), .capacity = 256 };
}

void mu_json_free(mu_json *j) {
    free(j->text);
    *j = (mu_json){ 0 };
}

void mu_json_reset(mu_json *j) {
    j->length = 0;
    j->comma = false;
    append_text(j, "");
}

void mu_json_begin(mu_json *j, const char *key_or_null, char bracket) {
    MU_CHECK(bracket == '{' || bracket == '[', "bracket '%c'", bracket);
    before(j, key_or_null);
    append(j, &bracket, 1);
    j->comma = false;
}

void mu_json_end(mu_json *j, char bracket) {
    MU_CHECK(bracket == '}' || bracket == ']', "bracket '%c'", bracket);
    append(j, &bracket, 1);
    j->comma = true;
}

void mu_json_int(mu_json *j, const char *key_or_null, int64_t value) {
    char text[32];
    before(j, key_or_null);
    append(j, text, (size_t)snprintf(text, sizeof text, "%lld", (long long)value));
}

void mu_json_float(mu_json *j, const char *key_or_null, double value) {
    char text[40] = "null";
    before(j, key_or_null);
    if (isfinite(value))
        mu_float_text(value, text);
    append_text(j, text);
}

void mu_json_bool(mu_json *j, const char *key_or_null, bool value) {
    before(j, key_or_null);
    append_text(j, value ? "true" : "false");
}

void mu_json_string(mu_json *j, const char *key_or_null, const char *value) {
    before(j, key_or_null);
    if (value)
        append_escaped(j, value, strlen(value));
    else
        append_text(j, "null");
}
