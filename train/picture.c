/* picture.c - colour maps, and PNG files by libpng. */
#include "train/picture.h"

#include <math.h>
#include <png.h>
#include <stdlib.h>
#include <string.h>

static const uint32_t diverging[] = { 0x2166ac, 0x4393c3, 0x92c5de, 0xd1e5f0, 0xf7f7f7, 0xfddbc7, 0xf4a582, 0xd6604d, 0xb2182b };
static const uint32_t sequential[] = { 0x440154, 0x472c7a, 0x3b518b, 0x2c718e, 0x21908d, 0x27ad81, 0x5cc863, 0xaadc32, 0xfde725 };
enum { STOPS = sizeof diverging / sizeof *diverging };
static const uint32_t states[MU_EXPERT_STATES] = {
    [MU_EXPERT_HEALTHY] = 0x8fd0b8, [MU_EXPERT_STARVED] = 0xe69f00, [MU_EXPERT_DEAD] = 0x000000, [MU_EXPERT_CARRIER] = 0x0072b2,
    [MU_EXPERT_DORMANT] = 0x56b4e9, [MU_EXPERT_DUPLICATE] = 0xcc79a7, [MU_EXPERT_OVERWRITTEN] = 0xd55e00 };

static int channel(uint32_t colour, int c) { return (int)(colour >> (16 - 8 * c) & 255); }

static void set(uint8_t rgb[3], uint32_t colour) {
    for (int c = 0; c < 3; c++) rgb[c] = (uint8_t)channel(colour, c);
}

/* Straight lines between the stops. Neighbours that round to one colour are moved apart by one step of blue. */
static void interpolate(const uint32_t stops[STOPS], mu_colour_map rgb) {
    for (int level = MU_LEVEL_LOWEST; level <= MU_LEVEL_HIGHEST; level++) {
        double at = (double)(level - MU_LEVEL_LOWEST) / (MU_LEVEL_HIGHEST - MU_LEVEL_LOWEST) * (STOPS - 1);
        int i = at < STOPS - 1 ? (int)at : STOPS - 2;
        for (int c = 0; c < 3; c++)
            rgb[level][c] = (uint8_t)lround(channel(stops[i], c) + (at - i) * (channel(stops[i + 1], c) - channel(stops[i], c)));
        for (int other = MU_LEVEL_LOWEST; other < level; other++)
            if (!memcmp(rgb[other], rgb[level], 3)) rgb[level][2] ^= 1, other = MU_LEVEL_LOWEST - 1;
    }
}

void mu_colours_fill(mu_colours kind, mu_colour_map rgb) {
    memset(rgb, 0, sizeof(mu_colour_map));
    if (kind == MU_COLOURS_STATES) {
        for (int i = 0; i < MU_EXPERT_STATES; i++) set(rgb[1 + i], states[i]);
        return;
    }
    interpolate(kind == MU_COLOURS_DIVERGING ? diverging : sequential, rgb);
}

uint8_t mu_colours_level(double value, double low, double high) {
    if (isnan(value)) return MU_LEVEL_NONE;
    double at = high > low ? fmin(fmax((value - low) / (high - low), 0), 1) : 0.5;
    return (uint8_t)(MU_LEVEL_LOWEST + lround(at * (MU_LEVEL_HIGHEST - MU_LEVEL_LOWEST)));
}

uint8_t *mu_png_encode(const uint8_t *pixels, int64_t width, int64_t height, mu_colours kind, size_t *bytes) {
    mu_colour_map rgb;
    uint8_t rgba[256][4];
    mu_colours_fill(kind, rgb);
    for (int i = 0; i < 256; i++) {
        memcpy(rgba[i], rgb[i], 3);
        rgba[i][3] = i == MU_LEVEL_NONE ? 0 : 255;
    }
    png_image image = { .version = PNG_IMAGE_VERSION, .width = (png_uint_32)width, .height = (png_uint_32)height,
                        .format = PNG_FORMAT_RGBA_COLORMAP, .colormap_entries = 256 };
    png_alloc_size_t size = PNG_IMAGE_PNG_SIZE_MAX(image);
    uint8_t *file = mu_alloc(size, 1);
    bool done = png_image_write_to_memory(&image, file, &size, 0, pixels, 0, rgba);
    MU_CHECK(done, "libpng: %s, image of %lld x %lld", image.message, (long long)width, (long long)height);
    *bytes = size;
    return mu_realloc(file, size, 1);
}
