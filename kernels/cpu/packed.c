/* packed.c - a frozen matrix in oneDNN's own layout, and products with it.
 *
 * One layout and one primitive per (k, columns of a block), made for one fixed
 * tile of rows: the number of rows never chooses the algorithm. Blocks of columns
 * are sized so that one stays in the second-level cache while row tiles pass.
 * Every primitive is made and run on a team of one.
 *
 * Inside a tile a row's bits must not depend on its place. oneDNN 2.6.3 does not
 * promise that: its AVX2 product sums two leftover rows of 32 in another order
 * than the other thirty. So the tile's height is the first of a list with which
 * a tile of equal rows gives equal rows, checked on the weights themselves when
 * they are packed. Heights that are multiples of 48 pass on the machines tried. */
#include <omp.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "cpu.h"

enum { BLOCK_BYTES = 640 * 1024, BLOCK_MIN = 64, LONG_K = 8192, CODE_BYTES = 16 << 20 };

/* The last cannot fail: one row has no place to depend on. */
static const int tile_heights[] = {48, 96, 64, 24, 16, 4, 1};

static int dnnl_err(dnnl_status_t s)
{
    if (s == dnnl_success)
        return 0;
    return s == dnnl_out_of_memory ? -ENOMEM : s == dnnl_invalid_arguments ? -EINVAL : -EIO;
}

/* oneDNN 2.6 dies of a NULL pointer when its code generator gets no memory (seen at a
 * limit of the address space): it is only asked while there is plenty. */
static dnnl_status_t room_for_code(void)
{
    void *p = mmap(NULL, CODE_BYTES, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (p == MAP_FAILED)
        return dnnl_out_of_memory;
    munmap(p, CODE_BYTES);
    return dnnl_success;
}

static dnnl_data_type_t data_type(enum kn_dtype t)
{
    return t == KN_BF16 ? dnnl_bf16 : dnnl_f32;
}

static int64_t block_columns(const struct cpu_packed *p, int b)
{
    return b < p->n_blocks - 1 ? p->block : p->n - p->block * (p->n_blocks - 1);
}

/* Bytes of a block, whole pages: the last one's only when asked. */
static size_t block_bytes(const struct cpu_packed *p, int last)
{
    return (dnnl_memory_desc_get_size(&p->md[last]) + 4095) / 4096 * 4096;
}

static void choose_blocks(struct cpu_packed *p, size_t elem)
{
    int64_t most = (int64_t)((size_t)BLOCK_BYTES / elem) / p->k / BLOCK_MIN * BLOCK_MIN;

    /* Very long rows outgrow the cache anyway: then wide blocks, so that the rows
     * of X are read once. */
    if (most < BLOCK_MIN)
        most = BLOCK_MIN;
    if (p->k > LONG_K)
        most = 512;
    p->n_blocks = (int)((p->n + most - 1) / most);
    p->block = p->n_blocks == 1 ? p->n
                                : ((p->n + p->n_blocks - 1) / p->n_blocks + BLOCK_MIN - 1) /
                                      BLOCK_MIN * BLOCK_MIN;
    p->n_blocks = (int)((p->n + p->block - 1) / p->block);
    p->ld_acc = (p->block + 15) / 16 * 16;
}

/* The primitive for a tile against `columns` columns of rows lda apart. */
static int make_desc(struct kn_ctx *ctx, const struct cpu_packed *p, int64_t columns, int64_t lda,
                     const dnnl_memory_desc_t *weights, dnnl_primitive_desc_t *ret)
{
    const dnnl_data_type_t t = data_type(ctx->compute);
    const dnnl_dims_t a_dims = {p->tile, p->k}, a_strides = {lda, 1};
    const dnnl_dims_t c_dims = {p->tile, columns}, c_strides = {p->ld_acc, 1};
    dnnl_memory_desc_t a, c;
    dnnl_matmul_desc_t matmul;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_status_t s;

    s = dnnl_memory_desc_init_by_strides(&a, 2, a_dims, t, a_strides);
    if (s == dnnl_success)
        s = dnnl_memory_desc_init_by_strides(&c, 2, c_dims, dnnl_f32, c_strides);
    if (s == dnnl_success)
        s = dnnl_matmul_desc_init(&matmul, &a, weights, NULL, &c);
    if (s == dnnl_success)
        s = dnnl_primitive_attr_create(&attr);
    if (s == dnnl_success)
        s = dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user);
    if (s == dnnl_success)
        s = dnnl_primitive_desc_create(ret, &matmul, attr, ctx->engine, NULL);
    if (attr)
        dnnl_primitive_attr_destroy(attr);
    return dnnl_err(s);
}

