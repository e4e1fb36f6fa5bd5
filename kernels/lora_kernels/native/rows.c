/* Copy rows of a bfloat16 tensor from one file to another, with low-rank updates.
 *
 * One call for many blocks: between calls a thread waits for the GIL, which with four calls per block cost a sixth of
 * the merge.
 */
#define _GNU_SOURCE
#include "native.h"

#include <errno.h>
#include <unistd.h>

typedef struct {
    const float *left;
    ptrdiff_t left_row, left_rank;
    const float *panels;
    size_t rank;
    float scale;
} update;

static int read_all(int file, void *data, size_t size, off_t at)
{
    for (char *next = data; size;) {
        ssize_t count = pread(file, next, size, at);
        if (count <= 0 && !(count < 0 && errno == EINTR))
            return 0;
        if (count > 0)
            next += count, size -= (size_t)count, at += count;
    }
    return 1;
}

static int write_all(int file, const void *data, size_t size, off_t at)
{
    for (const char *next = data; size;) {
        ssize_t count = pwrite(file, next, size, at);
        if (count < 0 && errno != EINTR)
            return 0;
        if (count > 0)
            next += count, size -= (size_t)count, at += count;
    }
    return 1;
}

/* change = the sum of all updates of some rows, each scaled, then added in order. */
static void sum_updates(const update *updates, size_t count, size_t row, size_t rows, size_t columns, float *change,
                        float *scratch)
{
    size_t elements = rows * columns;
    for (size_t i = 0; i < count; i++) {
        const update *one = updates + i;
        float *product = i ? scratch : change;
        lora_product(one->left + (ptrdiff_t)row * one->left_row, one->left_row, one->left_rank, one->panels, one->rank,
                     rows, columns, product);
        for (size_t at = 0; at < elements; at++)
            product[at] *= one->scale;
        for (size_t at = 0; i && at < elements; at++)
            change[at] += product[at];
    }
}

/* Read `rows` rows at source_at and write them with the updates at target_at, `step` rows at a time.
 *
 * weight, out: step * columns elements each; change, scratch: as many floats. sums: see lora_add_round_bf16. Returns 1,
 * or 0 if a file could not be read or written or a value is not finite: the caller must redo the rows on the slow path,
 * which raises the precise error.
 */
LORA_EXPORT int lora_merge_rows_bf16(int source, int64_t source_at, int target, int64_t target_at, size_t rows,
                                     size_t columns, size_t step, const update *updates, size_t count, uint16_t *weight,
                                     uint16_t *out, float *change, float *scratch, double *sums)
{
    for (size_t row = 0; row < rows; row += step) {
        size_t some = rows - row < step ? rows - row : step, elements = some * columns, done = 2 * row * columns;
        float scale = 1;
        if (!read_all(source, weight, 2 * elements, source_at + (off_t)done))
            return 0;
        if (count == 1) {
            lora_product(updates->left + (ptrdiff_t)row * updates->left_row, updates->left_row, updates->left_rank,
                         updates->panels, updates->rank, some, columns, change);
            scale = updates->scale;
        } else {
            sum_updates(updates, count, row, some, columns, change, scratch);
        }
        if (!lora_add_round_bf16(weight, change, scale, out, elements, sums))
            return 0;
        if (!write_all(target, out, 2 * elements, target_at + (off_t)done))
            return 0;
    }
    return 1;
}

/* Copy bytes from one file to another through `size` bytes of memory. Returns 0 if a file could not be read or written,
 * else 1. */
LORA_EXPORT int lora_copy(int source, int64_t source_at, int target, int64_t target_at, size_t bytes, void *memory,
                          size_t size)
{
    for (size_t done = 0; done < bytes; done += size) {
        size_t some = bytes - done < size ? bytes - done : size;
        if (!read_all(source, memory, some, source_at + (off_t)done))
            return 0;
        if (!write_all(target, memory, some, target_at + (off_t)done))
            return 0;
    }
    return 1;
}
