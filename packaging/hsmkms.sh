#!/bin/sh
# hsmkms as the unit runs it: its user, its settings, its state directory. A command that root ran by itself would leave
# files behind that the service cannot open. docs/operations.md says how to install it.
set -eua
HSMKMS_STATE_DIR=/var/lib/hsmkms
[ ! -e /etc/hsmkms/environment ] || . /etc/hsmkms/environment
exec runuser -u hsmkms -- /opt/hsmkms/bin/hsmkms "$@"
