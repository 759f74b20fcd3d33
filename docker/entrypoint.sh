#!/bin/sh
# Every container of the preprocessing image starts here: numba's cache is copied to where it can be written, because
# numba does not read a cache that it cannot write to.
set -eu
[ -e "$NUMBA_CACHE_DIR" ] || cp -R /opt/kebiolm/numba "$NUMBA_CACHE_DIR"
exec "$@"