/* Which layout oneDNN wants for a block of this many columns. */
static int choose_layout(struct kn_ctx *ctx, struct cpu_packed *p, int64_t columns,
                         dnnl_memory_desc_t *ret)
{
    const dnnl_dims_t dims = {p->k, columns};
    dnnl_memory_desc_t any;
    dnnl_primitive_desc_t pd = NULL;
    int r;

    r = dnnl_err(
        dnnl_memory_desc_init_by_tag(&any, 2, dims, data_type(ctx->compute), dnnl_format_tag_any));
    if (r == 0)
        r = make_desc(ctx, p, columns, (p->k + KN_LD - 1) / KN_LD * KN_LD, &any, &pd);
    if (r)
        return r;
    *ret = *dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0);
    dnnl_primitive_desc_destroy(pd);
    return 0;
}

/* Block b of the plain matrix w into its packed memory. Transposed: w is (n, k). */
static int pack_block(struct kn_ctx *ctx, struct cpu_packed *p, int b, const void *w,
                      bool transposed, dnnl_stream_t stream)
{
    const int64_t columns = block_columns(p, b), first = p->block * b;
    const dnnl_dims_t dims = {p->k, columns};
    const dnnl_dims_t strides = {transposed ? 1 : p->n, transposed ? p->k : 1};
    const size_t elem = ctx->compute == KN_BF16 ? 2 : 4;
    const char *from = (const char *)w + (size_t)(transposed ? first * p->k : first) * elem;
    const dnnl_memory_desc_t *to = &p->md[b == p->n_blocks - 1];
    dnnl_memory_desc_t plain;
    dnnl_primitive_desc_t pd = NULL;
    dnnl_primitive_t reorder = NULL;
    dnnl_memory_t src = NULL;
    dnnl_status_t s;

    s = dnnl_memory_desc_init_by_strides(&plain, 2, dims, data_type(ctx->compute), strides);
    if (s == dnnl_success)
        s = dnnl_memory_create(&src, &plain, ctx->engine, (void *)(uintptr_t)from);
    if (s == dnnl_success)
        s = dnnl_memory_create(&p->weights[b], to, ctx->engine,
                               p->memory + (size_t)b * block_bytes(p, 0));
    if (s == dnnl_success)
        s = dnnl_reorder_primitive_desc_create(&pd, &plain, ctx->engine, to, ctx->engine, NULL);
    if (s == dnnl_success)
        s = room_for_code();
    if (s == dnnl_success)
        s = dnnl_primitive_create(&reorder, pd);
    if (s == dnnl_success) {
        const dnnl_exec_arg_t args[] = {{DNNL_ARG_FROM, src}, {DNNL_ARG_TO, p->weights[b]}};
        s = dnnl_primitive_execute(reorder, stream, 2, args);
    }
    if (s == dnnl_success)
        s = dnnl_stream_wait(stream);
    if (reorder)
        dnnl_primitive_destroy(reorder);
    if (pd)
        dnnl_primitive_desc_destroy(pd);
    if (src)
        dnnl_memory_destroy(src);
    return dnnl_err(s);
}

static int pack(struct kn_ctx *ctx, struct cpu_packed *p, const void *w, bool transposed)
{
    int r = 0;

#pragma omp parallel num_threads(ctx->threads)
    {
        omp_set_num_threads(1);
#pragma omp for schedule(dynamic)
        for (int b = 0; b < p->n_blocks; b++) {
            const int e = pack_block(ctx, p, b, w, transposed, ctx->streams[omp_get_thread_num()]);
            if (e) {
#pragma omp critical(cpu_packed)
                r = e;
            }
        }
    }
    return r;
}

static void key_close(struct kn_ctx *ctx, struct cpu_block_key *key)
{
    for (int i = 0; i < 2; i++) {
        if (key->primitive[i])
            dnnl_primitive_destroy(key->primitive[i]);
        for (int t = 0; t < ctx->threads; t++) {
            if (key->c[i] && key->c[i][t])
                dnnl_memory_destroy(key->c[i][t]);
            if (key->scratch[i] && key->scratch[i][t])
                dnnl_memory_destroy(key->scratch[i][t]);
        }
        free(key->c[i]);
        free(key->scratch[i]);
    }
    for (int t = 0; t < ctx->threads && key->a; t++) {
        if (key->a[t])
            dnnl_memory_destroy(key->a[t]);
    }
    free(key->a);
    memset(key, 0, sizeof *key);
}

void cpu_packed_close(struct kn_ctx *ctx, struct cpu_packed *p)
{
    for (int i = 0; i < p->n_keys; i++)
        key_close(ctx, &p->keys[i]);
    for (int b = 0; p->weights && b < p->n_blocks; b++) {
        if (p->weights[b])
            dnnl_memory_destroy(p->weights[b]);
    }
    free(p->keys);
    free(p->weights);
    free(p->memory);
    memset(p, 0, sizeof *p);
}

