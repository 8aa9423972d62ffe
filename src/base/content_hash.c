/* content_hash.c -- see content_hash.h. The struct is xxHash's own state, which has to be aligned as it says. */
#include "content_hash.h"

#include <string.h>
#include <xxhash.h>

static XXH3_state_t *state(struct content_hash *h)
{
    return (XXH3_state_t *)h;
}

struct content_hash *content_hash_new(void)
{
    struct content_hash *h = (struct content_hash *)XXH3_createState();
    if (h != NULL)
        content_hash_restart(h);
    return h;
}

void content_hash_restart(struct content_hash *h)
{
    XXH3_128bits_reset(state(h));
}

void content_hash_add(struct content_hash *h, const void *bytes, size_t size)
{
    XXH3_128bits_update(state(h), bytes, size);
}

void content_hash_get(const struct content_hash *h, uint8_t ret[CONTENT_HASH_SIZE])
{
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest((const XXH3_state_t *)h));
    memcpy(ret, canonical.digest, CONTENT_HASH_SIZE);
}

void content_hash_free(struct content_hash *h)
{
    XXH3_freeState(state(h));
}
