#!/bin/sh
# cuda_home.sh DIRECTORY: make CUDA's wheels look like an installed toolkit, for nvcc's callers. No wheels, no directory.
set -eu
home=$1
wheels=$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nvidia/cu13
[ -x "$wheels/bin/nvcc" ] || exit 0
mkdir -p "$home/lib64/stubs"
for part in bin include nvvm; do
    ln -s "$wheels/$part" "$home/$part"
done
for library in "$wheels"/lib/lib*.so.*; do
    name=${library##*/}
    ln -s "$library" "$home/lib64/${name%%.so.*}.so"
done
# The linker wants a libcuda.so; the one that is loaded later is the driver's.
g++ -shared -fPIC -x c++ /dev/null -Wl,-soname,libcuda.so.1 -o "$home/lib64/stubs/libcuda.so"
