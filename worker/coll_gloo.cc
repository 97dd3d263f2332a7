/* coll_gloo.cc - pieces over Gloo's TCP transport, loopback only.
 *
 * Only Gloo's meeting and its unbound buffers are used: its collectives add in
 * an order of their own. It throws; nothing thrown leaves this file. Gloo 0.5
 * does not use MSG_NOSIGNAL: programs that open this ignore SIGPIPE. */
#include <cerrno>
#include <chrono>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include <sys/socket.h>

#include <gloo/common/error.h>
#include <gloo/rendezvous/context.h>
#include <gloo/rendezvous/prefix_store.h>
#include <gloo/rendezvous/store.h>
#include <gloo/transport/tcp/device.h>
#include <gloo/transport/unbound_buffer.h>

extern "C" {
#include "proto/limit.h"
#include "worker/coll_impl.h"
}

namespace
{

using clock_type = std::chrono::steady_clock;
using ms = std::chrono::milliseconds;

/* A failure of the store underneath, by its errno. */
struct store_failure : std::exception {
    int code;
    explicit store_failure(int r) : code(r) {}
    const char *what() const noexcept override { return "the store where ranks meet failed"; }
};

/* Gloo's store interface over the C one. */
class store : public gloo::rendezvous::Store
{
    coll_store ops;
    int64_t timeout_ms;

    std::vector<char> fetch(const std::string &key, int64_t timeout)
    {
        std::vector<char> value(LIMIT_RDV_BYTES);
        size_t bytes = 0;
        const int r = ops.get(ops.arg, key.c_str(), value.data(), value.size(), &bytes, timeout);
        if (r < 0)
            throw store_failure(r);
        value.resize(bytes);
        return value;
    }

  public:
    store(const coll_store &o, int64_t timeout) : ops(o), timeout_ms(timeout) {}

    void set(const std::string &key, const std::vector<char> &value) override
    {
        const int r = ops.put(ops.arg, key.c_str(), value.data(), value.size());
        if (r < 0)
            throw store_failure(r);
    }
    std::vector<char> get(const std::string &key) override { return fetch(key, timeout_ms); }
    void wait(const std::vector<std::string> &keys) override { wait(keys, ms(timeout_ms)); }
    void wait(const std::vector<std::string> &keys, const ms &timeout) override
    {
        for (const auto &key : keys)
            (void)fetch(key, timeout.count());
    }
};

struct group {
    std::unique_ptr<store> meeting;
    std::unique_ptr<gloo::rendezvous::PrefixStore> prefixed;
    std::shared_ptr<gloo::transport::Device> device;
    std::shared_ptr<gloo::rendezvous::Context> context;
    uint64_t moves = 0;
    int ranks = 0;
};

/* Gloo 0.5 tells its failures apart only by text. */
int code_of(const std::string &what)
{
    static const char *const gone[] = {"closed by peer", "eset by peer", "roken pipe",
                                       "not connected",  "refused",      "state_ "};

    for (const char *text : gone)
        if (what.find(text) != std::string::npos)
            return -ECONNRESET;
    if (what.find("imed out") != std::string::npos || what.find("imeout") != std::string::npos)
        return -ETIMEDOUT;
    return -EIO;
}

int say(struct err *err, int code, const char *detail)
{
    if (code == -ECONNRESET)
        return err_set(err, code, "a peer is gone (%.300s)", detail);
    if (code == -ETIMEDOUT)
        return err_set(err, code, "the other ranks did not answer in time (%.300s)", detail);
    return err_set(err, code, "ranks cannot exchange data: %.300s", detail);
}

template <class F> int guard(struct err *err, F f)
{
    try {
        f();
        return 0;
    } catch (const store_failure &e) {
        return err_set(err, e.code, "the ranks could not meet: %s", strerror(-e.code));
    } catch (const std::bad_alloc &) {
        return err_set(err, -ENOMEM, "no memory to exchange data between ranks");
    } catch (const std::exception &e) {
        return say(err, code_of(e.what()), e.what());
    } catch (...) {
        return err_set(err, -EIO, "ranks cannot exchange data");
    }
}

ms left(clock_type::time_point deadline)
{
    const auto d = std::chrono::duration_cast<ms>(deadline - clock_type::now());
    return d.count() > 0 ? d : ms(1);
}

/* The k-th piece between two ranks has slot k of this move. */
void post(group *g, const coll_move *m, bool send,
          std::vector<std::unique_ptr<gloo::transport::UnboundBuffer>> &buffers)
{
    const coll_piece *v = send ? m->send : m->recv;
    const int n = send ? m->n_send : m->n_recv;
    std::vector<uint64_t> next(static_cast<size_t>(g->ranks), 0);

    for (int i = 0; i < n; i++) {
        const uint64_t slot = g->moves * 4 + next[v[i].peer]++;
        auto b = g->context->createUnboundBuffer(v[i].data, v[i].bytes);
        const int peer = static_cast<int>(v[i].peer);
        if (send)
            b->send(peer, slot, 0, v[i].bytes);
        else
            b->recv(peer, slot, 0, v[i].bytes);
        buffers.push_back(std::move(b));
    }
}

int gloo_move(void *self, const struct coll_move *m, struct err *err)
{
    group *g = static_cast<group *>(self);
    std::vector<std::unique_ptr<gloo::transport::UnboundBuffer>> in, out;
    const auto deadline = clock_type::now() + ms(m->timeout_ms);

    const int r = guard(err, [&] {
        post(g, m, false, in);
        post(g, m, true, out);
        for (auto &b : in)
            b->waitRecv(nullptr, left(deadline));
        for (auto &b : out)
            b->waitSend(nullptr, left(deadline));
        g->moves++;
    });
    if (r < 0) /* nothing may write into the caller's memory after this */
        (void)guard(nullptr, [&] { g->context->closeConnections(); });
    return r;
}

void gloo_close(void *self)
{
    group *g = static_cast<group *>(self);

    (void)guard(nullptr, [&] {
        g->context->closeConnections();
        g->context.reset();
    });
    delete g;
}

} // namespace

extern "C" int coll_gloo_open(const struct coll_opts *o, const struct coll_impl **ret_impl,
                              void **ret_self, struct err *err)
{
    static const struct coll_impl impl = {gloo_move, gloo_close};
    std::unique_ptr<group> g;

    if (!o->store)
        return err_set(err, -EINVAL, "gloo ranks need a store to meet in");
    const int r = guard(err, [&] {
        gloo::transport::tcp::attr attr;
        attr.hostname = "127.0.0.1";
        attr.ai_family = AF_UNSPEC;

        g.reset(new group);
        g->ranks = static_cast<int>(o->ranks);
        g->device = gloo::transport::tcp::CreateDevice(attr);
        g->meeting.reset(new store(*o->store, o->timeout_ms));
        g->prefixed.reset(new gloo::rendezvous::PrefixStore("gloo", *g->meeting));
        g->context = std::make_shared<gloo::rendezvous::Context>(static_cast<int>(o->rank),
                                                                 static_cast<int>(o->ranks));
        g->context->setTimeout(ms(o->timeout_ms));
        g->context->connectFullMesh(*g->prefixed, g->device);
    });
    if (r < 0)
        return r;
    *ret_impl = &impl;
    *ret_self = g.release();
    return 0;
}