size_t cpu_packed_bytes(int64_t n, int64_t k, enum kn_dtype compute)
{
    const int64_t rounded = (n + 63) / 64 * 64, rows = (k + 15) / 16 * 16;
    const size_t bytes = (size_t)rounded * (size_t)rows * (compute == KN_BF16 ? 2 : 4);

    return bytes + (bytes / (BLOCK_BYTES / 2) + 1) * 4096; /* blocks begin on pages */
}

/* Primitive i (0: full block, 1: last) with every thread's memory objects. */
static int key_primitive(struct kn_ctx *ctx, const struct cpu_packed *p, struct cpu_block_key *key,
                         int i)
{
    const int64_t columns = block_columns(p, i ? p->n_blocks - 1 : 0);
    const dnnl_memory_desc_t *md;
    dnnl_primitive_desc_t pd = NULL;
    dnnl_status_t s;
    int r = make_desc(ctx, p, columns, key->lda, &p->md[i], &pd);

    if (r)
        return r;
    s = room_for_code();
    if (s == dnnl_success)
        s = dnnl_primitive_create(&key->primitive[i], pd);
    if (s == dnnl_success)
        s = dnnl_primitive_desc_query(pd, dnnl_query_impl_info_str, 0, &key->impl);
    for (int t = 0; t < ctx->threads && s == dnnl_success; t++) {
        md = dnnl_primitive_desc_query_md(pd, dnnl_query_dst_md, 0);
        s = dnnl_memory_create(&key->c[i][t], md, ctx->engine, DNNL_MEMORY_NONE);
        if (s != dnnl_success)
            break;
        md = dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
        s = dnnl_memory_create(&key->scratch[i][t], md, ctx->engine, DNNL_MEMORY_ALLOCATE);
        if (s != dnnl_success || key->a[t])
            continue;
        md = dnnl_primitive_desc_query_md(pd, dnnl_query_src_md, 0);
        s = dnnl_memory_create(&key->a[t], md, ctx->engine, DNNL_MEMORY_NONE);
    }
    dnnl_primitive_desc_destroy(pd);
    return dnnl_err(s);
}

static int make_key(struct kn_ctx *ctx, struct cpu_packed *p, int64_t lda,
                    struct cpu_block_key **ret)
{
    const size_t threads = (size_t)ctx->threads;
    struct cpu_block_key *keys, *key;
    int r = 0;

    keys = realloc(p->keys, ((size_t)p->n_keys + 1) * sizeof *keys);
    if (!keys)
        return -ENOMEM;
    p->keys = keys;
    key = &keys[p->n_keys];
    memset(key, 0, sizeof *key);
    key->lda = lda;
    key->a = calloc(threads, sizeof(*key->a));
    for (int i = 0; i < 2; i++) {
        key->c[i] = calloc(threads, sizeof(*key->c[i]));
        key->scratch[i] = calloc(threads, sizeof(*key->scratch[i]));
        if (!key->a || !key->c[i] || !key->scratch[i])
            r = -ENOMEM;
    }
#pragma omp parallel num_threads(1)
    {
        omp_set_num_threads(1);
        if (r == 0)
            r = key_primitive(ctx, p, key, 1);
        if (r == 0 && p->n_blocks > 1)
            r = key_primitive(ctx, p, key, 0);
    }
    if (r) {
        key_close(ctx, key);
        return r;
    }
    p->n_keys++;
    *ret = key;
    return 0;
}

int cpu_packed_run(struct kn_ctx *ctx, const struct cpu_packed *p, const struct cpu_block_key *key,
                   int t, int b, const void *a, float *acc)
{
    const int i = b == p->n_blocks - 1;
    const dnnl_exec_arg_t args[] = {
        {DNNL_ARG_SRC, key->a[t]},
        {DNNL_ARG_WEIGHTS, p->weights[b]},
        {DNNL_ARG_DST, key->c[i][t]},
        {DNNL_ARG_SCRATCHPAD, key->scratch[i][t]},
    };
    dnnl_status_t s = dnnl_memory_set_data_handle(key->a[t], (void *)(uintptr_t)a);

    if (s == dnnl_success)
        s = dnnl_memory_set_data_handle(key->c[i][t], acc);
    if (s == dnnl_success)
        s = dnnl_primitive_execute(key->primitive[i], ctx->streams[t], 4, args);
    return dnnl_err(s);
}

static float test_value(int64_t i)
{
    return (float)(((uint64_t)i * 2654435761u >> 8) % 2001) / 1000.0f - 1.0f;
}

