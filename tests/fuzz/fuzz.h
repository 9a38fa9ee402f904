/* fuzz.h - what the fuzz targets share. A target is one file: it turns an input of libFuzzer into files and lets a reader of
 * muster have them. Any answer of the reader is right but a crash, more than 256 MiB or more than 10 s. */
#ifndef MUSTER_TESTS_FUZZ_H
#define MUSTER_TESTS_FUZZ_H
#include "base/base.h"

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n);

/* Writes the bytes to the file `name` in this process's own folder and returns its path, valid until the next call for the same
 * name; `name` is a string literal. */
const char *fuzz_file(const char *name, const uint8_t *bytes, size_t n);
const char *fuzz_folder(void);

#endif
