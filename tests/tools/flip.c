/* flip.c - flips single bits of a file: flip FILE OFFSET[:BIT] ... (doing it twice restores the file). */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static int flip(FILE *f, const char *where) {
    char *rest;
    long offset = strtol(where, &rest, 10);
    int bit = *rest == ':' ? atoi(rest + 1) : 0, byte;
    if (fseek(f, offset, SEEK_SET) || (byte = fgetc(f)) == EOF || fseek(f, offset, SEEK_SET)) return 1;
    return fputc(byte ^ 1 << (bit & 7), f) == EOF;
}

int main(int argc, char **argv) {
    FILE *f = argc > 2 ? fopen(argv[1], "r+b") : NULL;
    if (!f) return 2;
    int code = 0;
    for (int i = 2; i < argc && !code; i++) code = flip(f, argv[i]);
    return fclose(f) || code;
}
