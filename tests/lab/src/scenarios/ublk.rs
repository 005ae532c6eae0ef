//! Block devices of the kernel. Two nodes run in one machine, on either of two kernels.

use anyhow::{Result, ensure};

use crate::{Linux, Vm};

/// A volume that holds nothing for long.
const SMALL: &str = "16M";

/// What the device says of itself, who may remove it, and that it follows the Primary.
pub fn ublk_device_is_there_while_its_node_is_primary(vm: &mut Vm) -> Result<()> {
    vm.start_pair(SMALL)?;
    let said = vm.run(
        "Q=/sys/block/ublkb0/queue
        [ $(readlink $D) = /dev/ublkb0 ]; has_size 16777216
        for is in logical_block_size=512 rotational=1 fua=1 discard_max_bytes=134217728 write_zeroes_max_bytes=134217728 \
            max_hw_sectors_kb=1024 chunk_sectors=2048; do
            [ \"$(cat $Q/${is%=*})\" = ${is#*=} ] || { echo \"$is, not $(cat $Q/${is%=*})\"; exit 1; }
        done
        [ \"$(cat $Q/write_cache)\" = 'write back' ]
        a status -v",
    )?;
    for wanted in ["/dev/zea/r0/0 (/dev/ublkb0)", "block devices by ublk", "user-recovery-reissue"] {
        ensure!(said.contains(wanted), "no {wanted} in {said}");
    }
    vm.run(
        "p=/proc/$(cat /run/a.pid)
        [ $(cat $p/oom_score_adj) = -1000 ]; [ $(awk '/VmLck/ { print $2 }' $p/status) -gt 1000 ]
        for thread in $p/task/*; do
            case $(cat $thread/comm) in
                zea-shard*) [ $(($(cut -d' ' -f9 $thread/stat) & 0x80000)) -gt 0 ] && echo protected ;;
            esac
        done | grep -q protected",
    )?;
    vm.run(
        "sleep 1000 <$D & echo $! >/run/user
        fails a demote r0; grep -q \"sleep (process $(cat /run/user))\" /tmp/said
        fails a down r0; grep -q 'in use' /tmp/said
        kill $(cat /run/user); wait || true
        a demote r0
        [ ! -e /dev/ublkb0 ]; [ ! -e $D ]
        b promote r0
        [ -b $D ]; b demote r0; [ ! -e /sys/class/ublk-char/ublkc0 ]",
    )?;
    vm.step("the role moved");
    // A daemon that ends in order leaves no device; one that is killed leaves it to the next.
    vm.run(
        "a promote r0; kill $(cat /run/a.pid)
        until_true gone /sys/class/ublk-char/ublkc0",
    )?;
    vm.step("the daemon ended");
    Ok(())
}

/// Blocks of all sizes, and both replicas equal.
pub fn ublk_fio_verifies_blocks_of_all_sizes(vm: &mut Vm) -> Result<()> {
    vm.start_pair("32M")?;
    vm.run(
        "fio --name=v --filename=$D --direct=1 --ioengine=io_uring --iodepth=16 --rw=randwrite --bsrange=512-4m \
            --bs_unaligned=0 --blockalign=512 --size=100% --io_size=48m --verify=crc32c --verify_fatal=1 --randseed=7 \
            --group_reporting --minimal",
    )?;
    vm.step("mixed blocks verified");
    vm.run(
        "for bs in 512 4k 64k 1m 4m; do
            fio --name=v --filename=$D --direct=1 --ioengine=io_uring --iodepth=8 --rw=write --bs=$bs --offset=4m \
                --size=4m --verify=md5 --verify_fatal=1 --minimal --number_ios=512
        done",
    )?;
    vm.step("each block size verified");
    unaligned_is_refused(vm)?;
    replicas_are_equal(vm, 32 << 20)
}

fn unaligned_is_refused(vm: &mut Vm) -> Result<()> {
    vm.run(
        "fails /opt/dd if=/dev/zero of=$D bs=511 count=1 oflag=direct; grep -q 'Invalid argument' /tmp/said
        fails /opt/dd if=$D of=/dev/null bs=513 count=1 iflag=direct; grep -q 'Invalid argument' /tmp/said
        /opt/dd if=/dev/zero of=$D bs=512 count=1 oflag=direct",
    )?;
    vm.step("unaligned refused");
    Ok(())
}

/// Demotes, so that nothing is under way, and compares the data on both disks.
fn replicas_are_equal(vm: &mut Vm, bytes: u64) -> Result<()> {
    vm.run("a wait r0 --for synced; a demote r0")?;
    vm.compare(bytes)
}

/// Flush, FUA, discard and zeroes arrive, and do what they say.
pub fn ublk_flushes_fua_discards_and_zeroes(vm: &mut Vm) -> Result<()> {
    vm.start_pair(SMALL)?;
    vm.run(
        "dd if=/dev/urandom of=$D bs=1M count=16 conv=fsync
        zero() { dd if=$D bs=64k skip=$1 count=$2 iflag=direct 2>/dev/null | cmp -s -n $(($2 * 65536)) - /dev/zero; }
        /opt/blkdiscard -z -o 0 -l 1M $D; zero 0 16
        ! zero 16 1
        /opt/blkdiscard -o 2M -l 4M $D
        /opt/blkdiscard -z -o 1049088 -l 512 $D; dd if=$D bs=512 skip=2049 count=1 iflag=direct 2>/dev/null | cmp -s -n 512 - /dev/zero
        fails /opt/blkdiscard -o 17M -l 1M $D",
    )?;
    vm.step("discarded and zeroed");
    vm.run(
        "flushes() { awk '{print $16}' /sys/block/ublkb0/stat; }
        before=$(flushes)
        /opt/dd if=/dev/urandom of=$D bs=4k count=8 oflag=direct,dsync
        dd if=/dev/urandom of=$D bs=4k seek=16 count=8 conv=fsync
        [ $(flushes) -gt $before ]
        fio --name=s --filename=$D --rw=randwrite --bs=4k --size=1m --fsync=4 --fdatasync=3 --verify=crc32c --minimal",
    )?;
    vm.step("flushed");
    replicas_are_equal(vm, 16 << 20)
}

/// File systems: made, mounted, written, trimmed, checked, and found again from the other node.
pub fn ublk_file_systems_move_between_the_nodes(vm: &mut Vm) -> Result<()> {
    vm.start_pair("64M")?;
    vm.run(
        "mkfs.ext4 -q $D; mount -t ext4 $D /mnt
        dd if=/dev/urandom of=/mnt/file bs=1M count=8 conv=fsync; md5sum /mnt/file >/run/sum
        fstrim /mnt
        fails a demote r0; grep -q 'mounted on /mnt' /tmp/said
        umount /mnt; e2fsck -fn $D; a demote r0; b promote r0
        mount -t ext4 $D /mnt; md5sum -c /run/sum; umount /mnt",
    )?;
    vm.step("ext4");
    // Less than 300 MiB is unsupported, which mkfs.xfs wants to be told.
    vm.run(
        "mkfs.xfs -q -f --unsupported $D; mount -t xfs $D /mnt
        dd if=/dev/urandom of=/mnt/file bs=1M count=8 conv=fsync; md5sum /mnt/file >/run/sum
        umount /mnt; xfs_repair -n $D; b demote r0; a promote r0
        mount -t xfs $D /mnt; md5sum -c /run/sum; umount /mnt",
    )?;
    vm.step("XFS");
    replicas_are_equal(vm, 64 << 20)
}

/// A device grows while it is in use where the driver can, else with the next promotion.
pub fn ublk_device_grows(vm: &mut Vm) -> Result<()> {
    vm.start_pair(SMALL)?;
    vm.run("mkfs.ext4 -q $D; mount -t ext4 $D /mnt; a resize r0 0 24M")?;
    let at_once = match vm.linux() {
        Linux::V6_12 => "umount /mnt; has_size 16777216; a demote r0; a promote r0",
        Linux::V7_3 => "until_true has_size 25165824; umount /mnt",
    };
    vm.run(&format!("{at_once}\nhas_size 25165824"))?;
    vm.run("dd if=/dev/urandom of=$D bs=1M seek=16 count=8 oflag=direct")?;
    vm.step("grown");
    replicas_are_equal(vm, 24 << 20)
}

/// A daemon that is killed under I/O twice: its successors become Primary again and go on, and who writes sees a pause.
pub fn ublk_a_killed_daemon_is_followed_under_load(vm: &mut Vm) -> Result<()> {
    vm.start_pair("32M")?;
    vm.run(
        "busy() { [ $(awk '{print $1 + $2}' /sys/block/ublkb0/inflight) -gt 0 ]; }
        fio --name=k --filename=$D --direct=1 --ioengine=io_uring --iodepth=8 --rw=randwrite --bs=4k --size=12m \
            --rate=1500k --verify=crc32c --verify_fatal=1 --minimal >/run/fio 2>&1 & echo $! >/run/fio.pid
        for n in 1 2; do
            until_true busy; sleep 2; kill -9 $(cat /run/a.pid); sleep 0.5; start a 0
            until_true grep -q 'Primary again' /run/a.log; kill -0 $(cat /run/fio.pid); sed -i 's/Primary again/It was so/' /run/a.log
        done
        wait $(cat /run/fio.pid) || { cat /run/fio; exit 1; }
        hot=$(awk '/activity log replayed:/ { n = $(NF - 7) } END { print n }' /run/a.log)
        went=$(awk '/ begins: / { n = $(NF - 1) } END { print n }' /run/a.log)
        echo $hot extents were hot, $went KiB went; [ $hot -le 3 ]; [ $went -le $((hot * 4096)) ]
        if grep -q 'is removed' /run/a.log; then exit 1; fi",
    )?;
    vm.step("written and verified");
    replicas_are_equal(vm, 32 << 20)
}

/// A file system that is mounted while its daemon is killed is whole afterwards, with everything that was synced.
pub fn ublk_a_mounted_file_system_outlives_its_daemon(vm: &mut Vm) -> Result<()> {
    vm.start_pair("32M")?;
    vm.run(
        "mkfs.ext4 -q $D; mount -t ext4 $D /mnt
        ( n=0; while [ ! -e /run/enough ]; do
            n=$((n + 1)); echo $n >/mnt/$n && sync -f /mnt/$n && echo $n >/run/synced || exit 1
        done; echo good >/run/writer ) &
        until_true [ -e /run/synced ]; sleep 1
        kill -9 $(cat /run/a.pid); sleep 0.5; start a 0
        until_true grep -q 'Primary again' /run/a.log
        before=$(cat /run/synced); more() { [ $(cat /run/synced) -gt $((before + 3)) ]; }; until_true more
        touch /run/enough; until_true [ -e /run/writer ]
        umount /mnt; e2fsck -fn $D; a demote r0; b promote r0
        mount -t ext4 $D /mnt; [ $(cat /mnt/$(cat /run/synced)) = $(cat /run/synced) ]; umount /mnt; b demote r0",
    )?;
    vm.step("all that was synced is there");
    vm.compare(32 << 20)
}

/// Another node went on while the daemon was away: what waits for its device fails, and nothing of it is written.
pub fn ublk_a_killed_daemon_is_not_followed_where_another_node_went_on(vm: &mut Vm) -> Result<()> {
    vm.start_pair(SMALL)?;
    vm.run(
        "( set +e; /opt/dd if=/dev/zero of=$D bs=4k count=1000000 oflag=direct >/run/dd 2>&1; echo \"ended $?\" >>/run/dd ) &
        sleep 1; kill -9 $(cat /run/a.pid)
        until_true quiet b promote r0
        /opt/dd if=/dev/urandom of=$D bs=1M count=16 oflag=direct; md5sum <$D >/run/sum
        start a 0
        until_true grep -q ended /run/dd
        grep -q 'ended 1' /run/dd; grep -q 'Input/output error' /run/dd
        [ ! -e /dev/ublkb0 ]
        b wait r0 --for synced
        md5sum <$D | cmp - /run/sum; b demote r0",
    )?;
    vm.step("what waited has failed");
    vm.compare(16 << 20)
}
