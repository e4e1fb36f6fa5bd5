/* The product of an update's factors: a block of left @ right in float32.
 *
 * Each element is one chain of fused multiply-adds over the rank, from 0, in order, so it depends only on its row and
 * column, and processors with fused multiply-add agree on every bit. The right factor comes in panels of PANEL columns,
 * each (rank, PANEL), the last one padded with zeros: a panel and the rows of a block fit into the first-level cache,
 * and nothing is packed again for each block, as in BLAS (docs/decisions/0008).
 */
#include "native.h"

#define PANEL 32
#define LANES 16
#define INLINE static inline __attribute__((always_inline))

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4)));

typedef struct {
    const float *left; /* rows at multiples of left_row, ranks at multiples of left_rank */
    ptrdiff_t left_row, left_rank;
    const float *panels;
    size_t rank, columns;
    float *out; /* (rows, columns) */
} product;

/* ROWS rows of one panel, with all sums in registers. */
INLINE void tile(const product *job, size_t row, size_t column, const size_t ROWS)
{
    const float *left = job->left + (ptrdiff_t)row * job->left_row, *panel = job->panels + column * job->rank;
    lanes sums[8][2] = {0};
    for (size_t k = 0; k < job->rank; k++) {
        const lanes *right = (const lanes *)(panel + k * PANEL);
#pragma GCC unroll 8
        for (size_t at = 0; at < ROWS; at++) {
            lanes factor = left[(ptrdiff_t)at * job->left_row + (ptrdiff_t)k * job->left_rank] - (lanes){0};
            sums[at][0] += factor * right[0];
            sums[at][1] += factor * right[1];
        }
    }
    size_t width = job->columns - column < PANEL ? job->columns - column : PANEL;
#pragma GCC unroll 8
    for (size_t at = 0; at < ROWS; at++) {
        float *out = job->out + (row + at) * job->columns + column;
        if (width == PANEL) {
            ((lanes *)out)[0] = sums[at][0];
            ((lanes *)out)[1] = sums[at][1];
        } else
            for (size_t lane = 0; lane < width; lane++)
                out[lane] = sums[at][lane / LANES][lane % LANES];
    }
}

INLINE void all_rows(const product *job, size_t rows, const size_t ROWS)
{
    for (size_t column = 0; column < job->columns; column += PANEL) {
        size_t row = 0;
        for (; row + ROWS <= rows; row += ROWS)
            tile(job, row, column, ROWS);
        for (; ROWS > 4 && row + 4 <= rows; row += 4)
            tile(job, row, column, 4);
        for (; ROWS > 2 && row + 2 <= rows; row += 2)
            tile(job, row, column, 2);
        for (; row < rows; row++)
            tile(job, row, column, 1);
    }
}

/* As many rows at once as sums fit into the processor's registers. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
__attribute__((target("arch=x86-64-v4"))) static void wide(const product *job, size_t rows) { all_rows(job, rows, 8); }
__attribute__((target("arch=x86-64-v3"))) static void middle(const product *job, size_t rows) { all_rows(job, rows, 2); }
#endif

/* out = left @ right, (rows, columns) float32. left_row, left_rank: strides in elements. */
void lora_product(const float *left, ptrdiff_t left_row, ptrdiff_t left_rank, const float *panels, size_t rank,
                  size_t rows, size_t columns, float *out)
{
    product job = {left, left_row, left_rank, panels, rank, columns, out};
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
    if (__builtin_cpu_supports("x86-64-v4")) {
        wide(&job, rows);
        return;
    }
    if (__builtin_cpu_supports("x86-64-v3")) {
        middle(&job, rows);
        return;
    }
#endif
    all_rows(&job, rows, 2);
}
