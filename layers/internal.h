/* internal.h - shared by the files of layers/. */
#ifndef MUSTER_LAYERS_INTERNAL_H
#define MUSTER_LAYERS_INTERNAL_H
#include "layers/layers.h"

/* Declares /layers/<layer>/<what>/weight, or /<what>/weight for layer -1: a matrix [out, in] with weight decay, or
 * for in == 0 a norm's vector [out], initialised to ones, without decay (std is ignored). Owned by ps. */
mu_param *mu_layer_param(mu_params *ps, mu_group *group, int layer, const char *what, int64_t out, int64_t in, double std);
/* The same for /layers/<layer>/<what>/bias: a vector [out] of zeros, without decay. */
mu_param *mu_layer_bias(mu_params *ps, mu_group *group, int layer, const char *what, int64_t out);

#endif
