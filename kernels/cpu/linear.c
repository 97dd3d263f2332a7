/* linear.c - base plus adapters: tiles of rows against blocks of columns.
 *
 * Forward, on one team of threads: first S = drop(x) A^T for all rows, then for
 * each (block, tile) the base product into a scratch tile, the adapters' share
 * added to it, and bias, residual and rounding on the way out. Backward the same
 * with dS = scale dy B and dx; then da and db, whose elements each belong to one
 * thread and add up their rows in order, CHUNK rows at a time. */
#include <omp.h>
#include <stdlib.h>

#include "cpu.h"

enum {
    CHUNK = 256,  /* rows of one partial sum of da and db: part of what the bits are */
    STRIPE = 128, /* columns of da or db one item does */
};

/* One adapter on one part over one segment's rows. */
struct lora_item {
    const struct kn_lora *l;
    int part;
    int64_t row0, rows;
    int64_t s0;      /* first column of s */
    int64_t n0, n;   /* columns of the part */
    const float *at; /* forward: (K, group) A^T of this and the next parts; or NULL */
    int64_t group;   /* forward: columns of s that `at` gives */
    const float *bt; /* forward: (r, n) B^T */
};

/* The call in both directions: X (rows, k) times a packed matrix, plus adapters. */
struct linear {
    struct kn_ctx *ctx;
    const struct kn_weight *w;
    struct cpu_packed *packed;
    bool base; /* off: only the size of packed's tiles is used */
    struct cpu_block_key *key;
    const struct kn_mat *x; /* multiplied with the base: x or dy */
    const char *last;       /* the last tile's rows, padded with zeros, or NULL */
    struct lora_item *items;
    int n_items;
    const struct kn_dropout *drop; /* NULL: none */
};

static size_t elem_size(enum kn_dtype t)
{
    return t == KN_BF16 ? 2 : 4;
}

static const char *at_row(const struct kn_mat *m, int64_t r, int64_t c)
{
    return (const char *)m->p + (size_t)(r * m->ld + c) * elem_size(m->dtype);
}

static int64_t n_tiles(const struct linear *l)
{
    return (l->x->rows + l->packed->tile - 1) / l->packed->tile;
}

/* How many items there are, and their layout when items is given. */
static int list_items(const struct kn_weight *w, const struct kn_lora_seg *segs, int n_segs,
                      struct lora_item *items)
{
    int64_t first[KN_PARTS_MAX + 1];
    int n = 0;

    kn_lora_columns(segs, n_segs, w->n_parts, first);
    for (int i = 0; i < n_segs; i++) {
        int64_t n0 = 0;
        for (int j = 0; j < w->n_parts; j++) {
            const struct kn_lora *l = &segs[i].parts[j];
            if (l->r > 0 && segs[i].rows > 0) {
                if (items)
                    items[n] = (struct lora_item){.l = l,
                                                  .part = j,
                                                  .row0 = segs[i].row0,
                                                  .rows = segs[i].rows,
                                                  .s0 = first[j],
                                                  .n0 = n0,
                                                  .n = w->part_n[j]};
                n++;
            }
            n0 += w->part_n[j];
        }
    }
    return n;
}

/* t (cols, ldt) = x (rows, cols) transposed. */
static void transpose(const float *x, int64_t rows, int64_t cols, float *t, int64_t ldt)
{
    for (int64_t c0 = 0; c0 < cols; c0 += 16) {
        const int64_t c1 = c0 + 16 < cols ? c0 + 16 : cols;
        for (int64_t r = 0; r < rows; r++) {
            for (int64_t c = c0; c < c1; c++)
                t[c * ldt + r] = x[r * cols + c];
        }
    }
}

/* Rows [lo, hi) of `cols` columns of m from column c0 as float, dropped for the
 * adapter's input when drop is given: where they lie, or copied into `copy`. */
static const float *rows_as_float(const struct linear *l, const struct kn_mat *m, int64_t lo,
                                  int64_t hi, int64_t c0, int64_t cols,
                                  const struct kn_dropout *drop, int part, float *copy,
                                  int64_t *ret_ld)
{
    if (m->dtype == KN_F32 && !drop) {
        *ret_ld = m->ld;
        return (const float *)(const void *)at_row(m, lo, c0);
    }
    *ret_ld = (cols + 15) / 16 * 16;
    l->ctx->vec->widen(&(struct cpu_widen){.rows = hi - lo,
                                           .cols = cols,
                                           .row0 = lo,
                                           .col0 = c0,
                                           .src = at_row(m, lo, c0),
                                           .ld_src = m->ld,
                                           .dtype = m->dtype,
                                           .dst = copy,
                                           .ld_dst = *ret_ld,
                                           .drop = drop,
                                           .part = part});
    return copy;
}

