/* The inner loop of a merge into bfloat16: one read and one write of each weight.
 *
 * Each element takes the same IEEE 754 operations as in numpy, not contracted or reordered, so both give the same bytes
 * for the same product. Sums are accumulated in floats, in LANES chains over STRIP elements, then in doubles; their
 * order does not depend on the processor.
 */
#include "native.h"

#include <float.h>
#include <string.h>

#define LANES 16
#define STRIP 1024
#define ABSOLUTE 0x7fffffffu
#define INFINITE 0x7f800000u
/* The smallest magnitude that rounds to infinity in bfloat16. */
#define TOO_LARGE 0x7f7f8000u
/* If the largest magnitude is at least this, 2^-40, no square that matters underflows. */
#define SMALL 0x2b800000u

typedef struct {
    float delta_delta[LANES], realised_delta[LANES], realised_realised[LANES];
    uint32_t delta[LANES], merged[LANES];
} lanes;

static inline float value_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline uint32_t larger(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

static inline __attribute__((always_inline)) void merge_one(const uint16_t *weight, const float *product, float scale,
                                                            uint16_t *out, lanes *sums, size_t at, size_t lane)
{
    float old = value_of((uint32_t)weight[at] << 16);
    float delta = product[at] * scale;
    uint32_t merged = bits_of(old + delta);
    uint32_t rounded = (merged + 0x7fff + ((merged >> 16) & 1)) & 0xffff0000u;
    float realised = value_of(rounded) - old;
    out[at] = (uint16_t)(rounded >> 16);
    sums->delta[lane] = larger(sums->delta[lane], bits_of(delta) & ABSOLUTE);
    sums->merged[lane] = larger(sums->merged[lane], merged & ABSOLUTE);
    sums->delta_delta[lane] += delta * delta;
    sums->realised_delta[lane] += realised * delta;
    sums->realised_realised[lane] += realised * realised;
}

/* Sum the block again in doubles, if squares overflow or underflow float. */
static void sum_widely(const uint16_t *weight, const float *product, float scale, const uint16_t *out, size_t count,
                       double *sums)
{
    sums[0] = sums[1] = sums[2] = 0;
    for (size_t at = 0; at < count; at++) {
        float delta = product[at] * scale;
        float realised = value_of((uint32_t)out[at] << 16) - value_of((uint32_t)weight[at] << 16);
        sums[0] += (double)delta * delta;
        sums[1] += (double)realised * delta;
        sums[2] += (double)realised * realised;
    }
}

/* out = round(weight + scale * product), weight and out bfloat16, product float32, `count` elements each.
 *
 * Adds <dW, dW>, <realised, dW> and <realised, realised> to sums[0..2] and raises sums[3] to the largest |dW|.
 * Returns 1, or 0 if a value is not finite: out and sums are then undefined.
 */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
__attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#endif
int lora_add_round_bf16(const uint16_t *restrict weight, const float *restrict product, float scale,
                        uint16_t *restrict out, size_t count, double *restrict sums)
{
    lanes all = {0};
    double found[3] = {0};
    for (size_t start = 0; start < count; start += STRIP) {
        size_t end = count - start < STRIP ? count : start + STRIP, whole = end - (end - start) % LANES;
        memset(all.delta_delta, 0, sizeof all.delta_delta);
        memset(all.realised_delta, 0, sizeof all.realised_delta);
        memset(all.realised_realised, 0, sizeof all.realised_realised);
        for (size_t at = start; at < whole; at += LANES)
            for (size_t lane = 0; lane < LANES; lane++)
                merge_one(weight, product, scale, out, &all, at + lane, lane);
        for (size_t at = whole; at < end; at++)
            merge_one(weight, product, scale, out, &all, at, at - whole);
        for (size_t lane = 0; lane < LANES; lane++) {
            found[0] += all.delta_delta[lane];
            found[1] += all.realised_delta[lane];
            found[2] += all.realised_realised[lane];
        }
    }
    uint32_t delta = 0, merged = 0;
    for (size_t lane = 0; lane < LANES; lane++) {
        delta = larger(delta, all.delta[lane]);
        merged = larger(merged, all.merged[lane]);
    }
    if (delta >= INFINITE || merged >= TOO_LARGE)
        return 0;
    if ((delta && delta < SMALL) || found[0] > DBL_MAX || found[2] > DBL_MAX)
        sum_widely(weight, product, scale, out, count, found);
    for (int at = 0; at < 3; at++)
        sums[at] += found[at];
    if ((double)value_of(delta) > sums[3])
        sums[3] = value_of(delta);
    return 1;
}
