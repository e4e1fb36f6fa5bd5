/* Shared declarations. */
#ifndef LORA_NATIVE_H
#define LORA_NATIVE_H

#include <stddef.h>
#include <stdint.h>

#define LORA_EXPORT __attribute__((visibility("default")))

LORA_EXPORT int lora_add_round_bf16(const uint16_t *restrict weight, const float *restrict product, float scale,
                                    uint16_t *restrict out, size_t count, double *restrict sums);

LORA_EXPORT void lora_product(const float *left, ptrdiff_t left_row, ptrdiff_t left_rank, const float *panels,
                              size_t rank, size_t rows, size_t columns, float *out);

#endif
