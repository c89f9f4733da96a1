#!/bin/sh
# Removes the encoders x264 and x265 (GPL) from the library `av` of a virtual environment: deploy/drop_encoders.sh ENVIRONMENT
# emotion-batch only decodes, and FFmpeg decodes H.264 and H.265 itself. Because FFmpeg is linked to both encoders, an empty library
# takes the place of each, whose functions return 0. FFmpeg asks x265 for its interface as soon as `av` is imported. This needs gcc and
# binutils.
set -eu
folder="$(ls -d "$1"/lib/python3.*/site-packages/av.libs)"
for name in x264 x265; do
  for library in "$folder"/lib"$name"-*.so.*; do
    [ -e "$library" ] || continue
    nm -D --undefined-only "$folder"/libavcodec-*.so.* | sed -n "s/.* \(${name}_[a-z0-9_]*\)\$/void *\1(void) { return 0; }/p" \
      >"$folder/empty.c"
    gcc -shared -fPIC -nostdlib -Wl,-soname,"$(basename "$library")" -o "$folder/empty.so" "$folder/empty.c"
    mv "$folder/empty.so" "$library"
    rm "$folder/empty.c"
  done
done
