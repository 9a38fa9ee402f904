/* internal.h - what the files of layers/ share. */
#ifndef MUSTER_LAYERS_INTERNAL_H
#define MUSTER_LAYERS_INTERNAL_H
#include "layers/layers.h"

/* Declares /layers/<layer>/<what>/weight, or /<what>/weight for layer -1: a matrix [out, in] that decays, or
 * for in == 0 a norm's vector [out], which starts at ones and does not (std is then ignored). */
mu_param *mu_layer_param(mu_params *ps, mu_group *group, int layer, const char *what, int64_t out, int64_t in, double std);

#endif
