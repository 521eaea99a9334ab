#!/bin/sh
# Inside the image's root: the package's own site serves our page.
set -eu
rm -f /var/www/html/index.nginx-debian.html
test -L /etc/systemd/system/multi-user.target.wants/nginx.service
nginx -t -q
rm -f /var/log/nginx/*
