/* gpu_watch.h - NVML on threads of its own, so that a driver that hangs holds up nobody.
 *
 *   sampler  nvml_sample() every period, with the processes looked up; the newest is kept
 *   events   nvml_wait(); up to GPU_WATCH_EVENTS are kept
 *
 * Both only fill memory and call wake(). A call of the sampler that takes longer than
 * hang_ms (open_ms for the first, which initialises the driver) makes the state
 * GPU_WATCH_HANGS until it returns. What NVML refuses is tried again every retry_ms. */
#ifndef DAEMON_GPU_WATCH_H
#define DAEMON_GPU_WATCH_H

#include "daemon/nvml.h"
#include "daemon/process.h"

enum { GPU_WATCH_EVENTS = 64 };

enum gpu_watch_state {
    GPU_WATCH_STARTING, /* nothing is known yet                                        */
    GPU_WATCH_ABSENT,   /* no library: for good                                        */
    GPU_WATCH_REFUSED,  /* there is one, but it says no: `why`                         */
    GPU_WATCH_OK,
    GPU_WATCH_HANGS, /* the driver does not answer; gpus are as last seen              */
};

struct gpu_watch_gpu {
    struct nvml_gpu g;
    struct process process[NVML_PROCESSES_MAX]; /* of g.process; pid 0: not shown here */
};

struct gpu_watch_news {
    enum gpu_watch_state state;
    uint64_t sample; /* counts them; 0: none yet                                       */
    const struct gpu_watch_gpu *gpus; /* valid until the next take                     */
    size_t n_gpus;
    struct nvml_event events[GPU_WATCH_EVENTS];
    size_t n_events;
    bool no_events; /* this driver has none                                            */
    char why[512], driver[80];
};

struct gpu_watch_opts {
    int period_ms, hang_ms, open_ms, retry_ms;
    void (*wake)(void *arg); /* on a thread of the watch; may only signal              */
    void *arg;
};

struct gpu_watch;

int gpu_watch_start(const struct gpu_watch_opts *opts, struct gpu_watch **ret);
/* Waits until it is not STARTING any more, at most so long. */
void gpu_watch_await(struct gpu_watch *w, int ms);
/* What is known now, and the events since the last take. One thread only. */
void gpu_watch_take(struct gpu_watch *w, struct gpu_watch_news *ret);
/* Ends the threads; after 3 s leaves those alone that hang in the driver, and what they
 * use. NULL is a no-op. 1: some were left. */
int gpu_watch_stop(struct gpu_watch *w);

#endif
