/* make_model.c - a Llama-shaped model folder with random weights, as large as life, in
 * seconds: bfloat16 shards of normal values N(0, 0.02), one file per layer.
 *
 *   gpu_model DIR hidden layers heads kv_heads head_dim intermediate vocab window */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/dtype.h"
#include "worker/rng.h"

enum { POOL = 1 << 24, TENSORS = 9, THREADS_MAX = 16, HEADER = 4096 };

struct shape {
    long hidden, layers, heads, kv_heads, head_dim, intermediate, vocab, window;
};

struct tensor {
    char name[96];
    long rows, cols; /* rows 0: a vector of ones                                     */
};

struct making {
    struct shape s;
    const char *dir;
    bf16 *pool, one[1 << 14];
    atomic_int next, failed;
};

static int shards(const struct shape *s)
{
    return (int)s->layers + 1; /* the last one: embedding, head, norm */
}

static void shard_name(const struct shape *s, int i, char *buf, size_t size)
{
    snprintf(buf, size, "model-%05d-of-%05d.safetensors", i + 1, shards(s));
}

static int tensors_of(const struct shape *s, int i, struct tensor *t)
{
    const long q = s->heads * s->head_dim, kv = s->kv_heads * s->head_dim;
    const struct {
        const char *name;
        long rows, cols;
    } layer[] = {
        {"input_layernorm", 0, s->hidden},
        {"post_attention_layernorm", 0, s->hidden},
        {"self_attn.q_proj", q, s->hidden},
        {"self_attn.k_proj", kv, s->hidden},
        {"self_attn.v_proj", kv, s->hidden},
        {"self_attn.o_proj", s->hidden, q},
        {"mlp.gate_proj", s->intermediate, s->hidden},
        {"mlp.up_proj", s->intermediate, s->hidden},
        {"mlp.down_proj", s->hidden, s->intermediate},
    };

    if (i < s->layers) {
        for (int k = 0; k < TENSORS; k++) {
            t[k] = (struct tensor){.rows = layer[k].rows, .cols = layer[k].cols};
            snprintf(t[k].name, sizeof t[k].name, "model.layers.%d.%s.weight", i, layer[k].name);
        }
        return TENSORS;
    }
    t[0] = (struct tensor){"model.embed_tokens.weight", s->vocab, s->hidden};
    t[1] = (struct tensor){"lm_head.weight", s->vocab, s->hidden};
    t[2] = (struct tensor){"model.norm.weight", 0, s->hidden};
    return 3;
}

static size_t elements(const struct tensor *t)
{
    return (size_t)(t->rows > 0 ? t->rows : 1) * (size_t)t->cols;
}

/* Sums of four uniform numbers: nearly normal, and quick. */
static void fill_pool(bf16 *pool)
{
    for (uint64_t i = 0; i < POOL; i += 2) {
        const struct kn_philox b = rng_philox(20, i, 0);
        for (int k = 0; k < 2; k++) {
            const uint32_t x = b.v[2 * k], y = b.v[2 * k + 1];
            const double sum = (double)(x & 0xffff) + (x >> 16) + (y & 0xffff) + (y >> 16);
            pool[i + (uint64_t)k] =
                bf16_from_f32((float)((sum / 65536.0 - 2.0) * 1.7320508 * 0.02));
        }
    }
}

static int put(int fd, const void *p, size_t n)
{
    for (size_t at = 0; at < n;) {
        const ssize_t k = write(fd, (const char *)p + at, n - at);
        if (k < 0 && errno != EINTR)
            return -errno;
        at += k > 0 ? (size_t)k : 0;
    }
    return 0;
}

/* Data from the pool, each tensor beginning elsewhere in it. */
static int put_tensor(struct making *m, int fd, const struct tensor *t, uint64_t key)
{
    size_t left = elements(t), at = rng_philox(21, key, 0).v[0] % POOL;
    int r = 0;

    if (t->rows == 0) {
        for (; r == 0 && left > 0; left -= left < 1 << 14 ? left : 1 << 14)
            r = put(fd, m->one, (left < 1 << 14 ? left : 1 << 14) * sizeof(bf16));
        return r;
    }
    while (r == 0 && left > 0) {
        const size_t n = POOL - at < left ? POOL - at : left;
        r = put(fd, m->pool + at, n * sizeof(bf16));
        left -= n;
        at = 0;
    }
    return r;
}