/* The rows item i and tile t share; false when none. */
static bool shared_rows(const struct linear *l, const struct lora_item *i, int64_t tile,
                        int64_t *ret_lo, int64_t *ret_hi)
{
    const int64_t first = tile * l->packed->tile, rows = l->x->rows;
    const int64_t end = first + l->packed->tile < rows ? first + l->packed->tile : rows;

    *ret_lo = i->row0 > first ? i->row0 : first;
    *ret_hi = i->row0 + i->rows < end ? i->row0 + i->rows : end;
    return *ret_lo < *ret_hi;
}

/* The base product of (tile, block) by thread t. room: a tile of x's rows. */
static int base_tile(const struct linear *l, int t, int block, int64_t tile, float *acc, void *room)
{
    const struct cpu_packed *p = l->packed;
    const bool is_last = l->last && tile == n_tiles(l) - 1;
    const char *a = is_last ? l->last : at_row(l->x, tile * p->tile, 0);
    const size_t size = elem_size(l->x->dtype);

    if (!l->key->copy)
        return cpu_packed_run(l->ctx, p, l->key, t, block, a, acc);
    for (int64_t r = 0; r < p->tile; r++)
        memcpy((char *)room + (size_t)(r * p->keys[0].lda) * size,
               a + (size_t)(r * l->x->ld) * size, (size_t)p->k * size);
    return cpu_packed_run(l->ctx, p, &p->keys[0], t, block, room, acc);
}

/* Key, padded copy of the last rows, and scratch of `per_thread` bytes beside a
 * tile for each thread and `shared` floats for all. */
static int linear_begin(struct linear *l, size_t per_thread, size_t shared, float **ret_shared)
{
    const struct cpu_packed *p = l->packed;
    const int64_t rest = l->base ? l->x->rows % p->tile : 0;
    const size_t pad = rest ? (size_t)(p->tile * l->x->ld) * elem_size(l->x->dtype) : 0;
    char *base;
    int r = l->base ? cpu_packed_key(l->ctx, l->packed, l->x->ld, &l->key) : 0;

    if (r == 0)
        r = cpu_scratch(l->ctx, per_thread + (size_t)(p->tile * p->ld_acc) * sizeof(float),
                        (shared + 64) * sizeof(float) + pad);
    if (r)
        return r;
    base = cpu_shared(l->ctx);
    l->last = rest ? base : NULL;
    if (rest) {
        const size_t row = (size_t)l->x->ld * elem_size(l->x->dtype);
        const size_t used = (size_t)l->x->cols * elem_size(l->x->dtype);
        for (int64_t i = 0; i < rest; i++)
            memcpy(base + (size_t)i * row, at_row(l->x, l->x->rows - rest + i, 0), used);
        for (int64_t i = rest; i < p->tile; i++)
            memset(base + (size_t)i * row, 0, used);
    }
    *ret_shared = (float *)(void *)(base + (pad + 63) / 64 * 64);
    return 0;
}

/* ---- forward ---- */

/* S of the rows of one tile, one item. */
static void fwd_s(const struct linear *l, const struct kn_linear_fwd *a, const struct lora_item *i,
                  int64_t lo, int64_t hi, float *copy)
{
    int64_t ld;
    const float *x = rows_as_float(l, &a->x, lo, hi, 0, l->w->k, l->drop, i->part, copy, &ld);

    l->ctx->vec->mm(&(struct cpu_mm){.rows = hi - lo,
                                     .cols = i->group,
                                     .depth = l->w->k,
                                     .a = x,
                                     .a_row = ld,
                                     .a_depth = 1,
                                     .b = i->at,
                                     .ldb = i->group,
                                     .c = a->s + lo * a->s_cols + i->s0,
                                     .ldc = a->s_cols});
}

