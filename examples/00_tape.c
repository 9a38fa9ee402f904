/* 00_tape.c - tensors, a tape, and a gradient computed by hand.
 *
 * The examples are meant to be read in order: 00 the engine, 01 a network that learns, 02 a layer of experts,
 * 03 the same layer on two ranks. What they use is in the public headers; here, autograd/autograd.h.
 *
 * The engine in four sentences. A *device* owns memory and knows how to compute. A *tensor* is a shaped
 * piece of that memory. A *tape* runs an op immediately and records it. Walking the tape backwards
 * gives the gradient of a loss with respect to all its inputs.
 *
 * The calculation below is small enough for pencil and paper: one token x is multiplied by a matrix A, the result h
 * by two class rows W, and the loss is the cross-entropy of the correct class:
 *
 *     x = (1, 2)     A = | 1 0 |    h = A x = (1, 2)     W = | 2 -1 |    logits = W h = (0, 0)
 *                        | 0 1 |                             | 0  0 |
 *
 * Equal logits mean probabilities p = (1/2, 1/2): the loss is -log(1/2) = log 2 whichever class is correct. */
#include "autograd/autograd.h"
#include "check.h"

#include <math.h>

/* Compares the four values at `data` (of a tensor or a gradient) with `wanted`. */
static bool equals(mu_device *dev, const void *data, const double wanted[4]) {
    double got[4];
    mu_reals_get(dev, dev->compute, data, 4, got);
    printf("      | %5.2f %5.2f |\n      | %5.2f %5.2f |\n", got[0], got[1], got[2], got[3]);
    for (int i = 0; i < 4; i++)
        if (fabs(got[i] - wanted[i]) > 1e-12) return false;
    return true;
}

/* Records the calculation above on the tape. With `twice`, the head sees h + h instead of h. */
static mu_tensor *record(mu_tape *tp, mu_param *A, mu_param *W, bool twice) {
    mu_tensor *x = mu_tensor_2d(tp, 1, 2);                      /* one row: one token */
    mu_tensor_set(x, (double[]){ 1, 2 });
    mu_tensor *right = mu_tensor_ints(tp, MU_DTYPE_I32, 1, (int32_t[]){ 1 });
    mu_tensor *h = mu_linear(tp, x, &A->tensor);                /* every weight is [out, in] */
    if (twice) h = mu_add(tp, h, h);
    return mu_head_loss(tp, h, &W->tensor, right, 1.0, NULL);   /* product, softmax, cross-entropy */
}

int main(void) {
    /* `ref` computes in double precision with plain loops: slow, the reference. `cpu` is fast. */
    mu_device *dev = mu_device_open("ref");
    mu_tape *tp = mu_tape_new(dev);

    /* Parameters outlive the tape. They are declared first, then allocated together. */
    mu_params *ps = mu_params_new(dev);
    mu_group *group = mu_params_group(ps, "shared", NULL);      /* NULL: gradients are not reduced over ranks */
    mu_param_desc two_by_two = { .group = group, .name = "/A", .n_dims = 2, .shape = { 2, 2 } };
    mu_param *A = mu_params_add(ps, &two_by_two);
    two_by_two.name = "/W";
    mu_param *W = mu_params_add(ps, &two_by_two);
    mu_params_alloc(ps);
    mu_tensor_set(&A->tensor, (double[]){ 1, 0, 0, 1 });
    mu_tensor_set(&W->tensor, (double[]){ 2, -1, 0, 0 });

    puts("1. Forward: an op computes when it is recorded.");
    mu_tensor *loss = record(tp, A, W, false);
    double value = mu_tensor_scalar_get(loss);
    check(fabs(value - log(2)) < 1e-12, "the loss is %.6f = log 2", value);

    /* Backward by hand. Class 1 is correct, so the gradient of the logits is p - (0, 1) = (1/2, -1/2) =: d.
     *     dW = d h^T = | 1/2  1 |      dh = W^T d = (1, -1/2)      dA = dh x^T = |  1    2 |
     *                  |-1/2 -1 |                                                | -1/2 -1 | */
    puts("2. Backward: one walk over the tape, from the end.");
    mu_backward(tp, loss);
    check(equals(dev, W->tensor.grad, (double[]){ 0.5, 1, -0.5, -1 }), "dW is as computed by hand");
    check(equals(dev, A->tensor.grad, (double[]){ 1, 2, -0.5, -1 }), "dA is as computed by hand");

    /* A tensor that is used twice gets two contributions. Backward adds to gradients, so those
     * of parameters must be cleared before each step. Now h' = h + h, the logits are still 0, d is
     * the same: dA = 2 dh x^T, and dW = d h'^T, both double. */
    puts("3. A tensor with two uses sums the gradients of both.");
    mu_params_zero_grad(ps);
    mu_tape_reset(tp);                                          /* frees activations, keeps parameters */
    mu_backward(tp, record(tp, A, W, true));
    check(equals(dev, A->tensor.grad, (double[]){ 2, 4, -1, -2 }), "dA doubled");

    /* Numerical check: change one weight a little and compare the losses. */
    puts("4. The gradient agrees with finite differences.");
    double moved[2];
    for (int side = 0; side < 2; side++) {
        mu_tape_reset(tp);
        mu_tensor_set(&A->tensor, (double[]){ 1, side ? 1e-5 : -1e-5, 0, 1 });
        moved[side] = mu_tensor_scalar_get(record(tp, A, W, true));
    }
    double slope = (moved[1] - moved[0]) / 2e-5;
    check(fabs(slope - 4) < 1e-6, "moving A[0][1] moves the loss %.6f times as far; dA[0][1] is 4", slope);

    mu_params_free(ps);
    mu_tape_free(tp);
    mu_device_close(dev);
    return failed_checks > 0;
}