static int write_shard(struct making *m, int i)
{
    struct tensor t[TENSORS];
    const int n = tensors_of(&m->s, i, t);
    char path[4096], name[64], header[HEADER];
    uint64_t at = 0, bytes = HEADER - 8;
    int used = snprintf(header + 8, HEADER - 8, "{\"__metadata__\": {\"format\": \"pt\"}");
    int r = 0;

    for (int k = 0; k < n; k++) {
        char dims[64];
        if (t[k].rows > 0)
            snprintf(dims, sizeof dims, "%ld, %ld", t[k].rows, t[k].cols);
        else
            snprintf(dims, sizeof dims, "%ld", t[k].cols);
        used += snprintf(header + 8 + used, (size_t)(HEADER - 8 - used),
                         ", \"%s\": {\"dtype\": \"BF16\", \"shape\": [%s], "
                         "\"data_offsets\": [%llu, %llu]}",
                         t[k].name, dims, (unsigned long long)at,
                         (unsigned long long)(at + 2 * elements(&t[k])));
        at += 2 * elements(&t[k]);
    }
    header[8 + used++] = '}';
    memset(header + 8 + used, ' ', (size_t)(HEADER - 8 - used));
    memcpy(header, &bytes, sizeof bytes); /* little-endian, as every machine this runs on */
    shard_name(&m->s, i, name, sizeof name);
    snprintf(path, sizeof path, "%s/%s", m->dir, name);
    const int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0)
        return -errno;
    r = put(fd, header, HEADER);
    for (int k = 0; r == 0 && k < n; k++)
        r = put_tensor(m, fd, &t[k], (uint64_t)i * TENSORS + (uint64_t)k);
    if (close(fd) < 0 && r == 0)
        r = -errno;
    return r;
}

static void *work(void *arg)
{
    struct making *m = arg;
    int i;

    while ((i = atomic_fetch_add(&m->next, 1)) < shards(&m->s) && !atomic_load(&m->failed)) {
        const int r = write_shard(m, i);
        if (r < 0)
            atomic_store(&m->failed, -r);
    }
    return NULL;
}

static int write_index(const struct making *m)
{
    char path[4096], name[64];
    bool first = true;

    snprintf(path, sizeof path, "%s/model.safetensors.index.json", m->dir);
    FILE *f = fopen(path, "we");
    if (!f)
        return -errno;
    fputs("{\"metadata\": {}, \"weight_map\": {", f);
    for (int i = 0; i < shards(&m->s); i++) {
        struct tensor t[TENSORS];
        const int n = tensors_of(&m->s, i, t);
        shard_name(&m->s, i, name, sizeof name);
        for (int k = 0; k < n; k++, first = false)
            fprintf(f, "%s\"%s\": \"%s\"", first ? "" : ", ", t[k].name, name);
    }
    fputs("}}\n", f);
    return fclose(f) == 0 ? 0 : -errno;
}

static int write_config(const struct making *m)
{
    const struct shape *s = &m->s;
    char path[4096], window[32] = "null";

    if (s->window > 0)
        snprintf(window, sizeof window, "%ld", s->window);
    snprintf(path, sizeof path, "%s/config.json", m->dir);
    FILE *f = fopen(path, "we");
    if (!f)
        return -errno;
    fprintf(
        f,
        "{\"architectures\": [\"MistralForCausalLM\"], \"model_type\": \"mistral\", "
        "\"hidden_size\": %ld, \"num_hidden_layers\": %ld, \"num_attention_heads\": %ld, "
        "\"num_key_value_heads\": %ld, \"head_dim\": %ld, \"intermediate_size\": %ld, "
        "\"vocab_size\": %ld, \"sliding_window\": %s, \"rms_norm_eps\": 1e-05, "
        "\"rope_theta\": 10000.0, \"max_position_embeddings\": 32768, \"hidden_act\": \"silu\", "
        "\"tie_word_embeddings\": false, \"torch_dtype\": \"bfloat16\", \"bos_token_id\": 1, "
        "\"eos_token_id\": 2}\n",
        s->hidden, s->layers, s->heads, s->kv_heads, s->head_dim, s->intermediate, s->vocab,
        window);
    return fclose(f) == 0 ? 0 : -errno;
}

int main(int argc, char **argv)
{
    static struct making m;
    pthread_t threads[THREADS_MAX];
    long *v = &m.s.hidden, cores = sysconf(_SC_NPROCESSORS_ONLN);
    int n = 0;

    if (argc != 10) {
        fprintf(stderr,
                "use: %s DIR hidden layers heads kv_heads head_dim intermediate vocab "
                "window\n",
                argv[0]);
        return 2;
    }
    for (int i = 0; i < 8; i++) {
        v[i] = strtol(argv[i + 2], NULL, 10);
        if (v[i] < (i < 7) || v[i] > 1 << 20)
            return 2;
    }
    m.dir = argv[1];
    m.pool = malloc(POOL * sizeof *m.pool);
    if (!m.pool)
        return 1;
    fill_pool(m.pool);
    for (int i = 0; i < 1 << 14; i++)
        m.one[i] = bf16_from_f32(1.0f);
    for (cores = cores < THREADS_MAX ? cores : THREADS_MAX; n < cores; n++)
        if (pthread_create(&threads[n], NULL, work, &m) != 0)
            break;
    work(&m);
    while (n > 0)
        pthread_join(threads[--n], NULL);
    int r = -atomic_load(&m.failed);
    if (r == 0)
        r = write_index(&m);
    if (r == 0)
        r = write_config(&m);
    free(m.pool);
    if (r < 0)
        fprintf(stderr, "%s: %s\n", m.dir, strerror(-r));
    return r < 0;
}
