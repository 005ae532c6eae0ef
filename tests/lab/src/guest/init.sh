#!/bin/sh
# The first program of a guest: sets it up, then runs the scripts that come on the console.
#
# A script comes in lines of base64 and ends with a line "RUN n". Its output goes to the console, and then a line
# "@@RC n code". "SHELL" instead gives the console to a person, and is the last.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin:/lib/drbd:/usr/lib/drbd HOME=/root TERM=dumb
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
mkdir -p /run/lock
stty -echo -onlcr
if [ -f /modules/order ]; then
    while read -r module; do insmod "/modules/$module"; done </modules/order
fi
ip link set lo up
for word in $(cat /proc/cmdline); do
    case $word in
    lab.name=*) hostname "${word#*=}" ;;
    lab.address=*)
        # The network card comes up a moment after the kernel.
        n=0
        until [ -e /sys/class/net/vec0 ] || [ $n -ge 50 ]; do sleep 0.1; n=$((n + 1)); done
        ip address add "${word#*=}" dev vec0
        ip link set vec0 up
        ;;
    esac
done
echo "@@READY"
: >/tmp/script
while read -r line; do
    case $line in
    "RUN "*)
        base64 -d /tmp/script >/tmp/job
        : >/tmp/script
        sh /tmp/job </dev/null 2>&1
        echo "@@RC ${line#RUN } $?"
        ;;
    SHELL)
        setsid cttyhack sh
        break
        ;;
    *) echo "$line" >>/tmp/script ;;
    esac
done
poweroff -f
