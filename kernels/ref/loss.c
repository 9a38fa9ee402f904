/* loss.c - cross-entropy of rows of logits: nll = lse - logits[target], lse = log sum exp(logits). */
#include "kernels/ref/ref.h"

#include <math.h>

void mu_ref_xent_fwd(mu_device *dev, int64_t rows, int64_t V, mu_mat logits_rV, mu_mat targets_r,
                     mu_mat lse_r, mu_mat nll_r) {
    (void)dev;
    for (int64_t r = 0; r < rows; r++) {
        const double *logits = row(logits_rV, r, V);
        int64_t target = ints(targets_r)[r];
        double max = -INFINITY, sum = 0;
        for (int64_t i = 0; i < V; i++) max = fmax(max, logits[i]);
        for (int64_t i = 0; i < V; i++) sum += exp(logits[i] - max);
        MU_CHECK(target < V, "cross-entropy: target %lld is not below %lld", (long long)target, (long long)V);
        reals(lse_r)[r] = max + log(sum);
        reals(nll_r)[r] = target < 0 ? 0 : max + log(sum) - logits[target];
    }
}

/* logits become scale dout (softmax - onehot); rows without a target become zero */
void mu_ref_xent_bwd(mu_device *dev, int64_t rows, int64_t V, double scale, mu_mat dout, mu_mat targets_r,
                     mu_mat lse_r, mu_mat logits_rV) {
    (void)dev;
    double factor = scale * *reals(dout);
    for (int64_t r = 0; r < rows; r++) {
        double *logits = row(logits_rV, r, V);
        int64_t target = ints(targets_r)[r];
        for (int64_t i = 0; i < V; i++)
            logits[i] = target < 0 ? 0 : factor * (exp(logits[i] - reals(lse_r)[r]) - (i == target));
    }
}