/* acc += scale S B^T for the columns item i and the block share. */
static void fwd_adapters(const struct linear *l, const struct kn_linear_fwd *a, int block,
                         int64_t tile, float *acc)
{
    const struct cpu_packed *p = l->packed;
    const int64_t c0 = block * p->block, c1 = c0 + p->block < p->n ? c0 + p->block : p->n;
    int64_t lo, hi;

    for (int n = 0; n < l->n_items; n++) {
        const struct lora_item *i = &l->items[n];
        const int64_t from = i->n0 > c0 ? i->n0 : c0, to = i->n0 + i->n < c1 ? i->n0 + i->n : c1;
        if (from >= to || !shared_rows(l, i, tile, &lo, &hi))
            continue;
        l->ctx->vec->mm(&(struct cpu_mm){.rows = hi - lo,
                                         .cols = to - from,
                                         .depth = i->l->r,
                                         .a = a->s + lo * a->s_cols + i->s0,
                                         .a_row = a->s_cols,
                                         .a_depth = 1,
                                         .b = i->bt + (from - i->n0),
                                         .ldb = i->n,
                                         .c = acc + (lo - tile * p->tile) * p->ld_acc + (from - c0),
                                         .ldc = p->ld_acc,
                                         .add = true,
                                         .alpha = i->l->scale});
    }
}

static int fwd_tile(const struct linear *l, const struct kn_linear_fwd *a, int t, int block,
                    int64_t tile)
{
    const struct cpu_packed *p = l->packed;
    const int64_t r0 = tile * p->tile, c0 = block * p->block;
    const int64_t rows = a->x.rows - r0 < p->tile ? a->x.rows - r0 : p->tile;
    float *acc = l->ctx->scratch[t];
    int r = base_tile(l, t, block, tile, acc, acc + p->tile * p->ld_acc);

    if (r)
        return r;
    fwd_adapters(l, a, block, tile, acc);
    l->ctx->vec->tile(&(struct cpu_tile){
        .rows = rows,
        .cols = p->n - c0 < p->block ? p->n - c0 : p->block,
        .acc = acc,
        .ld_acc = p->ld_acc,
        .bias = a->bias ? a->bias + c0 : NULL,
        .other = a->residual ? at_row(a->residual, r0, c0) : NULL,
        .ld_other = a->residual ? a->residual->ld : 0,
        .out = (void *)(uintptr_t)at_row(&a->y, r0, c0),
        .ld_out = a->y.ld,
        .dtype = a->y.dtype,
    });
    return 0;
}

/* How many items from n on read the same rows of x: the parts of a segment, unless
 * each has a dropout mask of its own. */
static int group_items(const struct linear *l, int n)
{
    int end = n + 1;

    while (!l->drop && end < l->n_items && l->items[end].row0 == l->items[n].row0)
        end++;
    return end - n;
}

/* A^T of every group side by side, then each B^T. Returns the floats that takes;
 * room NULL: only counts. Columns no part of a group fills are 0. */
static size_t fwd_transposed(const struct linear *l, float *room)
{
    const int64_t k = l->w->k;
    size_t used = 0;

    for (int n = 0; n < l->n_items;) {
        struct lora_item *first = &l->items[n];
        const int count = group_items(l, n);
        const struct lora_item *last = &l->items[n + count - 1];
        first->group = last->s0 + last->l->r - first->s0;
        if (room) {
            first->at = memset(room + used, 0, (size_t)(first->group * k) * sizeof(float));
            for (int i = n; i < n + count; i++)
                transpose(l->items[i].l->a, l->items[i].l->r, k,
                          room + used + l->items[i].s0 - first->s0, first->group);
        }
        used += (size_t)(first->group * k);
        n += count;
    }
    for (int n = 0; n < l->n_items; n++) {
        struct lora_item *i = &l->items[n];
        if (room) {
            transpose(i->l->b, i->n, i->l->r, room + used, i->n);
            i->bt = room + used;
        }
        used += (size_t)(i->l->r * i->n);
    }
    return used;
}

