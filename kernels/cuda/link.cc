/* link.cc - makes the C++ linker put the CUDA objects into one module. */
