/* sha256.h - SHA-256 (FIPS 180-4): names for content, never a secret's guard. */
#ifndef PROTO_SHA256_H
#define PROTO_SHA256_H

#include <stddef.h>
#include <stdint.h>

enum { SHA256_BYTES = 32, SHA256_HEX = 65 };

struct sha256 {
    uint32_t h[8];
    uint64_t bytes;    /* taken so far                                           */
    uint8_t block[64]; /* the last bytes % 64 of them                             */
};

void sha256_init(struct sha256 *s);
void sha256_add(struct sha256 *s, const void *data, size_t bytes);
void sha256_end(struct sha256 *s, uint8_t ret[SHA256_BYTES]); /* s is spent */

/* All at once. */
void sha256_of(const void *data, size_t bytes, uint8_t ret[SHA256_BYTES]);
void sha256_hex(const uint8_t digest[SHA256_BYTES], char ret[SHA256_HEX]);

#endif