static int fwd_run(const struct linear *l, const struct kn_linear_fwd *a, int t)
{
    const int64_t tiles = n_tiles(l), work = tiles * l->packed->n_blocks;
    float *copy = (float *)l->ctx->scratch[t] + l->packed->tile * l->packed->ld_acc;
    int64_t lo, hi;
    int r = 0;

#pragma omp for schedule(static)
    for (int64_t tile = 0; tile < (a->n_segs > 0 ? tiles : 0); tile++) {
        const int64_t r0 = tile * l->packed->tile;
        const int64_t rows = a->x.rows - r0 < l->packed->tile ? a->x.rows - r0 : l->packed->tile;
        if (a->n_segs > 0 && a->s_cols > 0)
            memset(a->s + r0 * a->s_cols, 0, (size_t)(rows * a->s_cols) * sizeof(float));
        for (int n = 0; n < l->n_items; n++) {
            if (l->items[n].at && shared_rows(l, &l->items[n], tile, &lo, &hi))
                fwd_s(l, a, &l->items[n], lo, hi, copy);
        }
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < work; i++) {
        if (r == 0)
            r = fwd_tile(l, a, t, (int)(i / tiles), i % tiles);
    }
    return r;
}

int cpu_linear_fwd(struct kn_ctx *ctx, const struct kn_linear_fwd *a)
{
    struct kn_weight *w = (struct kn_weight *)(uintptr_t)a->w;
    struct linear l = {.ctx = ctx, .w = w, .packed = &w->forward, .base = true, .x = &a->x};
    const size_t copy =
        (size_t)(w->forward.tile * ((w->k + KN_LD - 1) / KN_LD * KN_LD)) * sizeof(float);
    float *room;
    int r = kn_check_linear_fwd(a, w->n, w->k, w->n_parts, ctx->compute);

    if (r)
        return r < 0 ? r : 0;
    l.drop = a->n_segs > 0 && a->dropout.p > 0.0f ? &a->dropout : NULL;
    l.n_items = list_items(w, a->segs, a->n_segs, NULL);
    if (l.n_items) {
        l.items = malloc((size_t)l.n_items * sizeof *l.items);
        if (!l.items)
            return -ENOMEM;
        list_items(w, a->segs, a->n_segs, l.items);
    }
    r = linear_begin(&l, copy, fwd_transposed(&l, NULL), &room);
    if (r == 0) {
        fwd_transposed(&l, room);
#pragma omp parallel num_threads(cpu_team(ctx, l.x->rows * w->n * w->k))
        {
            int e;
            omp_set_num_threads(1);
            e = fwd_run(&l, a, omp_get_thread_num());
            if (e) {
#pragma omp critical(cpu_linear)
                r = e;
            }
        }
    }
    free(l.items);
    return r;
}

/* ---- backward ---- */

/* dS = scale dy B of the rows of one tile, one item. */
static void bwd_s(const struct linear *l, const struct kn_linear_bwd *a, const struct lora_item *i,
                  int64_t lo, int64_t hi, float *copy)
{
    const int r = i->l->r;
    int64_t ld;
    const float *dy = rows_as_float(l, &a->dy, lo, hi, i->n0, i->n, NULL, 0, copy, &ld);

    l->ctx->vec->mm(&(struct cpu_mm){.rows = hi - lo,
                                     .cols = r,
                                     .depth = i->n,
                                     .a = dy,
                                     .a_row = ld,
                                     .a_depth = 1,
                                     .b = i->l->b,
                                     .ldb = r,
                                     .c = a->ds + lo * a->s_cols + i->s0,
                                     .ldc = a->s_cols});
    for (int64_t m = lo; m < hi; m++) {
        for (int j = 0; j < r; j++)
            a->ds[m * a->s_cols + i->s0 + j] *= i->l->scale;
    }
}

