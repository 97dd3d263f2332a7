/* has_sim.h - whether this build has the simulation of CUDA: every build but one made without
 * NVIDIA's headers. What runs on it is skipped there, and only there. */
#ifndef TESTS_SUPPORT_HAS_SIM_H
#define TESTS_SUPPORT_HAS_SIM_H

#include <stdbool.h>

#ifdef HAVE_SIM
static const bool has_sim = true;
#else
static const bool has_sim = false;
#endif

#endif