/* A tile of equal rows, lda elements apart. */
static void fill_tile(const struct kn_ctx *ctx, const struct cpu_packed *p, int64_t lda, void *a)
{
    for (int64_t r = 0; r < p->tile; r++) {
        for (int64_t c = 0; c < p->k; c++) {
            if (ctx->compute == KN_BF16)
                ((bf16 *)a)[r * lda + c] = bf16_from_f32(test_value(c));
            else
                ((float *)a)[r * lda + c] = test_value(c);
        }
    }
}

/* Does block b give every row of `a` the bits of `want`, its first row's when that
 * is NULL? acc: a tile; its first row is what to want of another key. */
static bool rows_equal(struct kn_ctx *ctx, const struct cpu_packed *p,
                       const struct cpu_block_key *key, int b, const void *a, const float *want,
                       float *acc)
{
    const size_t bytes = (size_t)block_columns(p, b) * sizeof(float);

    if (cpu_packed_run(ctx, p, key, 0, b, a, acc))
        return false;
    for (int64_t r = 0; r < p->tile; r++) {
        if (memcmp(acc + r * p->ld_acc, want ? want : acc, bytes) != 0)
            return false;
    }
    return true;
}

/* 1: rows lda apart give every row the bits that rows of the packed matrix's own
 * distance give; 0: they do not. */
static int key_agrees(struct kn_ctx *ctx, struct cpu_packed *p, const struct cpu_block_key *key)
{
    const struct cpu_block_key *own = &p->keys[0];
    const size_t tile = (size_t)(p->tile * p->ld_acc), elem = ctx->compute == KN_BF16 ? 2 : 4;
    char *a = aligned_alloc(64, ((size_t)(p->tile * key->lda) * elem + 63) / 64 * 64);
    char *b = aligned_alloc(64, ((size_t)(p->tile * own->lda) * elem + 63) / 64 * 64);
    float *acc = aligned_alloc(64, 2 * tile * sizeof(float));
    int r = -ENOMEM;

    if (a && b && acc) {
        fill_tile(ctx, p, key->lda, a);
        fill_tile(ctx, p, own->lda, b);
        r = 1;
#pragma omp parallel num_threads(1)
        {
            omp_set_num_threads(1);
            for (int at = p->n_blocks - 1; at >= 0 && at >= p->n_blocks - 2; at--)
                r = r && rows_equal(ctx, p, own, at, b, NULL, acc) &&
                    rows_equal(ctx, p, key, at, a, acc, acc + tile);
        }
    }
    free(a);
    free(b);
    free(acc);
    return r;
}

int cpu_packed_key(struct kn_ctx *ctx, struct cpu_packed *p, int64_t lda,
                   struct cpu_block_key **ret)
{
    int r;

    for (int i = 0; i < p->n_keys; i++) {
        if (p->keys[i].lda == lda) {
            *ret = &p->keys[i];
            return 0;
        }
    }
    r = make_key(ctx, p, lda, ret);
    if (r)
        return r;
    r = strcmp((*ret)->impl, p->keys[0].impl) == 0 ? key_agrees(ctx, p, *ret) : 0;
    if (r < 0)
        return r;
    (*ret)->copy = r == 0;
    return 0;
}

int cpu_packed_open(struct kn_ctx *ctx, struct cpu_packed *p, const void *w, int64_t n, int64_t k,
                    bool transposed)
{
    struct cpu_block_key *key;
    int r = 0;

    for (size_t i = 0; i < sizeof tile_heights / sizeof tile_heights[0]; i++) {
        memset(p, 0, sizeof *p);
        p->n = n;
        p->k = k;
        p->tile = tile_heights[i];
        choose_blocks(p, ctx->compute == KN_BF16 ? 2 : 4);
        p->weights = calloc((size_t)p->n_blocks, sizeof(*p->weights));
        if (!p->weights)
            return -ENOMEM;
#pragma omp parallel num_threads(1)
        {
            omp_set_num_threads(1);
            r = choose_layout(ctx, p, block_columns(p, p->n_blocks - 1), &p->md[1]);
            if (r == 0)
                r = choose_layout(ctx, p, p->block, &p->md[0]);
        }
        if (r == 0) {
            p->memory =
                cpu_pages((size_t)(p->n_blocks - 1) * block_bytes(p, 0) + block_bytes(p, 1));
            r = p->memory ? pack(ctx, p, w, transposed) : -ENOMEM;
        }
        if (r == 0)
            r = make_key(ctx, p, (k + KN_LD - 1) / KN_LD * KN_LD, &key);
        if (r == 0)
            r = key_agrees(ctx, p, key);
        if (r != 0)
            break;
        cpu_packed_close(ctx, p);
    }
    return r < 0 ? r : 0;
}