/* acc += dS A, masked as the forward, for the columns of the block. */
static void bwd_adapters(const struct linear *l, const struct kn_linear_bwd *a, int block,
                         int64_t tile, float *acc, float *copy)
{
    const struct cpu_packed *p = l->packed;
    const int64_t c0 = block * p->block, cols = p->n - c0 < p->block ? p->n - c0 : p->block;
    int64_t lo, hi;

    for (int n = 0; n < l->n_items; n++) {
        const struct lora_item *i = &l->items[n];
        struct cpu_mm mm = {.cols = cols, .depth = i->l->r, .a_row = a->s_cols, .a_depth = 1};
        float *to;
        if (!shared_rows(l, i, tile, &lo, &hi))
            continue;
        to = acc + (lo - tile * p->tile) * p->ld_acc;
        mm.rows = hi - lo;
        mm.a = a->ds + lo * a->s_cols + i->s0;
        mm.b = i->l->a + c0;
        mm.ldb = l->w->k;
        mm.c = l->drop ? copy : to;
        mm.ldc = p->ld_acc;
        mm.add = !l->drop;
        mm.alpha = 1.0f;
        l->ctx->vec->mm(&mm);
        if (!l->drop)
            continue;
        l->ctx->vec->widen(&(struct cpu_widen){.rows = hi - lo,
                                               .cols = cols,
                                               .row0 = lo,
                                               .col0 = c0,
                                               .dst = copy,
                                               .ld_dst = p->ld_acc,
                                               .drop = l->drop,
                                               .part = i->part,
                                               .multiply = true});
        l->ctx->vec->tile(&(struct cpu_tile){.rows = hi - lo,
                                             .cols = cols,
                                             .acc = copy,
                                             .ld_acc = p->ld_acc,
                                             .other = to,
                                             .ld_other = p->ld_acc,
                                             .out = to,
                                             .ld_out = p->ld_acc,
                                             .dtype = KN_F32});
    }
}

static int bwd_tile(const struct linear *l, const struct kn_linear_bwd *a, int t, int block,
                    int64_t tile)
{
    const struct cpu_packed *p = l->packed;
    const int64_t r0 = tile * p->tile, c0 = block * p->block;
    float *acc = l->ctx->scratch[t], *copy = acc + p->tile * p->ld_acc;
    int r = base_tile(l, t, block, tile, acc, copy);

    if (r)
        return r;
    bwd_adapters(l, a, block, tile, acc, copy);
    l->ctx->vec->tile(&(struct cpu_tile){
        .rows = a->dy.rows - r0 < p->tile ? a->dy.rows - r0 : p->tile,
        .cols = p->n - c0 < p->block ? p->n - c0 : p->block,
        .acc = acc,
        .ld_acc = p->ld_acc,
        .other = a->add_dx ? at_row(&a->dx, r0, c0) : NULL,
        .ld_other = a->dx.ld,
        .out = (void *)(uintptr_t)at_row(&a->dx, r0, c0),
        .ld_out = a->dx.ld,
        .dtype = a->dx.dtype,
    });
    return 0;
}

/* Columns [c0, c0 + cols) of da: da += dS^T drop(x). */
static void bwd_da(const struct linear *l, const struct kn_linear_bwd *a, const struct lora_item *i,
                   int64_t c0, float *copy)
{
    const int64_t k = l->w->k, cols = k - c0 < STRIPE ? k - c0 : STRIPE;

    for (int64_t lo = i->row0; lo < i->row0 + i->rows; lo += CHUNK) {
        const int64_t end = i->row0 + i->rows, hi = lo + CHUNK < end ? lo + CHUNK : end;
        int64_t ld;
        const float *x = rows_as_float(l, &a->x, lo, hi, c0, cols, l->drop, i->part, copy, &ld);
        l->ctx->vec->mm(&(struct cpu_mm){.rows = i->l->r,
                                         .cols = cols,
                                         .depth = hi - lo,
                                         .a = a->ds + lo * a->s_cols + i->s0,
                                         .a_row = 1,
                                         .a_depth = a->s_cols,
                                         .b = x,
                                         .ldb = ld,
                                         .c = i->l->da + c0,
                                         .ldc = k,
                                         .add = true,
                                         .alpha = 1.0f});
    }
}

/* Rows [n0, n0 + n) of db: db += scale dy^T s. */
static void bwd_db(const struct linear *l, const struct kn_linear_bwd *a, const struct lora_item *i,
                   int64_t n0, float *copy)
{
    const int64_t n = i->n - n0 < STRIPE ? i->n - n0 : STRIPE;

    for (int64_t lo = i->row0; lo < i->row0 + i->rows; lo += CHUNK) {
        const int64_t end = i->row0 + i->rows, hi = lo + CHUNK < end ? lo + CHUNK : end;
        int64_t ld;
        const float *dy = rows_as_float(l, &a->dy, lo, hi, i->n0 + n0, n, NULL, 0, copy, &ld);
        l->ctx->vec->mm(&(struct cpu_mm){.rows = n,
                                         .cols = i->l->r,
                                         .depth = hi - lo,
                                         .a = dy,
                                         .a_row = 1,
                                         .a_depth = ld,
                                         .b = a->s + lo * a->s_cols + i->s0,
                                         .ldb = a->s_cols,
                                         .c = i->l->db + n0 * i->l->r,
                                         .ldc = i->l->r,
                                         .add = true,
                                         .alpha = i->l->scale});
    }
}

