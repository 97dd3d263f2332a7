/* spm_shim.cc - see spm.h. */
#include "worker/spm.h"

#include <sentencepiece_processor.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <string>
#include <string_view>
#include <vector>

struct spm {
    sentencepiece::SentencePieceProcessor p;
};

struct spm *spm_parse(const void *bytes, size_t n, char *message, size_t size)
{
    struct spm *s = nullptr;
    try {
        s = new spm;
        const auto status =
            s->p.LoadFromSerializedProto(std::string_view(static_cast<const char *>(bytes), n));
        if (status.ok())
            return s;
        (void)snprintf(message, size, "%s", status.message());
    } catch (const std::exception &e) {
        (void)snprintf(message, size, "%s", e.what());
    }
    delete s;
    return nullptr;
}

void spm_close(struct spm *s)
{
    delete s;
}

int32_t spm_vocab(const struct spm *s)
{
    return s->p.GetPieceSize();
}

int32_t spm_bos(const struct spm *s)
{
    return s->p.bos_id();
}

int32_t spm_eos(const struct spm *s)
{
    return s->p.eos_id();
}

const char *spm_piece(const struct spm *s, int32_t id)
{
    return id >= 0 && id < s->p.GetPieceSize() ? s->p.IdToPiece(id).c_str() : nullptr;
}

bool spm_is_control(const struct spm *s, int32_t id)
{
    return s->p.IsControl(id) || s->p.IsUnknown(id);
}

bool spm_is_byte(const struct spm *s, int32_t id)
{
    return s->p.IsByte(id);
}

int32_t spm_id(const struct spm *s, const char *piece)
{
    try {
        const int id = s->p.PieceToId(piece);
        return s->p.IdToPiece(id) == piece ? id : -1; /* unknown pieces give unk's id */
    } catch (const std::exception &) {
        return -1;
    }
}

int spm_encode(const struct spm *s, const char *text, size_t n, int32_t **ret, size_t *ret_n)
{
    try {
        std::vector<int> ids;
        const auto status = s->p.Encode(std::string_view(text, n), &ids);
        if (!status.ok())
            return -EIO;
        int32_t *v = static_cast<int32_t *>(malloc((ids.size() + 1) * sizeof *v));
        if (!v)
            return -ENOMEM;
        for (size_t i = 0; i < ids.size(); i++)
            v[i] = ids[i];
        *ret = v;
        *ret_n = ids.size();
        return 0;
    } catch (const std::bad_alloc &) {
        return -ENOMEM;
    } catch (const std::exception &) {
        return -EIO;
    }
}
