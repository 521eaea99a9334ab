#!/bin/sh
# Before the packages are unpacked. The data of a database outlives its image:
# the numbers of its owner are fixed, so that the next image reads it too.
set -eu
root=$1
echo 'postgres:x:5432:5432:PostgreSQL administrator:/var/lib/postgresql:/bin/bash' >> "$root/etc/passwd"
echo 'postgres:x:5432:' >> "$root/etc/group"
# No cluster at installation: setup.sh makes it where the volume is mounted.
mkdir -p "$root/etc/postgresql-common"
echo 'create_main_cluster = false' > "$root/etc/postgresql-common/createcluster.conf"