/* Every stripe of da and db belongs to one thread, and a stripe's segments, which
 * may share one adapter, follow each other there: nobody else adds to it. */
static void bwd_grads(const struct linear *l, const struct kn_linear_bwd *a, float *copy)
{
    const int64_t k_stripes = (l->w->k + STRIPE - 1) / STRIPE;
    int64_t n_stripes = 0;

    for (int n = 0; n < l->n_items; n++) {
        const int64_t stripes = (l->items[n].n + STRIPE - 1) / STRIPE;
        n_stripes = stripes > n_stripes ? stripes : n_stripes;
    }
#pragma omp for schedule(dynamic)
    for (int64_t w = 0; w < (k_stripes + n_stripes) * l->w->n_parts; w++) {
        const int part = (int)(w % l->w->n_parts);
        const int64_t stripe = w / l->w->n_parts;
        for (int n = 0; n < l->n_items; n++) {
            const struct lora_item *i = &l->items[n];
            if (i->part != part)
                continue;
            if (stripe < k_stripes && i->l->da)
                bwd_da(l, a, i, stripe * STRIPE, copy);
            if (stripe >= k_stripes && i->l->db && (stripe - k_stripes) * STRIPE < i->n)
                bwd_db(l, a, i, (stripe - k_stripes) * STRIPE, copy);
        }
    }
}

static int bwd_run(const struct linear *l, const struct kn_linear_bwd *a, int t)
{
    const int64_t tiles = n_tiles(l), work = tiles * l->packed->n_blocks;
    float *copy = l->ctx->scratch[t];
    int64_t lo, hi;
    int r = 0;

#pragma omp for schedule(static)
    for (int64_t tile = 0; tile < tiles; tile++) {
        for (int n = 0; n < l->n_items; n++) {
            if (shared_rows(l, &l->items[n], tile, &lo, &hi))
                bwd_s(l, a, &l->items[n], lo, hi, copy);
        }
    }
    if (a->dx.p) {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < work; i++) {
            if (r == 0)
                r = bwd_tile(l, a, t, (int)(i / tiles), i % tiles);
        }
    }
    bwd_grads(l, a, copy);
    return r;
}

/* The longest copy a thread makes: rows of dy, a tile beside the accumulator, a
 * stripe of a chunk. */
static size_t bwd_copy(const struct kn_weight *w, const struct cpu_packed *p)
{
    const int64_t tile = p->tile * ((w->n + KN_LD - 1) / KN_LD * KN_LD), chunk = CHUNK * STRIPE;
    int64_t n = p->tile * p->ld_acc;

    n = tile > n ? tile : n;
    return (size_t)(chunk > n ? chunk : n) * sizeof(float);
}

int cpu_linear_bwd(struct kn_ctx *ctx, const struct kn_linear_bwd *a)
{
    struct kn_weight *w = (struct kn_weight *)(uintptr_t)a->w;
    struct linear l = {.ctx = ctx, .w = w, .packed = &w->backward, .x = &a->dy};
    float *room;
    int r = kn_check_linear_bwd(a, w->n, w->k, w->n_parts, ctx->compute, w->no_backward);

    if (r)
        return r < 0 ? r : 0;
    l.base = a->dx.p != NULL;
    if (w->no_backward)
        l.packed = &w->forward;
    l.drop = a->n_segs > 0 && a->dropout.p > 0.0f ? &a->dropout : NULL;
    l.n_items = list_items(w, a->segs, a->n_segs, NULL);
    if (l.n_items) {
        l.items = malloc((size_t)l.n_items * sizeof *l.items);
        if (!l.items)
            return -ENOMEM;
        list_items(w, a->segs, a->n_segs, l.items);
    }
    r = linear_begin(&l, bwd_copy(w, l.packed), 0, &room);
    if (r == 0) {
#pragma omp parallel num_threads(cpu_team(ctx, l.x->rows * w->n * w->k))
        {
            int e;
            omp_set_num_threads(1);
            e = bwd_run(&l, a, omp_get_thread_num());
            if (e) {
#pragma omp critical(cpu_linear)
                r = e;
            }
        }
    }
    free(l.items);
    return r;
}
