/* library.h - finding a shared library that is not ours; private to the loader. */
#ifndef KERNELS_LIBRARY_H
#define KERNELS_LIBRARY_H

/* Opens it and returns the handle, or NULL; what is loaded later and needs it finds it by its
 * name. program: the folder of the running program, or NULL. The order is that of
 * kn_symbol's comment. */
void *library_find(const char *soname, const char *program);

#endif
