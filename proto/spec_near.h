/* spec_near.h - what a person meant by a key that is none. */
#ifndef PROTO_SPEC_NEAR_H
#define PROTO_SPEC_NEAR_H

#include <stddef.h>

/* A name that other programs, papers and habit give to one of alignd's keys. Not an
 * alias: either its meaning is not certain, or no program reads it in a job file. */
struct spec_hint {
    const char *name; /* lower case                                  */
    const char *says; /* after "unknown key; ": what would be right  */
};

extern const struct spec_hint spec_hints[];
extern const size_t spec_n_hints;
extern const struct spec_hint spec_entry_hints[]; /* of an entry of train: or eval: */
extern const size_t spec_n_entry_hints;

/* What to say of this name, or NULL. Capitals and hyphens do not count. */
const char *spec_near_hint(const char *name);
const char *spec_near_entry_hint(const char *name);

/* Of the names of a job file (capitals and hyphens do not count) the one that is near by
 * edit distance in proportion to the length, else the only key that has `name` among its
 * words (`target_modules`: lora_target_modules), or NULL. */
const char *spec_near_key(const char *name);

/* The nearest of a list of n words, or NULL if none is near. */
const char *spec_near_word(const char *name, const char *const *list, size_t n);

#endif
