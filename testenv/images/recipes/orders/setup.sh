#!/bin/sh
# Inside the image's root. The cluster's configuration stays in the image, its
# data lives on the volume that is mounted at /srv/orders. A pristine cluster is
# made here and packed: unpacking it on a new volume takes a second where initdb
# takes a minute on an emulated processor.
set -eu
pgbin=/usr/lib/postgresql/15/bin
export LC_ALL=C

install -d -o postgres -g postgres -m 0755 /srv/orders
pg_createcluster 15 main -d /srv/orders/15/main --start-conf=auto --locale=C -- --data-checksums >/dev/null
conf=/etc/postgresql/15/main
install -d -o postgres -g postgres -m 0755 $conf/conf.d
grep -q "^include_dir = .conf.d." $conf/postgresql.conf || echo "include_dir = 'conf.d'" >> $conf/postgresql.conf
cat > $conf/conf.d/orders.conf <<'CONF'
# The address comes and goes with the grant; listening on all of them needs no order.
listen_addresses = '*'
fsync = on
synchronous_commit = on
full_page_writes = on
max_connections = 40
shared_buffers = 64MB
jit = off
CONF
cat > $conf/pg_hba.conf <<'CONF'
# The lab's segment is closed: no password for the two users of the demo.
local  all     postgres                   peer
host   orders  monitor   127.0.0.1/32     trust
host   orders  monitor   10.77.0.0/24     trust
host   orders  orders    10.77.0.0/24     trust
CONF

single() { su postgres -c "$pgbin/postgres --single -j -D /srv/orders/15/main -c config_file=$conf/postgresql.conf $1" >/dev/null; }
single postgres <<'SQL'
create role monitor login connection limit 10;

create role orders login;

create database orders owner orders;

SQL
single orders <<'SQL'
create table entries (
	client text not null,
	seq bigint not null,
	body text not null,
	noted timestamptz not null default clock_timestamp(),
	primary key (client, seq)
);

alter table entries owner to orders;

grant select on entries to monitor;

SQL
# The single-user server goes on after an error: look whether all is there.
echo "select 'entries ' || count(*) from entries" |
	su postgres -c "$pgbin/postgres --single -D /srv/orders/15/main -c config_file=$conf/postgresql.conf orders" 2>&1 | grep -q 'entries 0'
su postgres -c "$pgbin/pg_checksums --check -D /srv/orders/15/main" >/dev/null

install -d -o postgres -g postgres -m 0700 /usr/share/orders
tar --create --file=- --directory=/srv/orders/15 --numeric-owner main | gzip -1 > /usr/share/orders/cluster.tar.gz
rm -rf /srv/orders/15
rm -f /srv/orders/* /var/log/postgresql/*
# Stock, and it must stay so: the unit of the database is enabled.
test -L /etc/systemd/system/multi-user.target.wants/postgresql.service
