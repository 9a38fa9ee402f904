/* picture.h - pictures made of cells: colour maps, and PNG files in memory (picture.c). Local. */
#ifndef MUSTER_TRAIN_PICTURE_H
#define MUSTER_TRAIN_PICTURE_H
#include "train/train.h"

/* A pixel is an index into a colour map. Level 0: no value (transparent); 1: special (black; "no token"); 2 .. 255: from the lowest
 * to the highest value. All colours of a map differ, so a value can be read back from its colour. Maps can be told apart by
 * colour-blind people: ColorBrewer's RdBu, viridis, and colours of Okabe and Ito. */
typedef enum {
    MU_COLOURS_DIVERGING,       /* blue, white in the middle, red */
    MU_COLOURS_SEQUENTIAL,      /* dark violet to yellow */
    MU_COLOURS_STATES,          /* level 1 + s: expert state s */
    MU_N_COLOURS
} mu_colours;
enum { MU_LEVEL_NONE = 0, MU_LEVEL_SPECIAL = 1, MU_LEVEL_LOWEST = 2, MU_LEVEL_HIGHEST = 255 };
typedef uint8_t mu_colour_map[256][3];
void mu_colours_fill(mu_colours kind, mu_colour_map rgb);
/* The level of a value between low and high, which are also the limits; MU_LEVEL_NONE for NaN. */
uint8_t mu_colours_level(double value, double low, double high);

/* The PNG file of pixels [height, width], heap; *bytes: its size. */
uint8_t *mu_png_encode(const uint8_t *pixels, int64_t width, int64_t height, mu_colours kind, size_t *bytes);

#endif
